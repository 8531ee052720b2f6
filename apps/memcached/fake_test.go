package memcached

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/pollux-net/pollux/runtime"
)

// fakeConn is a connection in memory: it keeps the contract of runtime.Conn and
// lets the test decide how input is cut and how fast output is taken.
type fakeConn struct {
	server  *Server
	shard   int
	context any

	left     []byte // delivered, not consumed
	buffered []byte // written by the handler, not taken yet
	out      []byte // taken by the peer
	ended    bool   // the handler called Close
	writes   int
}

func (c *fakeConn) Write(p []byte) (int, error) {
	if c.ended {
		panic("write after close")
	}
	c.writes++
	c.buffered = append(c.buffered, p...)
	return len(p), nil
}
func (c *fakeConn) Buffered() int              { return len(c.buffered) }
func (c *fakeConn) Close() error               { c.ended = true; return nil }
func (c *fakeConn) Abort()                     { c.ended, c.buffered = true, nil }
func (c *fakeConn) LocalAddr() netip.AddrPort  { return netip.MustParseAddrPort("10.99.0.1:11211") }
func (c *fakeConn) RemoteAddr() netip.AddrPort { return netip.MustParseAddrPort("10.99.0.2:40000") }
func (c *fakeConn) Shard() int                 { return c.shard }
func (c *fakeConn) Context() any               { return c.context }
func (c *fakeConn) SetContext(v any)           { c.context = v }

func dial(s *Server, shard int) *fakeConn {
	c := &fakeConn{server: s, shard: shard}
	s.Open(c)
	return c
}

// run calls Data as often as the contract says, with whatever is left.
func (c *fakeConn) run(t testing.TB) {
	for len(c.left) > 0 && !c.ended && len(c.buffered) < runtime.OutputLimit {
		before := len(c.buffered)
		n := c.server.Data(c, c.left)
		if n < 0 || n > len(c.left) {
			t.Fatalf("Data consumed %d of %d bytes", n, len(c.left))
		}
		c.left = c.left[n:]
		if n == 0 && len(c.buffered) == before {
			return // waits for more
		}
	}
}

// take lets the peer take up to n bytes of output.
func (c *fakeConn) take(n int) {
	n = min(n, len(c.buffered))
	c.out = append(c.out, c.buffered[:n]...)
	c.buffered = append(c.buffered[:0], c.buffered[n:]...)
}

// deliver hands over input in one piece, to a peer that reads everything.
func (c *fakeConn) deliver(t testing.TB, in string) {
	c.left = append(append([]byte(nil), c.left...), in...)
	for {
		c.run(t)
		if len(c.buffered) == 0 {
			return
		}
		c.take(len(c.buffered))
	}
}

// deliverCut hands over input in random pieces, to a peer that reads in pieces.
func (c *fakeConn) deliverCut(t testing.TB, in string, rng *rand.Rand) {
	for len(in) > 0 && !c.ended {
		n := 1
		switch rng.IntN(4) {
		case 0:
			n += rng.IntN(8)
		case 1:
			n += rng.IntN(100)
		case 2:
			n += rng.IntN(5000)
		}
		n = min(n, len(in))
		// A copy, so that a handler that keeps the slice is found out.
		c.left = append(append(make([]byte, 0, len(c.left)+n), c.left...), in[:n]...)
		in = in[n:]
		c.run(t)
		// A runtime reads no more while output waits.
		for rng.IntN(3) == 0 || len(c.left) > 16<<10 {
			c.take(rng.IntN(1 + len(c.buffered)))
			c.run(t)
		}
	}
	for len(c.buffered) > 0 {
		c.take(1 + rng.IntN(len(c.buffered)))
		c.run(t)
	}
}

// ask delivers input and returns what it added to the output.
func (c *fakeConn) ask(t testing.TB, in string) string {
	before := len(c.out)
	c.deliver(t, in)
	return string(c.out[before:])
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Seed == 0 {
		o.Seed = 1
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
