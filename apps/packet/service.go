package packet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/stack"
)

// Config of a service.
type Config struct {
	// Forward configures the data plane. Learned is set by the Service.
	Forward forward.Config
	// Mode is how the loops wait: adaptive by default.
	Mode runtime.Mode
	// Cores are the processors that the loops are pinned to, one a shard. Nil
	// leaves the threads where the kernel puts them.
	Cores []int
	// EnterThread, if not nil, is called on each loop's thread before it runs,
	// after pinning; what it returns is called when the loop ends.
	EnterThread func() (leave func(), err error)
	// Rules is a file of rules (package rules); empty for none.
	Rules string
	// Follow, if not nil, stands for routes.Follow: a test's control plane.
	Follow func(ctx context.Context, deliver func(routes.Update)) error
	// Stack, if not nil, is called with each shard's own stack when it has been
	// made, on the shard's goroutine: to serve TCP on the box's addresses. It is
	// made anew, and the old one closed, when these change.
	Stack func(shard int, s *stack.Stack)
}

// Service is a packet service.
type Service struct {
	config    Config
	forwarder *forward.Forwarder
	loops     []*loop
	locals    []*local
	started   time.Time
	learned   chan struct{}

	stop    context.CancelFunc
	release func() error   // lets other threads back on the loops' cores; nil if none were taken
	running sync.WaitGroup // loops
	helpers sync.WaitGroup // control plane
	done    chan struct{}
	mu      sync.Mutex
	err     error
}

// New builds a service over ports, which the caller owns and closes after
// Shutdown. Nothing runs before Start.
func New(c Config) (*Service, error) {
	if c.Mode == "" {
		c.Mode = runtime.Adaptive
	}
	if _, err := runtime.ParseMode(runtime.User, string(c.Mode)); err != nil {
		return nil, err
	}
	if c.Cores != nil && len(c.Cores) != max(1, c.Forward.Shards) {
		return nil, fmt.Errorf("%d cores for %d shards", len(c.Cores), c.Forward.Shards)
	}
	s := &Service{config: c, learned: make(chan struct{}, 1), done: make(chan struct{})}
	s.config.Forward.Learned = func() {
		select {
		case s.learned <- struct{}{}:
		default:
		}
	}
	if s.config.Follow == nil {
		s.config.Follow = func(ctx context.Context, deliver func(routes.Update)) error {
			return routes.Follow(ctx, routes.Config{}, deliver)
		}
	}
	var err error
	if s.forwarder, err = forward.New(s.config.Forward); err != nil {
		return nil, err
	}
	if err := s.LoadRules(); err != nil {
		return nil, err
	}
	mtu := s.config.Forward.Ports[0].MTU()
	for _, p := range s.config.Forward.Ports {
		mtu = min(mtu, p.MTU())
	}
	for i := range s.forwarder.Shards() {
		l, err := s.newLoop(i)
		if err != nil {
			s.discard()
			return nil, err
		}
		own := newLocal(l.shard, s.config.Forward.Ports[0], l.queues[0], mtu)
		own.wake = l.sleeper.Wake
		if c.Stack != nil {
			own.started = func(st *stack.Stack) { c.Stack(i, st) }
		}
		l.shard.SetLocal(own)
		s.loops, s.locals = append(s.loops, l), append(s.locals, own)
	}
	return s, nil
}

// Forwarder is the data plane.
func (s *Service) Forwarder() *forward.Forwarder { return s.forwarder }

// LoadRules reads the file of rules, if there is one. A file with an error
// changes nothing.
func (s *Service) LoadRules() error {
	if s.config.Rules == "" {
		return nil
	}
	f, err := os.Open(s.config.Rules)
	if err != nil {
		return fmt.Errorf("read the rules: %w", err)
	}
	defer f.Close()
	set, err := rules.Parse(f, s.config.Rules, s.forwarder.Names())
	if err != nil {
		return fmt.Errorf("the rules stay as they were:\n%w", err)
	}
	s.forwarder.Control().SetRules(set)
	return nil
}

