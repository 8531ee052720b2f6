package memcached

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/memcached/store"
	"github.com/pollux-net/pollux/runtime"
)

// wide is input that a random generator would take long to find: lines beyond
// the limit, gets of hundreds of keys, values at and over the limit (of 64 KiB),
// what a reader cannot take at once.
func wide(rng *rand.Rand) string {
	long := strings.Repeat("k", 251)
	value := strings.Repeat("0123456789abcdef", 1<<12-8)
	switch rng.IntN(11) {
	case 0:
		return "get " + strings.Repeat("key1 none key2 ", 300) + "\r\n"
	case 1:
		return "gets " + strings.Repeat("key1 none ", 300) + long + strings.Repeat(" key2", 50) + "\r\n"
	case 2:
		return "get key1 key2 " + long + " key3\r\n"
	case 3:
		return fmt.Sprintf("set key%d 7 0 %d\r\n%s\r\n", rng.IntN(4), len(value), value)
	case 4:
		return fmt.Sprintf("set key5 0 0 %d\r\n%s%s\r\n", 2*len(value), value, value)
	case 5:
		return "get " + strings.Repeat("key0 key1 key2 key3 ", 10) + "\r\n"
	case 6:
		return fmt.Sprintf("append key%d 0 0 20000\r\n%s\r\n", rng.IntN(4), value[:20000])
	case 7:
		return fmt.Sprintf("prepend key%d 0 0 20000\r\n%s\r\n", rng.IntN(4), value[:20000])
	case 8:
		return fmt.Sprintf("gats %d%s\r\n", rng.IntN(2)*1000, strings.Repeat(" key1 none", 300+rng.IntN(2)))
	case 9:
		return "gat " + strings.Repeat(" ", 2037+rng.IntN(10)) + "0 " + strings.Repeat("key1 ", 10) + "\r\n"
	default:
		return strings.Repeat(" ", 80) + "get " + strings.Repeat(" ", 3000) + "key1\x00 key2\r\n"
	}
}

// someday is the time of tests that compare two servers.
var someday = time.Unix(1_700_000_000, 0)

func TestRepliesDoNotDependOnHowInputIsCut(t *testing.T) {
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var b strings.Builder
		for range 300 {
			switch rng.IntN(40) {
			case 0:
				b.WriteString(wide(rng))
			case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
				b.WriteString(generateMeta(rng, true))
			default:
				b.WriteString(generate(rng))
			}
		}
		if seed%4 == 0 {
			b.WriteString(strings.Repeat("x", 2049)) // closes
		} else if seed%4 == 1 {
			b.WriteString("quit\r\n")
		}
		b.WriteString("get key1\r\n")
		input := b.String()

		var want string
		for cut := range 4 {
			s := newServer(t, Options{Memory: 1 << 20, MaxItem: 64 << 10, Now: someday})
			c := dial(s, 0)
			if cut == 0 {
				c.deliver(t, input)
				want = string(c.out)
			} else {
				c.deliverCut(t, input, rng)
				compare(t, fmt.Sprintf("seed %d cut %d", seed, cut), input, string(c.out), want)
			}
			s.Close(c, nil)
			if stats := s.Statistics(); stats.Conns != 0 {
				t.Errorf("seed %d: %d connections left", seed, stats.Conns)
			}
			if t.Failed() {
				return
			}
		}
	}
}

