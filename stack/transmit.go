package stack

import (
	"encoding/binary"
	"math"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pollux-net/pollux/driver"
)

// The short way out: netstack's IP endpoints, wrapped so that a TCP segment to a
// neighbour whose link address is known goes straight into a frame. What is left
// out is what our stacks do not have (packet filters, loops, several interfaces,
// packet sockets); everything but the plain case goes through netstack.

// protocol4 and protocol6 are netstack's IP protocols with wrapped endpoints.
type protocol4 struct {
	protocol
	link *link
}

// protocol is what netstack asks of both families' protocols.
type protocol interface {
	netstack.NetworkProtocol
	netstack.MulticastForwardingNetworkProtocol
}

type protocol6 struct {
	protocol
	link *link
}

// shorten4 and shorten6 wrap the protocols that a factory makes.
func (l *link) shorten4(f netstack.NetworkProtocolFactory) netstack.NetworkProtocolFactory {
	return func(s *netstack.Stack) netstack.NetworkProtocol { return &protocol4{f(s).(protocol), l} }
}

func (l *link) shorten6(f netstack.NetworkProtocolFactory) netstack.NetworkProtocolFactory {
	return func(s *netstack.Stack) netstack.NetworkProtocol { return &protocol6{f(s).(protocol), l} }
}

// endpoint is what netstack asks of both families' endpoints, method sets
// included that it finds by type assertion.
type endpoint interface {
	netstack.NetworkEndpoint
	netstack.AddressableEndpoint
	netstack.GroupAddressableEndpoint
	netstack.ForwardingNetworkEndpoint
	netstack.MulticastForwardingNetworkEndpoint
	netstack.LinkResolvableNetworkEndpoint
}

type endpoint4 struct {
	endpoint
	ipv4.IGMPEndpoint
	link *link
}

type endpoint6 struct {
	endpoint6Interface
	link *link
}

type endpoint6Interface interface {
	endpoint
	netstack.DuplicateAddressDetector
	netstack.LinkAddressResolver
	netstack.NDPEndpoint
	ipv6.NDPEndpoint
	ipv6.MLDEndpoint
}

// NewEndpoint implements netstack.NetworkProtocol.
func (p *protocol4) NewEndpoint(i netstack.NetworkInterface, d netstack.TransportDispatcher) netstack.NetworkEndpoint {
	e := p.protocol.NewEndpoint(i, d)
	return &endpoint4{e.(endpoint), e.(ipv4.IGMPEndpoint), p.link}
}

// NewEndpoint implements netstack.NetworkProtocol.
func (p *protocol6) NewEndpoint(i netstack.NetworkInterface, d netstack.TransportDispatcher) netstack.NetworkEndpoint {
	return &endpoint6{p.protocol.NewEndpoint(i, d).(endpoint6Interface), p.link}
}

// HandleLinkResolutionFailure implements netstack.LinkResolvableNetworkEndpoint.
func (e *endpoint4) HandleLinkResolutionFailure(p *netstack.PacketBuffer) {
	e.link.unresolved(e.endpoint, p)
}

// HandleLinkResolutionFailure implements netstack.LinkResolvableNetworkEndpoint.
func (e *endpoint6) HandleLinkResolutionFailure(p *netstack.PacketBuffer) {
	e.link.unresolved(e.endpoint6Interface, p)
}

// unresolved has the loop deal with a packet whose neighbour was not found. Netstack
// calls it on a goroutine of its own when it has too many of them: the only thing
// that it does beside the loop.
func (l *link) unresolved(e netstack.LinkResolvableNetworkEndpoint, p *netstack.PacketBuffer) {
	p = p.IncRef()
	fail := func() {
		e.HandleLinkResolutionFailure(p)
		p.DecRef()
	}
	if !l.post(fail) {
		p.DecRef()
	}
}

// plain reports whether a packet may take the short way, and where to.
func (l *link) plain(r *netstack.Route, params *netstack.NetworkHeaderParams, p *netstack.PacketBuffer, headers int) (tcpip.LinkAddress, bool) {
	if params.Protocol != header.TCPProtocolNumber || params.ExperimentOptionValue != 0 || r.Loop() != netstack.PacketOut {
		return "", false
	}
	size := p.Size() + headers
	if size > math.MaxUint16 || p.GSOOptions.Type == netstack.GSONone && size > int(l.mtu) {
		return "", false
	}
	// Asking netstack to resolve would queue a callback for each packet.
	return neighborAddress(r)
}

// WritePacket implements netstack.NetworkEndpoint.
func (e *endpoint4) WritePacket(r *netstack.Route, params netstack.NetworkHeaderParams, p *netstack.PacketBuffer) tcpip.Error {
	// A packet that may be fragmented needs an identification of its own.
	to, ok := e.link.plain(r, &params, p, header.IPv4MinimumSize)
	if !ok || !params.DF {
		return e.endpoint.WritePacket(r, params, p)
	}
	const size = header.IPv4MinimumSize
	var b [ethernet + size]byte
	ip := b[ethernet:]
	ip[0] = 0x45
	ip[1] = params.TOS
	binary.BigEndian.PutUint16(ip[2:], uint16(size+p.Size()))
	ip[6] = header.IPv4FlagDontFragment << 5
	ip[8], ip[9] = params.TTL, byte(params.Protocol)
	source, destination := r.LocalAddress().As4(), r.RemoteAddress().As4()
	copy(ip[12:], source[:])
	copy(ip[16:], destination[:])
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Checksum(ip, 0))
	return e.link.send(b[:], to, ipv4.ProtocolNumber, p)
}

