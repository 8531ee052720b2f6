package forward

import (
	"time"

	"github.com/pollux-net/pollux/driver"
)

// Frames for a next hop whose Ethernet address is not known wait here, a few for
// each of a few next hops, while the shard asks: RFC 1122 2.3.2, RFC 4861 7.2.2.
// The shard itself asks, and answers for the box's addresses, as on most drivers
// the kernel sees neither questions nor answers.
const (
	maxPending  = 64
	maxHeld     = 32              // frames for each
	maxHeldAll  = 512             // frames in all
	deadForNext = 3 * time.Second // a next hop that did not answer rests
)

type pendingNeighbour struct {
	port    int
	address address
	frames  [maxHeld]heldFrame
	n       int
	asked   int // askTimes+1: it is dead
	next    time.Duration
}

type heldFrame struct {
	frame driver.Frame
	in    int // port, or -1-hint for the box's own
}

// hold keeps a packet until its next hop is known, and asks.
func (s *Shard) hold(in *port, f *driver.Frame, out int, next address) {
	s.keep(f, in.index, out, next)
}

// holdOwn is hold for a packet of the box's own.
func (s *Shard) holdOwn(f *driver.Frame, out int, next address, hint int) {
	s.keep(f, -1-(hint+1), out, next)
}

func (s *Shard) keep(f *driver.Frame, in, out int, next address) {
	var p *pendingNeighbour
	for i := range s.pending {
		if q := &s.pending[i]; q.port == out && q.address == next {
			p = q
			break
		}
	}
	if p == nil {
		if len(s.pending) == maxPending && !s.forgetDead() {
			s.dropHeld(f, in, NeighbourWait)
			return
		}
		s.pending = append(s.pending, pendingNeighbour{port: out, address: next, next: s.now + askEvery, asked: 1})
		p = &s.pending[len(s.pending)-1]
		s.ask(out, next, [6]byte{})
	}
	switch {
	case p.asked > askTimes:
		s.unreachable(f, in)
	case p.n == maxHeld || s.held >= maxHeldAll:
		s.dropHeld(f, in, NeighbourWait)
	default:
		p.frames[p.n] = heldFrame{*f, in}
		*f = driver.Frame{}
		p.n++
		if in >= 0 {
			s.held++
		}
	}
}

// dropHeld drops a frame that came in by a port, or one of the box's own.
func (s *Shard) dropHeld(f *driver.Frame, in int, c Cause) {
	if in < 0 {
		s.counters.OriginDropped++
		s.free(f)
		return
	}
	s.drop(f, c)
}

// release takes the frames out that wait for a neighbour.
func (s *Shard) release(p *pendingNeighbour) (frames [maxHeld]heldFrame, n int) {
	frames, n = p.frames, p.n
	p.frames, p.n = [maxHeld]heldFrame{}, 0
	for i := range frames[:n] {
		if frames[i].in >= 0 {
			s.held--
		}
	}
	return frames, n
}

// unreachable tells the sender of a packet that its next hop is dead, and drops it.
func (s *Shard) unreachable(f *driver.Frame, in int) {
	if in >= 0 {
		var m meta
		p := &s.ports[in]
		switch s.parse(f, p, &m); m.kind {
		case packet4:
			s.error4(p, f, &m, icmpUnreachable, 1, 0)
		case packet6:
			s.error6(p, f, &m, icmp6Unreachable, 3, 0)
		}
	}
	s.dropHeld(f, in, NeighbourDead)
}

// forgetDead makes room for a next hop that may be alive.
func (s *Shard) forgetDead() bool {
	for i := range s.pending {
		if s.pending[i].asked > askTimes {
			s.removePending(i)
			return true
		}
	}
	return false
}

func (s *Shard) removePending(i int) {
	last := len(s.pending) - 1
	s.pending[i] = s.pending[last]
	s.pending[last] = pendingNeighbour{}
	s.pending = s.pending[:last]
}

func (s *Shard) dropPending(p *pendingNeighbour, c Cause) {
	frames, n := s.release(p)
	for i := range frames[:n] {
		s.dropHeld(&frames[i].frame, frames[i].in, c)
	}
}

// tickPending asks again, or gives up.
func (s *Shard) tickPending() {
	for i := 0; i < len(s.pending); i++ {
		p := &s.pending[i]
		if s.now < p.next {
			continue
		}
		switch {
		case p.asked > askTimes:
			s.removePending(i)
			i--
		case p.asked == askTimes:
			p.asked++
			p.next = s.now + deadForNext
			frames, n := s.release(p)
			for k := range frames[:n] {
				s.unreachable(&frames[k].frame, frames[k].in) // may add to pending
			}
		default:
			p.asked++
			p.next = s.now + askEvery
			s.ask(p.port, p.address, [6]byte{})
		}
	}
}

