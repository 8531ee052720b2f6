// Package wire is an Ethernet link in memory: two ends, each a driver.Port, with
// loss, delay, reordering, duplication, corruption and a rate limit drawn from a
// seed. Time is an argument: nothing here reads a clock, a link stands still
// until Advance moves it, and the same seed with the same calls gives the same
// frames in the same order. Frames live in a bounded pool of Go memory and pass
// from end to end by reference.
package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// A Side names an end of a link, and the direction of the frames it sends.
type Side int

// The two ends.
const (
	A Side = iota
	B
)

// Other is the opposite end.
func (s Side) Other() Side { return 1 - s }

func (s Side) String() string { return [...]string{"A", "B"}[s&1] }

// Config describes a link. The zero value is a perfect link of one queue pair
// per end whose ends compute and verify nothing.
type Config struct {
	// Name begins the ports' names; "wire" if empty.
	Name string
	// Addresses are the ends' Ethernet addresses; 02:00:00:00:00:0a and …:0b if zero.
	Addresses [2][6]byte
	// Queues is the number of queue pairs of each end; 1 if zero. With more,
	// TCP and UDP frames are spread by RSS over their addresses and ports, and
	// all others arrive on queue 0.
	Queues int
	// MTU is the largest network-layer packet in bytes; 1,500 if zero.
	MTU int
	// Ring is how many frames may be on their way to, or wait in, one queue; a
	// transmitter is refused beyond it. 1,024 if zero, at least 64.
	Ring int
	// Frames is the size of the pool that both ends share; twice as many as
	// all rings hold if zero. With SegmentTCP there are Frames/16 large ones besides.
	Frames int
	// Seed and the calls made decide every fault.
	Seed uint64
	// Faults happen to the frames that the side of the same index sends.
	Faults [2]Faults
	// ReceiveChecksum: the ends verify the checksums of what arrives, and say
	// so in the frame's flags. A corrupted frame is never ChecksumValid.
	ReceiveChecksum bool
	// TransmitChecksum: the Compute flags work. The link fills checksums in
	// before anything happens to the frame.
	TransmitChecksum bool
	// PartialChecksums, with both of the above: a checksum that the sender
	// left to the device is not computed at all, and the frame arrives
	// ChecksumValid all the same, as between a virtual machine and its host.
	// Cheapest, but such a frame must not be forwarded to another device, and
	// a capture shows it as wrong. A corrupted frame gets its checksum first.
	PartialChecksums bool
	// SegmentTCP: driver.SegmentTCP works; implies TransmitChecksum.
	SegmentTCP bool
	// ReceiveLarge, with SegmentTCP: large frames arrive uncut, with
	// SegmentSize set, instead of as segments.
	ReceiveLarge bool
	// Interrupts: the queues have a driver.Interrupt, made of a pipe.
	Interrupts bool
	// Trace, if set, is called for each frame as it leaves the link, in the
	// order of arrival: from is the sender, now the link's time. It must not
	// keep frame nor call the link. Calls of one direction never overlap;
	// those of two directions do if the ends have different goroutines.
	Trace func(from Side, now time.Duration, frame []byte)
}

// Faults are what may happen to each frame of one direction.
type Faults struct {
	// Loss, Duplicate, Corrupt and Reorder are probabilities per frame, from 0
	// to 1. A corrupted frame has one bit, anywhere, inverted; a duplicate
	// follows its original; a reordered frame is held back by ReorderDelay, so
	// that those behind it overtake.
	Loss, Duplicate, Corrupt, Reorder float64
	// Delay is how long each frame takes, and Jitter how much more, at random.
	// Jitter alone never changes the order.
	Delay, Jitter time.Duration
	// ReorderDelay is 1 ms if zero.
	ReorderDelay time.Duration
	// Rate limits the direction to so many bits per second of frame data; 0 is
	// no limit.
	Rate int64
}

func (f Faults) check() error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"Loss", f.Loss}, {"Duplicate", f.Duplicate}, {"Corrupt", f.Corrupt}, {"Reorder", f.Reorder}} {
		if !(p.value >= 0 && p.value <= 1) {
			return fmt.Errorf("%s is %v: a probability lies between 0 and 1", p.name, p.value)
		}
	}
	if f.Delay < 0 || f.Jitter < 0 || f.ReorderDelay < 0 || f.Rate < 0 {
		return errors.New("neither Delay, Jitter, ReorderDelay nor Rate may be negative")
	}
	return nil
}

const (
	ethernetHeader = 14
	// largeFrame holds an IP packet of any size.
	largeFrame = 65550
	minRing    = 64
	maxQueues  = 256
	tableSize  = 128
)

