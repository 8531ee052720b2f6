package user

import (
	"context"
	"errors"
	"time"

	"github.com/pollux-net/pollux/driver"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

// Counters count what a loop did since it started.
type Counters struct {
	// Iterations of the loop; EmptyPolls are those that found nothing to do.
	Iterations, EmptyPolls uint64
	// Busy is the time spent in iterations that did something, Slept the time
	// asleep; what is missing from the elapsed time went into empty polls.
	Busy, Slept time.Duration
	// Sleeps ended by a frame, by a post from another goroutine, or by time;
	// SleepsRefused found work at the last look.
	Sleeps, WokenByFrame, WokenByPost, WokenByTime, SleepsRefused uint64
	// Accepted connections, and Deliveries of input to the handler.
	Accepted, Deliveries uint64
	// Datagrams received for a PacketHandler, sent by it, and errors of either.
	PacketsReceived, PacketsSent, PacketErrors uint64
	// SharedDropped are frames for other shards whose mailbox was full.
	SharedDropped uint64
}

// Statistics is a snapshot of one shard.
type Statistics struct {
	Shard int
	// Elapsed since the loop started.
	Elapsed     time.Duration
	Mode        polluxruntime.Mode
	Connections int
	// Spin is what the adaptive mode has learned to poll for before it sleeps.
	Spin time.Duration
	Counters
	Queue driver.QueueStatistics
	Stack stack.Statistics
}

func (l *loop) statistics() Statistics {
	now, counters := l.now(), l.counters
	counters.Busy = l.meter.Busy(now)
	return Statistics{
		Shard: l.shard, Elapsed: now, Mode: *l.mode.Load(), Connections: l.conns, Spin: l.sleeper.Budget(),
		Counters: counters, Queue: l.queue.Statistics(), Stack: l.stack.Statistics(),
	}
}

// ErrStopped is returned once the loops have ended.
var ErrStopped = errors.New("the loops have stopped")

// Statistics takes a snapshot of every shard, on its own goroutine.
func (r *Runtime) Statistics(ctx context.Context) ([]Statistics, error) {
	all := make([]Statistics, len(r.loops))
	err := r.onAll(ctx, func(l *loop) { all[l.shard] = l.statistics() })
	if err != nil {
		return nil, err
	}
	return all, nil
}