// WritePacket implements netstack.NetworkEndpoint.
func (e *endpoint6) WritePacket(r *netstack.Route, params netstack.NetworkHeaderParams, p *netstack.PacketBuffer) tcpip.Error {
	to, ok := e.link.plain(r, &params, p, header.IPv6MinimumSize)
	if !ok {
		return e.endpoint6Interface.WritePacket(r, params, p)
	}
	const size = header.IPv6MinimumSize
	var b [ethernet + size]byte
	ip := b[ethernet:]
	ip[0], ip[1] = 0x60|params.TOS>>4, params.TOS<<4
	binary.BigEndian.PutUint16(ip[4:], uint16(p.Size()))
	ip[6], ip[7] = byte(params.Protocol), params.TTL
	source, destination := r.LocalAddress().As16(), r.RemoteAddress().As16()
	copy(ip[8:], source[:])
	copy(ip[24:], destination[:])
	return e.link.send(b[:], to, ipv6.ProtocolNumber, p)
}

// send copies a segment behind its Ethernet and IP headers into a frame; the
// Ethernet header is still empty.
func (l *link) send(headers []byte, to tcpip.LinkAddress, kind tcpip.NetworkProtocolNumber, p *netstack.PacketBuffer) tcpip.Error {
	copy(headers, to)
	copy(headers[6:], l.address)
	binary.BigEndian.PutUint16(headers[12:], uint16(kind))
	l.guard.lock()
	ok := l.write(headers, p)
	if !ok {
		l.dropped++
	}
	l.guard.unlock()
	if l.handoff {
		l.wake()
	}
	if !ok {
		return &tcpip.ErrNoBufferSpace{}
	}
	return nil
}

// write appends a frame of headers and packet to the outbox; the guard is held. If
// headers is empty the packet has its own.
func (l *link) write(headers []byte, p *netstack.PacketBuffer) bool {
	if len(l.outbox) >= l.limit {
		return false
	}
	f, ok := l.take(len(headers) + p.Size())
	if !ok {
		return l.cut(headers, p)
	}
	f.Data = appendPacket(f.Data[:0], headers, p)
	if p.GSOOptions.NeedsCsum {
		l.offload(&f, p)
	}
	l.outbox = append(l.outbox, f)
	return true
}

// appendPacket appends headers and packet to b.
func appendPacket(b, headers []byte, p *netstack.PacketBuffer) []byte {
	b = append(b, headers...)
	views, offset := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		s := v.AsSlice()
		if offset >= len(s) {
			offset -= len(s)
			continue
		}
		b = append(b, s[offset:]...)
		offset = 0
	}
	return b
}

// cut sends a segment for which there is no large frame as ordinary ones. Large
// frames are few, and some drivers keep those that were sent until their ring is
// nearly full: without this, TCP would wait for a timeout, and then for the next.
// It reports whether all of the segment went.
func (l *link) cut(headers []byte, p *netstack.PacketBuffer) bool {
	gso := p.GSOOptions
	if !gso.NeedsCsum || gso.MSS == 0 || len(headers)+p.Size() <= l.frameSize() {
		return false
	}
	l.whole = appendPacket(l.whole[:0], headers, p)
	before := ethernet + int(gso.L3HdrLen) // what comes before TCP
	length := len(p.TransportHeader().Slice())
	headers, payload := l.whole[:before+length], l.whole[before+length:]
	whole := header.TCP(l.whole[before:])
	// The pseudo-header's sum, without the length.
	sum := checksum.Combine(whole.Checksum(), ^uint16(len(whole)))
	for at := 0; at < len(payload); at += int(gso.MSS) {
		piece := payload[at:min(at+int(gso.MSS), len(payload))]
		f, ok := l.take(len(headers) + len(piece))
		if !ok {
			return false
		}
		f.Data = append(append(f.Data[:0], headers...), piece...)
		segment := header.TCP(f.Data[before:])
		segment.SetSequenceNumber(whole.SequenceNumber() + uint32(at))
		segment.SetChecksum(checksum.Combine(sum, uint16(len(segment))))
		if at+len(piece) < len(payload) {
			segment.SetFlags(uint8(whole.Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
		}
		f.Flags = driver.ComputeTCPChecksum
		f.L2, f.L3, f.L4 = ethernet, gso.L3HdrLen, uint8(length)
		if gso.Type == netstack.GSOTCPv6 {
			f.Flags |= driver.IPv6
			header.IPv6(f.Data[ethernet:]).SetPayloadLength(uint16(len(f.Data) - ethernet - header.IPv6MinimumSize))
		} else {
			ip := header.IPv4(f.Data[ethernet:])
			ip.SetTotalLength(uint16(len(ip)))
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
		}
		l.outbox = append(l.outbox, f)
	}
	return true
}

// offload leaves a TCP segment's checksum, and its cutting if it is larger than
// its peer's segment size, to the device.
func (l *link) offload(f *driver.Frame, p *netstack.PacketBuffer) {
	gso := p.GSOOptions
	f.L2, f.L3, f.L4 = ethernet, gso.L3HdrLen, uint8(len(p.TransportHeader().Slice()))
	f.Flags |= driver.ComputeTCPChecksum
	if gso.Type == netstack.GSOTCPv6 {
		f.Flags |= driver.IPv6
	}
	if len(f.Data)-int(f.L2)-int(f.L3)-int(f.L4) > int(gso.MSS) {
		f.Flags |= driver.SegmentTCP
		f.SegmentSize = gso.MSS
		// SegmentTCP wants the pseudo-header's sum without the length, which
		// is each segment's own. One's complement subtracts by complementing.
		tcp := header.TCP(f.Data[int(f.L2)+int(f.L3):])
		tcp.SetChecksum(checksum.Combine(tcp.Checksum(), ^uint16(len(tcp))))
	}
}
