package stack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/pollux-net/pollux/driver"
)

const ethernet = header.EthernetMinimumSize

// input takes in one frame; visited is the number of stacks that have seen it.
func (s *Stack) input(f *driver.Frame, visited int) {
	b := f.Data
	if len(b) < ethernet {
		s.counters.DroppedShort++
		return
	}
	if f.Flags&driver.ChecksumWrong != 0 {
		s.counters.DroppedChecksum++
		return
	}
	kind := packetType(b, s.address)
	if kind == tcpip.PacketOtherHost {
		s.counters.DroppedOtherHost++
		return
	}
	network := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(b[12:]))
	if s.flows != nil && kind == tcpip.PacketHost && s.established(f, network) {
		s.counters.FlowHits++
		return
	}
	if s.config.Siblings != nil && s.elsewhere(f, network, visited) {
		return
	}
	s.deliver(f, network, kind)
}

// packetType says whom the frame is for.
func packetType(b []byte, own [6]byte) tcpip.PacketType {
	dst := [6]byte(b[:6])
	switch {
	case dst == own:
		return tcpip.PacketHost
	case dst == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return tcpip.PacketBroadcast
	case dst[0]&1 != 0:
		return tcpip.PacketMulticast
	}
	return tcpip.PacketOtherHost
}

// deliver takes the ordinary way through netstack.
func (s *Stack) deliver(f *driver.Frame, network tcpip.NetworkProtocolNumber, kind tcpip.PacketType) {
	p := netstack.NewPacketBuffer(netstack.PacketBufferOptions{Payload: buffer.MakeWithData(f.Data)})
	if valid := f.Flags&driver.ChecksumValid != 0; valid != s.link.checksummed.Load() {
		s.link.checksummed.Store(valid)
	}
	p.PktType = kind
	if s.link.ParseHeader(p) {
		s.link.dispatcher.DeliverNetworkPacket(network, p)
	}
	p.DecRef()
}

