package load

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/runtime/affinity"
)

// A transport carries a thread's bytes. It belongs to the thread, and calls
// established, input, over and fail on its sessions from inside move.
type transport interface {
	// connect begins to open a connection for s.
	connect(s *session) error
	// close ends it, if there is one.
	close(s *session)
	// send takes as much of s.out as goes, and the rest later by itself.
	send(s *session)
	// move lets things happen: it waits until something does, but at most
	// wait, and returns how much did and how long it waited, in nanoseconds.
	move(now, wait int64) (happened int, waited int64)
	// flush puts what was sent on the wire.
	flush()
	// leave closes everything.
	leave()
	// polls says that move never sleeps.
	polls() bool
}

// A phase is what all threads do at the same time. Its times are in nanoseconds
// since the run's origin.
type phase struct {
	kind  phaseKind
	begin int64
	// from when on requests count, and from when on none is sent: never, as
	// long as the warm-up is held.
	measured, end atomic.Int64
}

type phaseKind int

const (
	connectPhase phaseKind = iota
	storePhase
	loadPhase
)

// A thread of the client has connections of its own and shares nothing with the
// others but the plan.
type thread struct {
	plan      *plan
	index     int
	origin    time.Time
	stop      *atomic.Bool
	transport transport
	phase     *phase
	sessions  []*session
	due       []*session // a heap by next: whose next request is to come
	dirty     []*session // with output for the transport
	scratch   []byte

	latencies, connectTimes *hdrhistogram.Histogram
	gets, sets, misses      uint64
	wrong, errors, unsent   uint64
	connects                uint64
	firstWrong, firstError  error
	lastReply, lastDue      int64
	inTime                  uint64 // replies that came in the measured time
	replies                 uint64 // that Config.Replies does not know of yet

	idle   int64 // nanoseconds without anything to do, so far
	window window
}

// window is the time from the first request that counts to the last that was
// sent, and how much of it the thread was idle and on a processor.
type window struct {
	opened, closed bool
	begin, end     int64
	idle           int64
	cpu            time.Duration
}

// longestLook is how long it can take a thread that polls to find nothing. What
// is beyond it was taken by others, which is no spare time of the client's: in a
// lab it is receive work of the client's own end.
const longestLook = int64(5 * time.Microsecond)

// sweepEvery is how often a thread looks at what time alone brings about; with
// many sessions less often.
const sweepEvery = int64(2 * time.Millisecond)

func (t *thread) now() int64 { return int64(time.Since(t.origin)) }

// main runs on a goroutine of its own, whose thread ends with it.
func (t *thread) main(phases <-chan *phase, done chan<- error) {
	runtime.LockOSThread() // never unlocked: affinity and namespace end with the thread
	leave, err := t.enter()
	done <- err
	if err != nil {
		return
	}
	for p := range phases {
		done <- t.run(p)
	}
	for _, s := range t.sessions {
		t.transport.close(s)
	}
	t.transport.leave()
	leave()
	done <- nil
}

