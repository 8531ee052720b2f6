// Package queue is a virtual output queue: what one core has for one output
// port. Frames pass by reference. Flows, told apart by a hash, take turns by
// bytes (deficit round robin: Shreedhar and Varghese, SIGCOMM 1995), each may
// have its standing queue cut by CoDel (RFC 8289), and the whole may have a
// rate. No queue knows of another, so a full output holds up nobody else.
package queue

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// Config of a queue. The zero value of a field means its default.
type Config struct {
	// Frames bounds what waits: 1,024.
	Frames int
	// Quantum is what a flow may send in its turn, in bytes: 1,514.
	Quantum int
	// CoDel drops from flows whose frames have waited longer than Target (5 ms)
	// for Interval (100 ms). Otherwise only a full queue drops.
	CoDel            bool
	Target, Interval time.Duration
}

// Output is what the queues of all cores for one port share.
type Output struct {
	_      [64]byte     // what is around must not disturb those who read
	rate   atomic.Int64 // bits a second, 0 is no limit; read for every frame
	_      [64]byte
	active atomic.Int32 // queues that have frames
	_      [60]byte
}

// SetRate limits the output to so many bits of frame data a second, over all
// cores; 0 is no limit. It may be called at any time, from any goroutine.
func (o *Output) SetRate(bits int64) { o.rate.Store(max(0, bits)) }

// Rate is what SetRate set.
func (o *Output) Rate() int64 { return o.rate.Load() }

// Dropped counts the frames that a queue dropped, by cause.
type Dropped struct {
	// Full: there was no room, and the frame's flow had at least its share.
	// Cut: taken from the longest flow to make room for one with less.
	// CoDel: the flow's frames waited too long.
	Full, Cut, CoDel uint64
}

// The number of flows told apart; those that share a number share their turn.
const flows = 256

const none = -1

// burstTime is how far a rate may run ahead after idleness.
const burstTime = 500 * time.Microsecond

// Queue belongs to one core.
type Queue struct {
	config  Config
	output  *Output
	slots   []slot
	free    int32
	flows   [flows]flow
	head    int16 // of the flows with frames, in turn
	tail    int16
	active  int
	count   int
	bytes   int
	epoch   uint32
	stale   int
	clear   time.Duration // when the rate lets the next frame begin
	dead    [64]driver.Frame
	nDead   int
	dropped Dropped
}

type slot struct {
	frame driver.Frame
	since time.Duration
	next  int32
	epoch uint32
}

type flow struct {
	head, tail int32
	next       int16
	deficit    int32
	bytes      int32
	// CoDel, in the words of RFC 8289 5.
	dropping           bool
	firstAbove, dropAt time.Duration
	drops, lastDrops   uint32
}

// New makes an empty queue.
func New(c Config, o *Output) *Queue {
	if c.Frames == 0 {
		c.Frames = 1024
	}
	if c.Quantum == 0 {
		c.Quantum = 1514
	}
	if c.Target == 0 {
		c.Target = 5 * time.Millisecond
	}
	if c.Interval == 0 {
		c.Interval = 100 * time.Millisecond
	}
	q := &Queue{config: c, output: o, slots: make([]slot, c.Frames), head: none, tail: none}
	for i := range q.slots {
		q.slots[i].next = int32(i) + 1
	}
	q.slots[c.Frames-1].next = none
	for i := range q.flows {
		q.flows[i].head, q.flows[i].tail = none, none
	}
	return q
}

// Len is the number of frames that wait, and Bytes their size.
func (q *Queue) Len() int   { return q.count }
func (q *Queue) Bytes() int { return q.bytes }

// Limited says whether frames must pass through the queue even if it is empty.
func (q *Queue) Limited() bool { return q.output.Rate() > 0 }

// Dropped is what was dropped so far.
func (q *Queue) Dropped() Dropped { return q.dropped }

// NewEpoch marks all frames that wait as stale; Stale is how many of them still
// wait.
func (q *Queue) NewEpoch() { q.epoch++; q.stale = q.count }

// Stale counts the frames that were queued before the last NewEpoch.
func (q *Queue) Stale() int { return q.stale }

// Push takes a frame of a flow over; what must be dropped for it, maybe the frame
// itself, is freed and counted.
func (q *Queue) Push(f *driver.Frame, hash uint32, now time.Duration) {
	i := hash % flows
	w := &q.flows[i]
	if q.free == none {
		// The frame's flow gives way if it has its share already; so the one
		// that floods pays, in constant time.
		longest := q.longest(w)
		if longest == w {
			q.dropped.Full++
			q.bury(f)
			return
		}
		cut, _ := q.take(longest)
		q.dropped.Cut++
		q.bury(&cut)
	}
	at := q.free
	s := &q.slots[at]
	q.free = s.next
	s.frame, s.since, s.next, s.epoch = *f, now, none, q.epoch
	*f = driver.Frame{}
	if q.count == 0 {
		q.output.active.Add(1)
	}
	q.count++
	q.bytes += len(s.frame.Data)
	w.bytes += int32(len(s.frame.Data))
	if w.head != none {
		q.slots[w.tail].next = at
		w.tail = at
		return
	}
	w.head, w.tail = at, at
	if w.next == 0 { // not in turn
		w.deficit = int32(q.config.Quantum)
		q.enter(int16(i))
	}
}

// enter puts a flow at the end of the turn. Its next is never 0 while it is
// there: it is the number of the flow behind plus one, or none.
func (q *Queue) enter(i int16) {
	q.flows[i].next = none
	if q.tail == none {
		q.head = i
	} else {
		q.flows[q.tail].next = i + 1
	}
	q.tail = i
	q.active++
}

