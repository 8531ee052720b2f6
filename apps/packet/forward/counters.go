package forward

import "github.com/pollux-net/pollux/apps/packet/queue"

// Cause is why a frame was dropped.
type Cause uint8

// The causes.
const (
	Short         Cause = iota // too short for its headers
	OtherHost                  // the Ethernet address of somebody else
	EtherType                  // neither IPv4, IPv6 nor ARP
	Malformed                  // a header that contradicts itself
	Checksum                   // the IPv4 header's checksum is wrong
	Martian                    // addresses that must not be on a wire (RFC 1812 5.3.7)
	Multicast                  // multicast or broadcast, which is not forwarded
	SourceRoute                // an IPv4 source route option
	TinyFragment               // a first fragment that holds only a part of the TCP header (RFC 1858)
	Extensions                 // more IPv6 extension headers than are looked behind
	HopLimit                   // TTL or hop limit used up
	NoRoute                    // no prefix covers the destination
	Blackhole                  // a blackhole route
	Unreachable                // an unreachable route
	NoPort                     // the route leads to an interface that is no port
	Denied                     // an access rule
	TooBig                     // larger than the MTU, and may not be fragmented
	NeighbourWait              // its next hop's address is not known yet, and enough wait for it
	NeighbourDead              // its next hop does not answer
	NATFull                    // no port or binding is left
	NATProtocol                // a protocol that cannot be translated
	NATFragment                // a fragment, which has no ports to translate by
	NATUnknown                 // to a translated address, but no binding
	HandoverFull               // the queue to the shard that owns its binding is full
	NoFrame                    // no frame to fragment into
	NoLocal                    // for the box itself, which has no stack
	QueueFull                  // the output's queue is full, and the flow has its share
	QueueCut                   // gave way in a full queue to a flow with less
	CoDel                      // waited too long
	causes
)

var causeNames = [causes]string{
	"short", "other-host", "ethertype", "malformed", "checksum", "martian", "multicast", "source-route", "tiny-fragment", "extensions", "hop-limit",
	"no-route", "blackhole", "unreachable", "no-port", "denied", "too-big", "neighbour-wait", "neighbour-dead",
	"nat-full", "nat-protocol", "nat-fragment", "nat-unknown", "handover-full", "no-frame", "no-local",
	"queue-full", "queue-cut", "codel",
}

func (c Cause) String() string { return causeNames[c] }

// Causes are all of them, in order.
func Causes() []Cause {
	all := make([]Cause, causes)
	for i := range all {
		all[i] = Cause(i)
	}
	return all
}

// Counters of one shard. Of the frames that it Received or was HandedIn, every
// one is Forwarded, Delivered, Resolved, HandedOut, in Dropped, or still Held.
type Counters struct {
	// Received from the ports, and HandedIn by other shards.
	Received, HandedIn uint64
	// Forwarded to an output's queue (where it may yet be dropped, see QueueFull,
	// QueueCut and CoDel), Delivered to the box's own stack, Resolved: consumed
	// by address resolution, HandedOut to the shard that owns a binding.
	Forwarded, Delivered, Resolved, HandedOut uint64
	// Dropped by cause.
	Dropped [causes]uint64
	// CacheHits and CacheMisses of the flow cache; without one all are misses.
	CacheHits, CacheMisses uint64
	// Originated: the box's own packets. ICMPSent: errors among them; ICMPLimited:
	// errors that the rate limit kept back. Fragments: made of larger packets.
	// OriginDropped: the box's own packets that found no way.
	Originated, ICMPSent, ICMPLimited, Fragments, OriginDropped uint64
	// Asked: solicitations of neighbours. Learned: answers for the control plane,
	// LearnedLost: those it was too slow for.
	Asked, Learned, LearnedLost uint64
	// Adopted snapshots.
	Adopted uint64
}

// Drops is the sum of Dropped.
func (c *Counters) Drops() (n uint64) {
	for _, d := range c.Dropped {
		n += d
	}
	return n
}

// Statistics of a shard at one moment.
type Statistics struct {
	Shard int
	Counters
	// Held frames wait for a neighbour.
	Held int
	// Outputs are the queues, by port.
	Outputs []OutputStatistics
	// Flows in the cache that a decision was made for, and its size; Bindings of
	// the translation, and its size.
	CacheSize               int
	Bindings, BindingsLimit int
	Generation              uint32
}

// OutputStatistics are those of a queue.
type OutputStatistics struct {
	Frames, Bytes int
	queue.Dropped
}
