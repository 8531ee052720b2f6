package memcached

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime"
)

// statNames are the names that a stats command tells, sorted, and the values.
func parseStats(text string) (names []string, values map[string]string) {
	values = map[string]string{}
	for _, line := range strings.Split(text, "\r\n") {
		if f := strings.SplitN(line, " ", 3); len(f) == 3 && f[0] == "STAT" {
			names = append(names, f[1])
			values[f[1]] = f[2]
		}
	}
	slices.Sort(names)
	return names, values
}

// What memcached tells of itself that has no counterpart here: its event
// library, buffers and logs, and the settings of what this server does another
// way.
var without = regexp.MustCompile(`^(libevent|rusage_.*|response_obj_.*|read_buf_.*|reserved_fds|log_.*|unexpected_napi_ids|round_robin_fallback|slab_global_page_pool|` +
	`domain_socket|umask|growth_factor|num_threads_per_udp|stat_key_prefix|reqs_per_event|tcp_backlog|hashpower_init|slab_.*|lru_crawler_.*|tail_repair_time|hash_algorithm|` +
	`lru_maintainer_juggles|temporary_ttl|.*_logbuf_size|read_buf_mem_limit|inline_ascii_response|ext_.*|ssl_.*|num_napi_ids|memory_file)$`)

func TestStatsHaveMemcachedsNames(t *testing.T) {
	reference := startReference(t, "-o", "lru_maintainer") // with segments, as it runs by default
	s := newServer(t, Options{Stripes: 1})
	c := dial(s, 0)
	fill := "set a 0 0 1\r\nx\r\nget a\r\n"
	c.ask(t, fill)
	reference.answer(t, fill)
	for _, group := range []string{"", " settings", " items", " slabs", " sizes"} {
		got, _ := parseStats(c.ask(t, "stats"+group+"\r\n"))
		want, _ := parseStats(reference.answer(t, "stats"+group+"\r\n"))
		for _, name := range want {
			if !slices.Contains(got, name) && !without.MatchString(name) {
				t.Errorf("stats%s lacks %s", group, name)
			}
		}
		for _, name := range got {
			if !slices.Contains(want, name) && !strings.HasPrefix(name, "datagrams_") && name != "rejected_connections" && name != "ssl_enabled" {
				t.Errorf("stats%s has %s, which memcached has not", group, name)
			}
		}
	}
}

func TestStatsMeanWhatMemcachedsMean(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newServer(t, Options{Now: start, Stripes: 1, Memory: 8 << 20, IdleTimeout: time.Hour, CPU: func() (time.Duration, time.Duration) { return 1500 * time.Millisecond, time.Microsecond }})
	c := dial(s, 0)
	expect := func(group string, want map[string]string) {
		t.Helper()
		_, got := parseStats(c.ask(t, "stats"+group+"\r\n"))
		for name, value := range want {
			if got[name] != value {
				t.Errorf("stats%s: %s is %q, want %q", group, name, got[name], value)
			}
		}
	}
	value := strings.Repeat("v", 1000)
	c.ask(t, fmt.Sprintf("set a 0 0 1000\r\n%s\r\nset b 0 100 1000\r\n%s\r\n", value, value))
	s.Tick(start.Add(7 * time.Second))
	c.ask(t, "get a\r\nget a\r\n")
	s.Tick(start.Add(12 * time.Second))
	expect("", map[string]string{"uptime": "12", "time": "1700000012", "rusage_user": "1.500000", "rusage_system": "0.000001", "idle_kicks": "0", "hash_power_level": "15"})
	// Two items are too few for any of them to be hot or warm for long: a went
	// from hot to cold, by two hits to warm, and as more than 40 % to cold again.
	expect(" items", map[string]string{
		"items:1:number": "2", "items:1:number_hot": "0", "items:1:number_warm": "0", "items:1:number_cold": "2",
		"items:1:age": "12", "items:1:age_hot": "0", "items:1:mem_requested": "2120",
		"items:1:moves_to_cold": "3", "items:1:moves_to_warm": "1", "items:1:hits_to_cold": "2",
	})
	expect("", map[string]string{"moves_to_cold": "3", "moves_to_warm": "1", "moves_within_lru": "0"})
	expect(" settings", map[string]string{"idle_timeout": "3600", "tcpport": "11211", "udpport": "0", "track_sizes": "no"})
	s.Packet(&fakePacketConn{}, peer, []byte(frame(1, 0, 1)+"stats sizes_enable\r\n"))
	c.ask(t, "set c 0 0 1\r\nx\r\nset d 0 0 50\r\n"+strings.Repeat("x", 50)+"\r\nset e 0 0 2\r\nxx\r\n")
	expect(" settings", map[string]string{"udpport": "11211", "track_sizes": "yes"})
	expect(" sizes", map[string]string{"64": "2", "128": "1"})
	expect("", map[string]string{"datagrams_read": "1", "datagrams_ignored": "0"})
	// Fill it: the first to go is b, unused since the start, then a, since 7.
	for i := 0; s.Statistics().Store.Evictions < 2; i++ {
		c.ask(t, fmt.Sprintf("set key%d 0 0 1000\r\n%s\r\n", i, value))
	}
	expect(" items", map[string]string{"items:1:evicted": "2", "items:1:evicted_nonzero": "1", "items:1:evicted_time": "5", "items:1:evicted_unfetched": "1", "items:1:age": "0"})
	_, slabs := parseStats(c.ask(t, "stats slabs\r\n"))
	if slabs["1:free_chunks"] == "" || slabs["1:total_pages"] != "8" || slabs["1:chunks_per_page"] != "10922" || slabs["active_slabs"] != "1" {
		t.Errorf("stats slabs: %v", slabs)
	}
}

// What a lookup finds dead was not reclaimed, in memcached's words: that is what
// made room for another item.
func TestDeadItemsAreCountedAsMemcachedDoes(t *testing.T) {
	reference := startReference(t)
	s := newServer(t, Options{Stripes: 1})
	c := dial(s, 0)
	input := "set a 0 -1 1\r\nx\r\nget a\r\nget a\r\nset b 0 0 1\r\nx\r\nflush_all\r\nget b\r\nset c 0 -1 1\r\nx\r\nincr c 1\r\ntouch c 0\r\n"
	if got, want := c.ask(t, input), reference.answer(t, input); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	_, got := parseStats(c.ask(t, "stats\r\n"))
	_, want := parseStats(reference.answer(t, "stats\r\n"))
	for _, name := range []string{"get_expired", "get_flushed", "get_misses", "reclaimed", "expired_unfetched", "evictions", "curr_items"} {
		if got[name] != want[name] {
			t.Errorf("%s is %s, memcached's %s", name, got[name], want[name])
		}
	}
}

// However many connections there are, the list of them is no longer than what may
// wait for a peer that reads nothing.
func TestStatsConnsIsBounded(t *testing.T) {
	s := newServer(t, Options{MaxConns: 10000, Shards: 2})
	for i := range 5000 {
		dial(s, i%2)
	}
	c := dial(s, 0)
	reply := c.ask(t, "stats conns\r\n")
	if n := strings.Count(reply, ":addr "); n < 1000 || len(reply) > runtime.OutputLimit+1000 || !strings.HasSuffix(reply, "END\r\n") {
		t.Errorf("%d connections in %d bytes, ending in %q", n, len(reply), reply[len(reply)-20:])
	}
	if !strings.Contains(reply, ":state conn_parse_cmd\r\n") {
		t.Error("the connection that asks is not among them")
	}
}
