package kernel

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// source is something that epoll reports events of.
type source interface{ ready(events uint32) }

// registered is what a loop knows of a descriptor. The generation travels with
// the events: an event of a connection that has been closed meanwhile is not
// taken for one of the connection that got its descriptor.
type registered struct {
	source     source
	generation int32
}

// loop is one shard: it alone touches its epoll instance and its connections.
type loop struct {
	shard   int
	config  *Config
	epoll   int
	started time.Time // the origin of the loops' time
	began   time.Duration
	mailbox *mailbox
	// polls says that waiting polls the device, whose interrupts then stay off
	// for up to suspend, if that is not 0; napi is the instance polled, and
	// owners the shards of all, nil if they are not known.
	polls   bool
	suspend time.Duration
	napi    uint32
	owners  map[uint32]int

	sources   []registered // by descriptor
	listeners []*listener
	packets   []*packetSocket

	conns    int                // open connections
	all      map[*conn]struct{} // only to close them at the end
	current  *conn              // the one being served
	dirty    []*conn            // written to from another connection's handler
	again    []*conn            // have more to read, or to write
	spare    []*conn            // the slice that again was before
	draining bool
	deadline time.Duration // when draining ends
	failure  error

	paused bool          // listening sockets are not looked at
	resume time.Duration // until then
	logged time.Duration // when it was last logged

	complainedUnknown, complainedForeign, complainedOverdue bool

	counters Counters
	lastTick time.Duration
	tickers  []polluxruntime.Ticker

	events  [512]unix.EpollEvent
	input   []byte              // what was read last
	scratch []byte              // output buffer of the handler that is running
	name    unix.RawSockaddrAny // the last accepted connection's peer
}

// tickInterval is how often Config.Tick is called while the loop is awake.
const tickInterval = 100 * time.Millisecond

// suspendedEvents is how many events a loop asks for at a time while it holds its
// queue's interrupt off. The kernel starts the long timer (irq_suspend_timeout) at
// the end of an epoll_wait that found something. Should the short one
// (gro_flush_timeout, 50 µs) fire during the call, whatever polls the queue then
// sets it again, if it runs only after the call, as a NAPI thread does: until the
// next epoll_wait it fires time and again and interrupts the handlers, which is
// what suspension is to prevent. A short call is overtaken rarely, and when it is,
// the next one soon mends it. With 64 connections on a veth and 20 µs, 512 events at
// a time gave anything from 18 to 105 thousand requests per second, 8 gave 87 to 108.
const suspendedEvents = 8

func newLoop(shard int, c *Config, started time.Time) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", shard, os.NewSyscallError("epoll_create1", err))
	}
	l := &loop{shard: shard, config: c, epoll: epoll, started: started, all: map[*conn]struct{}{}, input: make([]byte, readSize)}
	if l.mailbox, err = newMailbox(); err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("shard %d: %w", shard, err)
	}
	if errno := l.watch(l.mailbox, l.mailbox.event, unix.EPOLLIN|unix.EPOLLET); errno != 0 {
		l.close()
		return nil, fmt.Errorf("shard %d: %w", shard, os.NewSyscallError("epoll_ctl", errno))
	}
	return l, nil
}

// watch has epoll report events of fd to s.
func (l *loop) watch(s source, fd int, events uint32) unix.Errno {
	for fd >= len(l.sources) {
		l.sources = append(l.sources, registered{})
	}
	r := &l.sources[fd]
	r.generation++
	errno := control(l.epoll, unix.EPOLL_CTL_ADD, fd, events, r.generation)
	if errno == 0 {
		r.source = s
	}
	return errno
}

// forget drops the events of fd, which is about to be closed.
func (l *loop) forget(fd int) { l.sources[fd].source = nil }

func (l *loop) now() time.Duration { return time.Since(l.started) }

// run is the loop. It returns when it was told to stop and has drained, or when
// it cannot go on.
func (l *loop) run() error {
	now := l.now()
	l.began = now
	l.tick(now)
	for worked := false; !l.stopped(now); {
		n := l.wait(l.patience(now), worked)
		woke := l.now()
		l.counters.Waited += woke - now
		worked = n > 0 || len(l.again) > 0
		for i := range n {
			e := &l.events[i]
			if r := &l.sources[e.Fd]; r.source != nil && r.generation == e.Pad {
				r.source.ready(e.Events)
			}
		}
		l.goOn()
		l.flushDirty()
		l.mailbox.run()
		l.flushDirty()
		if l.paused && woke >= l.resume {
			l.resumeAccepting()
		}
		if woke-l.lastTick >= tickInterval {
			l.tick(woke)
			l.flushDirty()
		}
		now = l.now()
		l.account(now-woke, worked)
		l.counters.Iterations++
		l.counters.Events += uint64(n)
	}
	return l.failure
}

// patience is how long the loop may wait; forever if it is negative.
func (l *loop) patience(now time.Duration) time.Duration {
	if len(l.again) > 0 {
		return 0
	}
	d := time.Duration(-1)
	if l.paused {
		d = max(0, l.resume-now)
	}
	if len(l.tickers) > 0 {
		if left := max(0, l.lastTick+polluxruntime.TickInterval-now); d < 0 || left < d {
			d = left
		}
	}
	if l.draining {
		if left := max(0, l.deadline-now); d < 0 || left < d {
			d = left
		}
	}
	return d
}

