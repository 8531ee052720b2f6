package wire

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// A direction carries frames from one end's queues to the other's. Its lock is
// taken once per burst; the pool's lock may be taken inside, nothing else.
type direction struct {
	link *Link
	from Side

	mu     sync.Mutex
	now    time.Duration
	faults Faults
	random *rand.Rand
	rings  []ring // of the receiver's queues
	closed bool
	// lineFree is when the rate limit lets the next frame begin; lastDue is
	// when the last frame in order arrives.
	lineFree, lastDue time.Duration
	counts            counts
}

// counts are what happened to a direction's frames.
type counts struct {
	carried, lost, duplicated, corrupted, reordered, segments, malformed, unplugged uint64
}

// An outcome is what became of a frame that was offered to the link.
type outcome int

const (
	refused outcome = iota // no room: the caller keeps it
	passed                 // its buffer is under way
	spent                  // the link is done with it: its buffer is to be freed
)

// computeL4 are the flags that leave a transport checksum to the device.
const computeL4 = driver.ComputeTCPChecksum | driver.ComputeUDPChecksum | driver.SegmentTCP

// send offers one frame. The direction's lock is held.
func (d *direction) send(f *driver.Frame) outcome {
	if d.closed {
		d.counts.unplugged++
		return spent
	}
	c := &d.link.config
	own := f.Pool == driver.Pool(d.link.pool)
	offloads := c.TransmitChecksum
	segment := c.SegmentTCP && f.Flags&driver.SegmentTCP != 0
	switch {
	case len(f.Data) < ethernetHeader,
		!segment && len(f.Data) > c.MTU+ethernetHeader,
		segment && (!wellFormedTSO(f) || headers(f)+int(f.SegmentSize) > d.link.pool.small.size),
		!segment && offloads && !wellFormedChecksum(f):
		// A device would drop it, or send garbage; the counter tells.
		d.counts.malformed++
		return spent
	}
	hash, hashed := uint32(0), false
	queue := 0
	if d.link.keepHash {
		hash, hashed = f.Hash, f.Flags&driver.HashValid != 0
	} else if d.link.hasher != nil {
		if hash, hashed = d.link.hash(f.Data); hashed {
			queue = int(d.link.table[hash%tableSize])
		}
	}
	e := entry{hash: hash}
	if hashed {
		e.flags = driver.HashValid
	}
	r := &d.rings[queue]

	large := segment && len(f.Data)-headers(f) > int(f.SegmentSize)
	if large && !c.ReceiveLarge {
		return d.cut(f, r, e)
	}
	if r.room() == 0 {
		return refused
	}
	if own {
		e.handle = uint32(f.Handle)
	} else if e.handle = d.copy(f.Data); e.handle == noBuffer {
		return refused
	}
	e.length = uint32(len(f.Data))
	data := d.link.pool.buffer(e.handle)[:e.length]
	if large {
		e.segmentSize = f.SegmentSize
	}
	partial := false
	if offloads && f.Flags&(computeL4|driver.ComputeIPChecksum) != 0 {
		// Corruption must hit a frame with a checksum, or nobody could notice.
		partial = c.PartialChecksums && f.Flags&computeL4 != 0 && d.faults.Corrupt == 0
		if !partial {
			fillChecksums(data, f, segment)
		}
	}
	if !d.carry(r, e, partial) {
		if own {
			return spent
		}
		d.link.pool.put(e.handle)
	}
	if own {
		return passed
	}
	return spent
}

// copy puts data into a buffer of ours.
func (d *direction) copy(data []byte) uint32 {
	handle := d.link.pool.take(len(data))
	if handle != noBuffer {
		copy(d.link.pool.buffer(handle), data)
	}
	return handle
}

// carry applies the faults to a frame that r has room for, and puts it there.
// False means that it was lost. Partial says that its checksum is good by
// agreement, not by its bytes.
func (d *direction) carry(r *ring, e entry, partial bool) bool {
	f := &d.faults
	sent := d.now
	if f.Rate > 0 {
		sent = max(sent, d.lineFree) + time.Duration(int64(e.length)*8*int64(time.Second)/f.Rate)
		d.lineFree = sent
	}
	if d.happens(f.Loss) {
		d.counts.lost++
		return false
	}
	data := d.link.pool.buffer(e.handle)[:e.length]
	corrupted := d.happens(f.Corrupt)
	if corrupted {
		bit := d.random.IntN(8 * len(data))
		data[bit/8] ^= 0x80 >> (bit % 8)
		d.counts.corrupted++
	}
	if d.link.config.ReceiveChecksum {
		if partial {
			e.flags |= driver.ChecksumValid
		} else {
			e.flags |= verifyChecksums(data)
		}
		if corrupted {
			// The flip may have hit what no checksum covers.
			e.flags &^= driver.ChecksumValid
		}
	}
	e.due = sent + f.Delay
	if f.Jitter > 0 {
		e.due += time.Duration(d.random.Int64N(int64(f.Jitter) + 1))
	}
	e.due = max(e.due, d.lastDue)
	d.lastDue = e.due
	if d.happens(f.Reorder) {
		hold := f.ReorderDelay
		if hold == 0 {
			hold = time.Millisecond
		}
		e.due += hold
		d.counts.reordered++
	}
	r.insert(e)
	if d.happens(f.Duplicate) && r.room() > 0 {
		twin := e
		if twin.handle = d.copy(data); twin.handle != noBuffer {
			r.insert(twin)
			d.counts.duplicated++
		}
	}
	r.notify(d.now)
	return true
}

// happens draws a fault. Faults that are off draw nothing.
func (d *direction) happens(probability float64) bool {
	return probability > 0 && d.random.Float64() < probability
}

// receive fills frames with what is due for a queue.
func (d *direction) receive(queue int, frames []driver.Frame) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, p := &d.rings[queue], d.link.pool
	for i := range frames {
		if !r.ready(d.now) {
			return i
		}
		e := r.pop()
		f := &frames[i]
		*f = driver.Frame{
			Data: p.buffer(e.handle)[:e.length], Pool: p, Handle: uintptr(e.handle),
			Hash: e.hash, Flags: e.flags, SegmentSize: e.segmentSize,
		}
		d.counts.carried++
		if trace := d.link.config.Trace; trace != nil {
			trace(d.from, d.now, f.Data)
		}
	}
	return len(frames)
}

func (d *direction) advance(now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = max(d.now, now)
	for i := range d.rings {
		d.rings[i].notify(d.now)
	}
}

func (d *direction) next() (due time.Duration, found bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.rings {
		if r := &d.rings[i]; r.n > 0 && (!found || r.entries[r.head].due < due) {
			due, found = r.entries[r.head].due, true
		}
	}
	return due, found
}

// close frees what is under way and lets nothing more in.
func (d *direction) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for i := range d.rings {
		for r := &d.rings[i]; r.n > 0; d.counts.unplugged++ {
			d.link.pool.put(r.pop().handle)
		}
	}
}
