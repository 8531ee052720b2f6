package user

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/driver"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/user/wait"
	"github.com/pollux-net/pollux/stack"
)

// loop is one shard: it alone touches its queue, its stack and its connections.
type loop struct {
	shard   int
	queue   driver.Queue
	stack   *stack.Stack
	config  *Config
	started time.Time // the origin of the stack's time
	sleeper *wait.Sleeper
	mode    atomic.Pointer[polluxruntime.Mode]

	conns    int                // open connections
	all      map[*conn]struct{} // only to close them at the end
	dirty    []*conn            // written to from another connection's handler
	scratch  []byte             // output buffer of the handler that is running
	draining bool
	deadline time.Duration // when draining ends
	failure  error

	listeners []*stack.Listener
	packets   []*packetConn
	tickers   []polluxruntime.Ticker
	datagram  []byte // the one that is handled
	counters  Counters
	meter     wait.Meter
	lastTick  time.Duration
}

// tickInterval is how often Config.Tick is called while the loop is awake.
const tickInterval = 100 * time.Millisecond

func (l *loop) now() time.Duration { return time.Since(l.started) }

// run is the loop. It returns when it was told to stop and has drained, or when
// the device turns out not to do what the shards rely on.
func (l *loop) run() error {
	s := l.stack
	now := l.now()
	l.tick(now)
	l.meter = wait.NewMeter(now)
	for {
		if l.meter.Due() {
			now = l.now()
			l.meter.Look(now)
			s.Advance(now)
			if now-l.lastTick >= tickInterval {
				l.tick(now)
			}
			if l.stopped(now) {
				return l.failure
			}
		}
		if l.iterate() > 0 {
			if l.meter.Worked() {
				l.sleeper.Worked()
			}
			continue
		}
		l.counters.EmptyPolls++
		l.meter.Vain()
		if !s.Idle() {
			continue // the device's ring is full: try again
		}
		switch *l.mode.Load() {
		case polluxruntime.Poll:
		case polluxruntime.Interrupt:
			now = l.sleep(now)
		case polluxruntime.Adaptive:
			if l.meter.Idle() >= l.sleeper.Budget() {
				now = l.sleep(now)
			}
		}
	}
}

// iterate is one turn: receive a burst, run TCP, run the handlers, pay the ACKs,
// transmit a burst. It returns how much there was to do.
func (l *loop) iterate() int {
	received := l.stack.Receive()
	called := l.stack.Deliver()
	l.flushDirty()
	l.stack.Acknowledge()
	sent := l.stack.Transmit()
	l.counters.Iterations++
	return received + called + sent
}

// sleep waits for frames, posts or the next timer, and returns the time.
func (l *loop) sleep(now time.Duration) time.Duration {
	until := l.stack.Deadline()
	if l.draining {
		until = min(until, l.deadline)
	}
	if len(l.tickers) > 0 {
		until = min(until, l.lastTick+polluxruntime.TickInterval)
	}
	cause, err := l.sleeper.Sleep(until-now, l.stack.Idle)
	after := l.now()
	l.meter.Slept(after)
	switch cause {
	case wait.NotSlept:
		l.counters.SleepsRefused++
	default:
		l.counters.Sleeps++
		l.counters.Slept += after - now
		switch cause {
		case wait.ByFrame:
			l.counters.WokenByFrame++
		case wait.ByWake:
			l.counters.WokenByPost++
		case wait.ByTime:
			l.counters.WokenByTime++
		}
		l.sleeper.Learn(cause, after-now)
	}
	if err != nil {
		l.fail(fmt.Errorf("shard %d: sleep on receive interrupts: %w", l.shard, err))
	}
	return after
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
	if l.stack.Misdirected() >= misdirectedLimit {
		l.fail(fmt.Errorf("shard %d received %d connections that the device's RSS key and table assign to another queue: the shards cannot rely on it; use one core, or correct the device's RSS (ethtool -x)", l.shard, misdirectedLimit))
	}
	if l.failure != nil {
		return true
	}
	return l.draining && (now >= l.deadline || l.conns == 0 && !l.stack.Closing())
}

// drain stops accepting and closes every connection: at once where nothing is
// unsent, and at the deadline the hard way.
func (l *loop) drain(timeout time.Duration) {
	if l.draining {
		return
	}
	l.draining, l.deadline = true, l.now()+timeout
	for _, listener := range l.listeners {
		listener.Close()
	}
	for _, c := range l.packets {
		c.socket.Close()
	}
	for c := range l.all {
		c.Close()
		c.settle()
	}
}

// finish ends what drain left over and gives every frame back.
func (l *loop) finish() {
	for c := range l.all {
		c.Abort()
		c.settle()
	}
	l.stack.Close()
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
	leave := func() {}
	if l.config.EnterThread != nil {
		var err error
		if leave, err = l.config.EnterThread(); err != nil {
			ready <- fmt.Errorf("shard %d: set the thread up: %w", l.shard, err)
			return
		}
	}
	ready <- nil
	err := l.run()
	l.finish()
	l.sleeper.Close()
	leave()
	done(err)
}

// wake is what the stack calls after a post.
func (l *loop) wake() { l.sleeper.Wake() }
