package user

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// generous answers each request of 64 bytes with 16 times as many, and notes what
// its connection holds.
type generous struct {
	echo
	mu           sync.Mutex
	input, ready int
	full         bool
}

func (g *generous) Data(c polluxruntime.Conn, in []byte) int {
	g.mu.Lock()
	g.input, g.ready = max(g.input, cap(c.(*conn).in)), max(g.ready, len(in))
	g.mu.Unlock()
	n := 0
	for len(in)-n >= 64 && c.Buffered() < polluxruntime.OutputLimit {
		c.Write(make([]byte, 1024))
		n += 64
	}
	if c.Buffered() >= polluxruntime.OutputLimit {
		g.mu.Lock()
		g.full = true
		g.mu.Unlock()
	}
	return n
}

// What a peer that reads no replies goes on to send stays in TCP's buffers, where
// the window bounds it.
func TestInputThatCannotBeAnsweredIsNotRead(t *testing.T) {
	h := &generous{}
	p := newPair(t, wire.Config{}, Config{}, h)
	c := p.dial(t, 0)
	defer c.Close()
	// 4 MB, and 61 MB of replies: more than the receive windows hold, which both
	// close, so that each end also has to hear of the other's opening again.
	const requests = 60_000
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, requests*64))
		sent <- err
	}()
	eventually(t, "the output is full", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.full
	})
	time.Sleep(300 * time.Millisecond) // until nothing goes any more
	if n, err := io.CopyN(io.Discard, c, requests*1024); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// A segment, and what of another was left.
	if most := 16 << 10; h.input > most || h.ready > most {
		t.Errorf("the connection held %d bytes of input in a buffer of %d, should be at most %d", h.ready, h.input, most)
	}
}