// retryPending decides anew, by another snapshot, what to do with the packets that
// wait: their neighbours may be known by now, or they go another way, or none.
// Those whose next hop is still not known wait on, in the same place.
func (s *Shard) retryPending() {
	for i := 0; i < len(s.pending); i++ {
		p := &s.pending[i]
		known := s.snap.neighbours.find(p.port, p.address) != nil
		if !known && p.n == 0 {
			continue
		}
		frames, n := s.release(p)
		if known {
			s.removePending(i)
			i--
		}
		for k := range frames[:n] {
			h := &frames[k]
			if h.in >= 0 {
				s.one(&s.ports[h.in], &h.frame)
			} else if !s.originate(&h.frame, -2-h.in) {
				s.counters.OriginDropped++
				s.free(&h.frame)
			}
		}
	}
}

// tell hands what a frame said of a neighbour to the control plane.
func (s *Shard) tell(l learned) {
	if !s.learned.put(l) {
		s.counters.LearnedLost++
		return
	}
	s.counters.Learned++
	if f := s.forwarder.config.Learned; f != nil {
		f()
	}
}

// sourceFor is the box's address to ask for a neighbour from: one in the
// neighbour's network, or else any of the port.
func (s *Shard) sourceFor(port int, a address) (address, bool) {
	p := &s.snap.ports[port]
	if a.is4() {
		n := a.netip()
		for i := range p.addresses {
			if p.addresses[i].prefix.Contains(n) {
				return p.addresses[i].address, true
			}
		}
		return address4(p.own4), p.own4 != 0
	}
	return p.own6, p.own6 != address{}
}

const (
	arpSize      = 28
	solicitation = 24 // with the option, and its 8 bytes
)

// ask sends a question for a neighbour's Ethernet address, to everybody if to is
// zero.
func (s *Shard) ask(port int, a address, to [6]byte) {
	source, ok := s.sourceFor(port, a)
	if !ok {
		return
	}
	p := &s.ports[port]
	if a.is4() {
		f, ok := s.allocate(p, 60)
		if !ok {
			return
		}
		clear(f.Data)
		if to == ([6]byte{}) {
			to = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		}
		s.link(&f, p, to, typeARP)
		b := f.Data[ethernet:]
		copy(b, []byte{0, 1, 8, 0, 6, 4, 0, 1})
		copy(b[8:14], f.Data[6:12])
		be.PutUint32(b[14:], uint32(source.low))
		be.PutUint32(b[24:], uint32(a.low))
		s.counters.Asked++
		s.output(p, &f, 0)
		return
	}
	f, ok := s.allocate(p, ethernet+ip6+solicitation+8)
	if !ok {
		return
	}
	clear(f.Data)
	b := f.Data[ethernet:]
	group := a
	if to == ([6]byte{}) {
		group = address{0xff02 << 48, 1<<32 | 0xff<<24 | a.low&0xffffff}
		to = [6]byte{0x33, 0x33, 0xff, byte(a.low >> 16), byte(a.low >> 8), byte(a.low)}
	}
	s.link(&f, p, to, typeIPv6)
	header6(b, source, group)
	o := b[ip6:]
	o[0] = 135
	a.put(o[8:])
	o[24], o[25] = 1, 1
	copy(o[26:32], f.Data[6:12])
	be.PutUint16(o[2:], checksum6(b))
	s.counters.Asked++
	s.output(p, &f, 0)
}

// header6 makes the header of a neighbour discovery message.
func header6(b []byte, from, to address) {
	b[0], b[6], b[7] = 0x60, protocolICMP6, 255
	be.PutUint16(b[4:], uint16(len(b)-ip6))
	from.put(b[8:])
	to.put(b[24:])
}

// link makes the Ethernet header.
func (s *Shard) link(f *driver.Frame, p *port, to [6]byte, kind uint16) {
	copy(f.Data, to[:])
	be.PutUint16(f.Data[6:], uint16(p.mac>>32))
	be.PutUint32(f.Data[8:], uint32(p.mac))
	be.PutUint16(f.Data[12:], kind)
}

// unicast says whether an Ethernet address is one station's.
func unicast(mac [6]byte) bool { return mac[0]&1 == 0 && mac != [6]byte{} }

// answersFor says whether the box answers for an address on a port: its own, on
// any port as Linux does, and those that it translates to.
func (s *Shard) answersFor(a address) bool {
	if s.isOwn(a) {
		return true
	}
	if !a.is4() || s.nat.Empty() {
		return false
	}
	m := meta{destination: a}
	_, outside := s.nat.Owner(endpoint(&m))
	return outside
}