func TestBinaryRepliesDoNotDependOnHowInputIsCut(t *testing.T) {
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 31))
		var b strings.Builder
		for valid := true; valid && b.Len() < 1<<20; {
			var request string
			request, valid = generateBinary(rng, true)
			if rng.IntN(50) == 0 {
				request = packet(opSet, "key1", bigEndian(1, 0), strings.Repeat("0123456789abcdef", rng.IntN(8<<10)), 0, 0)
			}
			b.WriteString(request)
		}
		input := b.String()
		var want string
		for cut := range 4 {
			s := newServer(t, Options{Memory: 1 << 20, MaxItem: 64 << 10, Now: someday})
			c := dial(s, 0)
			switch cut {
			case 0:
				c.deliver(t, input)
				want = string(c.out)
			case 1:
				for i := range min(len(input), 20000) {
					if !c.ended {
						c.deliver(t, input[i:i+1])
					}
				}
				if !c.ended && len(input) > 20000 {
					c.deliver(t, input[20000:])
				}
				compare(t, fmt.Sprintf("seed %d byte by byte", seed), input, string(c.out), want)
			default:
				c.deliverCut(t, input, rng)
				compare(t, fmt.Sprintf("seed %d cut %d", seed, cut), input, string(c.out), want)
			}
			s.Close(c, nil)
			if stats := s.Statistics(); stats.Conns != 0 {
				t.Errorf("seed %d: %d connections left", seed, stats.Conns)
			}
			if t.Failed() {
				return
			}
		}
	}
}

func TestEveryByteAloneGivesTheSameReplies(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 4))
		input := generateMany(rng, 100)
		for range 100 {
			input += generateMeta(rng, true)
		}
		one := dial(newServer(t, Options{Now: someday}), 0)
		one.deliver(t, input)
		each := dial(newServer(t, Options{Now: someday}), 0)
		for i := range input {
			if each.ended {
				break
			}
			each.deliver(t, input[i:i+1])
		}
		compare(t, fmt.Sprintf("seed %d", seed), input, string(each.out), string(one.out))
	}
}

func TestAReaderThatDoesNotReadStopsTheServer(t *testing.T) {
	s := newServer(t, Options{})
	c := dial(s, 0)
	value := strings.Repeat("v", 100000)
	c.deliver(t, fmt.Sprintf("set a 0 0 %d\r\n%s\r\n", len(value), value))
	c.out = nil
	get := "get" + strings.Repeat(" a", 50) + "\r\n"
	input := strings.Repeat(get, 20)
	c.left = []byte(input)
	c.run(t)
	if most := runtime.OutputLimit + len(value) + 100; len(c.buffered) > most {
		t.Errorf("%d bytes are buffered, at most %d may be", len(c.buffered), most)
	}
	if len(c.left) < len(input)-len(get) {
		t.Errorf("%d bytes were consumed although nothing is read", len(input)-len(c.left))
	}
	for len(c.buffered) > 0 {
		c.take(50000)
		c.run(t)
		if most := runtime.OutputLimit + len(value) + 100; len(c.buffered) > most {
			t.Fatalf("%d bytes are buffered, at most %d may be", len(c.buffered), most)
		}
	}
	one := fmt.Sprintf("VALUE a 0 %d\r\n%s\r\n", len(value), value)
	if want := strings.Repeat(strings.Repeat(one, 50)+"END\r\n", 20); string(c.out) != want {
		t.Errorf("got %d bytes of replies, want %d", len(c.out), len(want))
	}
}

func TestALargeValueIsTakenInAsItArrives(t *testing.T) {
	s := newServer(t, Options{})
	c := dial(s, 0)
	c.deliver(t, "set a 0 0 1000000\r\n")
	for range 1000 {
		c.deliver(t, strings.Repeat("x", 1000))
		if len(c.left) > 0 {
			t.Fatalf("%d bytes of a value were left", len(c.left))
		}
	}
	if got := c.ask(t, "\r\n"); got != "STORED\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestAConnectionThatDiesInAValueLeavesNothing(t *testing.T) {
	s := newServer(t, Options{})
	before := s.Statistics().Store.UsedChunks
	for range 200 {
		c := dial(s, 0)
		c.deliver(t, "set a 0 0 1000000\r\nxyz")
		s.Close(c, errors.New("reset by peer"))
	}
	if after := s.Statistics(); after.Store.UsedChunks != before || after.Store.Items != 0 || after.Store.Evictions != 0 {
		t.Errorf("%d chunks in use, before %d; %d items", after.Store.UsedChunks, before, after.Store.Items)
	}
}

