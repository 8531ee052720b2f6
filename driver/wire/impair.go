package wire

import (
	"errors"
	"fmt"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// An Impaired port is a port of any driver with faults between it and its user,
// in both directions. It costs a copy per frame each way, computes and verifies
// no checksums, and needs a device that delivers whole ones.
type Impaired struct {
	driver.Port
	queues []*impairedQueue
}

// Impair wraps a port. Of the Config it uses Seed, Faults (those of A happen to
// what is transmitted, those of B to what was received), Ring, Frames (for each
// queue) and Trace. Each queue draws its own faults; a queue's are the same for
// the same seed and the same calls. Now tells the link's time, which must not go
// back, on the goroutine of any queue: this package reads no clock.
func Impair(p driver.Port, c Config, now func() time.Duration) (*Impaired, error) {
	i := &Impaired{Port: p}
	for k := range p.Queues() {
		l, err := New(Config{
			Name: p.Name(), MTU: p.MTU(), Ring: c.Ring, Frames: c.Frames,
			Seed: c.Seed + uint64(k), Faults: c.Faults, Trace: c.Trace,
		})
		if err != nil {
			return nil, fmt.Errorf("impair queue %d: %w", k, err)
		}
		l.keepHash = true
		i.queues = append(i.queues, &impairedQueue{
			Queue: l.Port(A).Queue(0), link: l, far: l.Port(B).Queue(0), device: p.Queue(k), now: now,
		})
	}
	return i, nil
}

// Capabilities are the device's, less the offloads.
func (i *Impaired) Capabilities() driver.Capabilities {
	c := i.Port.Capabilities()
	return driver.Capabilities{Driver: c.Driver, MaxFrame: i.queues[0].link.Port(A).Capabilities().MaxFrame, Interrupt: c.Interrupt}
}

// Queue implements driver.Port.
func (i *Impaired) Queue(k int) driver.Queue { return i.queues[k] }

// SetFaults changes what happens from now on, on all queues.
func (i *Impaired) SetFaults(s Side, f Faults) error {
	for _, q := range i.queues {
		if err := q.link.SetFaults(s, f); err != nil {
			return err
		}
	}
	return nil
}

// Statistics are the device's, followed by what happened to the frames of each
// direction, over all queues: "transmit lost", "receive reordered", …
func (i *Impaired) Statistics() ([]driver.Statistic, error) {
	all, err := i.Port.Statistics()
	if err != nil {
		return nil, err
	}
	for s, direction := range []string{A: "transmit ", B: "receive "} {
		var sums []driver.Statistic
		for _, q := range i.queues {
			counts, err := q.link.Port(Side(s)).Statistics()
			if err != nil {
				return nil, err
			}
			for k, c := range counts {
				if k == len(sums) {
					sums = append(sums, driver.Statistic{Name: direction + c.Name})
				}
				sums[k].Value += c.Value
			}
		}
		all = append(all, sums...)
	}
	return all, nil
}

// FreeFrames counts the device's pools and the links'.
func (i *Impaired) FreeFrames() int {
	n := i.Port.FreeFrames()
	if n < 0 {
		return n
	}
	for _, q := range i.queues {
		n += q.link.FreeFrames()
	}
	return n
}

// Close frees what is under way and closes the device.
func (i *Impaired) Close() error {
	var errs []error
	for _, q := range i.queues {
		driver.Free(q.outgoing[:q.pending])
		q.pending = 0
		errs = append(errs, q.link.Port(A).Close())
	}
	return errors.Join(append(errs, i.Port.Close())...)
}

// An impairedQueue moves frames between a device's queue and the far end of a
// link whose near end it is.
type impairedQueue struct {
	driver.Queue // the near end
	link         *Link
	far, device  driver.Queue
	now          func() time.Duration
	incoming     [32]driver.Frame
	outgoing     [32]driver.Frame
	pending      int // of outgoing, not yet taken by the device
	dropped      uint64
}

func (q *impairedQueue) Receive(frames []driver.Frame) int {
	q.link.Advance(q.now())
	// About as many as may be handed out, or a device that fills up as fast as it
	// is emptied would keep us here; the rest waits there.
	for taken := 0; taken < len(frames); {
		n := q.device.Receive(q.incoming[:])
		taken += n
		if k := q.far.Transmit(q.incoming[:n]); k < n {
			// The link is full, as a NIC's ring may be.
			q.dropped += uint64(n - k)
			driver.Free(q.incoming[k:n])
		}
		if n < len(q.incoming) {
			break
		}
	}
	q.flush()
	return q.Queue.Receive(frames)
}

func (q *impairedQueue) Transmit(frames []driver.Frame) int {
	q.link.Advance(q.now())
	n := q.Queue.Transmit(frames)
	q.flush()
	return n
}

// flush gives the device what has come out of the link.
func (q *impairedQueue) flush() {
	for {
		q.pending += q.far.Receive(q.outgoing[q.pending:])
		if q.pending == 0 {
			return
		}
		n := q.device.Transmit(q.outgoing[:q.pending])
		copy(q.outgoing[:], q.outgoing[n:q.pending])
		clear(q.outgoing[q.pending-n : q.pending])
		q.pending -= n
		if q.pending > 0 {
			return // the device is full; the next call tries again
		}
	}
}

func (q *impairedQueue) Statistics() driver.QueueStatistics {
	s := q.Queue.Statistics()
	s.ReceiveDropped += q.dropped
	return s
}

// Interrupt is the device's, but forbids sleep while a frame is under way: only
// time will bring that one.
func (q *impairedQueue) Interrupt() driver.Interrupt {
	if in := q.device.Interrupt(); in != nil {
		return impairedInterrupt{in, q}
	}
	return nil
}

type impairedInterrupt struct {
	driver.Interrupt
	queue *impairedQueue
}

func (i impairedInterrupt) Arm() (bool, error) {
	if _, underWay := i.queue.link.Next(); underWay || i.queue.pending > 0 {
		return false, nil
	}
	return i.Interrupt.Arm()
}
