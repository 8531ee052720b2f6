package memcached

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// netConn carries a Handler's bytes over a net.Conn: one goroutine per
// connection, and one lock per shard, so that a shard is served by one at a time.
type netConn struct {
	net.Conn
	shard   int
	context any
	out     []byte
	closed  bool
	failed  bool
}

func (c *netConn) Write(p []byte) (int, error) { c.out = append(c.out, p...); return len(p), nil }
func (c *netConn) Buffered() int               { return len(c.out) }
func (c *netConn) Close() error                { c.closed = true; return nil }
func (c *netConn) Abort()                      { c.closed, c.out = true, nil }
func (c *netConn) LocalAddr() netip.AddrPort {
	return netip.MustParseAddrPort(c.Conn.LocalAddr().String())
}
func (c *netConn) RemoteAddr() netip.AddrPort {
	return netip.MustParseAddrPort(c.Conn.RemoteAddr().String())
}
func (c *netConn) Shard() int       { return c.shard }
func (c *netConn) Context() any     { return c.context }
func (c *netConn) SetContext(v any) { c.context = v }

// flush sends what the handler wrote; the lock is free meanwhile.
func (c *netConn) flush(lock *sync.Mutex) {
	lock.Unlock()
	defer lock.Lock()
	if _, err := c.Conn.Write(c.out); err != nil {
		c.failed = true
	}
	c.out = c.out[:0]
}

// serve listens on loopback until the test ends and returns the address.
func serve(t testing.TB, s *Server, shards int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	locks := make([]sync.Mutex, shards)
	var wait sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	handle := func(c *netConn, lock *sync.Mutex) {
		defer c.Conn.Close()
		lock.Lock()
		defer lock.Unlock()
		s.Open(c)
		var in []byte
		var err error
		buffer := make([]byte, 32<<10)
		for {
			for {
				s.Tick(time.Now())
				n := 0
				if len(in) > 0 && !c.closed {
					n = s.Data(c, in)
					in = in[n:]
				}
				if len(c.out) == 0 && n == 0 {
					break
				}
				c.flush(lock)
			}
			if c.closed || c.failed || err != nil {
				s.Close(c, err)
				return
			}
			var n int
			lock.Unlock()
			n, err = c.Conn.Read(buffer)
			lock.Lock()
			in = append(append([]byte(nil), in...), buffer[:n]...)
			if errors.Is(err, io.EOF) && n == 0 {
				s.Close(c, nil)
				return
			}
		}
	}
	wait.Go(func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wait.Go(func() { handle(&netConn{Conn: c, shard: i % shards}, &locks[i%shards]) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wait.Wait()
	})
	return l.Addr().String()
}

func TestMemccapablePasses(t *testing.T) {
	program, err := exec.LookPath("memccapable")
	if err != nil {
		t.Fatalf("the protocol suite is missing: %v; apt-get install libmemcached-tools", err)
	}
	host, port, _ := net.SplitHostPort(serve(t, newServer(t, Options{Shards: 2}), 2))
	for _, protocol := range []string{"-a", "-b"} {
		out, err := exec.Command(program, "-h", host, "-p", port, protocol, "-t", "10").CombinedOutput()
		if passed := strings.Count(string(out), "[pass]"); err != nil || passed != 27 {
			t.Errorf("%s: %d of 27 tests passed (%v):\n%s", protocol, passed, err, out)
		}
	}
}

func TestGomemcacheRoundTrips(t *testing.T) {
	c := memcache.New(serve(t, newServer(t, Options{Shards: 2}), 2))
	c.Timeout = 10 * time.Second
	check := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("ping", c.Ping(), nil)
	value := bytes.Repeat([]byte("value "), 100000)
	check("set", c.Set(&memcache.Item{Key: "a", Value: value, Flags: 7, Expiration: 100}), nil)
	item, err := c.Get("a")
	check("get", err, nil)
	if err == nil && (!bytes.Equal(item.Value, value) || item.Flags != 7) {
		t.Errorf("get: %d bytes, flags %d", len(item.Value), item.Flags)
	}
	check("add", c.Add(&memcache.Item{Key: "a", Value: []byte("x")}), memcache.ErrNotStored)
	check("add", c.Add(&memcache.Item{Key: "b", Value: []byte("x")}), nil)
	check("replace", c.Replace(&memcache.Item{Key: "none", Value: []byte("x")}), memcache.ErrNotStored)
	check("replace", c.Replace(&memcache.Item{Key: "b", Value: []byte("y")}), nil)
	check("append", c.Append(&memcache.Item{Key: "b", Value: []byte("z")}), nil)
	check("prepend", c.Prepend(&memcache.Item{Key: "b", Value: []byte("x")}), nil)
	item, err = c.Get("b")
	check("get", err, nil)
	if err == nil && string(item.Value) != "xyz" {
		t.Errorf("get: %q", item.Value)
	}
	item.Value = []byte("swapped")
	check("cas", c.CompareAndSwap(item), nil)
	check("cas again", c.CompareAndSwap(item), memcache.ErrCASConflict)
	item, err = c.GetAndTouch("b", 50)
	check("gat", err, nil)
	if err == nil && string(item.Value) != "swapped" {
		t.Errorf("gat: %q", item.Value)
	}
	check("touch", c.Touch("b", 100), nil)
	check("touch", c.Touch("none", 100), memcache.ErrCacheMiss)
	check("set", c.Set(&memcache.Item{Key: "n", Value: []byte("41")}), nil)
	if n, err := c.Increment("n", 1); n != 42 || err != nil {
		t.Errorf("increment: %d, %v", n, err)
	}
	if n, err := c.Decrement("n", 50); n != 0 || err != nil {
		t.Errorf("decrement: %d, %v", n, err)
	}
	_, err = c.Increment("none", 1)
	check("increment", err, memcache.ErrCacheMiss)
	keys := []string{"none"}
	for i := range 500 {
		keys = append(keys, fmt.Sprintf("multi-%d", i))
		check("set", c.Set(&memcache.Item{Key: keys[i+1], Value: []byte(keys[i+1])}), nil)
	}
	items, err := c.GetMulti(keys)
	check("get multi", err, nil)
	if len(items) != 500 {
		t.Errorf("get multi: %d items", len(items))
	}
	for key, item := range items {
		if string(item.Value) != key {
			t.Errorf("get multi: %q is %q", key, item.Value)
		}
	}
	check("delete", c.Delete("a"), nil)
	check("delete", c.Delete("a"), memcache.ErrCacheMiss)
	_, err = c.Get("a")
	check("get", err, memcache.ErrCacheMiss)
	if err := c.Set(&memcache.Item{Key: "b", Value: make([]byte, 2<<20)}); err == nil || !strings.Contains(err.Error(), "SERVER_ERROR object too large for cache") {
		t.Errorf("too large: %v", err)
	}
	_, err = c.Get("b")
	check("the old value of what was too large", err, memcache.ErrCacheMiss)
	check("flush", c.FlushAll(), nil)
	_, err = c.Get("n")
	check("get after flush", err, memcache.ErrCacheMiss)
}
