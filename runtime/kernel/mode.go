package kernel

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// Settings are what a mode sets: on the device's NAPI instances, on its
// interrupts, and on the epoll instances that wait for its sockets. The zero
// value sets nothing.
type Settings struct {
	// DeferHardIRQs is how many polls in a row must find nothing before a
	// queue's interrupt is turned on again (napi_defer_hard_irqs).
	DeferHardIRQs int
	// GROFlushTimeout is when the kernel polls a queue by itself while its
	// interrupt is off (gro_flush_timeout).
	GROFlushTimeout time.Duration
	// IRQSuspendTimeout is how long an interrupt stays off after epoll_wait
	// found work; so long can a program that does not come back to epoll_wait
	// keep others on its queue waiting. At most MaxSuspend.
	IRQSuspendTimeout time.Duration

	// BusyPoll is how long epoll_wait polls the queue when nothing is ready, in
	// whole microseconds; 0 is once. It counts only with a Budget.
	BusyPoll time.Duration
	// Budget is how many packets epoll_wait takes from the queue at a time, at
	// most 64; with 0 it never polls.
	Budget int
	// Prefer keeps the interrupt off while the program polls.
	Prefer bool

	// Coalescing is how long the device waits with an interrupt after the first
	// frame (ethtool rx-usecs).
	Coalescing time.Duration
	// TimersStandIn says that the timers are there only for a device that has no
	// coalescing, and are left alone on one that has. Nothing that polls or
	// suspends works without them: there they are set all the same.
	TimersStandIn bool

	// PackInterrupts puts the queues' interrupts, or the NAPI threads that stand
	// for them, on InterruptCores in turn; by default all processors that are
	// online but the application's.
	PackInterrupts bool
	InterruptCores []int

	// Spread are processors that take what the device receives through the
	// kernel's stack, by flow (steer.Spreader), for a device with fewer queues
	// than there are cores; none leaves it where it arrives. No mode has it by
	// itself. What was spread has no NAPI instance any more that could be polled.
	Spread []int
}

// table has the modes' settings. Those of busy-poll and kernel-polling are the
// cases "napibusy" and "suspend" of the upstream series that brought
// suspension (Linux 6.13), the timers of irq-suppression one of its "defer". The
// 20 µs that the series shows most of are too short for kernel-polling where a
// call of epoll_wait takes as long: see suspendedEvents. The delay of
// irq-suppression, 200 µs also where timers stand for coalescing, is long enough
// that a busy queue hardly interrupts, as Cai & Karsten had it.
var table = map[runtime.Mode]Settings{
	runtime.Vanilla:    {},
	runtime.IRQPacking: {PackInterrupts: true},
	runtime.IRQSuppression: {
		Coalescing: 200 * time.Microsecond, TimersStandIn: true,
		DeferHardIRQs: 100, GROFlushTimeout: 200 * time.Microsecond,
	},
	runtime.BusyPoll: {
		DeferHardIRQs: 100, GROFlushTimeout: 200 * time.Microsecond,
		BusyPoll: 200 * time.Microsecond, Budget: 64, Prefer: true,
	},
	runtime.KernelPolling: {
		DeferHardIRQs: 100, GROFlushTimeout: 50 * time.Microsecond, IRQSuspendTimeout: 20 * time.Millisecond,
		Budget: 64, Prefer: true,
	},
}

// SettingsOf returns a mode's settings, to be used as they are or changed.
func SettingsOf(mode runtime.Mode) (Settings, error) {
	s, ok := table[mode]
	if !ok {
		_, err := runtime.ParseMode(runtime.Kernel, string(mode))
		return Settings{}, err
	}
	return s, nil
}

const (
	// MaxSuspend bounds what a program that stops polling can do to others.
	MaxSuspend = time.Second
	// maxTimer bounds the other times: beyond it a queue would seem dead.
	maxTimer = time.Second
	// maxBudget is what the kernel takes without CAP_NET_ADMIN
	// (NAPI_POLL_WEIGHT), and all that a driver ever takes at once.
	maxBudget = 64
	maxDefer  = 1<<31 - 1
)

