// Package measure says what a server costs while it is under load, and what it
// proves about how packets reached it: CPU time of its threads, of interrupts
// and of receive work on its core (by bpf/observe), its own account of polls in
// vain, system calls, hardware counters where there are any, and the price of
// being idle. It attaches only for as long as it measures.
package measure

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// Target is the server to be measured. Everything that it does must be on Core.
type Target struct {
	// PID is the server's process, with all others of the session that it leads.
	PID  int
	Core int
	// Device is the network device that requests come through, in the server's
	// network namespace.
	Device string
	// In runs a function on a thread in the server's network namespace.
	In func(func() error) error
	// Metrics is the address at which the server tells what its loops counted, in
	// its network namespace; empty if it does not.
	Metrics string
	// Requests tells how many requests were answered so far, and when that was
	// by a clock of its own.
	Requests func() (n uint64, at time.Duration, err error)
}

// Loops is what the loops of our own servers count, all shards together. See
// the Counters of runtime/user and runtime/kernel.
type Loops struct {
	Mode                               string
	Iterations, EmptyPolls, Sleeps     float64
	Busy, Slept                        time.Duration
	Waits, EmptyWaits, Blocking, Calls float64 // of the kernel path
	Kernel                             bool
}

// A Sample is what happened between Start and End.
type Sample struct {
	Elapsed time.Duration
	// PerSecond is how many requests the server answered.
	PerSecond float64
	// CPU is the server's: its threads, its receive work, interrupts and
	// softirqs on its core. Empty is the part of it that went into polls that
	// found nothing, as far as the loop tells.
	CPU, Empty time.Duration
	// Foreign is what threads of others took of the server's core.
	Foreign time.Duration
	// Elsewhere is the part of CPU that was not on the server's core.
	Elsewhere time.Duration

	Interrupts, Softirqs, Switches, Interruptions uint64
	Interrupted                                   time.Duration
	// Polls of the device by softirq or its thread, and by busy polling.
	Polls, BusyPolls observe.Polls
	// BusyPollPackets is the namespace's BusyPollRxPackets.
	BusyPollPackets uint64
	Loops           *Loops
	Counters        *Counters
	// NAPI is the device's settings as they were in force, and Receivers where each
	// instance's receive work runs: the processors of its thread, or else of its
	// interrupt; none if it has neither.
	NAPI      []napi.NAPI
	Receivers [][]int
	// Coalescing is how long the device waits with an interrupt; nil if it cannot.
	Coalescing *napi.Coalescing
}

// Observation is one that is going on.
type Observation struct {
	target   Target
	observer *observe.Observer
	counters *counters
	before   mark
	napis    []napi.NAPI
	cores    [][]int // where the NAPIs' receive work runs
	threads  []int   // of the server
	// apart are other processors that handle the device's interrupts.
	apart      []int
	coalescing *napi.Coalescing
}

// mark is everything at a moment.
type mark struct {
	at       time.Time
	snapshot observe.Snapshot
	requests uint64
	asked    time.Duration // when requests was, by its own clock
	busyPoll uint64
	loops    *Loops
	counters Counters
}