func TestValuesBeingReceivedCountTowardsMemory(t *testing.T) {
	s := newServer(t, Options{Memory: 8 << 20})
	var conns []*fakeConn
	replies := 0
	for range 20 {
		c := dial(s, 0)
		conns = append(conns, c)
		c.deliver(t, "set a 0 0 1000000\r\n"+strings.Repeat("x", 999999))
	}
	for _, c := range conns {
		switch got := c.ask(t, "x\r\n"); got {
		case "STORED\r\n":
		case "SERVER_ERROR out of memory storing object\r\n":
			replies++
		default:
			t.Fatalf("got %q", got)
		}
	}
	if replies < 12 || replies > 13 {
		t.Errorf("%d of 20 values of 1 MB were refused by a server with 8 MiB", replies)
	}
	if n := s.Statistics().NoMemory; n != uint64(replies) {
		t.Errorf("store_no_memory is %d, want %d", n, replies)
	}
	if got := conns[0].ask(t, "set b 0 0 1\r\nb\r\nget b\r\n"); got != "STORED\r\nVALUE b 0 1\r\nb\r\nEND\r\n" {
		t.Errorf("afterwards: %q", got)
	}
}

func TestOneConnectionTooManyIsToldSo(t *testing.T) {
	const text = "ERROR Too many open connections\r\n"
	reference := startReference(t, "-o", "maxconns_fast", "-c", "25")
	told := false
	for range 30 {
		c, err := net.Dial("unix", reference.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		all, err := io.ReadAll(c)
		if len(all) > 0 {
			if told = true; string(all) != text || err != nil {
				t.Errorf("memcached says %q (%v)", all, err)
			}
			break
		}
	}
	if !told {
		t.Error("memcached refused no connection")
	}

	s := newServer(t, Options{MaxConns: 3})
	var open []*fakeConn
	for i := range 3 {
		open = append(open, dial(s, i%2))
	}
	c := dial(s, 0)
	if string(c.buffered) != text || !c.ended {
		t.Errorf("got %q, closed %v", c.buffered, c.ended)
	}
	if n := s.Data(c, []byte("version\r\n")); n != 9 || string(c.buffered) != text {
		t.Errorf("a refused connection consumed %d bytes and got %q", n, c.buffered)
	}
	s.Close(c, nil)
	s.Close(open[0], nil)
	c = dial(s, 1)
	if got := c.ask(t, "version\r\n"); got != "VERSION 1.6.18\r\n" {
		t.Errorf("after one has left: %q", got)
	}
	if stats := s.Statistics(); stats.ConnsRejected != 1 || stats.ConnsOpened != 4 || stats.Conns != 3 {
		t.Errorf("counted %+v", stats)
	}
}

func TestTheFirstByteTellsTheProtocol(t *testing.T) {
	request := packet(opVersion, "", "", "", 0, 7)
	answer := "\x81" + request[1:11] + "\x06" + request[12:] + "1.6.18"
	for _, c := range []struct {
		in, out string
		closes  bool
	}{
		{request + request, answer + answer, false},
		{request + "version\r\n" + strings.Repeat("x", 24), answer, true}, // for good
		{"version\r\n" + request + "\r\nversion\r\n", "VERSION 1.6.18\r\nERROR\r\nVERSION 1.6.18\r\n", false},
		{"\x81" + request[1:] + "\r\n", "ERROR\r\n", false},
		{"\x80\n", "", false},
	} {
		conn := dial(newServer(t, Options{}), 0)
		if got := conn.ask(t, c.in); got != c.out || conn.ended != c.closes {
			t.Errorf("%q is answered %q, closed %v; want %q, %v", c.in, got, conn.ended, c.out, c.closes)
		}
	}
}

func TestExpiryGoesByTheClockThatIsTicked(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start})
	c := dial(s, 0)
	at := func(seconds int, in, want string) {
		t.Helper()
		s.Tick(start.Add(time.Duration(seconds) * time.Second))
		if got := c.ask(t, in); got != want {
			t.Errorf("after %d s: %q is answered %q, want %q", seconds, in, got, want)
		}
	}
	set := func(key string, expires int) string { return fmt.Sprintf("set %s 0 %d 1\r\nx\r\n", key, expires) }
	hit := func(key string) string { return "VALUE " + key + " 0 1\r\nx\r\n" }
	at(0, set("now", -1)+"get now\r\n", "STORED\r\nEND\r\n")
	at(0, set("ten", 10)+set("never", 0)+set("absolute", 1_700_000_020)+set("past", 1_699_999_999), strings.Repeat("STORED\r\n", 4))
	at(0, set("month", 60*60*24*30)+set("more", 60*60*24*30+1), strings.Repeat("STORED\r\n", 2))
	at(9, "get ten never absolute past month more\r\n", hit("ten")+hit("never")+hit("absolute")+hit("month")+"END\r\n")
	at(10, "get ten never absolute\r\n", hit("never")+hit("absolute")+"END\r\n")
	at(15, "touch absolute 10\r\nget absolute\r\n", "TOUCHED\r\n"+hit("absolute")+"END\r\n")
	at(24, "gat 5 absolute\r\n", hit("absolute")+"END\r\n")
	at(28, "get absolute\r\n", hit("absolute")+"END\r\n")
	at(29, "get absolute\r\ntouch absolute 5\r\nadd absolute 0 0 1\r\nx\r\n", "END\r\nNOT_FOUND\r\nSTORED\r\n")
	at(5, "get ten\r\n", "END\r\n") // time does not run backwards
	at(60*60*24*30-1, "get month\r\n", hit("month")+"END\r\n")
	at(60*60*24*30, "get month never\r\n", hit("never")+"END\r\n")
	if n := s.Statistics().Uptime; n != 60*60*24*30 {
		t.Errorf("uptime is %d", n)
	}
}

