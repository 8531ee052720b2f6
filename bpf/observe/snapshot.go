package observe

import "time"

// A Tally is how often something happened and how long it took.
type Tally struct {
	Count uint64
	Time  time.Duration
}

// Interrupt is a kind of hard interrupt.
type Interrupt int

// The kinds of hard interrupts.
const (
	// DeviceInterrupt is a handler that ran for an interrupt line of a device. If
	// two devices share a line, each of their handlers counts.
	DeviceInterrupt Interrupt = iota
	// TimerInterrupt is the processor's own timer. (x86)
	TimerInterrupt
	// RescheduleInterrupt comes from another processor that has made a thread
	// runnable here. (x86)
	RescheduleInterrupt
	// CallInterrupt comes from another processor that wants a function run here.
	// (x86)
	CallInterrupt
	// WorkInterrupt is what the kernel sends itself out of a context where it can
	// do nothing else. (x86)
	WorkInterrupt

	interrupts
)

func (i Interrupt) String() string {
	return [...]string{"device", "timer", "reschedule", "call", "work"}[i]
}

// SoftIRQ is a kind of softirq, numbered as the kernel does.
type SoftIRQ int

// The kinds of softirqs, as in /proc/softirqs.
const (
	SoftIRQHi SoftIRQ = iota
	SoftIRQTimer
	SoftIRQNetTX
	SoftIRQNetRX
	SoftIRQBlock
	SoftIRQPoll
	SoftIRQTasklet
	SoftIRQSched
	SoftIRQHRTimer
	SoftIRQRCU

	softIRQs
)

func (s SoftIRQ) String() string {
	return [...]string{"hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"}[s]
}

// Poller says in whose context a NAPI instance was polled.
type Poller int

// Who polls NAPI instances.
const (
	// PollSoftIRQ: a softirq, which an interrupt, a timer or a sender on the same
	// processor asked for (ksoftirqd included).
	PollSoftIRQ Poller = iota
	// PollThread: a kernel thread of the instance's own (threaded NAPI).
	PollThread
	// PollBusy: a user's thread that polls busily, in epoll_wait or on a socket.
	PollBusy
)

func (p Poller) String() string {
	return [...]string{"softirq", "thread", "busy"}[p]
}

// A Snapshot is what happened since Start, or, after Sub, between two of them.
// Numbers never fall, and those of one processor, with what threads did on it,
// are of one moment; processors follow one another within microseconds.
type Snapshot struct {
	// CPUs are the observed processors, in ascending order. One that is not
	// online, or on which nothing happened yet, has zeros.
	CPUs []CPU
	// Threads are those of Config, in its order.
	Threads []Thread
	// Polls are by NAPI instance, budget and poller, in this order.
	Polls []Polls
	// LostPolls were not counted in Polls, for there are more instances than can
	// be told apart (1024).
	LostPolls uint64
}

// CPU is what a processor did. Every nanosecond since it was first seen is in
// exactly one of Thread, HardIRQ, SoftIRQ and Idle.
type CPU struct {
	ID int
	// Thread is spent in threads, user's and kernel's, in user mode and in the
	// kernel, without the interrupts and softirqs that came meanwhile. Busy
	// polling is in here.
	Thread time.Duration
	// HardIRQ is spent in hard interrupts: from the kernel's entering the handler
	// to its leaving. What the hardware and the lowest entry code take before and
	// after is with whom they interrupted.
	HardIRQ time.Duration
	// SoftIRQ is spent in softirqs, whoever's context they ran in, ksoftirqd's
	// included, without the hard interrupts that came meanwhile.
	SoftIRQ time.Duration
	// Idle is spent in the idle thread.
	Idle time.Duration

	// Interrupts are hard interrupts by kind: each counts, also one within
	// another, whose time is with the outer one's.
	Interrupts [interrupts]Tally
	// SoftIRQs are runs of a softirq's handler by kind. A run of NetRX polls many
	// packets of several NAPI instances.
	SoftIRQs [softIRQs]Tally

	// Switches are context switches, to and from the idle thread included.
	Switches uint64
	// Preemptions are those of them away from a thread that could have gone on,
	// because another's turn came or because it yielded.
	Preemptions uint64
}

// Total is all that the processor's time was spent on since it was first seen.
func (c CPU) Total() time.Duration { return c.Thread + c.HardIRQ + c.SoftIRQ + c.Idle }

// Busy is Total without Idle.
func (c CPU) Busy() time.Duration { return c.Thread + c.HardIRQ + c.SoftIRQ }

