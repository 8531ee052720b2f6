package user

import (
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// idler closes every connection at the third tick after its last data.
type idler struct {
	echo
	ticks  atomic.Int64
	shards atomic.Int64
	conns  map[polluxruntime.Conn]int // of one shard
}

func (h *idler) Open(c polluxruntime.Conn) { h.echo.Open(c); h.conns[c] = 0 }

func (h *idler) Close(c polluxruntime.Conn, err error) { delete(h.conns, c); h.echo.Close(c, err) }

func (h *idler) TickShard(shard int, _ time.Time) {
	h.ticks.Add(1)
	h.shards.Add(int64(shard))
	for c := range h.conns {
		if h.conns[c]++; h.conns[c] == 3 {
			c.Write([]byte("bye"))
			c.Close()
		}
	}
}

func TestATickMayCloseConnectionsWhileNothingElseHappens(t *testing.T) {
	for _, mode := range polluxruntime.Modes(polluxruntime.User) {
		h := &idler{conns: map[polluxruntime.Conn]int{}}
		p := newPair(t, wire.Config{}, Config{Mode: mode}, h)
		c := p.dial(t, 0)
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
			t.Errorf("%s: got %q, %v", mode, all, err)
		}
		eventually(t, "the handler is told of the end", func() bool { return h.closed.Load() == 1 })
		if h.ticks.Load() < 3 || h.shards.Load() != 0 {
			t.Errorf("%s: %d ticks, sum of shards %d", mode, h.ticks.Load(), h.shards.Load())
		}
	}
}