func TestMetaCommandsTellAndSetTimes(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start, Stripes: 1})
	c := dial(s, 0)
	at := func(seconds int, in, want string) {
		t.Helper()
		s.Tick(start.Add(time.Duration(seconds) * time.Second))
		if got := c.ask(t, in); got != want {
			t.Errorf("after %d s: %q is answered %q, want %q", seconds, in, got, want)
		}
	}
	at(0, "ms a 2 T100\r\nhi\r\nms n 1\r\n9\r\n", "HD\r\nHD\r\n")
	at(7, "mg a t l h u\r\nmg a t l h\r\nmg a l h\r\n", "HD t93 l7 h0\r\nHD t93 l7 h0\r\nHD l0 h1\r\n")
	at(10, "mg a t T50 l\r\nmg a t\r\nmg n t\r\nmg a T40 t\r\n", "HD t90 l3\r\nHD t50\r\nHD t-1\r\nHD t40\r\n")
	// The number grows by a digit, and its TTL is the item's: memcached loses it.
	at(10, "ma n T20 t v\r\nmg n t v\r\n", "VA 2 t20\r\n10\r\nVA 2 t20\r\n10\r\n")
	// Recached before it expires, by one.
	at(40, "mg a R5 t\r\nmg a R20 t\r\nmg a R20 t\r\nmg n v\r\n", "HD t10\r\nHD t10 W\r\nHD t10 Z\r\nEN\r\n")
	at(41, "md a I T30\r\nmg a t v\r\nmg a t v\r\nme a\r\n", "HD\r\nVA 2 t30 X W\r\nhi\r\nVA 2 t30 Z X\r\nhi\r\nME a exp=-30 la=0 cas=4 fetch=yes cls=1 size=62\r\n")
	at(71, "mg a\r\nmg b N5 v t\r\nmg b N5 v t\r\n", "EN\r\nVA 0 t5 W\r\n\r\nVA 0 t5 Z\r\n\r\n")
	at(76, "mg b\r\nma c N7 J3 t v\r\n", "EN\r\nVA 1 t7\r\n3\r\n")
	at(83, "mg c\r\nmn\r\n", "EN\r\nMN\r\n")
}