// leave takes the first flow out of the turn.
func (q *Queue) leave() int16 {
	i := q.head
	next := q.flows[i].next
	q.flows[i].next = 0
	q.active--
	if next == none {
		q.head, q.tail = none, none
	} else {
		q.head = next - 1
	}
	return i
}

// longest is w if it holds at least an equal share of the bytes, else the flow
// that holds most.
func (q *Queue) longest(w *flow) *flow {
	if int(w.bytes)*q.active >= q.bytes {
		return w
	}
	most := w
	for i := q.head; i != none; {
		f := &q.flows[i]
		if f.bytes > most.bytes {
			most = f
		}
		if f.next == none {
			break
		}
		i = f.next - 1
	}
	return most
}

// take removes the first frame of a flow that has one. The flow stays in turn.
func (q *Queue) take(w *flow) (f driver.Frame, since time.Duration) {
	at := w.head
	s := &q.slots[at]
	f, since = s.frame, s.since
	s.frame = driver.Frame{}
	w.head = s.next
	if w.head == none {
		w.tail = none
	}
	s.next, q.free = q.free, at
	if s.epoch != q.epoch {
		q.stale--
	}
	q.count--
	q.bytes -= len(f.Data)
	w.bytes -= int32(len(f.Data))
	if q.count == 0 {
		q.output.active.Add(-1)
	}
	return f, since
}

// Pop fills frames with those whose turn it is, as far as the rate allows, and
// returns how many. The caller owns them.
func (q *Queue) Pop(frames []driver.Frame, now time.Duration) int {
	n := 0
	rate := q.output.Rate()
	if rate > 0 {
		rate = max(1, rate/int64(max(1, q.output.active.Load())))
		q.clear = max(q.clear, now-burstTime)
	}
	for n < len(frames) && q.head != none {
		if rate > 0 && q.clear > now {
			break
		}
		w := &q.flows[q.head]
		if w.deficit <= 0 {
			// Also without frames: else a flow could leave in debt and come back
			// with none.
			w.deficit += int32(q.config.Quantum)
			q.enter(q.leave())
			continue
		}
		if w.head == none {
			q.leave()
			continue
		}
		f, ok := q.next(w, now)
		if !ok {
			continue
		}
		w.deficit -= int32(len(f.Data))
		if rate > 0 {
			q.clear += time.Duration(float64(len(f.Data)) * 8e9 / float64(rate))
		}
		frames[n] = f
		n++
	}
	q.Flush()
	return n
}

// next takes a frame of a flow, past those that CoDel drops.
func (q *Queue) next(w *flow, now time.Duration) (driver.Frame, bool) {
	f, since := q.take(w)
	if !q.config.CoDel {
		return f, true
	}
	ok := q.overdue(w, since, now)
	if w.dropping {
		if !ok {
			w.dropping = false
		}
		for w.dropping && now >= w.dropAt {
			q.dropped.CoDel++
			q.bury(&f)
			w.drops++
			if w.head == none {
				w.dropping = false
				return driver.Frame{}, false
			}
			f, since = q.take(w)
			if q.overdue(w, since, now) {
				w.dropAt = q.control(w.dropAt, w.drops)
			} else {
				w.dropping = false
			}
		}
		return f, true
	}
	if ok {
		q.dropped.CoDel++
		q.bury(&f)
		w.dropping = true
		// A flow that was dropping a moment ago goes on where it was.
		if delta := w.drops - w.lastDrops; delta > 1 && now-w.dropAt < 16*q.config.Interval {
			w.drops = delta
		} else {
			w.drops = 1
		}
		w.dropAt = q.control(now, w.drops)
		w.lastDrops = w.drops
		if w.head == none {
			return driver.Frame{}, false
		}
		f, since = q.take(w)
		q.overdue(w, since, now)
	}
	return f, true
}

// overdue says whether frames have waited too long for a whole interval.
func (q *Queue) overdue(w *flow, since, now time.Duration) bool {
	if now-since < q.config.Target || int(w.bytes) <= q.config.Quantum {
		w.firstAbove = 0
		return false
	}
	if w.firstAbove == 0 {
		w.firstAbove = now + q.config.Interval
		return false
	}
	return now >= w.firstAbove
}

func (q *Queue) control(t time.Duration, drops uint32) time.Duration {
	return t + time.Duration(float64(q.config.Interval)/math.Sqrt(float64(drops)))
}

// bury frees a frame, with others.
func (q *Queue) bury(f *driver.Frame) {
	q.dead[q.nDead] = *f
	*f = driver.Frame{}
	if q.nDead++; q.nDead == len(q.dead) {
		q.Flush()
	}
}

// Flush frees what was dropped. Pop does it too.
func (q *Queue) Flush() {
	driver.Free(q.dead[:q.nDead])
	q.nDead = 0
}

// Ready is when Pop will next give a frame: now if it could, and false if
// nothing waits.
func (q *Queue) Ready(now time.Duration) (time.Duration, bool) {
	if q.count == 0 {
		return 0, false
	}
	if q.output.Rate() > 0 && q.clear > now {
		return q.clear, true
	}
	return now, true
}

// Clear frees everything.
func (q *Queue) Clear() {
	for q.head != none {
		for w := &q.flows[q.head]; w.head != none; {
			f, _ := q.take(w)
			q.bury(&f)
		}
		q.leave()
	}
	q.Flush()
}