// header4 checks what netstack's IPv4 would check of an ordinary packet: no
// options, not a fragment, lengths that fit, a right checksum. It returns the
// packet without padding.
func header4(ip []byte, checked bool) ([]byte, bool) {
	if len(ip) < header.IPv4MinimumSize+header.TCPMinimumSize || ip[0] != 0x45 || ip[9] != byte(header.TCPProtocolNumber) {
		return nil, false
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	const moreFragmentsOrOffset = 0x3fff
	if total < header.IPv4MinimumSize+header.TCPMinimumSize || total > len(ip) || binary.BigEndian.Uint16(ip[6:])&moreFragmentsOrOffset != 0 {
		return nil, false
	}
	if !checked && checksum.Checksum(ip[:header.IPv4MinimumSize], 0) != 0xffff {
		return nil, false
	}
	return ip[:total], true
}

// header6 is header4 for an IPv6 packet without extension headers.
func header6(ip []byte) ([]byte, bool) {
	if len(ip) < header.IPv6MinimumSize+header.TCPMinimumSize || ip[0]>>4 != 6 || ip[6] != byte(header.TCPProtocolNumber) {
		return nil, false
	}
	total := header.IPv6MinimumSize + int(binary.BigEndian.Uint16(ip[4:]))
	if total < header.IPv6MinimumSize+header.TCPMinimumSize || total > len(ip) {
		return nil, false
	}
	return ip[:total], true
}

// established queues the segment of a connection in the flow table straight to
// its endpoint, past netstack's IP receive. False leaves the frame to deliver:
// whatever is not the plain case is netstack's to judge.
func (s *Stack) established(f *driver.Frame, network tcpip.NetworkProtocolNumber) bool {
	ip := f.Data[ethernet:]
	checked := f.Flags&driver.ChecksumValid != 0
	var ok bool
	var k *Socket
	var length int
	switch network {
	case ipv4.ProtocolNumber:
		if ip, ok = header4(ip, checked); !ok {
			return false
		}
		length = header.IPv4MinimumSize
		key := key4(ip)
		k = s.flows.find(&key)
	case ipv6.ProtocolNumber:
		if ip, ok = header6(ip); !ok {
			return false
		}
		length = header.IPv6MinimumSize
		key := key6(ip)
		k = s.flows.find(&key)
	}
	if k == nil || k.ep.EndpointState() != tcp.StateEstablished {
		return false
	}
	segment := header.TCP(ip[length:])
	offset := int(segment.DataOffset())
	if offset < header.TCPMinimumSize || offset > len(segment) || segment.Flags()&(header.TCPFlagSyn|header.TCPFlagRst) != 0 {
		return false
	}
	if !checked && !segmentChecksumValid(ip, length) {
		s.counters.DroppedChecksum++
		return true
	}
	if offset == len(segment) && segment.Flags() == header.TCPFlagAck {
		admit(k.ep, segment)
	}
	p := netstack.NewPacketBuffer(netstack.PacketBufferOptions{Payload: buffer.MakeWithData(ip)})
	p.NetworkProtocolNumber, p.TransportProtocolNumber, p.NICID = k.network, tcp.ProtocolNumber, nic
	p.RXChecksumValidated = true
	p.NetworkHeader().Consume(length)
	p.TransportHeader().Consume(offset)
	seg := newIncomingSegment(k.id, s.clock.NowMonotonic(), p, header.TCP(p.TransportHeader().Slice()))
	if !takeSegment(k.ep, seg, len(segment)-offset) {
		taken := enqueueSegment(k.ep, seg)
		segmentDecRef(seg)
		if !taken {
			s.counters.DroppedReceiveBuffer++
			return true
		}
	}
	if !k.touched {
		k.touched = true
		s.inline.touched = append(s.inline.touched, k)
	}
	return true
}

// admit makes an acknowledgement from beyond the receive window acceptable. What it
// acknowledges must be heard also when no data would be (RFC 9293 3.10.7.4): a peer
// of which data was dropped while the window closed sends all its acknowledgements
// from there, if it is netstack, too. With its own window closed as well, both ends
// would wait for ever.
func admit(e *tcp.Endpoint, segment header.TCP) {
	next, size := receiveWindow(e)
	// Sequence numbers less than a window's largest size ahead are meant: one that
	// is behind is a probe, to be answered.
	const ahead = 1 << 30
	if beyond := segment.SequenceNumber() - next; beyond > size && beyond < ahead {
		segment.SetSequenceNumber(next)
	}
}

// segmentChecksumValid verifies the TCP checksum of an IP packet whose header
// has the given length.
func segmentChecksumValid(ip []byte, length int) bool {
	segment := ip[length:]
	// Both families keep source and destination at the end of the fixed header.
	addresses := ip[length-8 : length]
	if length == header.IPv6MinimumSize {
		addresses = ip[length-32 : length]
	}
	sum := checksum.Checksum(addresses, uint16(header.TCPProtocolNumber))
	sum = checksum.Combine(sum, uint16(len(segment)))
	return checksum.Checksum(segment, sum) == 0xffff
}

// elsewhere deals with frames that other shards may need too. True means that
// this stack is done with the frame.
func (s *Stack) elsewhere(f *driver.Frame, network tcpip.NetworkProtocolNumber, visited int) bool {
	ip := f.Data[ethernet:]
	switch network {
	case arp.ProtocolNumber:
		if a := header.ARP(ip); visited == 0 && len(ip) >= header.ARPSize && a.Op() == header.ARPReply {
			s.config.Siblings.Share(f)
		}
	case ipv4.ProtocolNumber:
		h := header.IPv4(ip)
		if len(ip) < header.IPv4MinimumSize || len(ip) < int(h.HeaderLength()) {
			return false
		}
		switch payload := ip[h.HeaderLength():]; {
		case h.TransportProtocol() == header.ICMPv4ProtocolNumber && len(payload) >= header.ICMPv4MinimumSize:
			if t := header.ICMPv4(payload).Type(); visited == 0 && t != header.ICMPv4Echo {
				s.config.Siblings.Share(f)
			}
		case h.FragmentOffset() == 0 && !h.More():
			return s.stray(f, network, h.TransportProtocol(), h.SourceAddress(), h.DestinationAddress(), payload, visited)
		}
	case ipv6.ProtocolNumber:
		h := header.IPv6(ip)
		if len(ip) < header.IPv6MinimumSize {
			return false
		}
		switch payload := ip[header.IPv6MinimumSize:]; {
		case h.NextHeader() == uint8(header.ICMPv6ProtocolNumber) && len(payload) >= header.ICMPv6MinimumSize:
			t := header.ICMPv6(payload).Type()
			if visited == 0 && t != header.ICMPv6EchoRequest && t != header.ICMPv6NeighborSolicit && t != header.ICMPv6RouterSolicit {
				s.config.Siblings.Share(f)
			}
		default:
			return s.stray(f, network, tcpip.TransportProtocolNumber(h.NextHeader()), h.SourceAddress(), h.DestinationAddress(), payload, visited)
		}
	}
	return false
}

// stray passes on a segment or datagram that belongs to no socket of this stack
// and does not start a connection. A device without RSS may deliver a
// connection's segments to another queue than its SYN; a RST in reply from the
// wrong shard would kill it.
func (s *Stack) stray(f *driver.Frame, network tcpip.NetworkProtocolNumber, transport tcpip.TransportProtocolNumber, source, destination tcpip.Address, payload []byte, visited int) bool {
	switch transport {
	case header.TCPProtocolNumber:
		if len(payload) < header.TCPMinimumSize {
			return false
		}
	case header.UDPProtocolNumber:
		if len(payload) < header.UDPMinimumSize {
			return false
		}
	default:
		return false
	}
	// Both protocols begin with the ports.
	id := netstack.TransportEndpointID{
		RemotePort: binary.BigEndian.Uint16(payload), RemoteAddress: source,
		LocalPort: binary.BigEndian.Uint16(payload[2:]), LocalAddress: destination,
	}
	if transport == header.TCPProtocolNumber && header.TCP(payload).Flags()&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn {
		if s.config.OwnsFlow != nil && visited == 0 && s.misdirected(f, network, id) {
			s.counters.Misdirected++
		}
		return false
	}
	if e := s.net.FindTransportEndpoint(network, transport, id, nic); e != nil {
		if t, ok := e.(*tcp.Endpoint); !ok || t.EndpointState() != tcp.StateListen {
			return false
		}
	}
	if !s.config.Siblings.Pass(f, visited+1) {
		return false
	}
	s.counters.Strays++
	return true
}

// misdirected reports whether a SYN reached this stack although the device should
// have given it to another queue. Only one that is whole and meant for us says so:
// devices hash what is damaged as they like, and anybody can send that.
func (s *Stack) misdirected(f *driver.Frame, network tcpip.NetworkProtocolNumber, id netstack.TransportEndpointID) bool {
	ip, length := f.Data[ethernet:], header.IPv6MinimumSize
	checked := f.Flags&driver.ChecksumValid != 0
	var ok bool
	if network == ipv4.ProtocolNumber {
		ip, ok = header4(ip, checked)
		length = header.IPv4MinimumSize
	} else {
		ip, ok = header6(ip)
	}
	if !ok || !checked && !segmentChecksumValid(ip, length) || [6]byte(f.Data) != s.address {
		return false
	}
	if offset := int(header.TCP(ip[length:]).DataOffset()); offset < header.TCPMinimumSize || offset > len(ip)-length {
		return false
	}
	local := fromAddress(id.LocalAddress)
	ours := func(p netip.Prefix) bool { return p.Addr().Unmap() == local }
	return slices.ContainsFunc(s.config.Addresses, ours) &&
		!s.config.OwnsFlow(netip.AddrPortFrom(local, id.LocalPort), netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort))
}
