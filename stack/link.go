package stack

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pollux-net/pollux/driver"
)

// link is netstack's view of the queue: an Ethernet endpoint that copies every
// outgoing packet into a frame of the queue's own memory and keeps it until the
// loop transmits.
type link struct {
	queue   driver.Queue
	caps    driver.Capabilities
	address tcpip.LinkAddress
	mtu     uint32
	limit   int
	wake    func() // called when a packet is written while handoff is set
	handoff bool
	// post has the loop call a function soon; false if it never will.
	post func(func()) bool

	dispatcher netstack.NetworkDispatcher
	// checksummed says that the frame being delivered was validated by the
	// device; netstack asks Capabilities for every packet, with the Handoff
	// dispatch also beside the loop.
	checksummed atomic.Bool

	// The queue is the loop's alone: if packets are written beside it, whoever runs
	// out of spare frames takes Go's memory, which the queue copies.
	guard  guard
	outbox []driver.Frame
	spare  []driver.Frame // empty frames of MTU size, taken from the pool in bursts
	large  [1]driver.Frame
	whole  []byte // a large segment that is being cut, see cut
	// dropped counts packets without a frame or past the limit.
	dropped uint64
}

// The frames that are taken from the pool at once: with the Handoff dispatch
// they must last until the loop's next turn.
const spareFrames, spareFramesBeside = 32, 128

func newLink(q driver.Queue, p driver.Port, limit int, beside bool) *link {
	a := p.Address()
	spare := spareFrames
	if beside {
		spare = spareFramesBeside
	}
	return &link{
		queue: q, caps: p.Capabilities(), address: tcpip.LinkAddress(a[:]), mtu: uint32(p.MTU()), limit: limit, guard: guard{beside: beside},
		outbox: make([]driver.Frame, 0, 256), spare: make([]driver.Frame, 0, spare),
	}
}

// frameSize is the room that a frame of the link's MTU needs.
func (l *link) frameSize() int { return int(l.mtu) + header.EthernetMinimumSize }

// WritePackets implements netstack's LinkWriter.
func (l *link) WritePackets(packets netstack.PacketBufferList) (int, tcpip.Error) {
	l.guard.lock()
	n := 0
	for _, p := range packets.AsSlice() {
		if !l.write(nil, p) {
			break
		}
		n++
	}
	l.dropped += uint64(packets.Len() - n)
	l.guard.unlock()
	if l.handoff {
		l.wake()
	}
	if n < packets.Len() {
		return n, &tcpip.ErrNoBufferSpace{}
	}
	return n, nil
}

// take gives an empty frame with room for size bytes.
func (l *link) take(size int) (driver.Frame, bool) {
	if size > l.frameSize() {
		if size > l.caps.MaxFrame {
			return driver.Frame{}, false
		}
		if l.guard.beside {
			return driver.Frame{Data: make([]byte, 0, size)}, true
		}
		n := l.queue.Allocate(l.large[:], size)
		return l.large[0], n == 1
	}
	if len(l.spare) == 0 {
		if l.guard.beside {
			return driver.Frame{Data: make([]byte, 0, size)}, true
		}
		if l.refill(); len(l.spare) == 0 {
			return driver.Frame{}, false
		}
	}
	n := len(l.spare) - 1
	f := l.spare[n]
	l.spare[n] = driver.Frame{}
	l.spare = l.spare[:n]
	return f, true
}

// refill takes as many spare frames from the pool as there is room for.
func (l *link) refill() {
	n := len(l.spare)
	l.spare = l.spare[:n+l.queue.Allocate(l.spare[n:cap(l.spare)], l.frameSize())]
}

// transmit hands the outbox to the device and returns how many frames went and
// how many are still waiting.
func (l *link) transmit() (sent, waiting int) {
	l.guard.lock()
	if len(l.outbox) > 0 {
		sent, waiting = l.drain()
	}
	l.guard.unlock()
	return sent, waiting
}

// drain is transmit for an outbox that has frames; the guard is held.
func (l *link) drain() (sent, waiting int) {
	sent = l.queue.Transmit(l.outbox)
	if waiting = len(l.outbox) - sent; waiting > 0 {
		copy(l.outbox, l.outbox[sent:])
		clear(l.outbox[waiting:])
	}
	l.outbox = l.outbox[:waiting]
	if l.guard.beside && len(l.spare) < cap(l.spare) {
		l.refill()
	}
	return sent, waiting
}

// release frees the frames that the link holds.
func (l *link) release() {
	l.guard.lock()
	defer l.guard.unlock()
	l.limit = 0
	driver.Free(l.outbox)
	driver.Free(l.spare)
	l.outbox, l.spare = l.outbox[:0], l.spare[:0]
}

// Capabilities implements netstack's NetworkLinkEndpoint.
func (l *link) Capabilities() netstack.LinkEndpointCapabilities {
	c := netstack.CapabilityResolutionRequired
	if l.checksummed.Load() {
		c |= netstack.CapabilityRXChecksumOffload
	}
	return c
}

// SupportedGSO implements netstack's GSOEndpoint. Devices that cut segments
// also compute their checksums; for others netstack's TCP cuts them itself,
// after the trip through the send queue, which is still cheaper than before.
func (l *link) SupportedGSO() netstack.SupportedGSO {
	if l.caps.SegmentTCP && l.caps.TransmitTCPChecksum {
		return netstack.HostGSOSupported
	}
	return netstack.GVisorGSOSupported
}

// GSOMaxSize implements netstack's GSOEndpoint.
func (l *link) GSOMaxSize() uint32 {
	if l.SupportedGSO() == netstack.HostGSOSupported {
		return uint32(l.caps.MaxFrame - header.EthernetMinimumSize)
	}
	return netstack.GVisorGSOMaxSize
}

// AddHeader implements netstack's NetworkLinkEndpoint.
func (l *link) AddHeader(p *netstack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: l.address, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
	})
}

// ParseHeader implements netstack's NetworkLinkEndpoint.
func (l *link) ParseHeader(p *netstack.PacketBuffer) bool {
	_, ok := p.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.address }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Attach(d netstack.NetworkDispatcher)     { l.dispatcher = d }
func (l *link) IsAttached() bool                        { return l.dispatcher != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
