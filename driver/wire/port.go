package wire

import (
	"fmt"

	"github.com/pollux-net/pollux/driver"
)

// A Port is one end of a link.
type Port struct {
	link   *Link
	side   Side
	queues []*queue
}

func newPort(l *Link, s Side) (*Port, error) {
	p := &Port{link: l, side: s, queues: make([]*queue, l.config.Queues)}
	for i := range p.queues {
		p.queues[i] = &queue{pool: l.pool, in: l.directions[s.Other()], out: l.directions[s], index: i}
		if l.config.Interrupts {
			in, err := newInterrupt(p.queues[i].in, i)
			if err != nil {
				p.closeInterrupts()
				return nil, fmt.Errorf("open interrupt of queue %d, side %s: %w", i, s, err)
			}
			p.queues[i].interrupt = in
		}
	}
	return p, nil
}

// Name is the link's name and the side.
func (p *Port) Name() string { return p.link.config.Name + "-" + p.side.String() }

// Address implements driver.Port.
func (p *Port) Address() [6]byte { return p.link.config.Addresses[p.side] }

// MTU implements driver.Port.
func (p *Port) MTU() int { return p.link.config.MTU }

// Link reports the link up until either end is closed, and its speed in this
// end's direction if a rate limits it.
func (p *Port) Link() (driver.Link, error) {
	d := p.link.directions[p.side]
	d.mu.Lock()
	defer d.mu.Unlock()
	return driver.Link{Up: !p.link.down.Load(), Speed: int(d.faults.Rate / 1e6)}, nil
}

// Capabilities says what Config asked for.
func (p *Port) Capabilities() driver.Capabilities {
	c := &p.link.config
	caps := driver.Capabilities{
		Driver:              "wire",
		ReceiveChecksum:     c.ReceiveChecksum,
		TransmitIPChecksum:  c.TransmitChecksum,
		TransmitTCPChecksum: c.TransmitChecksum,
		TransmitUDPChecksum: c.TransmitChecksum,
		SegmentTCP:          c.SegmentTCP,
		MaxFrame:            c.MTU + ethernetHeader,
	}
	if c.SegmentTCP {
		caps.MaxFrame = largeFrame
	}
	if c.Interrupts {
		caps.Interrupt = "pipe"
	}
	return caps
}

// Queues implements driver.Port.
func (p *Port) Queues() int { return len(p.queues) }

// Queue implements driver.Port.
func (p *Port) Queue(i int) driver.Queue { return p.queues[i] }

// RSS reports Microsoft's key and a table of 128 entries, or false if there is
// one queue only.
func (p *Port) RSS() (driver.RSS, bool) {
	if p.link.hasher == nil {
		return driver.RSS{}, false
	}
	table := append([]uint16(nil), p.link.table...)
	return driver.RSS{Key: driver.MicrosoftKey(), Table: table, TCP4: true, TCP6: true, UDP4: true, UDP6: true}, true
}

// Statistics counts what happened to the frames that this end sent, and how
// many are under way or wait to be received at the other end.
func (p *Port) Statistics() ([]driver.Statistic, error) {
	d := p.link.directions[p.side]
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting := 0
	for i := range d.rings {
		waiting += d.rings[i].n
	}
	c := d.counts
	return []driver.Statistic{
		{Name: "carried", Value: c.carried},
		{Name: "waiting", Value: uint64(waiting)},
		{Name: "lost", Value: c.lost},
		{Name: "duplicated", Value: c.duplicated},
		{Name: "corrupted", Value: c.corrupted},
		{Name: "reordered", Value: c.reordered},
		{Name: "segments", Value: c.segments},
		{Name: "malformed", Value: c.malformed},
		{Name: "unplugged", Value: c.unplugged},
	}, nil
}

// FreeFrames is that of the link: both ends share one pool.
func (p *Port) FreeFrames() int { return p.link.FreeFrames() }

// Close unplugs the link: what is under way in either direction is freed, and
// what either end still transmits is dropped. It may be called more than once.
func (p *Port) Close() error {
	p.link.down.Store(true)
	for _, d := range p.link.directions {
		d.close()
	}
	return p.closeInterrupts()
}

func (p *Port) closeInterrupts() error {
	for _, q := range p.queues {
		if q != nil && q.interrupt != nil {
			if err := q.interrupt.close(); err != nil {
				return fmt.Errorf("close interrupt of %s: %w", p.Name(), err)
			}
		}
	}
	return nil
}

// A queue is one queue pair of an end.
type queue struct {
	pool      *pool
	in, out   *direction
	index     int
	interrupt *interrupt
	stats     driver.QueueStatistics
}

func (q *queue) Receive(frames []driver.Frame) int {
	n := q.in.receive(q.index, frames)
	if n == 0 {
		q.stats.EmptyPolls++
		return 0
	}
	q.stats.ReceivedFrames += uint64(n)
	for i := range frames[:n] {
		q.stats.ReceivedBytes += uint64(len(frames[i].Data))
	}
	return n
}

func (q *queue) Transmit(frames []driver.Frame) int {
	n, bytes, leftover := 0, 0, false
	q.out.mu.Lock()
loop:
	for ; n < len(frames); n++ {
		size := len(frames[n].Data)
		switch q.out.send(&frames[n]) {
		case refused:
			break loop
		case passed:
			frames[n] = driver.Frame{}
		case spent:
			leftover = true
		}
		bytes += size
	}
	q.out.mu.Unlock()
	if leftover {
		driver.Free(frames[:n])
	}
	q.stats.TransmittedFrames += uint64(n)
	q.stats.TransmittedBytes += uint64(bytes)
	q.stats.TransmitRefused += uint64(len(frames) - n)
	return n
}

func (q *queue) Allocate(frames []driver.Frame, size int) int {
	n := q.pool.allocate(frames, size)
	q.stats.AllocationFailures += uint64(len(frames) - n)
	return n
}

func (q *queue) Interrupt() driver.Interrupt {
	if q.interrupt == nil {
		return nil
	}
	return q.interrupt
}

func (q *queue) Statistics() driver.QueueStatistics { return q.stats }
