package capture

import (
	"fmt"

	"github.com/pollux-net/pollux/driver"
)

// A Port is a driver.Port whose queues are captured. Closing it closes the
// port it wraps, not the capture.
type Port struct {
	driver.Port
	queues []driver.Queue
}

// Port wraps all queues of p.
func (c *Capture) Port(p driver.Port) (*Port, error) {
	port := &Port{Port: p, queues: make([]driver.Queue, p.Queues())}
	for i := range port.queues {
		q, err := c.Queue(p.Queue(i), fmt.Sprintf("%s queue %d", p.Name(), i))
		if err != nil {
			return nil, err
		}
		port.queues[i] = q
	}
	return port, nil
}

// Queue returns queue i, captured.
func (p *Port) Queue(i int) driver.Queue { return p.queues[i] }

// Queue wraps q; name is what the file calls it. The result belongs to one
// goroutine, as q does. Allocation, interrupts and statistics are q's own.
func (c *Capture) Queue(q driver.Queue, name string) (driver.Queue, error) {
	in, err := c.direction(name + " in")
	if err != nil {
		return nil, err
	}
	out, err := c.direction(name + " out")
	if err != nil {
		return nil, err
	}
	wrapped := &queue{Queue: q, in: in, out: out}
	wrapped.received = func(i int) []byte { return wrapped.burst[i].Data }
	wrapped.staged = func(i int) []byte {
		return wrapped.bytes[wrapped.ends[i]:wrapped.ends[i+1]]
	}
	return wrapped, nil
}

type queue struct {
	driver.Queue
	in, out *direction
	burst   []driver.Frame // what Receive is just writing
	// bytes holds copies of the frames that Transmit offers, the one at i from
	// ends[i] to ends[i+1].
	bytes []byte
	ends  []int
	// The getters are made once, so that no burst allocates.
	received, staged func(i int) []byte
}

func (q *queue) Receive(frames []driver.Frame) int {
	n := q.Queue.Receive(frames)
	if n > 0 {
		q.burst = frames
		q.in.write(n, q.received)
		q.burst = nil
	}
	return n
}

// Transmit copies the frames first: which of them the device accepts is known
// only once they are no longer ours to look at.
func (q *queue) Transmit(frames []driver.Frame) int {
	if q.out.capture.stopped.Load() {
		n := q.Queue.Transmit(frames)
		q.out.skipped.Add(uint64(n))
		return n
	}
	q.bytes, q.ends = q.bytes[:0], append(q.ends[:0], 0)
	for i := range frames {
		q.bytes = append(q.bytes, frames[i].Data...)
		q.ends = append(q.ends, len(q.bytes))
	}
	n := q.Queue.Transmit(frames)
	if n > 0 {
		q.out.write(n, q.staged)
	}
	return n
}
