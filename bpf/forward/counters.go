package forward

import "fmt"

// Cause is what became of a frame, and why.
type Cause uint8

// The causes, in the order of enum cause in forward.h. Their names are those of
// the twin in user space where both have them.
const (
	// Forwarded: given to an output.
	Forwarded Cause = iota

	// Left to the kernel's own stack:

	Local         // for the box itself, or no route (the kernel's answer is the same)
	NeighbourWait // its next hop's address is not known yet
	Refresh       // one a second for each next hop, so that the kernel keeps asking for it
	TooBig        // larger than the MTU
	HopLimit      // TTL or hop limit used up
	Unreachable   // an unreachable or prohibit route
	NoPort        // the route leads to an interface that is not joined
	EtherType     // neither IPv4 nor IPv6: ARP, LLDP, VLAN tags
	Multicast     // multicast or broadcast, also of Ethernet only: neighbour discovery, routing daemons
	LinkLocal     // an IPv6 address that is not forwarded
	OtherHost     // the Ethernet address of somebody else
	Options       // IPv4 options, IPv6 packets of more than 65,535 bytes
	Disabled      // forwarding is off on the interface
	Unsupported   // the route has a tunnel, say

	// Dropped:

	Short        // too short for its headers
	Malformed    // a header that contradicts itself
	Checksum     // the IPv4 header's checksum is wrong
	Martian      // addresses that must not be on a wire (RFC 1812 5.3.7)
	TinyFragment // a first fragment that holds only a part of the TCP header (RFC 1858)
	Extensions   // more IPv6 extension headers than are looked behind
	PriorityTag  // a VLAN tag of no VLAN, which would hide a packet from the rules
	Blackhole    // a blackhole route
	Denied       // an access rule

	// Dropped after they were counted as forwarded:

	QueueFull     // the output had no room
	OutputUnready // the output takes no frames from XDP (see the package comment)
	Redirect      // the output is down, or smaller than its route's MTU
	causes
)

var causeNames = [causes]string{
	"forwarded", "local", "neighbour-wait", "refresh", "too-big", "hop-limit", "unreachable", "no-port", "ethertype",
	"multicast", "link-local", "other-host", "options", "disabled", "unsupported", "short", "malformed", "checksum",
	"martian", "tiny-fragment", "extensions", "priority-tag", "blackhole", "denied", "queue-full", "output-unready", "redirect",
}

func (c Cause) String() string {
	if c >= causes {
		return fmt.Sprintf("cause %d", uint8(c))
	}
	return causeNames[c]
}

// Passed says whether it is one of frames that were left to the kernel's stack.
func (c Cause) Passed() bool { return c > Forwarded && c < Short }

// Dropped says whether it is one of frames that were dropped.
func (c Cause) Dropped() bool { return c >= Short && c < causes }

// Causes are all of them, in order.
func Causes() []Cause {
	all := make([]Cause, causes)
	for i := range all {
		all[i] = Cause(i)
	}
	return all
}

// Count is a number of frames, and of their bytes (zero where the kernel does
// not tell: QueueFull, OutputUnready, and Redirect).
type Count struct{ Frames, Bytes uint64 }

// Counters are what became of the frames since Load, by cause.
type Counters [causes]Count

// Sent is the number of frames that were forwarded and that the output took.
func (c *Counters) Sent() uint64 {
	lost := c[QueueFull].Frames + c[OutputUnready].Frames + c[Redirect].Frames
	return c[Forwarded].Frames - min(lost, c[Forwarded].Frames)
}

// Received is the number of frames that came in.
func (c *Counters) Received() (n uint64) {
	for cause := range QueueFull {
		n += c[cause].Frames
	}
	return n
}

// Counters reads the counters, the sum over all processors. Those that change
// meanwhile are not of one moment.
func (f *Forwarder) Counters() (c Counters, err error) {
	all, err := f.Processors()
	for _, p := range all {
		for i := range c {
			c[i].Frames += p[i].Frames
			c[i].Bytes += p[i].Bytes
		}
	}
	return c, err
}

// Processors reads the counters of each processor.
func (f *Forwarder) Processors() (all []Counters, err error) {
	for i := range causes {
		var each []forwardCount
		if err := f.objects.Counts.Lookup(uint32(i), &each); err != nil {
			return nil, fmt.Errorf("forward: read the counters: %w", err)
		}
		if all == nil {
			all = make([]Counters, len(each))
		}
		for p, n := range each {
			all[p][i] = Count{n.Frames, n.Bytes}
		}
	}
	return all, nil
}
