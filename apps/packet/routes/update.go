package routes

import "net/netip"

// A Route is what to do with packets to a prefix. If none of Local, Blackhole and
// Unreachable is set they go to one of NextHops.
type Route struct {
	Prefix netip.Prefix // masked
	// NextHops has at least one for a forwarding route, in a stable order, and is
	// nil otherwise. Routes share it: it must not be changed.
	NextHops []NextHop
	// Local: to the box itself (its addresses, and broadcast to its networks).
	Local bool
	// Blackhole: dropped without a word.
	Blackhole bool
	// Unreachable: dropped with an ICMP error (unreachable, prohibit, throw).
	Unreachable bool
}

// A NextHop is where a packet goes next.
type NextHop struct {
	// Gateway is the router to send to; invalid if the destination itself is on
	// the link. It may be IPv6 in a route for IPv4 (RFC 8950).
	Gateway netip.Addr
	// Interface is the index of the link. It may be one that is no port.
	Interface int
}

// A Neighbour is the link-layer address of a host on a link.
type Neighbour struct {
	Interface int
	Address   netip.Addr
	MAC       [6]byte
	// Valid: frames may be sent to MAC. Otherwise the kernel knows none, or no
	// longer.
	Valid bool
	// Permanent: configured, and not learned.
	Permanent bool
}

// An Address is one of the box's own, with the prefix of its network.
type Address struct {
	Interface int
	Prefix    netip.Prefix // not masked
	// Deleted: it is no longer.
	Deleted bool
}

// A Link is a network interface.
type Link struct {
	Interface int
	Name      string
	MAC       [6]byte
	MTU       int // bytes of a network-layer packet
	// Up: configured to be up; Running: there is also a carrier.
	Up, Running bool
	// Deleted: it is no longer.
	Deleted bool
}

// An Update is a batch of changes, to be applied together, links first, routes
// last. What is told of a prefix, a neighbour, an address or a link replaces
// what was told before. A prefix is in Routes or in Deleted, once.
type Update struct {
	Links      []Link
	Addresses  []Address
	Neighbours []Neighbour
	Routes     []Route
	Deleted    []netip.Prefix
	// Resync: found (also) by comparing a fresh dump with what had been told, and
	// not by notifications alone. So is the first Update, which holds everything.
	Resync bool
}

func (u *Update) empty() bool {
	return len(u.Links)+len(u.Addresses)+len(u.Neighbours)+len(u.Routes)+len(u.Deleted) == 0
}
