package compare

import (
	"fmt"
	"slices"

	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
)

// busyShare is the share of the packets that must have come by busy polling for
// kernel-polling to count as in force: a program that runs dry between requests
// rightly gets the interrupt back. In busy-poll nothing keeps the timer off while
// the program computes, and the more it has to do, the more the timer takes, up to
// nearly all; that some came by busy polling is what shows the mode.
const busyShare = 0.05

// full is how busy the server's core is when it has nothing left: what remains is lost
// between one request and the next.
const full = 0.95

// restful is the share of a core under which a server without traffic counts as
// one that sleeps.
const restful = 0.10

// prove says whether what was seen fits the mode. A loop that always finds work has no
// reason to sleep in any mode; what it does without work, if that was measured, is in
// idle.
func prove(subject result.Subject, s measure.Sample, core int, idle *result.Idle) result.Proof {
	seconds := s.Elapsed.Seconds()
	if seconds <= 0 {
		return result.Proof{Why: "nothing was observed"}
	}
	p := result.Proof{
		SoftirqPolls:    float64(s.Polls.Count) / seconds,
		BusyPolls:       float64(s.BusyPolls.Count) / seconds,
		BusyPollPackets: float64(s.BusyPollPackets) / seconds,
	}
	if s.BusyPolls.Count > 0 {
		p.EmptyBusyPolls = float64(s.BusyPolls.Empty) / float64(s.BusyPolls.Count)
	}
	if l := s.Loops; l != nil {
		p.Polls = l.Iterations / seconds
		p.Sleeps = l.Sleeps / seconds
		if l.Kernel {
			p.Sleeps = l.Blocking / seconds
		}
		if l.Mode != subject.Mode {
			p.Why = fmt.Sprintf("the server says that its mode is %q", l.Mode)
			return p
		}
	}
	if subject.Path == string(runtime.User) {
		p.Active, p.Why = proveUser(runtime.Mode(subject.Mode), s, p, idle)
	} else {
		p.Active, p.Why = proveKernel(runtime.Mode(subject.Mode), s, p, core)
	}
	return p
}

func proveUser(mode runtime.Mode, s measure.Sample, p result.Proof, idle *result.Idle) (bool, string) {
	if s.Loops == nil {
		return false, "the server tells nothing of its loops"
	}
	what := fmt.Sprintf("the loop polled %.0f and slept %.0f times a second", p.Polls, p.Sleeps)
	rests := true // as far as is known
	if idle != nil && mode != runtime.Poll {
		rests = idle.CPU < restful
		what += fmt.Sprintf("; idle it took %.1f %% of a core", 100*idle.CPU)
	}
	switch mode {
	case runtime.Poll:
		return s.Loops.Sleeps == 0 && s.Loops.Iterations > 0, what
	case runtime.Interrupt:
		// A loop that never runs dry has no reason to sleep; one that looks in
		// vain more often than it sleeps is not in this mode.
		return rests && s.Loops.EmptyPolls <= 2*s.Loops.Sleeps+s.Loops.Iterations/2, what
	}
	// That it adapts shows where it sleeps: under this load, or without any.
	return rests && s.Loops.Iterations > 0 && (idle != nil || s.Loops.Sleeps > 0), what
}

// suppressed is what the mode sets by itself.
var suppressed, _ = kernel.SettingsOf(runtime.IRQSuppression)

func proveKernel(mode runtime.Mode, s measure.Sample, p result.Proof, core int) (bool, string) {
	all := s.Polls.Packets + s.BusyPolls.Packets
	share := 0.0
	if all > 0 {
		share = float64(s.BusyPolls.Packets) / float64(all)
	}
	what := fmt.Sprintf("%.0f polls a second by softirq or thread and %.0f busy ones, which took %.0f %% of the packets", p.SoftirqPolls, p.BusyPolls, 100*share)
	if len(s.NAPI) > 0 {
		n := s.NAPI[0].Settings
		what += fmt.Sprintf("; NAPI %d: defer %d, flush %v, suspend %v", s.NAPI[0].ID, n.DeferHardIRQs, n.GROFlushTimeout, n.IRQSuspendTimeout)
	}
	if all == 0 {
		return false, "no packets were seen on the server's device; " + what
	}
	timers := len(s.NAPI) > 0 && s.NAPI[0].Settings.DeferHardIRQs > 0 && s.NAPI[0].Settings.GROFlushTimeout > 0
	suspends := len(s.NAPI) > 0 && s.NAPI[0].Settings.IRQSuspendTimeout > 0
	switch mode {
	case runtime.Vanilla:
		return s.BusyPolls.Count == 0 && !timers, what
	case runtime.IRQPacking:
		// Of threads, or of interrupts where there are none.
		apart := len(s.Receivers) > 0 && !slices.ContainsFunc(s.Receivers, func(cores []int) bool { return len(cores) == 0 || slices.Contains(cores, core) })
		return apart && s.BusyPolls.Count == 0, fmt.Sprintf("%s; receive work on processors %v", what, s.Receivers)
	case runtime.IRQSuppression:
		// A device that can wait by itself is made to; the kernel's timers are for
		// those that cannot.
		waits := false
		if c := s.Coalescing; c != nil && c.RxDelay != nil {
			// Devices count in ticks of their own, and some round down.
			waits = *c.RxDelay >= suppressed.Coalescing/2 && (c.AdaptiveRx == nil || !*c.AdaptiveRx)
			what += fmt.Sprintf("; the device waits %v with an interrupt", *c.RxDelay)
		}
		return (timers || waits) && s.BusyPolls.Count == 0, what
	case runtime.BusyPoll:
		return s.BusyPolls.Packets > 0 && s.BusyPollPackets > 0 && timers, what
	}
	return share > busyShare && s.BusyPollPackets > 0 && suspends, what
}
