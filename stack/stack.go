package stack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand"
	"net/netip"
	"runtime"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/pollux-net/pollux/driver"
)

// Stack is one core's TCP/IP over one queue. Except where a method says
// otherwise it belongs to one goroutine, the loop's.
type Stack struct {
	config  Config
	net     *netstack.Stack
	queue   driver.Queue
	address [6]byte
	link    *link
	clock   *clock
	flows   *flowTable // nil with the Handoff dispatch
	inline  *inline    // nil with the Handoff dispatch
	ready   readyList
	mail    mailbox
	gate    gate

	burst     []driver.Frame
	reader    bytes.Reader      // the payload of the Write in progress
	writer    tcpip.SliceWriter // the destination of the Read in progress
	rng       *rand.Rand
	listeners int
	counters  Counters
}

// New builds a stack over queue q of port p. The caller owns both and closes the
// port after the stack.
func New(p driver.Port, q driver.Queue, c Config) (*Stack, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("stack on %s: %w", p.Name(), err)
	}
	var seed [16]byte
	if _, err := io.ReadFull(c.Random, seed[:]); err != nil {
		return nil, fmt.Errorf("stack on %s: read random numbers: %w", p.Name(), err)
	}
	source := &lockedSource{source: rand.NewSource(int64(binary.LittleEndian.Uint64(seed[:])))}
	s := &Stack{
		config: c, queue: q, address: p.Address(), clock: newClock(), link: newLink(q, p, c.TransmitLimit, c.Dispatch == Handoff),
		burst: make([]driver.Frame, c.Burst), rng: rand.New(source),
	}
	s.mail.limit = c.MailboxLimit
	s.link.post = s.mail.postReserved
	s.clock.guard.beside, s.ready.guard.beside = c.Dispatch == Handoff, c.Dispatch == Handoff
	s.gate.init(&s.mail)
	// Routers and neighbours may ask from link-local addresses, so whoever has
	// an IPv6 address has one of those too.
	protocol4 := netstack.NetworkProtocolFactory(ipv4.NewProtocol)
	protocol6 := ipv6.NewProtocolWithOptions(ipv6.Options{AutoGenLinkLocal: c.hasIPv6()})
	if c.Dispatch == Inline {
		protocol4, protocol6 = s.link.shorten4(protocol4), s.link.shorten6(protocol6)
	}
	s.net = netstack.New(netstack.Options{
		NetworkProtocols:   []netstack.NetworkProtocolFactory{protocol4, protocol6, arp.NewProtocol},
		TransportProtocols: []netstack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		Clock:              s.clock,
		RandSource:         source,
		SecureRNG:          c.Random,
	})
	if err := s.configure(); err != nil {
		s.net.Destroy()
		return nil, fmt.Errorf("stack on %s: %w", p.Name(), err)
	}
	if c.Dispatch == Inline {
		s.flows = newFlowTable(binary.LittleEndian.Uint64(seed[8:]), c.MaxFlows)
		s.inline = &inline{queue: takeOverDispatcher(s.net)}
	}
	return s, nil
}

// configure makes the interface, its addresses and routes, and sets TCP up.
func (s *Stack) configure() error {
	options := []struct {
		name  string
		value tcpip.SettableTransportProtocolOption
	}{
		{"congestion control", ptr(tcpip.CongestionControlOption(s.config.CongestionControl))},
		{"SACK", ptr(tcpip.TCPSACKEnabled(!s.config.NoSACK))},
		// No RACK (RFC 8985), although it would recover losses faster: among
		// segments sent at the same time, which all of a burst are while time
		// stands still, netstack takes those behind the acknowledged one for
		// sent before it; after a timeout it enters fast recovery, in which all
		// that was lost counts as in flight, and recovers a segment a timeout;
		// and it walks all of the segments in flight for each ACK.
		{"loss recovery", ptr(tcpip.TCPRecovery(0))},
		{"Nagle", ptr(tcpip.TCPDelayEnabled(s.config.Nagle))},
		{"send buffer", &tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: s.config.SendBuffer.Default, Max: s.config.SendBuffer.Max}},
		{"receive buffer", &tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: s.config.ReceiveBuffer.Default, Max: s.config.ReceiveBuffer.Max}},
		{"receive buffer tuning", ptr(tcpip.TCPModerateReceiveBufferOption(true))},
		{"TIME-WAIT", ptr(tcpip.TCPTimeWaitTimeoutOption(s.config.TimeWait))},
		{"minimum RTO", ptr(tcpip.TCPMinRTOOption(s.config.MinRTO))},
	}
	for _, o := range options {
		if err := s.net.SetTransportProtocolOption(tcp.ProtocolNumber, o.value); err != nil {
			return fmt.Errorf("set TCP's %s: %w", o.name, translate(err))
		}
	}
	if err := s.net.CreateNIC(nic, s.link); err != nil {
		return fmt.Errorf("create the interface: %w", translate(err))
	}
	var routes []tcpip.Route
	for _, p := range s.config.Addresses {
		a := tcpip.ProtocolAddress{
			Protocol:          protocolOf(p.Addr()),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(p.Addr()), PrefixLen: p.Bits()},
		}
		if err := s.net.AddProtocolAddress(nic, a, netstack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %v: %w", p, translate(err))
		}
		routes = append(routes, tcpip.Route{Destination: a.AddressWithPrefix.Subnet(), NIC: nic})
	}
	if s.config.hasIPv6() {
		routes = append(routes, tcpip.Route{Destination: header.IPv6LinkLocalPrefix.Subnet(), NIC: nic})
	}
	for _, g := range s.config.Gateways {
		everything := header.IPv6EmptySubnet
		if g.Unmap().Is4() {
			everything = header.IPv4EmptySubnet
		}
		routes = append(routes, tcpip.Route{Destination: everything, Gateway: toAddress(g), NIC: nic})
	}
	s.net.SetRouteTable(routes)
	return nil
}

