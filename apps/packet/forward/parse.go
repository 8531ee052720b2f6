package forward

import (
	"encoding/binary"
	"math/bits"

	"github.com/pollux-net/pollux/driver"
)

// meta is what the headers of a frame say.
type meta struct {
	source, destination address
	// rest is the key's remainder: ports and whether they are known, protocol,
	// input, fragment.
	rest     uint64
	hash     uint64
	length   uint16 // of the packet in bytes
	l4       uint16 // where its transport header begins in the packet
	kind     kind
	cause    Cause // with drop
	protocol uint8
	fragment fragment
	// ports are known: the first numbers of TCP, UDP and SCTP, and of ICMP echo
	// the identifier where its side's port would be.
	ports        bool
	icmpType     uint8
	from, toward uint16
	passed       uint16 // see handed; not of the headers
	// hop of the destination in the forwarding table; notYet if nobody looked.
	hop uint32
	// place of the flow in the cache when it was looked for, nowhere if it was not
	// there.
	place uint32
}

const (
	notYet  = 1<<32 - 1
	nowhere = 1<<32 - 1
)

func (m *meta) key4() key4 { return key4{m.source.low<<32 | m.destination.low&0xffffffff, m.rest} }
func (m *meta) key6() key6 { return key6{m.source, m.destination, m.rest} }

type kind uint8

const (
	drop kind = iota
	packet4
	packet6
	arp
	discovery // IPv6 neighbour discovery
)

type fragment uint8

const (
	whole fragment = iota
	head
	tail
)

// mac48 is the Ethernet address that b begins with, as a number. It reads 8 bytes.
func mac48(b []byte) uint64 { return be.Uint64(b) >> 16 }

// parse reads the headers of a frame that came in by a port.
func (s *Shard) parse(f *driver.Frame, in *port, m *meta) {
	b := f.Data
	m.kind, m.hop, m.place = drop, notYet, nowhere
	if len(b) < ethernet+ip4 {
		m.cause = Short
		return
	}
	to := mac48(b)
	group := to>>40&1 != 0
	if to != in.mac && !group {
		m.cause = OtherHost
		return
	}
	switch be.Uint16(b[12:]) {
	case typeIPv4:
		if group {
			m.cause = Multicast
			return
		}
		if !s.plain4(f, in, m) {
			s.parse4(f, in, m)
		}
	case typeIPv6:
		s.parse6(f, in, m, group)
	case typeARP:
		m.kind = arp
	default:
		m.cause = EtherType
	}
}

// plain4 reads what most packets are: all of one with TCP or UDP and a header
// without options. False leaves a packet to parse4, and m as it was.
func (s *Shard) plain4(f *driver.Frame, in *port, m *meta) bool {
	const udp, tcp = ethernet + ip4 + 8, ip4 + 20
	if len(f.Data) < udp {
		return false
	}
	b := (*[udp]byte)(f.Data)
	h := (*[ip4]byte)(b[ethernet:])
	total, protocol := be.Uint16(h[2:]), h[9]
	if h[0] != 0x45 || be.Uint16(h[6:])&0x3fff != 0 || int(total) > len(f.Data)-ethernet {
		return false
	}
	if protocol == protocolTCP {
		if total < tcp {
			return false
		}
	} else if protocol != protocolUDP || total < udp-ethernet {
		return false
	}
	if f.Flags&driver.ChecksumValid == 0 && !intact4(h) {
		return false
	}
	addresses, ports := be.Uint64(h[12:]), be.Uint32(b[ethernet+ip4:])
	m.source, m.destination = address4(uint32(addresses>>32)), address4(uint32(addresses))
	m.rest = uint64(ports)<<32 | uint64(protocol)<<24 | uint64(in.index)<<8 | withPorts | 1
	m.hash = s.mix(addresses, m.rest)
	m.length, m.l4 = total, ip4
	m.kind, m.protocol, m.fragment, m.ports, m.icmpType = packet4, protocol, whole, true, 0
	m.from, m.toward = uint16(ports>>16), uint16(ports)
	return true
}

// parse4 reads an IPv4 packet in a frame that holds at least a header without
// options.
func (s *Shard) parse4(f *driver.Frame, in *port, m *meta) {
	h := (*[ip4]byte)(f.Data[ethernet:])
	size, total := ip4, int(be.Uint16(h[2:]))
	m.cause = Malformed
	if h[0] != 0x45 {
		if size = int(h[0]&15) * 4; h[0]>>4 != 4 || size < ip4 {
			return
		}
	}
	if total < size || total > len(f.Data)-ethernet {
		return
	}
	packet := f.Data[ethernet : ethernet+total]
	if size != ip4 {
		if fold(sum(packet[:size], 0)) != 0xffff {
			m.cause = Checksum
			return
		}
		if sourceRouted(packet[ip4:size]) {
			m.cause = SourceRoute
			return
		}
	} else if f.Flags&driver.ChecksumValid == 0 && !intact4(h) {
		m.cause = Checksum
		return
	}
	addresses := be.Uint64(h[12:])
	m.source, m.destination = address4(uint32(addresses>>32)), address4(uint32(addresses))
	m.length, m.l4, m.protocol = uint16(total), uint16(size), h[9]
	m.fragment, m.ports, m.from, m.toward, m.icmpType = whole, false, 0, 0, 0
	if part := be.Uint16(h[6:]) & 0x3fff; part != 0 {
		m.fragment = head
		if part&0x1fff != 0 {
			m.fragment = tail
		}
	}
	if m.fragment != tail && !m.transport(packet[size:]) {
		m.cause = TinyFragment
		return
	}
	m.kind = packet4
	m.finish(in)
	m.hash = s.mix(addresses, m.rest)
}

