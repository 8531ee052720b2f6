// Package napi reads and sets how the kernel receives: the NAPI instances of a
// device's queues and their timers (generic netlink family netdev), interrupt
// coalescing and rings (family ethtool), the processors of interrupts and of
// NAPI threads, and an epoll instance's busy polling. Everything is typed, and
// State holds all that this package can change, to be put back.
package napi

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// The family netdev: Documentation/netlink/specs/netdev.yaml.
const (
	netdevDevGet   = 1
	netdevQueueGet = 10
	netdevNAPIGet  = 11
	netdevBindRx   = 13
	netdevNAPISet  = 14

	napiIfindex           = 1
	napiID                = 2
	napiIRQ               = 3
	napiPID               = 4
	napiDeferHardIRQs     = 5
	napiGROFlushTimeout   = 6
	napiIRQSuspendTimeout = 7
	napiThreaded          = 8

	queueID      = 1
	queueIfindex = 2
	queueType    = 3
	queueNAPI    = 4

	receiveQueue = 0
)

// Settings are how long a NAPI instance keeps its interrupt off.
type Settings struct {
	// DeferHardIRQs is how many polls in a row must find nothing before the
	// interrupt is turned on again.
	DeferHardIRQs int `json:"defer_hard_irqs"`
	// GROFlushTimeout is when the kernel polls by itself while the interrupt is
	// off, in whole nanoseconds.
	GROFlushTimeout time.Duration `json:"gro_flush_timeout"`
	// IRQSuspendTimeout is how long the interrupt stays off after an epoll_wait
	// that prefers busy polling found work: the longest that a program may
	// leave its queue alone. It needs the other two.
	IRQSuspendTimeout time.Duration `json:"irq_suspend_timeout"`
	// Threaded says whether a thread of its own polls instead of softirq. Nil
	// where the kernel does not tell for one instance (before Linux 6.17); Set
	// leaves it alone then.
	Threaded *bool `json:"threaded,omitempty"`
}

// NAPI is the kernel's receive work of one queue.
type NAPI struct {
	// ID is what SO_INCOMING_NAPI_ID reports for its connections.
	ID uint32 `json:"id"`
	// Queue is the receive queue that it serves, -1 if the kernel does not tell.
	Queue int `json:"queue"`
	// IRQ is its interrupt, 0 if it has none (a veth) or it cannot be found. NAPI
	// knows it only if the driver tells, NAPIs also by its name.
	IRQ int `json:"irq,omitempty"`
	// Thread is the process ID of its thread, 0 if it runs in softirq.
	Thread   int      `json:"thread,omitempty"`
	Settings Settings `json:"settings"`
}

// Queue is one receive queue; NAPI is 0 if the driver does not tell.
type Queue struct {
	ID   int
	NAPI uint32
}

// NAPIs lists a device's instances in ascending order of their queues. There
// are none while the device has no use for them (down, or a veth without GRO
// and XDP).
func (c *Conn) NAPIs(d Device) ([]NAPI, error) {
	answers, err := c.dump(netdev, netdevNAPIGet, nl.NewRtAttr(napiIfindex, nl.Uint32Attr(uint32(d.Index))))
	if err != nil {
		return nil, fmt.Errorf("list the NAPI instances of %s: %w", d.Name, err)
	}
	list := make([]NAPI, len(answers))
	for i, a := range answers {
		list[i] = parseNAPI(a)
	}
	// Identifiers are given out in ascending order, queue by queue.
	slices.SortFunc(list, func(a, b NAPI) int { return cmp.Compare(a.ID, b.ID) })
	queues, err := c.Queues(d)
	if err != nil {
		return nil, err
	}
	assign(list, queues)
	c.nameInterrupts(d, list)
	slices.SortStableFunc(list, func(a, b NAPI) int { return cmp.Compare(uint(a.Queue), uint(b.Queue)) })
	return list, nil
}

