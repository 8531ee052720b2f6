package routes

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// The kernel's own messages are parsed here, but never trusted to be complete: a
// newer kernel may say things in other ways.

var errShort = errors.New("the message is too short")

// attributes yields the attributes of a message behind its fixed header.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(b) || !yield(kind, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// via reads a struct rtvia: a family, and an address of it.
func via(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	return address(b[2:])
}

// A routeMessage is an RTM_NEWROUTE or RTM_DELROUTE.
type routeMessage struct {
	prefix netip.Prefix
	path   path
}

var identities = maphash.MakeSeed()

// rtaNextHopObject is RTA_NH_ID of linux/rtnetlink.h.
const rtaNextHopObject = 30

// parseRoute is false for a route that is not followed.
func parseRoute(b []byte) (m routeMessage, followed bool, err error) {
	if len(b) < unix.SizeofRtMsg {
		return m, false, fmt.Errorf("read a route from the kernel: %w", errShort)
	}
	family, bits, sourceBits, tos := b[0], int(b[1]), b[2], b[3]
	table, protocol, scope, kind := uint32(b[4]), b[5], b[6], b[7]
	flags := number(b[8:])
	var zero netip.Addr
	switch family {
	case unix.AF_INET:
		zero = netip.IPv4Unspecified()
	case unix.AF_INET6:
		zero = netip.IPv6Unspecified()
	default:
		return m, false, nil
	}
	if sourceBits != 0 || tos != 0 || flags&unix.RTM_F_CLONED != 0 {
		return m, false, nil
	}
	switch kind {
	case unix.RTN_UNICAST:
		m.path.kind = forward
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST:
		m.path.kind = local
	case unix.RTN_BLACKHOLE:
		m.path.kind = blackhole
	case unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		m.path.kind = unreachable
	default: // multicast, NAT
		return m, false, nil
	}

	var identity maphash.Hash
	identity.SetSeed(identities)
	identity.Write([]byte{protocol, scope, kind})
	destination, single := zero, hop{dead: flags&unix.RTNH_F_DEAD != 0}
	var several []hop
	encapsulated := false
	for kind, b := range attributes(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			destination = address(b)
		case unix.RTA_TABLE:
			table = number(b)
		case unix.RTA_PRIORITY:
			m.path.priority = number(b)
		case unix.RTA_OIF:
			single.Interface = int(number(b))
		case unix.RTA_GATEWAY:
			single.Gateway = address(b)
		case unix.RTA_VIA:
			single.Gateway = via(b)
		case unix.RTA_MULTIPATH:
			var some bool
			several, some = parseNextHops(b, &identity)
			encapsulated = encapsulated || some
		case unix.RTA_ENCAP_TYPE:
			encapsulated = true
		case rtaNextHopObject:
			m.path.object = number(b)
			identity.Write(b)
		case unix.RTA_PREFSRC, unix.RTA_METRICS, unix.RTA_FLOW:
			identity.WriteByte(byte(kind))
			identity.Write(b)
		}
	}
	if table != unix.RT_TABLE_MAIN && table != unix.RT_TABLE_LOCAL {
		return m, false, nil
	}
	m.prefix = netip.PrefixFrom(destination, bits)
	if !m.prefix.IsValid() || destination.Is4() != zero.Is4() {
		return m, false, fmt.Errorf("read a route from the kernel: %v/%d is not a prefix", destination, bits)
	}
	m.prefix = m.prefix.Masked()
	if several == nil && single.Interface != 0 {
		several = []hop{single}
	}
	if m.path.kind == forward && len(several) == 0 {
		if m.path.object != 0 {
			return m, false, fmt.Errorf("the route to %s names nexthop object %d but not what that is; "+
				"set sysctl net.ipv4.nexthop_compat_mode=1", m.prefix, m.path.object)
		}
		return m, false, fmt.Errorf("read a route from the kernel: %s has no next hop", m.prefix)
	}
	if encapsulated {
		m.path.kind = unreachable
	}
	m.path.main = table == unix.RT_TABLE_MAIN
	if zero.Is4() {
		m.path.identity = identity.Sum64()
	} else {
		// Notifications and dumps list them in different orders.
		slices.SortFunc(several, func(a, b hop) int {
			return cmp.Or(cmp.Compare(a.Interface, b.Interface), a.Gateway.Compare(b.Gateway))
		})
		// The kernel's rt6_qualify_for_ecmp, as far as a message tells.
		m.path.ecmp = m.path.kind == forward && m.path.object == 0 && several[0].Gateway.IsValid() &&
			protocol != unix.RTPROT_RA && protocol != unix.RTPROT_REDIRECT && protocol != unix.RTPROT_KERNEL
	}
	m.path.hops = newHops(several)
	return m, true, nil
}

