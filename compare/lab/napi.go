package lab

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A napi is the kernel's receive work of one queue.
type napi struct {
	id uint32
	// thread is the process ID of its thread, 0 if it runs in softirq.
	thread int
}

// The generic netlink family netdev (Documentation/netlink/specs/netdev.yaml).
const (
	netdevFamily    = "netdev"
	netdevVersion   = 1
	netdevNAPIGet   = 11
	napiAttrIfindex = 1
	napiAttrID      = 2
	napiAttrPID     = 4
)

// napis lists the receive work of an interface in the calling thread's network
// namespace, in the order of its queues. It is empty while the interface has
// none (a veth without GRO and XDP).
func napis(ifname string) ([]napi, error) {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", ifname, err)
	}
	list, err := napisByNetlink(link.Attrs().Index)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		// Before Linux 6.8 the family does not tell.
		list, err = napisByThreadName(ifname, link.Attrs().NumRxQueues)
	}
	if err != nil {
		return nil, fmt.Errorf("list the receive work of %s: %w", ifname, err)
	}
	// Identifiers are given out in ascending order, queue by queue.
	slices.SortFunc(list, func(a, b napi) int { return cmp.Compare(a.id, b.id) })
	return list, nil
}

func napisByNetlink(ifindex int) ([]napi, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return nil, err
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_DUMP)
	request.AddData(genericHeader{netdevNAPIGet, netdevVersion})
	request.AddData(nl.NewRtAttr(napiAttrIfindex, nl.Uint32Attr(uint32(ifindex))))
	messages, err := dump(request)
	if err != nil {
		return nil, err
	}
	var list []napi
	for _, message := range messages {
		attributes, err := nl.ParseRouteAttr(message)
		if err != nil {
			return nil, err
		}
		var n napi
		for _, a := range attributes {
			if len(a.Value) < 4 {
				continue
			}
			switch value := binary.NativeEndian.Uint32(a.Value); a.Attr.Type {
			case napiAttrID:
				n.id = value
			case napiAttrPID:
				n.thread = int(value)
			}
		}
		list = append(list, n)
	}
	return list, nil
}

// genericHeader is struct genlmsghdr: command, version and two reserved bytes,
// which this family wants to be zero and the library's own type leaves to chance.
type genericHeader [nl.SizeofGenlmsg]byte

func (h genericHeader) Len() int          { return len(h) }
func (h genericHeader) Serialize() []byte { return h[:] }

// dump sends a generic netlink request and returns the attributes of all the
// answers. The library's own Execute stops after the first, because this family
// does not mark its answers as parts of one (NLM_F_MULTI).
func dump(request *nl.NetlinkRequest) ([][]byte, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	if err := socket.SetReceiveTimeout(&unix.Timeval{Sec: 10}); err != nil {
		return nil, err
	}
	if err := socket.Send(request); err != nil {
		return nil, err
	}
	var answers [][]byte
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if errno := int32(binary.NativeEndian.Uint32(m.Data)); errno < 0 {
						return nil, unix.Errno(-errno)
					}
				}
				return answers, nil
			}
			if len(m.Data) >= nl.SizeofGenlmsg {
				answers = append(answers, m.Data[nl.SizeofGenlmsg:])
			}
		}
	}
}

// napisByThreadName finds threads called napi/INTERFACE-ID. The name does not
// tell the namespace, so it answers only if there is no doubt.
func napisByThreadName(ifname string, queues int) ([]napi, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []napi
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + entry.Name() + "/comm")
		if err != nil {
			continue // it has ended
		}
		suffix, found := strings.CutPrefix(strings.TrimSpace(string(comm)), "napi/"+ifname+"-")
		if !found {
			continue
		}
		id, err := strconv.ParseUint(suffix, 10, 32)
		if err != nil {
			continue
		}
		list = append(list, napi{id: uint32(id), thread: pid})
	}
	if len(list) > queues {
		return nil, fmt.Errorf("%d threads serve an interface of that name but it has %d queues; before Linux 6.8 only one lab can be up at a time", len(list), queues)
	}
	return list, nil
}

// scheduling is how a thread is scheduled, written "fifo 50" or "nice -20".
type scheduling struct {
	policy   uint32
	nice     int32
	priority uint32
}

var (
	// asInterrupt runs before everything else on its processor. 50 is what the
	// kernel gives to threaded interrupts.
	asInterrupt = scheduling{policy: unix.SCHED_FIFO, priority: 50}
	// asPeer shares its processor fairly with a client that runs at nice -20,
	// as both ends of a measurement should.
	asPeer = scheduling{policy: unix.SCHED_NORMAL, nice: -20}
)

func (s scheduling) String() string {
	switch s.policy {
	case unix.SCHED_FIFO:
		return fmt.Sprintf("fifo %d", s.priority)
	case unix.SCHED_NORMAL:
		return fmt.Sprintf("nice %d", s.nice)
	}
	return fmt.Sprintf("policy %d", s.policy)
}

func schedulingOf(pid int) (scheduling, error) {
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		return scheduling{}, fmt.Errorf("ask how thread %d is scheduled: %w", pid, err)
	}
	return scheduling{attr.Policy, attr.Nice, attr.Priority}, nil
}

func (s scheduling) apply(pid int) error {
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: s.policy, Nice: s.nice, Priority: s.priority}
	if err := unix.SchedSetAttr(pid, attr, 0); err != nil {
		return fmt.Errorf("schedule thread %d as %s: %w", pid, s, err)
	}
	return nil
}

func coresOf(pid int) (string, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		return "", fmt.Errorf("ask where thread %d may run: %w", pid, err)
	}
	var cores []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return FormatCores(cores), nil
}

func pin(pid, core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(pid, &set); err != nil {
		return fmt.Errorf("pin thread %d to processor %d: %w", pid, core, err)
	}
	return nil
}
