package kernel

import (
	"io"
	"sync/atomic"
	"testing"
	"time"

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
	h := &idler{conns: map[polluxruntime.Conn]int{}}
	c := dial(t, serve(t, Config{}, loopback4, h))
	if err := ask(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	eventually(t, "the handler is told of the end", func() bool { return h.closed.Load() == 1 })
	if h.ticks.Load() < 3 || h.shards.Load() != 0 {
		t.Errorf("%d ticks, sum of shards %d", h.ticks.Load(), h.shards.Load())
	}
}
