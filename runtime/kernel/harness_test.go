package kernel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
	anywhere  = netip.MustParseAddrPort("[::]:0")
)

// echo is the handler of most tests: it gives back what it gets, and notes what
// the runtime promises about connections.
type echo struct {
	opened, closed atomic.Int64
	mu             sync.Mutex
	perShard       map[int]int
	moved          int // connections that changed their shard
	reasons        []error
}

func (e *echo) Open(c polluxruntime.Conn) {
	e.opened.Add(1)
	c.SetContext(c.Shard())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.perShard == nil {
		e.perShard = map[int]int{}
	}
	e.perShard[c.Shard()]++
}

func (e *echo) Data(c polluxruntime.Conn, in []byte) int {
	if c.Context() != c.Shard() {
		e.mu.Lock()
		e.moved++
		e.mu.Unlock()
	}
	n := min(len(in), max(0, polluxruntime.OutputLimit-c.Buffered()))
	c.Write(in[:n])
	return n
}

func (e *echo) Close(c polluxruntime.Conn, err error) {
	e.mu.Lock()
	e.reasons = append(e.reasons, err)
	e.mu.Unlock()
	e.closed.Add(1)
}

// function is a handler of which only Data matters.
type function func(c polluxruntime.Conn, in []byte) int

func (function) Open(polluxruntime.Conn)                    {}
func (f function) Data(c polluxruntime.Conn, in []byte) int { return f(c, in) }
func (function) Close(c polluxruntime.Conn, err error)      {}

// open builds a runtime that serves h at address, and is not started.
func open(t testing.TB, c Config, address netip.AddrPort, h polluxruntime.Handler) *Runtime {
	t.Helper()
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(address, h); err != nil {
		r.Discard()
		t.Fatal(err)
	}
	return r
}

// start starts a runtime that ends with the test.
func start(t testing.TB, r *Runtime) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shutdown(r, 5*time.Second); err != nil {
			t.Error(err)
		}
	})
}

func serve(t testing.TB, c Config, address netip.AddrPort, h polluxruntime.Handler) *Runtime {
	t.Helper()
	r := open(t, c, address, h)
	start(t, r)
	return r
}

func shutdown(r *Runtime, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return r.Shutdown(ctx)
}

// reachable is where a client finds what is bound to any address.
func reachable(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsUnspecified() {
		return netip.AddrPortFrom(loopback4.Addr(), a.Port())
	}
	return a
}

func dial(t testing.TB, r *Runtime) *net.TCPConn {
	t.Helper()
	return dialTo(t, reachable(r.Addresses()[0]))
}

func dialTo(t testing.TB, address netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// ask sends s and expects it back.
func ask(c net.Conn, s string) error {
	if _, err := c.Write([]byte(s)); err != nil {
		return err
	}
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != s {
		return fmt.Errorf("sent %q, got %q back", s, b)
	}
	return nil
}

func statistics(t testing.TB, r *Runtime) []Statistics {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	all, err := r.Statistics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within 10 s", what)
}