// assign finds the queue of each instance: as the driver tells, or by order if
// there are as many of one as of the other.
func assign(list []NAPI, queues []Queue) {
	told := slices.ContainsFunc(queues, func(q Queue) bool { return q.NAPI != 0 })
	for i := range list {
		list[i].Queue = -1
		if !told && len(list) == len(queues) {
			list[i].Queue = queues[i].ID
		}
		if j := slices.IndexFunc(queues, func(q Queue) bool { return q.NAPI == list[i].ID }); told && j >= 0 {
			list[i].Queue = queues[j].ID
		}
	}
}

// NAPI finds one instance; the error is ErrGone if there is none of that number
// in the namespace. Its Queue is -1.
func (c *Conn) NAPI(id uint32) (NAPI, error) {
	answer, err := c.do(netdev, netdevNAPIGet, nl.NewRtAttr(napiID, nl.Uint32Attr(id)))
	if err != nil {
		return NAPI{}, fmt.Errorf("look at NAPI %d: %w", id, err)
	}
	n := parseNAPI(answer)
	n.Queue = -1
	return n, nil
}

func parseNAPI(a attributes) NAPI {
	n := NAPI{
		ID:     uint32(a.uint(napiID)),
		IRQ:    int(a.uint(napiIRQ)),
		Thread: int(a.uint(napiPID)),
		Settings: Settings{
			DeferHardIRQs:     int(a.uint(napiDeferHardIRQs)),
			GROFlushTimeout:   time.Duration(a.uint(napiGROFlushTimeout)),
			IRQSuspendTimeout: time.Duration(a.uint(napiIRQSuspendTimeout)),
		},
	}
	if a.has(napiThreaded) {
		threaded := a.uint(napiThreaded) != 0
		n.Settings.Threaded = &threaded
	}
	return n
}

// Set changes one instance. It needs CAP_NET_ADMIN and Linux 6.13.
func (c *Conn) Set(id uint32, s Settings) error {
	attributes := []*nl.RtAttr{
		nl.NewRtAttr(napiID, nl.Uint32Attr(id)),
		nl.NewRtAttr(napiDeferHardIRQs, nl.Uint32Attr(uint32(s.DeferHardIRQs))),
		nl.NewRtAttr(napiGROFlushTimeout, nl.Uint64Attr(uint64(s.GROFlushTimeout))),
		nl.NewRtAttr(napiIRQSuspendTimeout, nl.Uint64Attr(uint64(s.IRQSuspendTimeout))),
	}
	if s.Threaded != nil {
		value := uint32(0)
		if *s.Threaded {
			value = 1
		}
		attributes = append(attributes, nl.NewRtAttr(napiThreaded, nl.Uint32Attr(value)))
	}
	_, err := c.do(netdev, netdevNAPISet, attributes...)
	if errors.Is(err, ErrUnsupported) {
		err = fmt.Errorf("%w: settings of one NAPI instance need Linux 6.13, this is %s", err, release())
	}
	if err != nil {
		return fmt.Errorf("set NAPI %d: %w", id, err)
	}
	return nil
}

// CanSet says whether the kernel has settings of one NAPI instance (Linux 6.13).
func (c *Conn) CanSet() (bool, error) { return c.has(netdev, netdevNAPISet) }

// CanBindMemory says whether the kernel can have a queue receive into memory of
// a device (devmem TCP, Linux 6.12). The device must be able to as well.
func (c *Conn) CanBindMemory() (bool, error) { return c.has(netdev, netdevBindRx) }

// Queues lists a device's receive queues; none while it is down.
func (c *Conn) Queues(d Device) ([]Queue, error) {
	answers, err := c.dump(netdev, netdevQueueGet, nl.NewRtAttr(queueIfindex, nl.Uint32Attr(uint32(d.Index))))
	if err != nil {
		return nil, fmt.Errorf("list the queues of %s: %w", d.Name, err)
	}
	var list []Queue
	for _, a := range answers {
		if a.uint(queueType) == receiveQueue {
			list = append(list, Queue{ID: int(a.uint(queueID)), NAPI: uint32(a.uint(queueNAPI))})
		}
	}
	slices.SortFunc(list, func(a, b Queue) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}
