package dpdk

import (
	"encoding/binary"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// A packet is a TCP or UDP packet to be built and taken apart.
type packet struct {
	ipv6     bool
	udp      bool
	sequence uint32
	payload  []byte
}

func (p packet) lengths() (l2, l3, l4 int) {
	l2, l3, l4 = 14, 20, 20
	if p.ipv6 {
		l3 = 40
	}
	if p.udp {
		l4 = 8
	}
	return
}

// build makes a frame whose IP header checksum is right, and whose transport
// checksum field holds the folded sum of the pseudo-header with length, or
// without, as the offloads want it.
func (p packet) build(length bool) []byte {
	l2, l3, l4 := p.lengths()
	b := make([]byte, l2+l3+l4+len(p.payload))
	copy(b, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x08\x00")
	ip, segment := b[l2:], b[l2+l3:]
	protocol := byte(6)
	if p.udp {
		protocol = 17
	}
	if p.ipv6 {
		binary.BigEndian.PutUint16(b[12:], 0x86dd)
		ip[0] = 0x60
		binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
		ip[6], ip[7] = protocol, 64
		ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
	} else {
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], 7)
		ip[8], ip[9] = 64, protocol
		copy(ip[12:], "\x0a\x63\x00\x01\x0a\x63\x00\x02")
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:20]))
	}
	binary.BigEndian.PutUint16(segment, 11211)
	binary.BigEndian.PutUint16(segment[2:], 4000)
	at := 16
	if p.udp {
		at = 6
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	} else {
		binary.BigEndian.PutUint32(segment[4:], p.sequence)
		segment[12], segment[13] = 5<<4, 0x18
		binary.BigEndian.PutUint16(segment[14:], 65535)
	}
	n := 0
	if length {
		n = len(segment)
	}
	binary.BigEndian.PutUint16(segment[at:], pseudo(b, n))
	copy(segment[l4:], p.payload)
	return b
}

// finish computes the transport checksum in software.
func (p packet) finish(b []byte) []byte {
	l2, l3, _ := p.lengths()
	at := l2 + l3 + 16
	if p.udp {
		at = l2 + l3 + 6
	}
	binary.BigEndian.PutUint16(b[at:], ^sum(0, b[l2+l3:]))
	return b
}

// frame describes what the device is to do with it.
func (p packet) describe(f *driver.Frame) {
	l2, l3, l4 := p.lengths()
	f.L2, f.L3, f.L4 = uint8(l2), uint16(l3), uint8(l4)
	f.Flags |= driver.ComputeTCPChecksum
	if p.udp {
		f.Flags ^= driver.ComputeTCPChecksum | driver.ComputeUDPChecksum
	}
	if p.ipv6 {
		f.Flags |= driver.IPv6
	}
}

// sum adds the ones-complement sum of b.
func sum(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo is the folded sum of a frame's pseudo-header.
func pseudo(b []byte, length int) uint16 {
	if b[12] == 0x86 {
		return sum(uint32(b[14+6])+uint32(length), b[14+8:14+40])
	}
	return sum(uint32(b[14+9])+uint32(length), b[14+12:14+20])
}

// verify fails unless all checksums of a frame are right, and returns its
// TCP sequence number and its payload.
func verify(t testing.TB, b []byte) (sequence uint32, payload []byte) {
	t.Helper()
	l3, protocol := 20, byte(0)
	var ip []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		ip = b[14 : 14+binary.BigEndian.Uint16(b[16:])]
		protocol = ip[9]
		if sum(0, ip[:20]) != 0xffff {
			t.Errorf("wrong IP header checksum")
		}
	case 0x86dd:
		ip, l3 = b[14:14+40+binary.BigEndian.Uint16(b[18:])], 40
		protocol = ip[6]
	default:
		t.Fatalf("not an IP packet: %x", b[:14])
	}
	segment := ip[l3:]
	if got := sum(uint32(pseudo(b, len(segment))), segment); got != 0xffff {
		t.Errorf("wrong transport checksum: %#x over %d bytes", got, len(segment))
	}
	if protocol == 17 {
		return 0, segment[8:]
	}
	return binary.BigEndian.Uint32(segment[4:]), segment[segment[12]>>4*4:]
}

// pattern is n bytes that repeat late.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}
