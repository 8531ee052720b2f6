package user

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

	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

var (
	serverPrefix = netip.MustParsePrefix("10.99.0.1/24")
	clientPrefix = netip.MustParsePrefix("10.99.0.2/24")
	service      = netip.AddrPortFrom(serverPrefix.Addr(), 7)
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
	e.closed.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reasons = append(e.reasons, err)
}

// pair is a server and a client runtime on a wire.
type pair struct {
	link           *wire.Link
	server, client *Runtime
}

// newPair starts both; the server serves h. It checks at the end that no frame
// of the wire is missing.
func newPair(t *testing.T, w wire.Config, server Config, h polluxruntime.Handler) *pair {
	t.Helper()
	link, err := wire.New(w)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{link: link}
	free := link.FreeFrames()
	server.Stack.Addresses = []netip.Prefix{serverPrefix}
	server.Stack.TimeWait = time.Millisecond
	if p.server, err = New(link.Port(wire.A), server); err != nil {
		t.Fatal(err)
	}
	if err := p.server.Listen(service, h); err != nil {
		t.Fatal(err)
	}
	client := Config{Mode: polluxruntime.Adaptive, Stack: stack.Config{Addresses: []netip.Prefix{clientPrefix}, TimeWait: time.Millisecond}}
	if p.client, err = New(link.Port(wire.B), client); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Runtime{p.server, p.client} {
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, r := range []*Runtime{p.client, p.server} {
			if err := shutdown(r, 5*time.Second); err != nil {
				t.Error(err)
			}
		}
		for _, s := range []wire.Side{wire.A, wire.B} {
			if err := link.Port(s).Close(); err != nil {
				t.Error(err)
			}
		}
		if n := link.FreeFrames(); n != free {
			t.Errorf("%d frames of the wire are missing", free-n)
		}
	})
	return p
}

func shutdown(r *Runtime, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return r.Shutdown(ctx)
}

// dial connects from the client's shard i.
func (p *pair) dial(t *testing.T, i int) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := p.client.Stack(i).DialContext(ctx, "tcp", service.String())
	if err != nil {
		t.Fatal(err)
	}
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

func (p *pair) statistics(t *testing.T, r *Runtime) []Statistics {
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
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within 10 s", what)
}
