package wire

import (
	"encoding/binary"

	"github.com/pollux-net/pollux/driver"
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	protoTCP  = 6
	protoUDP  = 17

	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	udpHeader  = 8
)

var be = binary.BigEndian

// A packet is where things are in a frame that carries whole TCP or UDP.
type packet struct {
	ipv6 bool
	// network and transport are offsets of headers, end is where the IP
	// packet ends (a short frame is padded beyond it).
	network, transport, end int
	protocol                uint8
}

// addresses returns source and destination address, which are adjacent.
func (p packet) addresses(data []byte) []byte {
	if p.ipv6 {
		return data[p.network+8 : p.network+40]
	}
	return data[p.network+12 : p.network+20]
}

// parse finds TCP or UDP in a frame. False for everything else: other
// protocols, fragments, extension headers, VLAN tags and what is cut short.
func parse(data []byte) (p packet, ok bool) {
	if len(data) < ethernetHeader+ipv4Header {
		return p, false
	}
	p.network = ethernetHeader
	ip := data[ethernetHeader:]
	switch be.Uint16(data[12:]) {
	case etherIPv4:
		p.transport = ethernetHeader + int(ip[0]&0xf)*4
		p.end = ethernetHeader + int(be.Uint16(ip[2:]))
		p.protocol = ip[9]
		// Anything but "don't fragment" means a fragment.
		if ip[0]>>4 != 4 || ip[0]&0xf < 5 || be.Uint16(ip[6:])&0x3fff != 0 {
			return p, false
		}
	case etherIPv6:
		if len(ip) < ipv6Header || ip[0]>>4 != 6 {
			return p, false
		}
		p.ipv6 = true
		p.transport = ethernetHeader + ipv6Header
		p.end = p.transport + int(be.Uint16(ip[4:]))
		p.protocol = ip[6]
	default:
		return p, false
	}
	header := udpHeader
	switch p.protocol {
	case protoTCP:
		header = tcpHeader
	case protoUDP:
	default:
		return p, false
	}
	return p, p.end <= len(data) && p.transport+header <= p.end
}

// hash is the RSS hash of a frame, if it has one.
func (l *Link) hash(data []byte) (uint32, bool) {
	p, ok := parse(data)
	if !ok {
		return 0, false
	}
	var flow [36]byte
	n := copy(flow[:], p.addresses(data))
	n += copy(flow[n:], data[p.transport:p.transport+4])
	return l.hasher.Sum(flow[:n]), true
}

// headers is the length of all headers of a frame with offload flags.
func headers(f *driver.Frame) int { return int(f.L2) + int(f.L3) + int(f.L4) }

// wellFormedChecksum says whether the checksums that f asks for can be computed.
func wellFormedChecksum(f *driver.Frame) bool {
	network, transport := int(f.L2), int(f.L2)+int(f.L3)
	if f.Flags&driver.ComputeIPChecksum != 0 && (f.L2 < ethernetHeader || f.L3 < ipv4Header || transport > len(f.Data)) {
		return false
	}
	field := 0
	switch {
	case f.Flags&driver.ComputeTCPChecksum != 0:
		field = tcpChecksum
	case f.Flags&driver.ComputeUDPChecksum != 0:
		field = udpChecksum
	default:
		return true
	}
	if f.L2 < ethernetHeader || f.L3 < ipv4Header || transport+field+2 > len(f.Data) {
		return false
	}
	end := packetEnd(f.Data, network)
	return end >= transport+field+2 && end <= len(f.Data)
}

// wellFormedTSO says whether f can be cut into segments.
func wellFormedTSO(f *driver.Frame) bool {
	if len(f.Data) > largeFrame || f.SegmentSize == 0 || f.L2 < ethernetHeader || f.L4 < tcpHeader || headers(f) >= len(f.Data) {
		return false
	}
	switch f.Data[f.L2] >> 4 {
	case 4:
		return f.L3 >= ipv4Header && len(f.Data)-int(f.L2) <= 0xffff
	case 6:
		return f.L3 >= ipv6Header
	}
	return false
}

// packetEnd is where the IP packet at an offset says it ends; 0 if it is none.
func packetEnd(data []byte, network int) int {
	if network+ipv4Header > len(data) {
		return 0
	}
	switch data[network] >> 4 {
	case 4:
		return network + int(be.Uint16(data[network+2:]))
	case 6:
		return network + ipv6Header + int(be.Uint16(data[network+4:]))
	}
	return 0
}
