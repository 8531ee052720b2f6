package endtoend

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

func TestClientsOfMemcachedAreServedInEveryMode(t *testing.T) {
	for _, path := range runtime.Paths {
		l := newLabFor(t, path, 1)
		if path == runtime.Kernel {
			// memccapable sends a request in pieces, and does not send the next
			// one until the last is acknowledged: not 40 ms later, please.
			for _, route := range []string{"10.99.0.0/24 src 10.99.0.1", "fd99::/64"} {
				must(t, l, lab.Server, strings.Fields("ip route replace "+route+" proto kernel quickack 1 dev "+lab.ServerInterface)...)
			}
		}
		for _, mode := range runtime.Modes(path) {
			if mode == runtime.IRQPacking || mode == runtime.IRQSuppression {
				continue // they set a device's interrupts, of which a veth has none
			}
			t.Run(string(path)+"/"+string(mode), func(t *testing.T) {
				s := serveMemcached(t, l, pollux, append(memcachedArgs(mode, 1), "--path", string(path))...)
				for _, host := range []string{"10.99.0.1", "fd99::1"} {
					for _, protocol := range []string{"-a", "-b"} {
						t.Run("memccapable "+protocol+" "+host, func(t *testing.T) { memccapable(t, l, host, protocol) })
					}
				}
				for _, address := range []string{memcached4, memcached6} {
					t.Run("gomemcache "+address, func(t *testing.T) { gomemcache(t, memcachedClient(t, l, address)) })
				}
				if m := scrape(t, l); m.get(t, `pollux_mode{mode="`+string(mode)+`",shard="0"}`) != 1 {
					t.Error("the server is in another mode")
				}
				s.terminate(t)
			})
		}
	}
}

// memccapable runs libmemcached's suite for the text protocol (-a) or the binary
// one (-b).
func memccapable(t *testing.T, l *lab.Lab, host, protocol string) {
	out := must(t, l, lab.Client, "memccapable", "-h", host, protocol)
	// What memcached 1.6.18 passes.
	if passed := strings.Count(out, "[pass]"); passed != 27 || strings.Contains(out, "[FAIL]") || !strings.Contains(out, "All tests passed") {
		t.Errorf("%s: %d tests passed, want 27\n%s", protocol, passed, out)
	}
}

// gomemcache stores and fetches with the client that Go programs use.
func gomemcache(t *testing.T, c *memcache.Client) {
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	holds := func(key string, value []byte) *memcache.Item {
		t.Helper()
		item, err := c.Get(key)
		check("get "+key, err, nil)
		if !bytes.Equal(item.Value, value) {
			t.Fatalf("%s holds %d bytes %.40q, want %d bytes %.40q", key, len(item.Value), item.Value, len(value), value)
		}
		return item
	}
	check("ping", c.Ping(), nil)
	check("flush", c.FlushAll(), nil)

	check("set", c.Set(&memcache.Item{Key: "a", Value: []byte("one"), Flags: 42}), nil)
	if item := holds("a", []byte("one")); item.Flags != 42 {
		t.Errorf("flags %d, want 42", item.Flags)
	}
	_, err := c.Get("absent")
	check("get of nothing", err, memcache.ErrCacheMiss)
	check("add over another", c.Add(&memcache.Item{Key: "a", Value: []byte("x")}), memcache.ErrNotStored)
	check("replace of nothing", c.Replace(&memcache.Item{Key: "absent", Value: []byte("x")}), memcache.ErrNotStored)
	check("replace", c.Replace(&memcache.Item{Key: "a", Value: []byte("two")}), nil)
	check("append", c.Append(&memcache.Item{Key: "a", Value: []byte("!")}), nil)
	check("prepend", c.Prepend(&memcache.Item{Key: "a", Value: []byte("<")}), nil)
	holds("a", []byte("<two!"))

	// Of two who have read the same, one wins.
	first, second := holds("a", []byte("<two!")), holds("a", []byte("<two!"))
	first.Value, second.Value = []byte("first"), []byte("second")
	check("compare and swap", c.CompareAndSwap(first), nil)
	check("compare and swap of what has changed", c.CompareAndSwap(second), memcache.ErrCASConflict)
	holds("a", []byte("first"))

	check("set a number", c.Set(&memcache.Item{Key: "n", Value: []byte("18446744073709551614")}), nil)
	n, err := c.Increment("n", 3)
	if check("increment", err, nil); n != 1 {
		t.Errorf("2^64-2 and 3 are %d, want 1", n)
	}
	n, err = c.Decrement("n", 5)
	if check("decrement", err, nil); n != 0 {
		t.Errorf("1 less 5 is %d, want 0", n)
	}
	_, err = c.Increment("absent", 1)
	check("increment of nothing", err, memcache.ErrCacheMiss)

	check("delete", c.Delete("n"), nil)
	check("delete of nothing", c.Delete("n"), memcache.ErrCacheMiss)

	// Many at once: a request and a reply of several segments.
	keys := []string{"absent"}
	for i := range 500 {
		key := fmt.Sprintf("%s-%d", strings.Repeat("k", 200), i)
		keys = append(keys, key)
		check("set", c.Set(&memcache.Item{Key: key, Value: []byte(key)}), nil)
	}
	items, err := c.GetMulti(keys)
	check("get of many", err, nil)
	if len(items) != 500 {
		t.Errorf("%d items, want 500", len(items))
	}
	for key, item := range items {
		if string(item.Value) != key {
			t.Fatalf("%s holds %.40q", key, item.Value)
		}
	}

	// Of every size about the limits of segments, buffers and items.
	for i, size := range []int{0, 1, 1400, 1460, 65535, 65536, 300 << 10, 1<<20 - 512} {
		value := make([]byte, size)
		stream.NewSource(uint64(i)).Read(value)
		check(fmt.Sprintf("set %d bytes", size), c.Set(&memcache.Item{Key: "large", Value: value}), nil)
		holds("large", value)
	}
	if err := c.Set(&memcache.Item{Key: "large", Value: make([]byte, 2<<20)}); err == nil {
		t.Error("2 MiB were stored, over the limit of an item")
	}

	check("set for a second", c.Set(&memcache.Item{Key: "short", Value: []byte("x"), Expiration: 1}), nil)
	check("set for an hour", c.Set(&memcache.Item{Key: "long", Value: []byte("x"), Expiration: 3600}), nil)
	check("touch", c.Touch("long", 1), nil)
	check("touch of nothing", c.Touch("absent", 1), memcache.ErrCacheMiss)
	check("set for a while", c.Set(&memcache.Item{Key: "longer", Value: []byte("x"), Expiration: 1}), nil)
	item, err := c.GetAndTouch("longer", 3600)
	if check("get and touch", err, nil); string(item.Value) != "x" {
		t.Errorf("got %q", item.Value)
	}
	for _, key := range []string{"short", "long"} {
		eventually(t, key+" expires", func() bool {
			_, err := c.Get(key)
			return errors.Is(err, memcache.ErrCacheMiss)
		})
	}
	holds("longer", []byte("x"))
	check("flush", c.FlushAll(), nil)
	_, err = c.Get("longer")
	check("get after a flush", err, memcache.ErrCacheMiss)
}