// A Link joins two ends. Its methods may be called from any goroutine.
type Link struct {
	config Config
	pool   *pool
	hasher *driver.Hasher
	table  []uint16
	// directions[s] carries what side s sends.
	directions [2]*direction
	ports      [2]*Port
	down       atomic.Bool
	// keepHash lets frames keep the RSS hash that they come with.
	keepHash bool
}

// New makes a link, at time zero.
func New(c Config) (*Link, error) {
	if c.Name == "" {
		c.Name = "wire"
	}
	if c.Addresses == [2][6]byte{} {
		c.Addresses = [2][6]byte{{2, 0, 0, 0, 0, 0x0a}, {2, 0, 0, 0, 0, 0x0b}}
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Ring == 0 {
		c.Ring = 1024
	}
	if c.Frames == 0 {
		c.Frames = 4 * c.Queues * c.Ring
	}
	c.TransmitChecksum = c.TransmitChecksum || c.SegmentTCP
	switch {
	case c.Queues < 1 || c.Queues > maxQueues:
		return nil, fmt.Errorf("make link %s: %d queues; use 1 to %d", c.Name, c.Queues, maxQueues)
	case c.MTU < 68 || c.MTU > 65535:
		return nil, fmt.Errorf("make link %s: MTU of %d bytes; use 68 to 65535", c.Name, c.MTU)
	case c.Ring < minRing:
		return nil, fmt.Errorf("make link %s: ring of %d frames; use %d or more", c.Name, c.Ring, minRing)
	case c.Frames < 1:
		return nil, fmt.Errorf("make link %s: pool of %d frames; use 1 or more", c.Name, c.Frames)
	case c.PartialChecksums && !(c.TransmitChecksum && c.ReceiveChecksum):
		return nil, fmt.Errorf("make link %s: PartialChecksums needs TransmitChecksum and ReceiveChecksum", c.Name)
	case c.ReceiveLarge && !c.SegmentTCP:
		return nil, fmt.Errorf("make link %s: ReceiveLarge needs SegmentTCP", c.Name)
	}
	large := 0
	if c.SegmentTCP {
		large = max(c.Frames/16, 1)
	}
	l := &Link{config: c, pool: newPool(c.Frames, c.MTU+ethernetHeader, large)}
	if c.Queues > 1 {
		l.hasher = driver.NewHasher(driver.MicrosoftKey())
		l.table = make([]uint16, tableSize)
		for i := range l.table {
			l.table[i] = uint16(i % c.Queues)
		}
	}
	for s := range l.directions {
		if err := c.Faults[s].check(); err != nil {
			return nil, fmt.Errorf("make link %s: faults of side %s: %w", c.Name, Side(s), err)
		}
		d := &direction{
			link: l, from: Side(s), faults: c.Faults[s], rings: make([]ring, c.Queues),
			random: rand.New(rand.NewPCG(c.Seed, uint64(s))),
		}
		for i := range d.rings {
			d.rings[i].entries = make([]entry, c.Ring)
		}
		l.directions[s] = d
	}
	for s := range l.ports {
		p, err := newPort(l, Side(s))
		if err != nil {
			if s == int(B) {
				l.ports[A].closeInterrupts()
			}
			return nil, fmt.Errorf("make link %s: %w", c.Name, err)
		}
		l.ports[s] = p
	}
	return l, nil
}

// Port returns an end.
func (l *Link) Port(s Side) *Port { return l.ports[s] }

// Advance moves the link's time, which never goes back: frames that are due by
// now become receivable. Without delay and rate limit nothing waits for it.
func (l *Link) Advance(now time.Duration) {
	for _, d := range l.directions {
		d.advance(now)
	}
}

// Next returns when the next frame that is under way becomes receivable; false
// if none is. A simulation jumps there when nothing else is left to do.
func (l *Link) Next() (time.Duration, bool) {
	var next time.Duration
	found := false
	for _, d := range l.directions {
		if due, ok := d.next(); ok && (!found || due < next) {
			next, found = due, true
		}
	}
	return next, found
}

// SetFaults changes what happens to the frames that side s sends from now on.
func (l *Link) SetFaults(s Side, f Faults) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("set faults of %s, side %s: %w", l.config.Name, s, err)
	}
	d := l.directions[s]
	d.mu.Lock()
	d.faults = f
	d.mu.Unlock()
	return nil
}

// FreeFrames is the number of frames in the pool of the link: all of them once
// nothing is under way and nobody holds one.
func (l *Link) FreeFrames() int { return l.pool.available() }
