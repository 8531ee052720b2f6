package packet

import (
	"fmt"
	goruntime "runtime"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/user/wait"
)

// loop is one core: it alone touches its shard and its queues.
type loop struct {
	service *Service
	shard   *forward.Shard
	queues  []driver.Queue
	index   int
	sleeper *wait.Sleeper
	mode    atomic.Pointer[runtime.Mode]
	ending  atomic.Bool
	counts  Loop
	meter   wait.Meter
}

// Loop counts what a loop did since it started.
type Loop struct {
	// Iterations of the loop; EmptyPolls are those that found nothing to do.
	Iterations, EmptyPolls uint64
	// Busy is the time spent in iterations that did something, Slept the time
	// asleep; what is missing from the elapsed time went into empty polls.
	Busy, Slept time.Duration
	// Sleeps ended by a frame, by another goroutine, or by time; SleepsRefused
	// found work at the last look.
	Sleeps, WokenByFrame, WokenByPost, WokenByTime, SleepsRefused uint64
}

func (s *Service) newLoop(i int) (*loop, error) {
	l := &loop{service: s, shard: s.forwarder.Shard(i), index: i}
	c := &s.config.Forward
	var interrupts []driver.Interrupt
	for k, p := range c.Ports {
		var q driver.Queue
		if c.Queue != nil {
			q = c.Queue(k, i)
		} else {
			q = p.Queue(i)
		}
		l.queues = append(l.queues, q)
		interrupts = append(interrupts, q.Interrupt())
	}
	var err error
	if l.sleeper, err = wait.New(interrupts...); err != nil {
		return nil, err
	}
	l.mode.Store(&s.config.Mode)
	l.shard.SetWake(l.sleeper.Wake)
	return l, nil
}

func (l *loop) end() {
	l.ending.Store(true)
	l.sleeper.Wake()
}

func (l *loop) now() time.Duration { return time.Since(l.service.started) }

// start runs the loop on a thread of its own.
func (l *loop) start(cpu int, ready chan<- error) {
	// Never unlocked: the thread, with its affinity, ends with the goroutine.
	goruntime.LockOSThread()
	if cpu >= 0 {
		if err := affinity.Pin(cpu); err != nil {
			ready <- fmt.Errorf("shard %d: pin to core %d: %w", l.index, cpu, err)
			return
		}
	}
	leave := func() {}
	if enter := l.service.config.EnterThread; enter != nil {
		var err error
		if leave, err = enter(); err != nil {
			ready <- fmt.Errorf("shard %d: set the thread up: %w", l.index, err)
			return
		}
	}
	ready <- nil
	err := l.run()
	leave()
	if err != nil {
		l.service.fail(err)
	}
	l.service.running.Done()
}

// run is the loop: it steps the shard until it is told to end.
func (l *loop) run() error {
	s := l.shard
	now := l.now()
	l.meter = wait.NewMeter(now)
	mode := l.mode.Load()
	// Whoever changes what this looks at calls Wake afterwards.
	idle := func() bool { return s.Idle() && !l.ending.Load() && l.mode.Load() == mode }
	for !l.ending.Load() {
		if l.meter.Due() {
			now = l.now()
			l.meter.Look(now)
		}
		n := s.Step(now)
		l.counts.Iterations++
		if n > 0 {
			if l.meter.Worked() {
				l.sleeper.Worked()
			}
			continue
		}
		l.counts.EmptyPolls++
		l.meter.Vain()
		if !s.Idle() {
			continue // a device is full: try again
		}
		mode = l.mode.Load()
		switch *mode {
		case runtime.Poll:
			continue
		case runtime.Adaptive:
			if l.meter.Idle() < l.sleeper.Budget() {
				continue
			}
		}
		cause, err := l.sleeper.Sleep(s.Deadline()-now, idle)
		if err != nil {
			return fmt.Errorf("shard %d: sleep on receive interrupts: %w", l.index, err)
		}
		after := l.now()
		l.slept(cause, after-now)
		l.meter.Slept(after)
		now = after
	}
	return nil
}

func (l *loop) slept(cause wait.Cause, d time.Duration) {
	c := &l.counts
	if cause == wait.NotSlept {
		c.SleepsRefused++
		return
	}
	c.Sleeps++
	c.Slept += d
	switch cause {
	case wait.ByFrame:
		c.WokenByFrame++
	case wait.ByWake:
		c.WokenByPost++
	case wait.ByTime:
		c.WokenByTime++
	}
	l.sleeper.Learn(cause, d)
}

func (l *loop) statistics() Statistics {
	now := l.now()
	l.counts.Busy = l.meter.Busy(now)
	s := Statistics{Statistics: l.shard.Statistics(), Loop: l.counts, Elapsed: now, Mode: *l.mode.Load(), Spin: l.sleeper.Budget()}
	for _, q := range l.queues {
		s.Queues = append(s.Queues, q.Statistics())
	}
	return s
}
