package user

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/pollux-net/pollux/driver"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/user/wait"
	"github.com/pollux-net/pollux/stack"
)

// Config is how a Runtime runs.
type Config struct {
	// Mode is how the loops wait: adaptive by default.
	Mode polluxruntime.Mode
	// Stack configures every shard's stack. Siblings and OwnsFlow are set by
	// the Runtime.
	Stack stack.Config
	// Cores are the processors that the loops are pinned to, one a shard. Nil
	// leaves the threads where the kernel puts them, one loop a queue.
	Cores []int
	// Queue, if not nil, is asked for shard i's queue instead of the port: to
	// wrap it in a capture, say.
	Queue func(i int) driver.Queue
	// EnterThread, if not nil, is called on each loop's thread before it runs,
	// after pinning; what it returns is called when the loop ends. A driver
	// registers the thread there.
	EnterThread func() (leave func(), err error)
	// Tick, if not nil, is called by every loop with the time of day, at least
	// every 100 ms while it is awake and when it wakes: a clock for handlers
	// that is cheap to read.
	Tick func(now time.Time)
}

// Runtime is a set of shards over one port.
type Runtime struct {
	config Config
	port   driver.Port
	loops  []*loop

	release func() error // lets other threads back on the loops' cores
	running sync.WaitGroup
	done    chan struct{}
	mu      sync.Mutex
	err     error
}

// New builds a shard for every queue of the port: the queues must be those that
// receive the device's traffic, all of them. Nothing runs before Start.
func New(p driver.Port, c Config) (*Runtime, error) {
	if c.Mode == "" {
		c.Mode = polluxruntime.Adaptive
	}
	if _, err := polluxruntime.ParseMode(polluxruntime.User, string(c.Mode)); err != nil {
		return nil, err
	}
	n := p.Queues()
	if c.Cores != nil && len(c.Cores) != n {
		return nil, fmt.Errorf("%d cores for the %d queues of %s: give one core a queue", len(c.Cores), n, p.Name())
	}
	owner, err := ownership(p)
	if err != nil {
		return nil, err
	}
	r := &Runtime{config: c, port: p, loops: make([]*loop, n), done: make(chan struct{}), release: func() error { return nil }}
	started := time.Now()
	for i := range n {
		if err := r.build(i, started, owner); err != nil {
			r.loops = r.loops[:i]
			r.Discard()
			return nil, err
		}
	}
	return r, nil
}

func (r *Runtime) build(i int, started time.Time, owner *owner) error {
	q := r.port.Queue(i)
	if r.config.Queue != nil {
		q = r.config.Queue(i)
	}
	c := r.config.Stack
	if len(r.loops) > 1 {
		c.Siblings = &siblings{shards: r.loops, self: i}
		if owner != nil {
			c.OwnsFlow = func(local, remote netip.AddrPort) bool { return owner.owns(i, local, remote) }
		}
	}
	s, err := stack.New(r.port, q, c)
	if err != nil {
		return err
	}
	sleeper, err := wait.New(q.Interrupt())
	if err != nil {
		s.Close()
		return err
	}
	l := &loop{shard: i, queue: q, stack: s, config: &r.config, started: started, sleeper: sleeper, all: map[*conn]struct{}{}}
	l.mode.Store(&r.config.Mode)
	s.SetWake(l.wake)
	r.loops[i] = l
	return nil
}

// Listen serves the connections to address on every shard with h. Call it before
// Start.
func (r *Runtime) Listen(address netip.AddrPort, h polluxruntime.Handler) error {
	for _, l := range r.loops {
		listener, err := l.stack.ListenEvents(address, l.accept(h))
		if err != nil {
			return err
		}
		l.listeners = append(l.listeners, listener)
		l.register(h)
	}
	return nil
}

// Discard ends a Runtime that was never started: it resets its connections and
// gives back what New took.
func (r *Runtime) Discard() {
	for _, l := range r.loops {
		l.finish()
		l.sleeper.Close()
	}
}

// Stack is shard i's stack, whose Listen, Dial and ListenPacket serve ordinary
// Go code on any goroutine.
func (r *Runtime) Stack(i int) *stack.Stack { return r.loops[i].stack }

