package wire

import (
	"math/bits"

	"github.com/pollux-net/pollux/driver"
)

// Offsets of checksum fields in their headers.
const (
	ipChecksum  = 10
	tcpChecksum = 16
	udpChecksum = 6
)

// sum adds b to a ones' complement sum (RFC 1071), eight bytes at a time: the
// sum of 64-bit words folds to the same 16 bits as that of 16-bit words. All but
// the last piece of what is summed must have even length.
func sum(initial uint64, b []byte) uint64 {
	s, carry := initial, uint64(0)
	for len(b) >= 32 {
		s, carry = bits.Add64(s, be.Uint64(b), carry)
		s, carry = bits.Add64(s, be.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, be.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, be.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, be.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, carry = bits.Add64(s, be.Uint64(last[:]), carry)
	}
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold brings a sum down to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// pseudoHeader is the sum of what TCP's and UDP's checksums cover of IP.
func pseudoHeader(addresses []byte, protocol uint8, length int) uint64 {
	return sum(uint64(protocol)+uint64(length), addresses)
}

// fillChecksums computes what the flags of f ask for in data, f's bytes. With
// large, f is an uncut TSO frame, and all checksums are computed afresh.
func fillChecksums(data []byte, f *driver.Frame, large bool) {
	network, transport := int(f.L2), int(f.L2)+int(f.L3)
	v4 := data[network]>>4 == 4
	if v4 && (large || f.Flags&driver.ComputeIPChecksum != 0) {
		fillIPChecksum(data[network:transport])
	}
	switch {
	case large:
		segment := data[transport:]
		fillTCPChecksum(segment, packet{ipv6: !v4, network: network}.addresses(data))
	case f.Flags&driver.ComputeTCPChecksum != 0:
		segment := data[transport:packetEnd(data, network)]
		be.PutUint16(segment[tcpChecksum:], ^fold(sum(0, segment)))
	case f.Flags&driver.ComputeUDPChecksum != 0:
		datagram := data[transport:packetEnd(data, network)]
		c := ^fold(sum(0, datagram))
		if c == 0 {
			c = 0xffff // zero would mean that there is none (RFC 768)
		}
		be.PutUint16(datagram[udpChecksum:], c)
	}
}

func fillIPChecksum(header []byte) {
	be.PutUint16(header[ipChecksum:], 0)
	be.PutUint16(header[ipChecksum:], ^fold(sum(0, header)))
}

func fillTCPChecksum(segment, addresses []byte) {
	be.PutUint16(segment[tcpChecksum:], 0)
	be.PutUint16(segment[tcpChecksum:], ^fold(sum(pseudoHeader(addresses, protoTCP, len(segment)), segment)))
}

// verifyChecksums is what a device tells of a frame that it received: valid or
// wrong for TCP and UDP, wrong for a bad IPv4 header, else nothing.
func verifyChecksums(data []byte) driver.Flags {
	p, ok := parse(data)
	if len(data) >= ethernetHeader+ipv4Header && be.Uint16(data[12:]) == etherIPv4 {
		header := int(data[ethernetHeader]&0xf) * 4
		if header >= ipv4Header && ethernetHeader+header <= len(data) &&
			fold(sum(0, data[ethernetHeader:ethernetHeader+header])) != 0xffff {
			return driver.ChecksumWrong
		}
	}
	if !ok {
		return 0
	}
	l4 := data[p.transport:p.end]
	if p.protocol == protoUDP {
		// The datagram's own length counts, and must fit.
		n := int(be.Uint16(l4[4:]))
		if n < udpHeader || n > len(l4) {
			return 0
		}
		l4 = l4[:n]
		if be.Uint16(l4[udpChecksum:]) == 0 {
			if p.ipv6 {
				return driver.ChecksumWrong // RFC 8200, 8.1
			}
			return driver.ChecksumValid
		}
	}
	if fold(sum(pseudoHeader(p.addresses(data), p.protocol, len(l4)), l4)) != 0xffff {
		return driver.ChecksumWrong
	}
	return driver.ChecksumValid
}