func TestAFlushWithDelayComesWhenItIsDue(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start})
	c := dial(s, 0)
	at := func(seconds int, in, want string) {
		t.Helper()
		s.Tick(start.Add(time.Duration(seconds) * time.Second))
		if got := c.ask(t, in); got != want {
			t.Errorf("after %d s: %q is answered %q, want %q", seconds, in, got, want)
		}
	}
	at(0, "set a 0 0 1\r\nx\r\nflush_all 10\r\nget a\r\n", "STORED\r\nOK\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
	at(8, "set b 0 0 1\r\nx\r\nget a b\r\n", "STORED\r\nVALUE a 0 1\r\nx\r\nVALUE b 0 1\r\nx\r\nEND\r\n")
	at(10, "get a\r\nset c 0 0 1\r\nx\r\nget a b c\r\n", "END\r\nSTORED\r\nVALUE c 0 1\r\nx\r\nEND\r\n")
	// A set in the very second and one in the next survive.
	at(11, "flush_all\r\nget c\r\nset d 0 0 1\r\nx\r\nget d\r\n", "OK\r\nEND\r\nSTORED\r\nVALUE d 0 1\r\nx\r\nEND\r\n")
	// A flush to come is replaced by the next one.
	at(12, "flush_all 5\r\nflush_all 100\r\n", "OK\r\nOK\r\n")
	at(30, "get d\r\n", "VALUE d 0 1\r\nx\r\nEND\r\n")
	at(112, "get d\r\n", "END\r\n")
}

func TestTheOldestItemsMakeRoom(t *testing.T) {
	s := newServer(t, Options{Memory: 8 << 20, Stripes: 1})
	c := dial(s, 0)
	value := strings.Repeat("v", 1000)
	set := func(i int) {
		t.Helper()
		if got := c.ask(t, fmt.Sprintf("set key%06d 0 0 %d\r\n%s\r\n", i, len(value), value)); got != "STORED\r\n" {
			t.Fatalf("set %d: %q", i, got)
		}
	}
	has := func(i int) bool { return strings.HasPrefix(c.ask(t, fmt.Sprintf("get key%06d\r\n", i)), "VALUE") }
	n := 0
	for s.Statistics().Store.Evictions == 0 {
		set(n)
		n++
	}
	if bytes := s.Statistics().Store.Bytes; bytes > 8<<20 || bytes < 6<<20 {
		t.Errorf("the first eviction came with %d bytes of items", bytes)
	}
	if has(0) {
		t.Error("the first item is still there, another was evicted")
	}
	// What is read twice stays, and what is not goes in the order of its coming.
	for i := 1; i < n; i += 3 {
		for range 2 {
			if !has(i) {
				t.Fatalf("item %d of %d is gone after one eviction", i, n)
			}
		}
	}
	for i := range n / 2 {
		set(n + i)
	}
	for i := 1; i < n; i++ {
		if i%3 == 1 && !has(i) {
			t.Fatalf("item %d of %d was read twice and is gone", i, n)
		}
		if i%3 != 1 && i < n*2/3 && has(i) {
			t.Fatalf("item %d of %d is there although newer ones were evicted", i, n)
		}
	}
}

func TestWrongOptionsAreRefusedWithTheirBound(t *testing.T) {
	for _, c := range []struct {
		options Options
		names   string
	}{
		{Options{Memory: 1 << 20}, "minimum is 8388608 bytes (8 MiB)"},
		{Options{Memory: -5}, "minimum is 8388608"},
		{Options{Memory: 1 << 20, MaxItem: 1 << 20}, "8388608"},
		{Options{Memory: 1<<20 - 1, MaxItem: 4096}, "minimum is 1048576"},
		{Options{MaxItem: 1023}, "between 1024"},
		{Options{MaxItem: 1<<30 + 1}, "and 1073741824"},
		{Options{MaxConns: -1}, "at least 1"},
		{Options{Stripes: 3}, "power of two"},
		{Options{Memory: 1 << 43}, "maximum is 412316860224"},
	} {
		if _, err := New(c.options); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("New(%+v): %v; should name %q", c.options, err, c.names)
		}
	}
	if _, err := New(Options{Memory: store.Minimum(DefaultMaxItem)}); err != nil {
		t.Errorf("the minimum itself is refused: %v", err)
	}
}