// Thread is what happened to a thread while it was the one that ran on a
// processor. The thread's time on a processor is the sum of Running, HardIRQ,
// Deferred and Own.
type Thread struct {
	ID int
	// Running is spent in the thread itself, in user mode and in the kernel.
	Running time.Duration
	// HardIRQ are hard interrupts that came while the thread ran, those within
	// softirqs included.
	HardIRQ Tally
	// Deferred are softirqs that such an interrupt left to be run at its end:
	// those that began within 5 µs of it or of another such.
	Deferred Tally
	// Own are the other softirqs: those that the thread's own system calls ran
	// (what it sends over loopback or a veth is received so), and those that
	// found the softirqs disabled.
	Own Tally
	// Switches are context switches away from the thread, and Preempted those of
	// them when it could have gone on, with the time until it did, on whichever
	// observed processor. A wait that is not over is not in it yet.
	Switches  uint64
	Preempted Tally
}

// Interrupted is how often and for how long the thread was stopped while it ran
// by what was not its own: hard interrupts, and the softirqs that they left.
// A softirq that an interrupt left is not one more time.
func (t Thread) Interrupted() Tally {
	return Tally{t.HardIRQ.Count, t.HardIRQ.Time + t.Deferred.Time}
}

// Polls are polls of one NAPI instance.
type Polls struct {
	// NAPI is the instance's id; the kernel's backlog, through which loopback and
	// devices without NAPI go, is 0 and has no device.
	NAPI uint32
	// Device and Index are those of the network device, in its namespace.
	Device string
	Index  int
	// Budget is how many packets the poll may take: 64 from softirqs and kernel
	// threads, what the epoll instance or socket was set to from busy polling.
	Budget int
	Poller Poller

	// Count are all polls, Empty those that found no packet, Full those that used
	// up their budget.
	Count, Empty, Full uint64
	// Packets found.
	Packets uint64
}

// Sub returns what happened since an earlier snapshot of the same Observer.
func (s Snapshot) Sub(earlier Snapshot) Snapshot {
	d := Snapshot{LostPolls: s.LostPolls - earlier.LostPolls}
	for i, c := range s.CPUs {
		if i < len(earlier.CPUs) {
			e := &earlier.CPUs[i]
			c.Thread -= e.Thread
			c.HardIRQ -= e.HardIRQ
			c.SoftIRQ -= e.SoftIRQ
			c.Idle -= e.Idle
			for k := range c.Interrupts {
				c.Interrupts[k] = c.Interrupts[k].sub(e.Interrupts[k])
			}
			for k := range c.SoftIRQs {
				c.SoftIRQs[k] = c.SoftIRQs[k].sub(e.SoftIRQs[k])
			}
			c.Switches -= e.Switches
			c.Preemptions -= e.Preemptions
		}
		d.CPUs = append(d.CPUs, c)
	}
	for i, t := range s.Threads {
		if i < len(earlier.Threads) {
			e := &earlier.Threads[i]
			t.Running -= e.Running
			t.HardIRQ = t.HardIRQ.sub(e.HardIRQ)
			t.Deferred = t.Deferred.sub(e.Deferred)
			t.Own = t.Own.sub(e.Own)
			t.Switches -= e.Switches
			t.Preempted = t.Preempted.sub(e.Preempted)
		}
		d.Threads = append(d.Threads, t)
	}
	before := make(map[pollsKey]Polls, len(earlier.Polls))
	for _, p := range earlier.Polls {
		before[p.key()] = p
	}
	for _, p := range s.Polls {
		e := before[p.key()]
		p.Count -= e.Count
		p.Empty -= e.Empty
		p.Full -= e.Full
		p.Packets -= e.Packets
		if p.Count != 0 {
			d.Polls = append(d.Polls, p)
		}
	}
	return d
}

func (t Tally) sub(earlier Tally) Tally {
	return Tally{t.Count - earlier.Count, t.Time - earlier.Time}
}

func (t Tally) add(other Tally) Tally {
	return Tally{t.Count + other.Count, t.Time + other.Time}
}

type pollsKey struct {
	napi          uint32
	index, budget int
	poller        Poller
}

func (p Polls) key() pollsKey { return pollsKey{p.NAPI, p.Index, p.Budget, p.Poller} }

// Total sums all processors; its ID is -1.
func (s Snapshot) Total() CPU {
	total := CPU{ID: -1}
	for _, c := range s.CPUs {
		total.Thread += c.Thread
		total.HardIRQ += c.HardIRQ
		total.SoftIRQ += c.SoftIRQ
		total.Idle += c.Idle
		for k := range c.Interrupts {
			total.Interrupts[k] = total.Interrupts[k].add(c.Interrupts[k])
		}
		for k := range c.SoftIRQs {
			total.SoftIRQs[k] = total.SoftIRQs[k].add(c.SoftIRQs[k])
		}
		total.Switches += c.Switches
		total.Preemptions += c.Preemptions
	}
	return total
}

// PolledBy sums the polls of all instances by one poller; of the fields that
// tell instances apart it has the Poller only.
func (s Snapshot) PolledBy(poller Poller) Polls {
	total := Polls{Poller: poller}
	for _, p := range s.Polls {
		if p.Poller == poller {
			total.Count += p.Count
			total.Empty += p.Empty
			total.Full += p.Full
			total.Packets += p.Packets
		}
	}
	return total
}