// parseNextHops reads the struct rtnexthops of a multipath route, and says
// whether one of them has an encapsulation. Weights are part of the identity.
func parseNextHops(b []byte, identity *maphash.Hash) (several []hop, encapsulated bool) {
	for len(b) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			break
		}
		h := hop{dead: b[2]&unix.RTNH_F_DEAD != 0}
		identity.WriteByte(b[3])
		h.Interface = int(number(b[4:]))
		for kind, b := range attributes(b[unix.SizeofRtNexthop:size]) {
			switch kind {
			case unix.RTA_GATEWAY:
				h.Gateway = address(b)
			case unix.RTA_VIA:
				h.Gateway = via(b)
			case unix.RTA_ENCAP_TYPE:
				encapsulated = true
			}
		}
		several = append(several, h)
		b = b[min(len(b), (size+3)&^3):]
	}
	return several, encapsulated
}

// neighbourStates in which the kernel itself would send to the neighbour.
const neighbourStates = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE |
	unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

// parseNeighbour is false for what is no neighbour to send to.
func parseNeighbour(b []byte) (n Neighbour, followed bool, err error) {
	if len(b) < unix.SizeofNdMsg {
		return n, false, fmt.Errorf("read a neighbour from the kernel: %w", errShort)
	}
	family, state, flags := b[0], binary.NativeEndian.Uint16(b[8:]), b[10]
	if family != unix.AF_INET && family != unix.AF_INET6 || flags&unix.NTF_PROXY != 0 {
		return n, false, nil
	}
	n.Interface = int(number(b[4:]))
	known := false
	for kind, b := range attributes(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.Address = address(b)
		case unix.NDA_LLADDR:
			known = len(b) == len(n.MAC)
			copy(n.MAC[:], b)
		}
	}
	if !n.Address.IsValid() || n.Address.IsMulticast() {
		return n, false, nil
	}
	n.Valid = known && state&neighbourStates != 0
	n.Permanent = n.Valid && state&unix.NUD_PERMANENT != 0
	if !n.Valid {
		n.MAC = [6]byte{}
	}
	return n, true, nil
}

// parseAddress is false for an address that is not to be used (yet).
func parseAddress(b []byte) (a Address, usable bool, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false, fmt.Errorf("read an address from the kernel: %w", errShort)
	}
	bits, flags := int(b[1]), uint32(b[2])
	a.Interface = int(number(b[4:]))
	var peer, own netip.Addr
	for kind, b := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_ADDRESS:
			peer = address(b)
		case unix.IFA_LOCAL:
			own = address(b)
		case unix.IFA_FLAGS:
			flags = number(b)
		}
	}
	if !own.IsValid() {
		own = peer // IPv6, without a peer
	}
	a.Prefix = netip.PrefixFrom(own, bits)
	if !a.Prefix.IsValid() {
		return a, false, fmt.Errorf("read an address from the kernel: %v/%d is not one", own, bits)
	}
	return a, flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0, nil
}

// parseLink is false for messages that are about something else.
func parseLink(b []byte) (l Link, followed bool, err error) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false, fmt.Errorf("read a link from the kernel: %w", errShort)
	}
	if b[0] != unix.AF_UNSPEC { // a bridge's view of its port
		return l, false, nil
	}
	l.Interface = int(number(b[4:]))
	flags := number(b[8:])
	l.Up, l.Running = flags&unix.IFF_UP != 0, flags&unix.IFF_RUNNING != 0
	for kind, b := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(b)
		case unix.IFLA_MTU:
			l.MTU = int(number(b))
		case unix.IFLA_ADDRESS:
			if len(b) == len(l.MAC) {
				copy(l.MAC[:], b)
			}
		}
	}
	return l, true, nil
}

// parseNextHopObject returns the number of an RTM_…NEXTHOP's object.
func parseNextHopObject(b []byte) uint32 {
	if len(b) < unix.SizeofNhmsg {
		return 0
	}
	for kind, b := range attributes(b[unix.SizeofNhmsg:]) {
		if kind == unix.NHA_ID {
			return number(b)
		}
	}
	return 0
}