func (t *thread) enter() (leave func(), err error) {
	c := &t.plan.config
	if err := affinity.Pin(c.Cores[t.index]); err != nil {
		return nil, err
	}
	leave = func() {}
	if c.EnterThread != nil {
		if leave, err = c.EnterThread(); err != nil {
			return nil, err
		}
	}
	if t.transport, err = t.plan.newTransport(t); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// run carries a phase out. The phases before the load fail with the first error.
func (t *thread) run(p *phase) error {
	t.phase = p
	t.due = t.due[:0]
	for _, s := range t.sessions {
		s.due = false
		s.begin(p)
	}
	t.send()
	every := max(sweepEvery, int64(len(t.sessions))*int64(time.Microsecond))
	now, wait, swept := t.now(), int64(0), int64(0)
	polls, report := t.transport.polls(), t.plan.config.Replies
	for {
		happened, waited := t.transport.move(now, wait)
		if len(t.due) > 0 {
			happened += t.release(t.now())
		}
		happened += t.send()
		t.transport.flush()
		before := now
		now = t.now()
		switch {
		case happened > 0:
			t.idle += waited
		case polls:
			t.idle += min(now-before, longestLook)
		default:
			t.idle += now - before
		}
		if t.replies > 0 && report != nil {
			report.Add(t.replies)
			t.replies = 0
		}
		if now-swept >= every || happened == 0 && now-swept >= every/8 {
			swept = now
			if t.sweep(now) {
				break
			}
			if p.kind != loadPhase && t.firstError != nil {
				return t.firstError
			}
			t.send()
		}
		wait = 0
		if happened == 0 {
			wait = every
			if len(t.due) > 0 {
				wait = max(0, min(wait, int64(t.due[0].next)-now))
			}
		}
	}
	if p.kind != loadPhase {
		return t.firstError
	}
	t.closeWindow(now)
	for _, s := range t.sessions {
		t.unsent += s.unsent(mostUnsent / len(t.sessions))
	}
	return nil
}

// mostUnsent is how many requests a thread records that it did not send.
const mostUnsent = 1 << 20

// sweep sees to timeouts and reconnects, and says whether the phase is over.
func (t *thread) sweep(now int64) (over bool) {
	over, sending := true, now < t.phase.end.Load()
	some := false
	for _, s := range t.sessions {
		if s.check(now) {
			over = false
		}
		some = some || s.left > 0
	}
	if t.phase.kind == loadPhase {
		if !t.window.opened && now >= t.phase.measured.Load() {
			t.openWindow(now)
		}
		if !sending || !some {
			t.closeWindow(now)
		}
	} else if t.phase.kind == connectPhase {
		over = true
		for _, s := range t.sessions {
			over = over && s.state == open
		}
	}
	return over || t.stop.Load()
}

func (t *thread) openWindow(now int64) {
	t.window = window{opened: true, begin: now, idle: t.idle, cpu: threadTime()}
}

func (t *thread) closeWindow(now int64) {
	w := &t.window
	if !w.opened {
		t.openWindow(now)
	}
	if !w.closed {
		w.closed, w.end = true, now
		w.idle, w.cpu = t.idle-w.idle, threadTime()-w.cpu
	}
}

// threadTime is the CPU time of the calling thread, to the nanosecond.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// release sends the requests that are due.
func (t *thread) release(now int64) (n int) {
	for len(t.due) > 0 && int64(t.due[0].next) <= now {
		s := t.due[0]
		t.unschedule()
		s.issue(now)
		n++
	}
	return n
}

// touch has the thread hand the session's output to the transport.
func (t *thread) touch(s *session) {
	if !s.dirty {
		s.dirty = true
		t.dirty = append(t.dirty, s)
	}
}

func (t *thread) send() int {
	n := len(t.dirty)
	for i := 0; i < len(t.dirty); i++ {
		s := t.dirty[i]
		s.dirty = false
		if len(s.out) > 0 && s.state != closed && s.state != connecting {
			t.transport.send(s)
		}
	}
	t.dirty = t.dirty[:0]
	return n
}

// outcome of a request that was answered.
type outcome bool

const (
	hit  outcome = true
	miss outcome = false
)

// count counts a request that was answered at a time. Throughput is of all replies
// that come in the measured time: a server that has a backlog of the warm-up to
// answer first answers no less for it. Latency is of what was due in that time.
func (t *thread) count(r request, now int64, o outcome) {
	t.replies++
	if t.phase.kind != loadPhase {
		return
	}
	measured := t.phase.measured.Load()
	if now >= measured && now <= t.phase.end.Load() {
		t.inTime++
	}
	if r.due < measured {
		return
	}
	if r.set {
		t.sets++
	} else {
		t.gets++
		if o == miss {
			t.misses++
		}
	}
	record(t.latencies, now-r.due)
}

// failed counts requests without a usable answer.
func (t *thread) failed(n int, err error) {
	if t.stop.Load() {
		return // it is the run that ended it
	}
	t.errors += uint64(n)
	t.note(&t.firstError, err)
}

func (t *thread) note(first *error, err error) {
	if *first == nil {
		*first = err
	}
}

// record adds a time to a histogram; what is longer than it can hold is at least
// its longest.
func record(h *hdrhistogram.Histogram, d int64) {
	_ = h.RecordValue(min(max(d, 0), highest))
}

// schedule puts a session into the heap of those whose next request is to come.
func (t *thread) schedule(s *session) {
	if s.due {
		return
	}
	s.due = true
	t.due = append(t.due, s)
	for i := len(t.due) - 1; i > 0; {
		parent := (i - 1) / 2
		if t.due[parent].next <= t.due[i].next {
			return
		}
		t.due[i], t.due[parent] = t.due[parent], t.due[i]
		i = parent
	}
}

// unschedule takes the first off.
func (t *thread) unschedule() {
	h := t.due
	h[0].due = false
	last := len(h) - 1
	h[0] = h[last]
	h[last] = nil
	t.due = h[:last]
	h = t.due
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1].next < h[child].next {
			child++
		}
		if h[i].next <= h[child].next {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}