func TestStatsResetForgetsCountersButNotItems(t *testing.T) {
	s := newServer(t, Options{})
	c := dial(s, 0)
	c.ask(t, "set a 0 0 1\r\nx\r\nget a b\r\nincr b 1\r\n")
	before := c.ask(t, "stats\r\n")
	after := c.ask(t, "stats reset\r\nstats\r\n")
	for _, line := range []string{"cmd_get 2", "get_hits 1", "cmd_set 1", "incr_misses 1", "curr_items 1", "total_items 1", "total_connections 1"} {
		if !strings.Contains(before, "STAT "+line+"\r\n") {
			t.Errorf("before: no %q in %q", line, before)
		}
	}
	for _, line := range []string{"cmd_get 0", "get_hits 0", "cmd_set 0", "incr_misses 0", "curr_items 1", "total_items 0", "curr_connections 1"} {
		if !strings.Contains(after, "STAT "+line+"\r\n") {
			t.Errorf("after: no %q in %q", line, after)
		}
	}
	if got := s.Statistics(); got.GetHits != 1 || got.Sets != 1 {
		t.Errorf("the snapshot for metrics was reset: %+v", got)
	}
}

func TestStatsTellOfConnectionsItemsSlabsAndSettings(t *testing.T) {
	s := newServer(t, Options{MaxConns: 77})
	c, other := dial(s, 0), dial(s, 3)
	other.ask(t, "version\r\n")
	c.ask(t, "set a 0 0 1\r\nx\r\n")
	for command, want := range map[string][]string{
		"conns":    {"0:addr tcp:10.99.0.2:40000", "0:listen_addr tcp:10.99.0.1:11211", "0:state conn_parse_cmd", "1:state conn_read", "1:secs_since_last_cmd 0"},
		"items":    {"items:1:number 1"},
		"slabs":    {"1:used_chunks 1", "1:cmd_set 1", "active_slabs 1"},
		"settings": {"maxbytes 67108864", "maxconns 77", "item_size_max 1048576", "cas_enabled yes", "verbosity 0"},
	} {
		got := c.ask(t, "stats "+command+"\r\n")
		for _, line := range want {
			if !strings.Contains(got, "STAT "+line+"\r\n") {
				t.Errorf("stats %s: no %q in %q", command, line, got)
			}
		}
		if !strings.HasSuffix(got, "\r\nEND\r\n") {
			t.Errorf("stats %s does not end: %q", command, got)
		}
	}
}

// Shards as goroutines: each has its own connections and writes values that say
// whose they are; no reader may ever see a torn one.
func TestShardsShareOneServer(t *testing.T) {
	s := newServer(t, Options{Memory: 8 << 20, Shards: 2})
	var wait sync.WaitGroup
	stop := make(chan struct{})
	wait.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				s.Tick(time.Now().Add(time.Duration(i) * time.Millisecond))
				s.Statistics()
			}
		}
	})
	var shards sync.WaitGroup
	for shard := range 6 {
		shards.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(shard), 5))
			conns := []*fakeConn{dial(s, shard), dial(s, shard), dial(s, shard)}
			for i := range 4000 {
				c := conns[rng.IntN(len(conns))]
				key := fmt.Sprintf("key%d", rng.IntN(300))
				letter := string(rune('a' + rng.IntN(26)))
				switch rng.IntN(12) {
				case 0, 1, 2:
					c.deliver(t, fmt.Sprintf("set %s 0 %d %d\r\n", key, rng.IntN(3)*1000, 10+i%5000)+strings.Repeat(letter, 10+i%5000)+"\r\n")
				case 3:
					c.deliver(t, "delete "+key+"\r\n")
				case 4:
					c.deliver(t, "set number 0 0 1\r\n5\r\nincr number 1\r\ndecr number 1\r\n")
				case 5:
					c.deliver(t, "append "+key+"x 0 0 1\r\nx\r\nadd "+key+"x 0 0 1\r\nx\r\nprepend "+key+"x 0 0 3\r\nxxx\r\n")
				case 6:
					if rng.IntN(100) == 0 {
						c.deliver(t, "flush_all\r\nstats\r\nstats conns\r\nstats reset\r\n")
					}
				default:
					got := c.ask(t, "get "+key+"\r\n")
					if head, rest, ok := strings.Cut(got, "\r\n"); ok && strings.HasPrefix(head, "VALUE") {
						value := strings.TrimSuffix(rest, "\r\nEND\r\n")
						if value == "" || strings.Trim(value, value[:1]) != "" {
							t.Errorf("shard %d: torn value %q", shard, clip(value))
							return
						}
					}
				}
				c.out = c.out[:0]
			}
			for _, c := range conns {
				s.Close(c, nil)
			}
		})
	}
	shards.Wait()
	close(stop)
	wait.Wait()
	if stats := s.Statistics(); stats.Conns != 0 || stats.ConnsOpened != 18 {
		t.Errorf("%d connections left of %d", stats.Conns, stats.ConnsOpened)
	}
}

