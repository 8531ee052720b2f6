// Package stacktest has what tests and benchmarks of a stack need on the other end
// of the wire: a TCP peer that is cheap, has no timers, and sends exactly what it
// is told to.
package stacktest

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/pollux-net/pollux/driver"
)

// The address of the stack that is tested, and the peer's own.
var (
	ServerAddress = netip.MustParseAddr("10.99.0.1")
	ClientAddress = netip.MustParseAddr("10.99.0.2")
)

// ServerPort is the port that Peer connects to.
const ServerPort = 11211

// EthernetHeader is the length in bytes of what comes before the IP header.
const EthernetHeader = header.EthernetMinimumSize

// Peer is the smallest TCP/IPv4 host that keeps lossless connections going, one
// frame at a time. It has no retransmission and no window, knows of options only
// the segment size, and leaves checksums to its device. It answers ARP for
// ClientAddress and completes the handshakes that it began.
type Peer struct {
	// Conns are the connections by the peer's port.
	Conns map[uint16]*Conn
	// Out are the frames to transmit next; a test may damage them.
	Out []driver.Frame
	// Frames and Resets received so far.
	Frames, Resets int

	t     testing.TB
	queue driver.Queue
	own   [6]byte
	to    [6]byte
	in    []driver.Frame
}

// Conn is a connection of a Peer.
type Conn struct {
	Port        uint16
	Seq, Ack    uint32 // to be sent next
	Established bool
	Received    int // bytes of payload, in order
}

// NewPeer is a peer on queue 0 of port, whose frames go to the Ethernet address to.
func NewPeer(t testing.TB, port driver.Port, to [6]byte) *Peer {
	return &Peer{t: t, queue: port.Queue(0), own: port.Address(), to: to, Conns: map[uint16]*Conn{}, in: make([]driver.Frame, 64)}
}

// Frame appends a frame of n bytes to Out, with its Ethernet header; it is valid
// until the next frame is appended.
func (p *Peer) Frame(n int, kind tcpip.NetworkProtocolNumber) *driver.Frame {
	p.Out = append(p.Out, driver.Frame{})
	last := p.Out[len(p.Out)-1:]
	if p.queue.Allocate(last, n) != 1 {
		p.t.Fatal("the peer has no frames")
	}
	f := &last[0]
	f.Data = f.Data[:n]
	copy(f.Data, p.to[:])
	copy(f.Data[6:], p.own[:])
	binary.BigEndian.PutUint16(f.Data[12:], uint16(kind))
	return f
}

// Raw appends a frame with payload behind the Ethernet header.
func (p *Peer) Raw(kind tcpip.NetworkProtocolNumber, payload []byte) {
	copy(p.Frame(EthernetHeader+len(payload), kind).Data[EthernetHeader:], payload)
}

// Segment appends a segment of c.
func (p *Peer) Segment(c *Conn, flags header.TCPFlags, payload []byte) {
	length := header.TCPMinimumSize
	if flags&header.TCPFlagSyn != 0 {
		length += header.TCPOptionMSSLength
	}
	f := p.Frame(EthernetHeader+header.IPv4MinimumSize+length+len(payload), ipv4.ProtocolNumber)
	client, server := tcpip.AddrFrom4(ClientAddress.As4()), tcpip.AddrFrom4(ServerAddress.As4())
	ip := header.IPv4(f.Data[EthernetHeader:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: client, DstAddr: server})
	ip.SetChecksum(^ip.CalculateChecksum())
	segment := header.TCP(ip[header.IPv4MinimumSize:])
	segment.Encode(&header.TCPFields{SrcPort: c.Port, DstPort: ServerPort, SeqNum: c.Seq, AckNum: c.Ack, DataOffset: uint8(length), Flags: flags, WindowSize: 65000})
	if flags&header.TCPFlagSyn != 0 {
		header.EncodeMSSOption(1460, segment[header.TCPMinimumSize:])
	}
	copy(segment[length:], payload)
	segment.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, client, server, uint16(len(segment))))
	f.Flags, f.L2, f.L3, f.L4 = driver.ComputeTCPChecksum, EthernetHeader, header.IPv4MinimumSize, uint8(length)
	c.Seq += uint32(len(payload))
	if flags&(header.TCPFlagSyn|header.TCPFlagFin) != 0 {
		c.Seq++
	}
}

// Send appends a segment with payload.
func (p *Peer) Send(c *Conn, payload []byte) {
	p.Segment(c, header.TCPFlagAck|header.TCPFlagPsh, payload)
}

// Connect begins a connection from a port.
func (p *Peer) Connect(port uint16) *Conn {
	c := &Conn{Port: port, Seq: uint32(port) << 8}
	p.Conns[port] = c
	p.Segment(c, header.TCPFlagSyn, nil)
	return c
}

// Transmit sends Out.
func (p *Peer) Transmit() {
	if n := p.queue.Transmit(p.Out); n != len(p.Out) {
		p.t.Fatalf("the wire took %d of the peer's %d frames", n, len(p.Out))
	}
	p.Out = p.Out[:0]
}

// Receive takes in what has arrived and returns how many frames that was.
func (p *Peer) Receive() int {
	total := 0
	for {
		n := p.queue.Receive(p.in)
		for i := range p.in[:n] {
			p.input(p.in[i].Data)
		}
		driver.Free(p.in[:n])
		total += n
		if n < len(p.in) {
			return total
		}
	}
}

func (p *Peer) input(b []byte) {
	p.Frames++
	switch tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(b[12:])) {
	case arp.ProtocolNumber:
		request := header.ARP(b[EthernetHeader:])
		if request.Op() != header.ARPRequest || [4]byte(request.ProtocolAddressTarget()) != ClientAddress.As4() {
			return
		}
		reply := header.ARP(p.Frame(EthernetHeader+header.ARPSize, arp.ProtocolNumber).Data[EthernetHeader:])
		reply.SetIPv4OverEthernet()
		reply.SetOp(header.ARPReply)
		copy(reply.HardwareAddressSender(), p.own[:])
		copy(reply.ProtocolAddressSender(), request.ProtocolAddressTarget())
		copy(reply.HardwareAddressTarget(), request.HardwareAddressSender())
		copy(reply.ProtocolAddressTarget(), request.ProtocolAddressSender())
	case ipv4.ProtocolNumber:
		if ip := header.IPv4(b[EthernetHeader:]); ip.TransportProtocol() == header.TCPProtocolNumber {
			p.segment(header.TCP(ip[header.IPv4MinimumSize:ip.TotalLength()]))
		}
	}
}

func (p *Peer) segment(s header.TCP) {
	flags, payload := s.Flags(), s.Payload()
	if flags&header.TCPFlagRst != 0 {
		p.Resets++
	}
	c := p.Conns[s.DestinationPort()]
	if c == nil {
		return
	}
	if flags&header.TCPFlagSyn != 0 {
		c.Ack = s.SequenceNumber() + 1
		c.Established = true
		p.Segment(c, header.TCPFlagAck, nil)
		return
	}
	if n := uint32(len(payload)); n > 0 && s.SequenceNumber() == c.Ack {
		c.Ack += n
		c.Received += int(n)
	}
	if flags&header.TCPFlagFin != 0 {
		c.Ack++
	}
}