// Start runs the loops and the control plane, and returns when the kernel's
// routes are in force and the box answers on its addresses. Afterwards Shutdown
// must be called.
func (s *Service) Start() error {
	if s.config.Cores != nil {
		release, err := affinity.KeepOff(s.config.Cores)
		if err != nil {
			return err
		}
		s.release = release
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.started = stop, time.Now()
	ready := make(chan error)
	for i, l := range s.loops {
		cpu := -1
		if s.config.Cores != nil {
			cpu = s.config.Cores[i]
		}
		s.running.Add(1)
		go l.start(cpu, ready)
		if err := <-ready; err != nil {
			s.running.Done()
			s.fail(err)
			s.loops = s.loops[:i]
			break
		}
	}
	go func() {
		s.running.Wait()
		if s.release != nil {
			if err := s.release(); err != nil {
				s.fail(err)
			}
		}
		close(s.done)
	}()
	first := make(chan struct{})
	if s.err == nil {
		s.helpers.Add(2)
		go s.follow(ctx, first)
		go s.neighbours(ctx)
		select {
		case <-first:
			return nil
		case <-s.done:
		}
	}
	return s.Shutdown(context.Background())
}

// fail notes an error and has everything end.
func (s *Service) fail(err error) {
	s.mu.Lock()
	s.err = errors.Join(s.err, err)
	s.mu.Unlock()
	for _, l := range s.loops {
		l.end()
	}
}

// follow keeps the tables as the kernel's.
func (s *Service) follow(ctx context.Context, first chan struct{}) {
	defer s.helpers.Done()
	control := s.forwarder.Control()
	var own []netip.Prefix
	told := false
	set := make(chan struct{}, len(s.loops)) // the first addresses are, on a shard
	err := s.config.Follow(ctx, func(u routes.Update) {
		if err := control.Apply(u); err != nil {
			slog.Error("an update of the kernel's tables was refused", "error", err)
		}
		now := control.Own()
		changed := !slices.Equal(now, own)
		own = now
		for i, l := range s.loops {
			begins := !told
			if changed || begins {
				l.shard.Post(func() {
					s.locals[i].setAddresses(now)
					if begins {
						set <- struct{}{}
					}
				})
			}
		}
		if !told {
			told = true
			// Until then the box would not answer.
			for range s.loops {
				select {
				case <-set:
				case <-s.done:
				}
			}
			close(first)
		}
	})
	if ctx.Err() == nil {
		s.fail(fmt.Errorf("follow the kernel's routes: %w", err))
	}
}

// coalesce is how long what is learned waits for more: each time the tables are
// made anew, and every flow decided anew, which nobody on a link must be able to
// have done for each frame.
const coalesce = 10 * time.Millisecond

// neighbours takes over what the shards learn.
func (s *Service) neighbours(ctx context.Context) {
	defer s.helpers.Done()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.learned: // the first after a pause at once: packets wait for it
			time.Sleep(coalesce - time.Since(last))
			last = time.Now()
		case <-second.C:
		}
		s.forwarder.Control().Tick(time.Since(s.started))
	}
}

// Done is closed when all loops have ended.
func (s *Service) Done() <-chan struct{} { return s.done }

// SetMode changes how all loops wait.
func (s *Service) SetMode(m runtime.Mode) error {
	if _, err := runtime.ParseMode(runtime.User, string(m)); err != nil {
		return err
	}
	for _, l := range s.loops {
		l.mode.Store(&m)
		l.sleeper.Wake()
	}
	return nil
}

// Shutdown ends the loops and gives all frames back. It returns why they ended
// if they did by themselves.
func (s *Service) Shutdown(context.Context) error {
	s.stop()
	for _, l := range s.loops {
		l.end()
	}
	<-s.done
	s.helpers.Wait()
	s.discard()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// discard gives back what New took; no loop runs.
func (s *Service) discard() {
	for _, own := range s.locals {
		own.close()
	}
	for i := range s.forwarder.Shards() {
		s.forwarder.Shard(i).Close()
	}
	for _, own := range s.locals {
		own.close()
	}
	s.locals = nil
	for _, l := range s.loops {
		l.sleeper.Close()
	}
	s.loops = nil
}

// ErrStopped is returned once the loops have ended.
var ErrStopped = errors.New("the loops have stopped")

// Statistics takes a snapshot of every shard, on its own goroutine.
func (s *Service) Statistics(ctx context.Context) ([]Statistics, error) {
	all := make([]Statistics, len(s.loops))
	taken := make(chan struct{}, len(s.loops))
	for i, l := range s.loops {
		if !l.shard.Post(func() { all[i] = l.statistics(); taken <- struct{}{} }) {
			return nil, ErrStopped
		}
	}
	for range s.loops {
		select {
		case <-taken:
		case <-s.done:
			return nil, ErrStopped
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return all, nil
}

var _ forward.Local = (*local)(nil)

// Statistics is a snapshot of one shard and its loop.
type Statistics struct {
	forward.Statistics
	Loop
	// Elapsed since the service started.
	Elapsed time.Duration
	Mode    runtime.Mode
	// Spin is what the adaptive mode has learned to poll for before it sleeps.
	Spin time.Duration
	// Queues are the devices' queues, by port.
	Queues []driver.QueueStatistics
}