// arp takes in a frame of RFC 826.
func (s *Shard) arp(in *port, f *driver.Frame) {
	b := f.Data[ethernet:]
	if len(b) < arpSize || be.Uint32(b) != 1<<16|typeIPv4 || b[4] != 6 || b[5] != 4 {
		s.drop(f, Malformed)
		return
	}
	op := be.Uint16(b[6:])
	mac := [6]byte(b[8:14])
	sender, target := address4(be.Uint32(b[14:])), address4(be.Uint32(b[24:]))
	if op != 1 && op != 2 || !unicast(mac) || martianSource4(uint32(sender.low)) && sender.low&0xffffffff != 0 {
		s.drop(f, Malformed)
		return
	}
	s.counters.Resolved++
	ours := s.answersFor(target)
	if sender.low&0xffffffff != 0 && !s.answersFor(sender) {
		s.tell(learned{in.index, sender, mac, !ours})
	}
	if op != 1 || !ours {
		s.free(f)
		return
	}
	s.link(f, in, mac, typeARP)
	be.PutUint16(b[6:], 2)
	copy(b[18:24], mac[:])
	be.PutUint32(b[24:], uint32(sender.low))
	copy(b[8:14], f.Data[6:12])
	be.PutUint32(b[14:], uint32(target.low))
	s.output(in, f, 0)
}

// discovery takes in a neighbour discovery message (RFC 4861). Its hop limit is
// 255.
func (s *Shard) discovery(in *port, f *driver.Frame, m *meta) {
	b := f.Data[ethernet : ethernet+int(m.length)]
	o := b[ip6:]
	if fold(sum(b[8:], uint64(len(o))+protocolICMP6)) != 0xffff || o[1] != 0 {
		s.drop(f, Malformed)
		return
	}
	if m.icmpType != 135 && m.icmpType != 136 {
		// Routers are the kernel's business, redirects nobody's.
		s.counters.Resolved++
		s.free(f)
		return
	}
	if len(o) < solicitation {
		s.drop(f, Malformed)
		return
	}
	target := address6(o[8:])
	source, target6 := [6]byte{}, [6]byte{}
	for rest := o[24:]; len(rest) > 0; {
		if len(rest) < 8 || rest[1] == 0 || int(rest[1])*8 > len(rest) {
			s.drop(f, Malformed)
			return
		}
		switch rest[0] {
		case 1:
			source = [6]byte(rest[2:8])
		case 2:
			target6 = [6]byte(rest[2:8])
		}
		rest = rest[int(rest[1])*8:]
	}
	s.counters.Resolved++
	if m.icmpType == 136 {
		const solicited = 0x40
		asked := o[4]&solicited != 0
		// Whoever is asked at its own address need not repeat it (RFC 4861 4.4), as
		// Linux does not: the answer then says that it is still there.
		if (unicast(target6) || asked && target6 == [6]byte{}) && !target.multicast6() && !martian6(target) && !s.isOwn(target) {
			s.tell(learned{in.index, target, target6, !asked || target6 == [6]byte{}})
		}
		s.free(f)
		return
	}
	if !s.ownOn(in.index, target) && (target.linkLocal6() || !s.isOwn(target)) {
		s.free(f)
		return
	}
	to, mac, flags := m.source, source, byte(0xe0) // a router, asked, certain
	if m.source == (address{}) {
		// Somebody checks whether the address is free (RFC 4862): all must hear.
		to, mac, flags = address{0xff02 << 48, 1}, [6]byte{0x33, 0x33, 0, 0, 0, 1}, 0xa0
	} else {
		if !unicast(mac) {
			mac = [6]byte(f.Data[6:12])
		}
		if unicast(mac) && !martian6(m.source) && !m.source.multicast6() && !s.isOwn(m.source) {
			s.tell(learned{in.index, m.source, mac, false})
		}
	}
	const size = ethernet + ip6 + solicitation + 8
	if cap(f.Data) < size {
		s.free(f)
		return
	}
	f.Data = f.Data[:size]
	clear(f.Data)
	b = f.Data[ethernet:]
	s.link(f, in, mac, typeIPv6)
	header6(b, target, to)
	o = b[ip6:]
	o[0], o[4] = 136, flags
	target.put(o[8:])
	o[24], o[25] = 2, 1
	copy(o[26:32], f.Data[6:12])
	be.PutUint16(o[2:], checksum6(b))
	s.output(in, f, 0)
}
