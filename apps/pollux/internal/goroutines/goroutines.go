// Package goroutines serves a runtime.Handler as a Go program would without any of
// the loops: net.Listen, a goroutine for each connection, blocking reads and
// writes, whatever the Go scheduler does in between. It is there to be compared
// with. The handler is called by one goroutine at a time, as a loop would.
package goroutines

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pollux-net/pollux/runtime"
)

// Server serves one handler. Make it with New.
type Server struct {
	handler runtime.Handler
	mu      sync.Mutex // held while the handler runs
	open    map[*conn]struct{}
	running sync.WaitGroup
}

// New returns a server of h.
func New(h runtime.Handler) *Server {
	return &Server{handler: h, open: map[*conn]struct{}{}}
}

// Serve accepts connections until the context ends, then closes them all.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	done := make(chan struct{})
	defer close(done)
	if t, ok := s.handler.(runtime.Ticker); ok {
		go s.tick(t, done)
	}
	defer s.closeAll()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		each := &conn{Conn: c}
		s.mu.Lock()
		s.open[each] = struct{}{} // before closeAll may come by
		s.mu.Unlock()
		s.running.Go(func() { s.serve(each) })
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	for c := range s.open {
		c.Conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Server) tick(t runtime.Ticker, done <-chan struct{}) {
	ticker := time.NewTicker(runtime.TickInterval / 10)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.mu.Lock()
			t.TickShard(0, now)
			s.mu.Unlock()
		case <-done:
			return
		}
	}
}

// readSize is what a read asks for, as the loops of runtime/kernel do.
const readSize = 64 << 10

func (s *Server) serve(c *conn) {
	s.mu.Lock()
	s.handler.Open(c)
	s.mu.Unlock()
	err := s.exchange(c)
	s.mu.Lock()
	if errors.Is(err, io.EOF) || c.closing {
		err = nil
	}
	s.handler.Close(c, err)
	delete(s.open, c)
	s.mu.Unlock()
	c.Conn.Close()
}

// exchange reads, has the handler answer and writes, until an end.
func (s *Server) exchange(c *conn) error {
	var in []byte // what the handler has not consumed, and room for more
	for {
		if cap(in)-len(in) < 4096 {
			in = append(make([]byte, 0, max(4096, 2*cap(in))), in...)
		}
		n, err := c.Conn.Read(in[len(in):min(cap(in), len(in)+readSize)])
		if n == 0 && err != nil {
			return err
		}
		in = in[:len(in)+n]
		// Again while output stopped it, which a blocking write has sent.
		for again := true; again && len(in) > 0; {
			s.mu.Lock()
			consumed := s.handler.Data(c, in)
			out, closing := c.out, c.closing
			c.out = c.spare[:0] // a tick may write meanwhile
			s.mu.Unlock()
			in = in[:copy(in, in[consumed:])]
			again = len(out) >= runtime.OutputLimit && consumed > 0
			if _, err := c.Conn.Write(out); err != nil {
				return err
			}
			if c.spare = out; closing {
				return nil
			}
		}
	}
}

// conn is a connection as the handler sees it. It is used with the server's mutex
// held, but for spare, which is its goroutine's.
type conn struct {
	net.Conn
	out     []byte // goes with the replies to what comes next
	spare   []byte // was sent, and will be out again
	closing bool
	context any
}

func (c *conn) Write(p []byte) (int, error) {
	if c.closing {
		return 0, net.ErrClosed
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

func (c *conn) Buffered() int              { return len(c.out) }
func (c *conn) Close() error               { c.closing = true; c.wake(); return nil }
func (c *conn) Abort()                     { c.closing = true; c.out = c.out[:0]; c.wake() }
func (c *conn) LocalAddr() netip.AddrPort  { return c.Conn.LocalAddr().(*net.TCPAddr).AddrPort() }
func (c *conn) RemoteAddr() netip.AddrPort { return c.Conn.RemoteAddr().(*net.TCPAddr).AddrPort() }
func (c *conn) Shard() int                 { return 0 }
func (c *conn) Context() any               { return c.context }
func (c *conn) SetContext(v any)           { c.context = v }

// wake ends a read that waits, should the end come from elsewhere (a tick).
func (c *conn) wake() { c.Conn.SetReadDeadline(time.Unix(1, 0)) }
