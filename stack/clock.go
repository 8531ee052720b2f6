package stack

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// clock is netstack's clock and timer queue. Time stands still between calls of
// advance, which the loop makes once an iteration; timers fire inside it, in the
// order of their deadlines and, among equals, of their setting, so that a run
// replays.
type clock struct {
	now atomic.Int64 // nanoseconds since the stack's origin

	guard  guard
	timers timerHeap
	seq    uint64
	next   atomic.Int64 // the first deadline, math.MaxInt64 if none

	// With the Handoff dispatch timers are set beside the loop, which may be
	// about to sleep until another: earlier says that the first deadline moved
	// forward since the loop asked for it, and wake ends the sleep.
	earlier atomic.Bool
	wake    func()
}

func newClock() *clock {
	c := &clock{}
	c.next.Store(math.MaxInt64)
	return c
}

// Now implements tcpip.Clock. Its origin is arbitrary: netstack only measures
// with it.
func (c *clock) Now() time.Time { return time.Unix(0, c.now.Load()) }

// NowMonotonic implements tcpip.Clock.
func (c *clock) NowMonotonic() tcpip.MonotonicTime {
	// The type holds the nanoseconds and nothing else (linkname_test.go), but its
	// only constructor goes through time.Time, which shows in profiles.
	now := c.now.Load()
	return *(*tcpip.MonotonicTime)(unsafe.Pointer(&now))
}

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	t := &timer{clock: c, fire: f, index: -1}
	t.Reset(d)
	return t
}

// advance moves time on to now and fires what is due.
func (c *clock) advance(now time.Duration) {
	if int64(now) > c.now.Load() {
		c.now.Store(int64(now))
	}
	c.seen()
	for c.next.Load() <= int64(now) {
		c.guard.lock()
		if len(c.timers) == 0 || c.timers[0].when > int64(now) {
			c.guard.unlock()
			return
		}
		t := c.timers[0]
		c.timers.remove(0)
		c.first()
		c.guard.unlock()
		t.fire()
	}
}

// deadline is the time of the first timer.
func (c *clock) deadline() time.Duration {
	c.seen()
	return time.Duration(c.next.Load())
}

// seen notes that the loop looks at the first deadline after this.
func (c *clock) seen() {
	if c.earlier.Load() {
		c.earlier.Store(false)
	}
}

// first notes the first deadline; the guard is held.
func (c *clock) first() {
	next := int64(math.MaxInt64)
	if len(c.timers) > 0 {
		next = c.timers[0].when
	}
	c.next.Store(next)
}

// timer implements tcpip.Timer.
type timer struct {
	clock *clock
	fire  func()
	when  int64
	seq   uint64
	index int // in the heap, -1 when not set
}

// Stop implements tcpip.Timer.
func (t *timer) Stop() bool {
	c := t.clock
	c.guard.lock()
	defer c.guard.unlock()
	if t.index < 0 {
		return false
	}
	c.timers.remove(t.index)
	c.first()
	return true
}

// Reset implements tcpip.Timer.
func (t *timer) Reset(d time.Duration) {
	c := t.clock
	c.guard.lock()
	if t.index >= 0 {
		c.timers.remove(t.index)
	}
	t.when = c.now.Load() + int64(max(d, 0))
	if t.when < 0 {
		t.when = math.MaxInt64 // overflow: never
	}
	c.seq++
	t.seq = c.seq
	c.timers.push(t)
	wake := c.wake
	if t.when >= c.next.Load() {
		wake = nil // the loop wakes up in time
	}
	c.first()
	c.guard.unlock()
	if wake != nil {
		c.earlier.Store(true)
		wake()
	}
}

// timerHeap is a binary heap that tells each timer where it is.
type timerHeap []*timer

func (h timerHeap) less(i, j int) bool {
	return h[i].when < h[j].when || h[i].when == h[j].when && h[i].seq < h[j].seq
}

func (h timerHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) push(t *timer) {
	t.index = len(*h)
	*h = append(*h, t)
	h.up(t.index)
}

func (h *timerHeap) remove(i int) {
	old := *h
	n := len(old) - 1
	t := old[i]
	old.swap(i, n)
	old[n] = nil
	*h = old[:n]
	t.index = -1
	if i < n {
		h.down(i)
		h.up(i)
	}
}

func (h timerHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(i, parent) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h timerHeap) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h.less(child+1, child) {
			child++
		}
		if !h.less(child, i) {
			return
		}
		h.swap(i, child)
		i = child
	}
}