func ptr[T any](v T) *T { return &v }

// Advance moves the stack's time on to now, measured from any fixed origin, and
// runs the timers that are due. Time that goes backwards is ignored.
func (s *Stack) Advance(now time.Duration) {
	s.clock.advance(now)
	if s.inline != nil {
		s.inline.process()
	}
}

// Receive takes one burst from the queue, runs TCP on it and returns the number
// of frames. Sockets that became ready wait for Deliver.
func (s *Stack) Receive() int {
	if s.inline == nil {
		runtime.Gosched() // the processor goroutines may share this core
	}
	n := s.queue.Receive(s.burst)
	if n == 0 {
		return 0
	}
	for i := range s.burst[:n] {
		s.input(&s.burst[i], 0)
	}
	driver.Free(s.burst[:n])
	if s.inline != nil {
		s.inline.process()
	}
	return n
}

// Inject takes in a frame that a sibling's queue received; visited is what the
// sibling was told. The caller keeps the frame.
func (s *Stack) Inject(f *driver.Frame, visited int) {
	s.input(f, visited)
	if s.inline != nil {
		s.inline.process()
	}
}

// Deliver runs posted functions and tells the owners of ready sockets. It
// returns how many it called.
func (s *Stack) Deliver() int { return s.mail.run() + s.ready.run() }

// Acknowledge sends the ACKs that no reply has carried.
func (s *Stack) Acknowledge() {
	if s.inline != nil {
		s.inline.acknowledge()
	}
}

// Transmit hands what the stack has written to the device, in one burst if the
// device has room, and returns how many frames went. Idle says whether any are
// left.
func (s *Stack) Transmit() int {
	n, _ := s.link.transmit()
	return n
}

// Idle reports whether nothing is waiting to be done now: no posted function, no
// ready socket, no frame to transmit, and no timer that was set by another
// goroutine to end before Deadline said the first would. Only frames from the
// queue, Deadline or a Post can bring work then.
func (s *Stack) Idle() bool {
	s.link.guard.lock()
	waiting := len(s.link.outbox)
	s.link.guard.unlock()
	return waiting == 0 && s.mail.waiting.Load() == 0 && s.ready.empty() && !s.clock.earlier.Load()
}

// Deadline is the time of the first timer, on the scale of Advance; Never if
// there is none.
func (s *Stack) Deadline() time.Duration { return s.clock.deadline() }

// Never is a time that does not come.
const Never = time.Duration(math.MaxInt64)

// Post has the loop call f soon, in order with other posts. It may be called
// from any goroutine, never blocks, and returns false if the mailbox is full or
// the stack closed.
func (s *Stack) Post(f func()) bool { return s.mail.post(f) }

// Insist is a Post that a full mailbox does not refuse: false means that the stack
// is closed. It is for what must not be lost and comes seldom, since nothing
// bounds it.
func (s *Stack) Insist(f func()) bool { return s.mail.postReserved(f) }

// SetWake sets what Post calls after adding to the mailbox, so that a sleeping
// loop wakes up. Set it before other goroutines use the stack.
func (s *Stack) SetWake(wake func()) {
	s.mail.mu.Lock()
	s.mail.wake = wake
	s.mail.mu.Unlock()
	if s.inline == nil {
		s.ready.guard.lock()
		s.ready.wake = wake
		s.ready.guard.unlock()
		s.link.guard.lock()
		s.link.handoff, s.link.wake = wake != nil, wake
		s.link.guard.unlock()
		s.clock.guard.lock()
		s.clock.wake = wake
		s.clock.guard.unlock()
	}
}

// Config is the configuration in force, defaults filled in.
func (s *Stack) Config() Config { return s.config }

// random gives a number from the stack's own source.
func (s *Stack) random() uint64 { return s.rng.Uint64() }

// sourceFor is the address that packets to remote leave from.
func (s *Stack) sourceFor(remote netip.Addr) (netip.Addr, error) {
	r, err := s.net.FindRoute(nic, tcpip.Address{}, toAddress(remote), protocolOf(remote), false)
	if err != nil {
		return netip.Addr{}, translate(err)
	}
	defer r.Release()
	return fromAddress(r.LocalAddress()), nil
}

// Close resets every connection, sends the resets if the device takes them, and
// gives all frames back. Whoever waits in a method of what Listen, Dial and
// ListenPacket returned gets net.ErrClosed. Call it on the stack's goroutine, once.
func (s *Stack) Close() {
	s.mail.close()
	s.mail.run()
	s.gate.close()
	s.net.Close()
	if s.inline != nil {
		s.inline.process()
	}
	s.ready.run()
	s.link.transmit()
	s.net.Wait()
	s.link.release()
}