// Validate says what is wrong with the settings, all of it.
func (s Settings) Validate() error {
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if s.DeferHardIRQs < 0 || s.DeferHardIRQs > maxDefer {
		bad("%d empty polls before the interrupt is turned on: it must be 0 to %d", s.DeferHardIRQs, maxDefer)
	}
	for _, t := range []struct {
		name  string
		value time.Duration
		limit time.Duration
		unit  time.Duration
	}{
		{"GRO flush timeout", s.GROFlushTimeout, maxTimer, time.Nanosecond},
		{"IRQ suspend timeout", s.IRQSuspendTimeout, MaxSuspend, time.Nanosecond},
		{"busy poll time", s.BusyPoll, maxTimer, time.Microsecond},
		{"coalescing", s.Coalescing, maxTimer, time.Microsecond},
	} {
		if t.value < 0 || t.value > t.limit {
			bad("%s of %v: it must be 0 to %v", t.name, t.value, t.limit)
		} else if t.value%t.unit != 0 {
			bad("%s of %v: the kernel counts whole microseconds", t.name, t.value)
		}
	}
	if s.Budget < 0 || s.Budget > maxBudget {
		bad("a budget of %d packets: it must be 0 to %d", s.Budget, maxBudget)
	}
	if s.Budget == 0 && (s.BusyPoll > 0 || s.Prefer) {
		bad("busy polling without a budget: set it to 1 to %d", maxBudget)
	}
	if (s.DeferHardIRQs > 0) != (s.GROFlushTimeout > 0) {
		bad("deferred interrupts need both a number of empty polls and a GRO flush timeout, or nobody would poll the queue")
	}
	if s.IRQSuspendTimeout > 0 && (s.GROFlushTimeout == 0 || !s.Prefer) {
		bad("an IRQ suspend timeout does nothing without a GRO flush timeout, deferred interrupts and preferred busy polling")
	}
	for _, c := range s.InterruptCores {
		if c < 0 {
			bad("processor %d for interrupts", c)
		}
	}
	if len(s.Spread) > 0 && s.polls() {
		bad("flows are to be spread over processors and queues to be polled, which exclude each other: what was spread belongs to no queue any more")
	}
	if len(s.InterruptCores) > 0 && !s.PackInterrupts {
		bad("processors for interrupts, but interrupts are not to be moved")
	}
	return errors.Join(wrong...)
}

// Epoll returns what is to be set on epoll instances.
func (s Settings) Epoll() napi.EpollParams {
	return napi.EpollParams{BusyPoll: s.BusyPoll, Budget: s.Budget, Prefer: s.Prefer}
}

// napi returns what is to be set on NAPI instances.
func (s Settings) napi() napi.Settings {
	return napi.Settings{DeferHardIRQs: s.DeferHardIRQs, GROFlushTimeout: s.GROFlushTimeout, IRQSuspendTimeout: s.IRQSuspendTimeout}
}

// polls says whether epoll_wait is to poll the device.
func (s Settings) polls() bool { return s.Budget > 0 }

// timers says whether there are any to be set.
func (s Settings) timers() bool { return s.DeferHardIRQs > 0 || s.GROFlushTimeout > 0 }

// timersOn says whether they are to be set on a device that coalesces, or on one
// that does not.
func (s Settings) timersOn(coalesces bool) bool {
	suffices := s.TimersStandIn && coalesces && s.Coalescing > 0
	return s.timers() && (!suffices || s.polls() || s.IRQSuspendTimeout > 0)
}

// nothing says whether there is nothing to be set at all, but perhaps to be
// spread.
func (s Settings) nothing() bool {
	return !s.polls() && !s.timers() && !s.PackInterrupts && s.Coalescing == 0
}

// interruptCores finds the processors for interrupts, apart from the
// application's.
func (s Settings) interruptCores(application []int) ([]int, error) {
	if len(s.InterruptCores) > 0 {
		for _, c := range s.InterruptCores {
			if slices.Contains(application, c) {
				return nil, fmt.Errorf("processor %d is to handle interrupts and to run the application: %s packs interrupts on processors apart", c, runtime.IRQPacking)
			}
		}
		return s.InterruptCores, nil
	}
	online, err := onlineCores()
	if err != nil {
		return nil, err
	}
	rest := slices.DeleteFunc(slices.Clone(online), func(c int) bool { return slices.Contains(application, c) })
	if len(rest) == 0 {
		return nil, fmt.Errorf("no processor is left for interrupts: the application has all of %s; give it fewer", napi.FormatCores(online))
	}
	return rest, nil
}