// Start runs the loops, each on a thread of its own, and returns when all have
// started. Afterwards Shutdown must be called.
func (r *Runtime) Start() error {
	if r.config.Cores != nil {
		release, err := affinity.KeepOff(r.config.Cores)
		if err != nil {
			r.Discard()
			return err
		}
		r.release = release
	}
	ready := make(chan error)
	var failure error
	started := 0
	for i, l := range r.loops {
		cpu := -1
		if r.config.Cores != nil {
			cpu = r.config.Cores[i]
		}
		r.running.Add(1)
		go l.start(cpu, ready, r.ended)
		if err := <-ready; err != nil {
			r.running.Done()
			failure = err
			break
		}
		started++
	}
	if failure != nil {
		for i, l := range r.loops {
			if i < started {
				l.stack.Insist(func() { l.drain(0) })
			} else {
				l.finish()
				l.sleeper.Close()
			}
		}
		r.running.Wait()
		return errors.Join(failure, r.release())
	}
	go func() {
		r.running.Wait()
		if err := r.release(); err != nil {
			r.mu.Lock()
			r.err = errors.Join(r.err, err)
			r.mu.Unlock()
		}
		close(r.done)
	}()
	return nil
}

// Step runs every loop for one turn on the calling goroutine, at a time of the
// caller's choosing, and returns how much there was to do. It takes the place of
// Start in simulations and benchmarks; Discard ends such a Runtime.
func (r *Runtime) Step(now time.Duration) int {
	work := 0
	for _, l := range r.loops {
		l.stack.Advance(now)
		if now-l.lastTick >= tickInterval {
			l.tick(now)
		}
		work += l.iterate()
	}
	return work
}

// ended notes that a loop is through; one that failed takes the others along.
func (r *Runtime) ended(err error) {
	if err != nil {
		r.mu.Lock()
		r.err = errors.Join(r.err, err)
		r.mu.Unlock()
		for _, l := range r.loops {
			l.stack.Insist(func() { l.drain(0) })
		}
	}
	r.running.Done()
}

// Done is closed when all loops have ended.
func (r *Runtime) Done() <-chan struct{} { return r.done }

// Err is why the loops ended by themselves, nil if they did not. Read it after
// Done.
func (r *Runtime) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// SetMode changes how all loops wait, without losing a frame.
func (r *Runtime) SetMode(m polluxruntime.Mode) error {
	if _, err := polluxruntime.ParseMode(polluxruntime.User, string(m)); err != nil {
		return err
	}
	for _, l := range r.loops {
		l.mode.Store(&m)
		l.stack.Post(func() {}) // a sleeping loop looks at its mode again
	}
	return nil
}

// Shutdown stops accepting, sends what is unsent, closes every connection and
// ends the loops; what is not through when the context ends (10 s if it has no
// deadline) is reset. The port can be closed afterwards, unless the error says
// that loops are still running: a handler that does not return keeps its own.
func (r *Runtime) Shutdown(ctx context.Context) error {
	timeout := 10 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = time.Until(d)
	} else {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	for _, l := range r.loops {
		l.stack.Insist(func() { l.drain(timeout) })
	}
	select {
	case <-r.done:
		return r.Err()
	case <-ctx.Done():
	}
	for _, l := range r.loops {
		l.stack.Insist(func() { l.deadline = min(l.deadline, l.now()) })
	}
	select {
	case <-r.done:
		return r.Err()
	case <-time.After(resetTime):
		return fmt.Errorf("loops are still running %v after they were to end: %w", resetTime, ctx.Err())
	}
}

// resetTime is what the loops have to reset what is left over.
const resetTime = 2 * time.Second

// onAll runs f on every loop's goroutine and waits.
func (r *Runtime) onAll(ctx context.Context, f func(*loop)) error {
	var wait sync.WaitGroup
	for _, l := range r.loops {
		wait.Add(1)
		// A mailbox that is full says nothing of a loop that has ended.
		if !l.stack.Insist(func() { defer wait.Done(); f(l) }) {
			return ErrStopped
		}
	}
	// A loop that ends runs what it has taken in.
	finished := make(chan struct{})
	go func() { wait.Wait(); close(finished) }()
	select {
	case <-finished:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