// Memcached answers a gat of any length if it comes in one piece, so this server
// does so however it comes.
func TestALongGatIsAnsweredKeyByKey(t *testing.T) {
	s := newServer(t, Options{Now: someday})
	c := dial(s, 0)
	value := "VALUE a 0 1\r\nx\r\n"
	c.ask(t, "set a 0 10 1\r\nx\r\n")
	if got := c.ask(t, "gat 1000 "+strings.Repeat("a none ", 1000)); got != strings.Repeat(value, 1000) {
		t.Errorf("the first keys are answered by %d bytes", len(got))
	}
	if got := c.ask(t, "a\r\nversion\r\n"); got != value+"END\r\nVERSION 1.6.18\r\n" {
		t.Errorf("the last by %q", clip(got))
	}
	s.Tick(someday.Add(100 * time.Second))
	if got := c.ask(t, "get a\r\n"); got != value+"END\r\n" {
		t.Errorf("it was not touched: %q", clip(got))
	}
	if got := c.ask(t, "gats soon "+strings.Repeat("a ", 2000)+"\r\nversion\r\n"); got != "CLIENT_ERROR invalid exptime argument\r\nVERSION 1.6.18\r\n" {
		t.Errorf("with an expiry time that is none: %q", clip(got))
	}
	if c.ask(t, "gat "+strings.Repeat("1", 3000)+" a\r\n"); !c.ended {
		t.Error("a line with no word in 2 KiB is not closed upon")
	}
	if st := s.Statistics(); st.TouchHits != 1001 || st.TouchMisses != 1000 {
		t.Errorf("%d hits, %d misses", st.TouchHits, st.TouchMisses)
	}
}

// meddler is a connection that has another one of the same shard served while it
// is, as the loop of a second runtime would.
type meddler struct {
	fakeConn
	meddle func()
}

func (c *meddler) Write(p []byte) (int, error) { c.meddle(); return len(p), nil }

func TestTwoLoopsInOneShardAreFoundOut(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for what, meddle := range map[string]func(s *Server, shard int){
		"data": func(s *Server, shard int) { s.Data(dial(s, shard), []byte("version\r\n")) },
		"packet": func(s *Server, shard int) {
			s.Packet(&fakePacketConn{shard: shard}, peer, []byte(frame(1, 0, 1)+"version\r\n"))
		},
		"tick": func(s *Server, shard int) { s.TickShard(shard, start) },
	} {
		s := newServer(t, Options{Now: start, Shards: 2, IdleTimeout: time.Hour})
		ask := func(shard int) (panicked any) {
			defer func() { panicked = recover() }()
			c := &meddler{meddle: func() { meddle(s, shard) }}
			s.Open(c)
			s.Data(c, []byte("version\r\n"))
			return nil
		}
		if p := ask(1); p != nil {
			t.Errorf("%s of another shard: %v", what, p)
		}
		if p := ask(0); p == nil || !strings.Contains(fmt.Sprint(p), "one runtime") {
			t.Errorf("%s of the same shard: %v", what, p)
		}
	}
}
