package kernel

import (
	"context"
	"errors"
	"time"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// Counters count what a loop did since it started.
type Counters struct {
	// Iterations of the loop; Waits are its calls for events, of which
	// EmptyWaits found none, and BlockingWaits those that might sleep.
	Iterations, Waits, EmptyWaits, BlockingWaits uint64
	// Events that epoll reported.
	Events uint64
	// Busy is the time spent with events, Waited that in calls for them: asleep,
	// or polling the device in the modes that do that there.
	Busy, Waited time.Duration
	// Longest is the longest time between two calls for events.
	Longest time.Duration
	// Overdue are the times that this was longer than the device's interrupts
	// stay off for (irq_suspend_timeout), in modes that turn them off.
	Overdue uint64
	// Accepted connections, AcceptsRefused for want of descriptors or memory,
	// and Deliveries of input to the handler.
	Accepted, AcceptsRefused, Deliveries uint64
	// Reads and Writes are calls, of which the refused ones found nothing to
	// read and no room to write (EAGAIN).
	Reads, ReadsRefused, Writes, WritesRefused uint64
	ReadBytes, WrittenBytes                    uint64
	// Datagrams received, sent, and not taken by the socket.
	PacketsReceived, PacketsSent, PacketsDropped uint64
	// NAPIForeign are the connections received by another NAPI instance than
	// the loop's own, NAPIUnknown those of a device that has none.
	NAPIForeign, NAPIUnknown uint64
	// DeviceChanges are the times that the device was not as the mode had set it
	// any more, whether it could be set again or not.
	DeviceChanges uint64
}

// Statistics is a snapshot of one shard.
type Statistics struct {
	Shard int
	// Elapsed since the loop started.
	Elapsed     time.Duration
	Mode        polluxruntime.Mode
	Connections int
	// NAPI is the instance that the shard's connections should come from: its
	// queue's if the device is known, else that of its first connection; 0 if
	// there is none.
	NAPI uint32
	Counters
}

func (l *loop) statistics() Statistics {
	return Statistics{
		Shard: l.shard, Elapsed: l.now() - l.began, Mode: l.config.Mode, Connections: l.conns, NAPI: l.napi, Counters: l.counters,
	}
}

// ErrStopped is returned once the loops have ended.
var ErrStopped = errors.New("the loops have stopped")

// Statistics takes a snapshot of every shard, on its own goroutine.
func (r *Runtime) Statistics(ctx context.Context) ([]Statistics, error) {
	all := make([]Statistics, len(r.loops))
	if err := r.onAll(ctx, func(l *loop) { all[l.shard] = l.statistics() }); err != nil {
		return nil, err
	}
	return all, nil
}