// Start attaches and begins.
func Start(t Target) (_ *Observation, err error) {
	o := &Observation{target: t}
	err = t.In(func() error {
		o.napis, o.coalescing, err = devices(t.Device)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	if o.threads, err = tasks(t.PID); err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	cpus := []int{t.Core}
	var receivers []int
	for _, n := range o.napis {
		var cores []int
		switch {
		case n.Thread > 0:
			cores, err = napi.ThreadCores(n.Thread)
			receivers = append(receivers, n.Thread)
		case n.IRQ > 0:
			cores, err = napi.InterruptCores(n.IRQ)
			for _, c := range cores {
				if c != t.Core && !slices.Contains(o.apart, c) {
					o.apart = append(o.apart, c)
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("measure: %w", err)
		}
		cpus = append(cpus, cores...)
		o.cores = append(o.cores, cores)
	}
	slices.Sort(cpus)
	// More threads than can be followed idle along, as Go's do; what they use
	// counts as foreign.
	if most := observe.MaxThreads - len(receivers); len(o.threads) > most {
		o.threads = o.threads[:max(0, most)]
	}
	o.observer, err = observe.Start(observe.Config{Threads: slices.Concat(o.threads, receivers), CPUs: slices.Compact(cpus)})
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	o.counters, _ = openCounters(t.Core) // see Hardware for why not
	if o.before, err = o.mark(); err != nil {
		return nil, errors.Join(fmt.Errorf("measure: %w", err), o.close())
	}
	return o, nil
}

// End takes the second reading and detaches.
func (o *Observation) End() (Sample, error) {
	after, err := o.mark()
	if e := o.close(); err == nil {
		err = e
	}
	if err != nil {
		return Sample{}, fmt.Errorf("measure: %w", err)
	}
	s := Sample{
		Elapsed:         after.at.Sub(o.before.at),
		BusyPollPackets: after.busyPoll - o.before.busyPoll, NAPI: o.napis, Receivers: o.cores, Coalescing: o.coalescing,
	}
	if o.before.loops != nil && after.loops != nil {
		l := after.loops.sub(*o.before.loops)
		s.Loops = &l
	}
	if o.counters != nil {
		s.Counters = &Counters{after.counters.Cycles - o.before.counters.Cycles, after.counters.Instructions - o.before.counters.Instructions}
	}
	if span := (after.asked - o.before.asked).Seconds(); span > 0 {
		s.PerSecond = float64(after.requests-o.before.requests) / span
	}
	o.account(&s, after.snapshot.Sub(o.before.snapshot))
	return s, nil
}

func (o *Observation) close() error {
	o.counters.close()
	return o.observer.Close()
}

// mark reads everything, what takes longest to ask for first.
func (o *Observation) mark() (m mark, err error) {
	err = o.target.In(func() error {
		if o.target.Metrics != "" {
			l, err := AskLoops(o.target.Metrics)
			if err != nil {
				return err
			}
			m.loops = &l
		}
		m.busyPoll, err = busyPollPackets("/proc/thread-self/net/netstat")
		return err
	})
	if err != nil {
		return m, err
	}
	if o.counters != nil {
		if m.counters, err = o.counters.read(); err != nil {
			return m, err
		}
	}
	if o.target.Requests != nil {
		if m.requests, m.asked, err = o.target.Requests(); err != nil {
			return m, err
		}
	}
	m.at = time.Now()
	m.snapshot, err = o.observer.Read()
	return m, err
}

// account shares the processors' time out.
func (o *Observation) account(s *Sample, d observe.Snapshot) {
	core := observe.CPU{}
	for _, c := range d.CPUs {
		if c.ID == o.target.Core {
			core = c
		}
	}
	own, running := time.Duration(0), time.Duration(0)
	for i, t := range d.Threads {
		switch {
		case i < len(o.threads):
			own += t.Running
			running += t.Running + t.Own.Time
			interrupted := t.Interrupted()
			s.Interruptions += interrupted.Count + t.Preempted.Count
			s.Interrupted += interrupted.Time + t.Preempted.Time
		case o.receivesHere(t.ID):
			own += t.Running
		default:
			s.Elsewhere += t.Running + t.HardIRQ.Time + t.Deferred.Time + t.Own.Time
		}
	}
	for _, c := range d.CPUs {
		if slices.Contains(o.apart, c.ID) {
			// Without a thread of its own, receive work is no thread's: all that
			// devices interrupt for and all that is received there is taken for
			// the server's, since there is no telling.
			s.Elsewhere += c.Interrupts[observe.DeviceInterrupt].Time + c.SoftIRQs[observe.SoftIRQNetRX].Time
		}
	}
	own = min(own, core.Thread)
	s.Foreign = core.Thread - own
	s.CPU = core.Busy() - s.Foreign + s.Elsewhere
	if s.Loops != nil && !s.Loops.Kernel {
		// What is neither busy nor asleep looked in vain. The loop's account is
		// in wall time: what others took of the core is in both parts alike.
		if awake := s.Elapsed - s.Loops.Slept; awake > 0 {
			vain := min(1, max(0, 1-float64(s.Loops.Busy)/float64(awake)))
			s.Empty = time.Duration(vain * float64(min(running, s.CPU)))
		}
	}
	for _, i := range core.Interrupts {
		s.Interrupts += i.Count
	}
	for _, q := range core.SoftIRQs {
		s.Softirqs += q.Count
	}
	s.Switches = core.Switches
	for _, p := range d.Polls {
		if !slices.ContainsFunc(o.napis, func(n napi.NAPI) bool { return n.ID == p.NAPI }) {
			continue
		}
		to := &s.Polls
		if p.Poller == observe.PollBusy {
			to = &s.BusyPolls
		}
		to.Budget = p.Budget
		to.Count += p.Count
		to.Empty += p.Empty
		to.Full += p.Full
		to.Packets += p.Packets
	}
}

// receivesHere says whether a receive thread is on the server's core.
func (o *Observation) receivesHere(thread int) bool {
	for i, n := range o.napis {
		if n.Thread == thread {
			return slices.Contains(o.cores[i], o.target.Core)
		}
	}
	return false
}

// Requests is how many were answered between Start and End.
func (s Sample) Requests() float64 { return s.PerSecond * s.Elapsed.Seconds() }

// Cost is the sample's, per request. With requests 0 it is empty.
func (s Sample) Cost(requests float64) result.Cost {
	if requests <= 0 {
		return result.Cost{}
	}
	c := result.Cost{
		CPU:             float64(s.CPU-s.Empty) / requests,
		Interrupts:      float64(s.Interrupts) / requests,
		Softirqs:        float64(s.Softirqs) / requests,
		NAPIPolls:       float64(s.Polls.Count+s.BusyPolls.Count) / requests,
		ContextSwitches: float64(s.Switches) / requests,
		Interruptions:   float64(s.Interruptions) / requests,
		Interrupted:     float64(s.Interrupted) / requests,
	}
	if s.Loops != nil && !s.Loops.Kernel {
		empty := float64(s.Empty) / requests
		c.EmptyPolls = &empty
	}
	if polls := s.Polls.Count + s.BusyPolls.Count; polls > 0 {
		c.PacketsPerPoll = float64(s.Polls.Packets+s.BusyPolls.Packets) / float64(polls)
	}
	if s.Counters != nil {
		cycles, instructions := float64(s.Counters.Cycles)/requests, float64(s.Counters.Instructions)/requests
		c.Cycles, c.Instructions = &cycles, &instructions
	}
	return c
}

// Busy is the share of one core that the server used, without polls in vain.
func (s Sample) Busy() float64 { return s.share(s.CPU - s.Empty) }

// ForeignShare is the share of the server's core that others used.
func (s Sample) ForeignShare() float64 { return s.share(s.Foreign) }

func (s Sample) share(d time.Duration) float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(d) / float64(s.Elapsed)
}

// devices lists the NAPI instances of a device, and reads its coalescing; none where
// there is no device of the kernel's (a PCI device, say), or it has no use for them.
func devices(name string) ([]napi.NAPI, *napi.Coalescing, error) {
	if name == "" {
		return nil, nil, nil
	}
	c, err := napi.Open()
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	d, err := c.Device(name)
	if errors.Is(err, napi.ErrGone) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	list, err := c.NAPIs(d)
	if err != nil {
		return nil, nil, err
	}
	if coalescing, err := c.Coalescing(d); err == nil {
		return list, &coalescing, nil
	}
	return list, nil, nil // most virtual devices have none
}

func (l Loops) sub(e Loops) Loops {
	l.Iterations -= e.Iterations
	l.EmptyPolls -= e.EmptyPolls
	l.Sleeps -= e.Sleeps
	l.Busy -= e.Busy
	l.Slept -= e.Slept
	l.Waits -= e.Waits
	l.EmptyWaits -= e.EmptyWaits
	l.Blocking -= e.Blocking
	l.Calls -= e.Calls
	return l
}
