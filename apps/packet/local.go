package packet

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/stack"
)

// local is the box's own TCP/IP on a shard: one netstack with all of the box's
// addresses, whichever port they are on. It believes to be alone with a gateway,
// whose neighbour discovery is answered here; where its packets really go the
// forwarding tables say. ARP and neighbour discovery of the ports are package
// forward's, which must know neighbours anyway.
type local struct {
	shard   *forward.Shard
	port    localPort
	queue   localQueue
	stack   *stack.Stack // nil without addresses
	wake    func()
	started func(*stack.Stack)
	// stations are the ports where link-local peers were seen.
	stations map[[16]byte]int
	dirty    bool // something was injected since the last Step
}

// The gateway that the stack believes in: a dummy address (RFC 7600) and a
// link-local one, at an Ethernet address that no frame carries out.
var (
	gateways   = []netip.Addr{netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("fe80::8")}
	gatewayMAC = [6]byte{0x02, 'g', 'a', 't', 'e', 0}
)

const maxStations = 1024

// localPort is the port that the stack sees.
type localPort struct {
	driver.Port
	mtu int
}

func (p localPort) MTU() int { return p.mtu }

func (p localPort) Capabilities() driver.Capabilities {
	return driver.Capabilities{Driver: "local", MaxFrame: p.mtu + 14}
}

// localQueue is its queue: it receives nothing, as frames are injected.
type localQueue struct {
	driver.Queue
	local   *local
	answers []*driver.Frame
}

func (q *localQueue) Receive([]driver.Frame) int { return 0 }

// Transmit routes the stack's packets and answers its questions.
func (q *localQueue) Transmit(frames []driver.Frame) int {
	for i := range frames {
		f := &frames[i]
		b := f.Data
		switch {
		case len(b) < 14+28:
		case binary.BigEndian.Uint16(b[12:]) == 0x0806:
			if answer := answerARP(b); answer != nil {
				q.answers = append(q.answers, answer)
			}
		case solicits(b):
			if answer := answerSolicitation(b); answer != nil {
				q.answers = append(q.answers, answer)
			}
		case [6]byte(b[:6]) == gatewayMAC:
			q.local.shard.Originate(f, q.local.hint(b))
			continue
		}
		driver.Free(frames[i : i+1])
	}
	return len(frames)
}

// answerARP is the answer to a question of the stack's.
func answerARP(b []byte) *driver.Frame {
	if binary.BigEndian.Uint16(b[20:]) != 1 || [4]byte(b[28:32]) == [4]byte(b[38:42]) {
		return nil
	}
	a := slices.Clone(b)
	copy(a, b[6:12])
	copy(a[6:], gatewayMAC[:])
	a[21] = 2
	copy(a[22:], gatewayMAC[:])
	copy(a[28:32], b[38:42])
	copy(a[32:38], b[22:28])
	copy(a[38:42], b[28:32])
	return &driver.Frame{Data: a}
}

// solicits says whether a frame is a neighbour solicitation: to a group, or to
// the gateway, to see whether it is still there.
func solicits(b []byte) bool {
	return binary.BigEndian.Uint16(b[12:]) == 0x86dd && len(b) >= 14+40+24 && b[20] == 58 && b[54] == 135
}

// answerSolicitation is the answer to one, but for those that check whether an
// address is free.
func answerSolicitation(b []byte) *driver.Frame {
	const size = 14 + 40 + 32
	if [16]byte(b[22:38]) == [16]byte{} {
		return nil
	}
	a := make([]byte, size)
	copy(a, b[6:12])
	copy(a[6:], gatewayMAC[:])
	copy(a[12:], b[12:14])
	ip := a[14:]
	ip[0], ip[5], ip[6], ip[7] = 0x60, 32, 58, 255
	copy(ip[8:], b[62:78])     // from the target
	copy(ip[24:], b[22:38])    // to whoever asked
	ip[40], ip[44] = 136, 0x60 // solicited, override
	copy(ip[48:], b[62:78])
	ip[64], ip[65] = 2, 1
	copy(ip[66:], gatewayMAC[:])
	sum := uint32(32 + 58)
	for i := 8; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[42:], ^uint16(sum))
	return &driver.Frame{Data: a, Flags: driver.ChecksumValid}
}

// hint is the port of a link-local peer that a packet goes to.
func (l *local) hint(b []byte) int {
	if len(b) >= 54 && b[12] == 0x86 && b[38] == 0xfe && b[39]&0xc0 == 0x80 {
		if port, ok := l.stations[[16]byte(b[38:54])]; ok {
			return port
		}
	}
	return -1
}

func newLocal(s *forward.Shard, p driver.Port, q driver.Queue, mtu int) *local {
	l := &local{shard: s, port: localPort{p, mtu}, stations: map[[16]byte]int{}}
	l.queue = localQueue{Queue: q, local: l}
	return l
}

// setAddresses makes the stack anew with other addresses. Its connections end.
func (l *local) setAddresses(addresses []netip.Prefix) {
	l.close()
	var own []netip.Prefix
	generated := linkLocal(l.port.Address())
	for _, p := range addresses {
		single := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		// The stack gives itself the link-local address of its Ethernet address.
		if p.Addr() != generated && !slices.Contains(own, single) {
			own = append(own, single)
		}
	}
	if len(own) == 0 {
		return
	}
	s, err := stack.New(l.port, &l.queue, stack.Config{Addresses: own, Gateways: gateways})
	if err != nil {
		slog.Error("the box's own addresses are not served", "error", err)
		return
	}
	s.SetWake(l.wake)
	l.stack = s
	if l.started != nil {
		l.started(s)
	}
}

// linkLocal is the address that comes with an Ethernet address (RFC 4291
// appendix A).
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func (l *local) close() {
	if l.stack != nil {
		l.stack.Close()
		l.stack = nil
	}
	l.queue.answers = nil
}

// Deliver implements forward.Local.
func (l *local) Deliver(in int, f *driver.Frame) {
	if l.stack == nil {
		return
	}
	own := l.port.Address()
	copy(f.Data, own[:])
	if b := f.Data; len(b) >= 54 && b[12] == 0x86 && b[22] == 0xfe && b[23]&0xc0 == 0x80 {
		if len(l.stations) >= maxStations {
			clear(l.stations)
		}
		l.stations[[16]byte(b[22:38])] = in
	}
	l.stack.Inject(f, 0)
	l.dirty = true
}

// Step implements forward.Local.
func (l *local) Step(now time.Duration) int {
	s := l.stack
	if s == nil || l.Idle() && s.Deadline() > now {
		return 0
	}
	l.dirty = false
	s.Advance(now)
	work := len(l.queue.answers)
	for _, a := range l.queue.answers {
		s.Inject(a, 0)
	}
	l.queue.answers = l.queue.answers[:0]
	work += s.Deliver()
	s.Acknowledge()
	return work + s.Transmit()
}

// Deadline implements forward.Local.
func (l *local) Deadline() time.Duration {
	if l.stack == nil {
		return forward.Never
	}
	return l.stack.Deadline()
}

// Idle implements forward.Local.
func (l *local) Idle() bool {
	return l.stack == nil || !l.dirty && len(l.queue.answers) == 0 && l.stack.Idle()
}