// intact4 verifies the checksum of a header without options. It adds the words as
// they lie in memory: a sum that is all ones is so in either order of bytes (RFC
// 1071 2B).
func intact4(h *[ip4]byte) bool {
	x, carry := bits.Add64(binary.NativeEndian.Uint64(h[:]), binary.NativeEndian.Uint64(h[8:]), 0)
	x, carry = bits.Add64(x, uint64(binary.NativeEndian.Uint32(h[16:])), carry)
	x = x>>32 + x&0xffffffff + carry
	x = x>>16 + x&0xffff
	x = x>>16 + x&0xffff
	return x>>16+x&0xffff == 0xffff
}

// sourceRouted finds a loose or strict source route among options, and whatever
// is too broken to tell.
func sourceRouted(o []byte) bool {
	for len(o) > 0 {
		switch o[0] {
		case 0:
			return false
		case 1:
			o = o[1:]
		case 131, 137:
			return true
		default:
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				return true
			}
			o = o[o[1]:]
		}
	}
	return false
}

// maxExtensions is how many IPv6 extension headers are looked behind.
const maxExtensions = 8

func (s *Shard) parse6(f *driver.Frame, in *port, m *meta, group bool) {
	b := f.Data[ethernet:]
	m.cause = Malformed
	if len(b) < ip6 || b[0]>>4 != 6 {
		return
	}
	total := ip6 + int(be.Uint16(b[4:]))
	if total > len(b) || total > 0xffff {
		return
	}
	m.source, m.destination = address6(b[8:]), address6(b[24:])
	m.fragment, m.ports, m.from, m.toward, m.icmpType = whole, false, 0, 0, 0
	next, at := b[6], ip6
	// Extension headers are looked through for the ports only, as many as in the
	// twin.
	for range maxExtensions {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if at+8 > total {
				return
			}
			next, at = b[at], at+8+8*int(b[at+1])
			if at > total {
				return
			}
			continue
		case 44:
			if at+8 > total {
				return
			}
			if part := be.Uint16(b[at+2:]); part&0xfff8 != 0 {
				m.fragment = tail
			} else if part&1 != 0 && m.fragment == whole {
				m.fragment = head
			}
			next, at = b[at], at+8
			if m.fragment == tail {
				break
			}
			continue
		}
		break
	}
	m.length, m.l4, m.protocol = uint16(total), uint16(at), next
	if m.fragment != tail {
		switch next {
		case 0, 43, 44, 60: // rules could not tell what it carries
			m.cause = Extensions
			return
		}
		if !m.transport(b[at:total]) {
			m.cause = TinyFragment
			return
		}
	}
	m.kind = packet6
	if m.protocol == protocolICMP6 && at == ip6 && m.icmpType >= 133 && m.icmpType <= 137 && b[7] == 255 {
		m.kind = discovery
	} else if group {
		m.kind, m.cause = drop, Multicast
		return
	}
	m.finish(in)
	m.hash = s.mix(s.mix(m.source.high, m.source.low)^m.destination.high, m.destination.low^s.mix(m.rest, 1))
}

// transport reads the ports. False is a first fragment that holds only a part of
// the TCP header: no rule must judge that whose rest comes later (RFC 1858).
func (m *meta) transport(b []byte) bool {
	switch m.protocol {
	case protocolTCP:
		if len(b) < 20 {
			return m.fragment != head
		}
	case protocolUDP, protocolSCTP:
		if len(b) < 8 {
			return true
		}
	case protocolICMP:
		if len(b) < 8 {
			return true
		}
		m.icmpType = b[0]
		switch b[0] {
		case 8:
			m.from, m.ports = be.Uint16(b[4:]), true
		case 0:
			m.toward, m.ports = be.Uint16(b[4:]), true
		}
		return true
	case protocolICMP6:
		if len(b) >= 8 {
			m.icmpType = b[0]
		}
		return true
	default:
		return true
	}
	m.from, m.toward, m.ports = be.Uint16(b), be.Uint16(b[2:]), true
	return true
}

const withPorts = 1 << 3

// finish makes the rest of the key. Whether the ports are known belongs to it:
// they may be zero, and what is done to a packet with ports reads them.
func (m *meta) finish(in *port) {
	m.rest = uint64(m.from)<<48 | uint64(m.toward)<<32 | uint64(m.protocol)<<24 | uint64(m.icmpType)<<16 | uint64(in.index)<<8 | uint64(m.fragment)<<1 | 1
	if m.ports {
		m.rest |= withPorts
	}
}

// mix is a hash of two numbers that nobody outside can foresee.
func mix(seed *[2]uint64, a, b uint64) uint64 {
	high, low := bits.Mul64(a^seed[0], b^seed[1])
	high, low = bits.Mul64(high^low^seed[1], 0xd6e8feb86659fd93)
	return high ^ low
}

func (s *Shard) mix(a, b uint64) uint64 { return mix(&s.seed, a, b) }