// wait asks for events. A loop that just had some looks first, which is cheaper
// than to prepare for a sleep; one that polls its device must not: only a call
// that may wait polls.
func (l *loop) wait(d time.Duration, worked bool) int {
	if d == 0 || worked && !l.polls {
		n, errno := look(l.epoll, l.room())
		l.counters.Waits++
		if n, ok := l.waited(n, errno); ok && (n > 0 || d == 0) {
			return n
		}
		l.counters.EmptyWaits++
	}
	n, errno := waitFor(l.epoll, l.room(), d)
	l.counters.Waits++
	l.counters.BlockingWaits++
	n, _ = l.waited(n, errno)
	if n == 0 {
		l.counters.EmptyWaits++
	}
	return n
}

// room is where events may be put.
func (l *loop) room() []unix.EpollEvent {
	if l.suspend > 0 {
		return l.events[:suspendedEvents]
	}
	return l.events[:]
}

func (l *loop) waited(n int, errno unix.Errno) (int, bool) {
	if errno == 0 {
		return n, true
	}
	if errno != unix.EINTR {
		l.fail(fmt.Errorf("shard %d: %w", l.shard, os.NewSyscallError("epoll_wait", errno)))
	}
	return 0, false
}

// account notes how long the handlers ran.
func (l *loop) account(busy time.Duration, worked bool) {
	if worked {
		l.counters.Busy += busy
	}
	if busy > l.counters.Longest {
		l.counters.Longest = busy
	}
	if l.suspend > 0 && busy > l.suspend {
		l.counters.Overdue++
		if !l.complainedOverdue {
			l.complainedOverdue = true
			slog.Warn("the application kept its loop longer than the device's interrupts stay off: until they came back, nothing else on the queue was served",
				"shard", l.shard, "time", busy, "irq-suspend-timeout", l.suspend, "to do", "have handlers return sooner, or lower the timeout")
		}
	}
}

// goOn serves the connections that were left with more to do.
func (l *loop) goOn() {
	if len(l.again) == 0 {
		return
	}
	again := l.again
	l.again = l.spare[:0]
	for _, c := range again {
		c.waiting = false
		if !c.ended {
			c.serve()
		}
	}
	clear(again)
	l.spare = again[:0]
}

// flushDirty sends what handlers wrote to connections other than their own.
func (l *loop) flushDirty() {
	for i := 0; i < len(l.dirty); i++ {
		c := l.dirty[i]
		c.dirty = false
		if c.held {
			c.serve() // there may be room now, of which no event would tell
		} else {
			c.settle()
		}
	}
	clear(l.dirty)
	l.dirty = l.dirty[:0]
}

func (l *loop) tick(now time.Duration) {
	l.lastTick = now
	if l.config.Tick != nil {
		l.config.Tick(l.started.Add(now))
	}
	for _, t := range l.tickers {
		t.TickShard(l.shard, l.started.Add(now))
	}
}

// register notes a handler that also acts by the clock.
func (l *loop) register(handler any) {
	if t, ok := handler.(polluxruntime.Ticker); ok {
		l.tickers = append(l.tickers, t)
	}
}

func (l *loop) fail(err error) {
	if l.failure == nil {
		l.failure = err
	}
}

// stopped reports whether the loop is through.
func (l *loop) stopped(now time.Duration) bool {
	return l.failure != nil || l.draining && (now >= l.deadline || l.conns == 0)
}

// drain stops accepting and closes every connection: at once where nothing is
// unsent, and at the deadline the hard way.
func (l *loop) drain(timeout time.Duration) {
	if l.draining {
		return
	}
	l.draining, l.deadline = true, l.now()+timeout
	l.closeListeners()
	for c := range l.all {
		c.Close()
		c.settle()
	}
}

func (l *loop) closeListeners() {
	for _, s := range l.listeners {
		l.forget(s.fd)
		unix.Close(s.fd)
	}
	for _, s := range l.packets {
		l.forget(s.fd)
		unix.Close(s.fd)
	}
	l.listeners, l.packets, l.paused = nil, nil, false
}

// finish ends what drain left over.
func (l *loop) finish() {
	l.draining = true
	l.closeListeners()
	for c := range l.all {
		c.Abort()
		c.settle()
	}
	l.close()
}

func (l *loop) close() {
	l.mailbox.close()
	unix.Close(l.epoll)
}

// start runs the loop on a thread of its own and calls done with its error.
func (l *loop) start(cpu int, ready chan<- error, done func(error)) {
	// Never unlocked: the thread, with its affinity, ends with the goroutine.
	runtime.LockOSThread()
	if cpu >= 0 {
		if err := affinity.Pin(cpu); err != nil {
			ready <- fmt.Errorf("shard %d: pin to core %d: %w", l.shard, cpu, err)
			return
		}
	}
	ready <- nil
	err := l.run()
	l.finish()
	done(err)
}
