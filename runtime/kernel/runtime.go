package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// Config is how a Runtime runs.
type Config struct {
	// Mode is how the loops wait: vanilla by default.
	Mode polluxruntime.Mode
	// Cores are the processors that the loops are pinned to, one a shard. Nil
	// is one shard, whose thread the kernel puts where it likes.
	Cores []int
	// Device is the network device that connections come from. It is needed in
	// the modes that set it or poll it, and is set back when the loops have
	// ended. With several cores it also decides which of them serves a
	// connection: the owner of the queue that receives it.
	Device string
	// Settings, if not nil, are used instead of the mode's own (SettingsOf).
	Settings *Settings
	// Unsteered leaves it to the kernel's hash which core serves a connection.
	Unsteered bool
	// Tick, if not nil, is called by every loop with the time of day, at least
	// every 100 ms while it is awake and when it wakes: a clock for handlers
	// that is cheap to read.
	Tick func(now time.Time)
}

// Runtime is a set of shards, each with its own listening sockets.
type Runtime struct {
	config   Config
	loops    []*loop
	bound    []netip.AddrPort
	applied  *Applied
	steering steering

	release func() error // lets other threads back on the loops' cores
	running sync.WaitGroup
	done    chan struct{}
	mu      sync.Mutex
	err     error
}

// New builds a shard for every core and sets the device as the mode needs it.
// What the kernel, the device or the process's privileges cannot do is an error.
// Nothing runs before Start; without Start, Discard sets the device back.
func New(c Config) (*Runtime, error) {
	if c.Mode == "" {
		c.Mode = polluxruntime.DefaultMode(polluxruntime.Kernel)
	}
	if _, err := polluxruntime.ParseMode(polluxruntime.Kernel, string(c.Mode)); err != nil {
		return nil, err
	}
	r := &Runtime{config: c, done: make(chan struct{}), release: func() error { return nil }}
	started := time.Now()
	for i := range max(1, len(c.Cores)) {
		l, err := newLoop(i, &r.config, started)
		if err != nil {
			return nil, errors.Join(err, r.Discard())
		}
		r.loops = append(r.loops, l)
	}
	if err := r.prepare(); err != nil {
		return nil, errors.Join(err, r.Discard())
	}
	return r, nil
}

// Listen serves the connections to address on every shard with h. The unspecified
// IPv6 address stands for all addresses of both families; port 0 is a free one,
// see Addresses. Call it before Start; connections wait until then.
func (r *Runtime) Listen(address netip.AddrPort, h polluxruntime.Handler) error {
	return r.bind(address, unix.SOCK_STREAM, func(l *loop, fd int, bound netip.AddrPort) error {
		s := &listener{loop: l, fd: fd, handler: h, address: bound}
		if errno := l.watch(s, fd, unix.EPOLLIN); errno != 0 {
			return fmt.Errorf("listen on %v: %w", bound, os.NewSyscallError("epoll_ctl", errno))
		}
		l.listeners = append(l.listeners, s)
		l.register(h)
		return nil
	})
}

// ListenPacket serves the datagrams to address on every shard with h. Addresses
// are as in Listen.
func (r *Runtime) ListenPacket(address netip.AddrPort, h polluxruntime.PacketHandler) error {
	return r.bind(address, unix.SOCK_DGRAM, func(l *loop, fd int, bound netip.AddrPort) error {
		s := newPacketSocket(l, fd, bound, h)
		if errno := l.watch(s, fd, unix.EPOLLIN); errno != 0 {
			return fmt.Errorf("receive on %v: %w", bound, os.NewSyscallError("epoll_ctl", errno))
		}
		l.packets = append(l.packets, s)
		l.register(h)
		return nil
	})
}

// bind gives every shard a socket on address. Where connections are steered, none
// comes before every shard listens: it would be another one's for life.
func (r *Runtime) bind(address netip.AddrPort, kind int, use func(*loop, int, netip.AddrPort) error) error {
	k, err := r.steering.load()
	if err != nil {
		return err
	}
	sockets, bound, err := openAll(address, kind, len(r.loops), k.attach)
	if err != nil {
		return err
	}
	if err := k.open(sockets); err != nil {
		closeAll(sockets)
		return err
	}
	for i, l := range r.loops {
		if err := use(l, sockets[i], bound); err != nil {
			closeAll(sockets[i:])
			return err
		}
	}
	r.bound = append(r.bound, bound)
	return nil
}

// Addresses are where the sockets are bound, in the order of the calls.
func (r *Runtime) Addresses() []netip.AddrPort { return r.bound }

// Discard gives back what New took, if Start was never called.
func (r *Runtime) Discard() error {
	for _, l := range r.loops {
		l.finish()
	}
	return r.giveBack()
}

// Start runs the loops, each on a thread of its own, and returns when all have
// started. Afterwards Shutdown must be called.
func (r *Runtime) Start() error {
	if r.config.Cores != nil {
		release, err := affinity.KeepOff(r.config.Cores)
		if err != nil {
			return errors.Join(err, r.Discard())
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
				l.mailbox.post(func() { l.drain(0) })
			} else {
				l.finish()
			}
		}
		r.running.Wait()
		return errors.Join(failure, r.release(), r.giveBack())
	}
	stop := r.keep()
	go func() {
		r.running.Wait()
		stop()
		if err := errors.Join(r.release(), r.giveBack()); err != nil {
			r.fail(err)
		}
		close(r.done)
	}()
	return nil
}

// ended notes that a loop is through; one that failed takes the others along.
func (r *Runtime) ended(err error) {
	if err != nil {
		r.fail(err)
		for _, l := range r.loops {
			l.mailbox.post(func() { l.drain(0) })
		}
	}
	r.running.Done()
}

func (r *Runtime) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
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

// Shutdown stops accepting, sends what is unsent, closes every connection and
// ends the loops; what is not through by the context's deadline (10 s if it has
// none) is reset.
func (r *Runtime) Shutdown(ctx context.Context) error {
	timeout := 10 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = time.Until(d)
	}
	for _, l := range r.loops {
		l.mailbox.post(func() { l.drain(timeout) })
	}
	<-r.done
	return r.Err()
}

// Applied is what was set on the device; its NAPIs are none if no device is
// named.
func (r *Runtime) Applied() *Applied { return r.applied }

// Shards is the number of loops.
func (r *Runtime) Shards() int { return len(r.loops) }

// Post has a shard's loop call f between two rounds, from any goroutine; there f
// may use the shard's connections. It is false once the loop has stopped.
func (r *Runtime) Post(shard int, f func()) bool { return r.loops[shard].mailbox.post(f) }

// onAll runs f on every loop's goroutine and waits.
func (r *Runtime) onAll(ctx context.Context, f func(*loop)) error {
	var wait sync.WaitGroup
	for _, l := range r.loops {
		wait.Add(1)
		if !l.mailbox.post(func() { defer wait.Done(); f(l) }) {
			return ErrStopped
		}
	}
	finished := make(chan struct{})
	go func() { wait.Wait(); close(finished) }()
	select {
	case <-finished:
		return nil
	case <-r.done:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}
