package memcached

import (
	"fmt"
	"math/rand/v2"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime"
)

func TestIdleConnectionsAreClosed(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start, IdleTimeout: 10 * time.Second, Shards: 2})
	at := func(seconds int) {
		for shard := range 2 {
			s.TickShard(shard, start.Add(time.Duration(seconds)*time.Second))
		}
	}
	var conns []*fakeConn
	for i := range 6 {
		conns = append(conns, dial(s, i%2))
	}
	at(5)
	conns[1].ask(t, "version\r\n")
	conns[2].ask(t, "get a") // half a command counts
	conns[4].ask(t, "set a 0 0 10\r\nabc")
	at(10)
	conns[1].ask(t, "version\r\n")
	expect := func(second int, want ...int) {
		t.Helper()
		at(second)
		var closed []int
		for i, c := range conns {
			if c.ended {
				closed = append(closed, i)
			}
		}
		if fmt.Sprint(closed) != fmt.Sprint(want) {
			t.Errorf("after %d s %v are closed, want %v", second, closed, want)
		}
	}
	expect(10)
	expect(11, 0, 3, 5)
	expect(15, 0, 3, 5)
	expect(16, 0, 2, 3, 4, 5)
	expect(20, 0, 2, 3, 4, 5)
	if got := conns[1].ask(t, "version\r\n"); got != "VERSION 1.6.18\r\n" {
		t.Errorf("one that is in use: %q", got)
	}
	expect(30, 0, 2, 3, 4, 5)
	expect(31, 0, 1, 2, 3, 4, 5)
	for _, c := range conns {
		if n := s.Data(c, []byte("version\r\n")); n != 9 || len(c.buffered) > 0 {
			t.Error("a closed connection is served")
		}
		s.Close(c, nil)
	}
	if stats := s.Statistics(); stats.IdleKicks != 6 || stats.Conns != 0 || stats.Store.UsedChunks != 0 {
		t.Errorf("%d kicks, %d connections, %d chunks", stats.IdleKicks, stats.Conns, stats.Store.UsedChunks)
	}
	if n := strings.Count(dial(s, 0).ask(t, "stats conns\r\n"), ":addr "); n != 1 {
		t.Errorf("stats conns lists %d connections", n)
	}
}

// A peer that reads, however slowly, is not idle; one that does not is.
func TestASlowReaderIsGivenUpOnlyIfItReadsNothing(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start, IdleTimeout: 10 * time.Second})
	c := dial(s, 0)
	c.deliver(t, fmt.Sprintf("set a 0 0 100000\r\n%s\r\n", strings.Repeat("v", 100000)))
	c.left = []byte("get a a\r\n")
	c.run(t)
	now := start
	for range 5 {
		now = now.Add(11 * time.Second)
		s.TickShard(0, now)
		if c.ended {
			t.Fatalf("closed after %v with %d bytes to go", now.Sub(start), len(c.buffered))
		}
		c.take(1000)
	}
	now = now.Add(11 * time.Second)
	s.TickShard(0, now)
	now = now.Add(11 * time.Second)
	if s.TickShard(0, now); !c.ended || c.buffered != nil {
		t.Errorf("not reset although nothing was read for 11 s")
	}
	s.Close(c, nil)
}

func TestWithoutATimeoutConnectionsMayBeIdle(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start})
	c := dial(s, 0)
	s.TickShard(0, start.Add(1000*time.Hour))
	if c.ended {
		t.Error("closed")
	}
	for _, d := range []time.Duration{-1, time.Millisecond, -time.Second} {
		if _, err := New(Options{IdleTimeout: d}); err == nil || !strings.Contains(err.Error(), "at least 1s") {
			t.Errorf("idle timeout of %v: %v", d, err)
		}
	}
}

// What a connection may leave unread: a command line, or a binary header with
// extras and key.
func TestNoInputMakesAConnectionHoldMoreThanALine(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 51))
		var in strings.Builder
		if seed%2 == 0 {
			in.WriteByte(requestMagic)
		}
		for range 30 {
			switch rng.IntN(5) {
			case 0:
				in.WriteString(strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(3000)))
			case 1:
				in.WriteString(wide(rng))
			case 2:
				in.WriteString(generateMeta(rng, true))
			case 3:
				request, _ := generateBinary(rng, true)
				in.WriteString(request)
			default:
				for range rng.IntN(400) {
					in.WriteByte(byte(rng.IntN(256)))
				}
			}
		}
		s := newServer(t, Options{Memory: 1 << 20, MaxItem: 16 << 10})
		c := dial(s, 0)
		for text := in.String(); len(text) > 0 && !c.ended; {
			n := min(len(text), 1+rng.IntN(2000))
			c.deliver(t, text[:n])
			text = text[n:]
			if len(c.left) > maxLine {
				t.Fatalf("seed %d: %d bytes are left", seed, len(c.left))
			}
		}
		s.Close(c, nil)
	}
}

// A hundred thousand commands at once from a peer that reads nothing: what the
// server holds is bounded by the output limit and one value.
func TestAPipelineOf100000CommandsDoesNotGrowTheServer(t *testing.T) {
	value := strings.Repeat("v", 1000)
	for name, request := range map[string]string{
		"get": "get a\r\n", "multiget": "get" + strings.Repeat(" a", 100) + "\r\n", "meta": "mg a v k\r\n", "binary": packet(opGetK, "a", "", "", 0, 0),
		"stats": "stats\r\n", "binary stats": packet(opStat, "", "", "", 0, 0), "error": "x\r\n",
	} {
		s := newServer(t, Options{})
		setter := dial(s, 0)
		setter.deliver(t, "set a 0 0 1000\r\n"+value+"\r\n")
		c := dial(s, 0)
		c.left = []byte(strings.Repeat(request, 100000))
		var before, after goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		c.run(t)
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		if most := runtime.OutputLimit + 8<<10; len(c.buffered) > most || len(c.buffered) < runtime.OutputLimit {
			t.Errorf("%s: %d bytes are buffered", name, len(c.buffered))
		}
		// The test's own connection holds the output once more, in a slice
		// that has grown by doubling.
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 6*runtime.OutputLimit {
			t.Errorf("%s: the heap grew by %d bytes", name, grown)
		}
		s.Close(c, nil)
		goruntime.KeepAlive(s)
	}
}
