package forward

import (
	"encoding/binary"
	"net/netip"
)

// address is one of either family as two numbers: IPv4 as ::ffff:a.b.c.d.
type address struct{ high, low uint64 }

const mapped = 0xffff << 32

func address4(a uint32) address { return address{0, mapped | uint64(a)} }

func (a address) is4() bool { return a.high == 0 && a.low>>32 == 0xffff }

func addressOf(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a address) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.high)
	binary.BigEndian.PutUint64(b[8:], a.low)
	return netip.AddrFrom16(b).Unmap()
}

func address6(b []byte) address {
	return address{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (a address) put(b []byte) {
	binary.BigEndian.PutUint64(b, a.high)
	binary.BigEndian.PutUint64(b[8:], a.low)
}

func (a address) linkLocal6() bool { return a.high>>54 == 0xfe80>>6 }
func (a address) multicast6() bool { return a.high>>56 == 0xff }

// hash is one of a neighbour that nobody on its link can foresee.
func (a address) hash(port int, seed *[2]uint64) uint64 {
	return mix(seed, a.high^uint64(port)<<48, a.low)
}

// The headers that the fast path knows.
const (
	ethernet = 14
	ip4      = 20
	ip6      = 40

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd

	protocolICMP  = 1
	protocolTCP   = 6
	protocolUDP   = 17
	protocolICMP6 = 58
	protocolSCTP  = 132
)

var be = binary.BigEndian

// sum adds the 16-bit words of b to a sum that need not be folded yet.
func sum(b []byte, s uint64) uint64 {
	for len(b) >= 4 {
		s += uint64(be.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(be.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	return s
}

// fold is the Internet checksum's sum of 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// adjust is a checksum after words with the sum was have become words with the
// sum is (RFC 1624, equation 3).
func adjust(checksum uint16, was, is uint32) uint16 {
	s := uint64(^checksum) + uint64(^uint16(was>>16)) + uint64(^uint16(was)) + uint64(is>>16) + uint64(is&0xffff)
	return ^fold(s)
}
