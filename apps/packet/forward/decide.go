package forward

import (
	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/driver"
)

// handle4 forwards, delivers or drops an IPv4 packet.
func (s *Shard) handle4(in *port, f *driver.Frame, m *meta) {
	var d *decision
	if s.four != nil {
		d = s.four.lookup(m.place, m.hash, m.key4(), s.snap.generation, s.tick)
	}
	if d != nil && (d.rewrite == keep || s.touchBinding(f, m, d)) {
		s.counters.CacheHits++
		s.window.found++
	} else {
		s.counters.CacheMisses++
		d = &s.scratch
		*d = decision{generation: s.snap.generation, used: s.tick}
		keeps := s.decide4(in, f, m, d)
		if d.verdict == undecided {
			return
		}
		if d.rewrite != keep {
			s.touchBinding(f, m, d)
		}
		if keeps && s.four != nil && s.admit() {
			d = s.four.store(m.hash, m.key4(), d)
		}
	}
	if d.verdict == dropped {
		s.drop(f, d.cause)
		return
	}
	b := f.Data[ethernet:]
	if b[8] <= 1 {
		s.counters.Dropped[HopLimit]++
		s.error4(in, f, m, icmpTimeExceeded, 0, 0)
		s.free(f)
		return
	}
	if m.length > d.mtu {
		s.tooBig4(in, f, m, d)
		return
	}
	s.rewrite4(f, m, d)
	s.counters.Forwarded++
	s.output(&s.ports[d.port], f, m.hash)
}

// admit says whether to keep a new decision. Where there are so many flows that
// the cache hardly ever helps (fewer than one packet in eight), most newcomers
// are turned away: writing entries that nobody finds would cost more than the
// tables do. Some are let in, so that it shows when that changes.
func (s *Shard) admit() bool {
	const window, oneIn = 4096, 16
	w := &s.window
	if w.looked++; w.looked+w.found >= window {
		s.crowded = w.found < window/8
		w.looked, w.found = 0, 0
	}
	if !s.crowded {
		return true
	}
	w.skipped++
	return w.skipped%oneIn == 0
}

// rewrite4 makes the packet the next hop's.
func (s *Shard) rewrite4(f *driver.Frame, m *meta, d *decision) {
	b := f.Data[ethernet:]
	if d.rewrite != keep {
		translate(b, m, d)
	}
	// The TTL is the upper byte of its word: one less there is one more in the
	// upper byte of the checksum (RFC 1624, where ffff stands for 0).
	w := be.Uint32(b[8:])
	c := w&0xffff + 0x100
	if c >= 0xffff {
		c++
	}
	be.PutUint32(b[8:], w&^0xffff-1<<24|c&0xffff)
	*(*[12]byte)(f.Data) = d.header
	if end := ethernet + int(m.length); len(f.Data) > end && end >= 60 {
		f.Data = f.Data[:end] // what is behind the packet and no padding
	}
}

// touchBinding keeps a translation alive; false if it has ended.
func (s *Shard) touchBinding(f *driver.Frame, m *meta, d *decision) bool {
	flags := byte(0)
	if m.protocol == protocolTCP {
		flags = f.Data[ethernet+int(m.l4)+13]
	}
	return s.nat.Touch(int(d.binding), d.epoch, d.rewrite == rewriteDestination, flags, s.now)
}

// decide4 makes the decision for a flow, and says whether it holds for the
// flow's other packets. An undecided packet is out of our hands.
func (s *Shard) decide4(in *port, f *driver.Frame, m *meta, d *decision) (keeps bool) {
	src, dst := uint32(m.source.low), uint32(m.destination.low)
	if martianSource4(src) || martianDestination4(dst) || s.isOwn(m.source) {
		d.verdict, d.cause = dropped, Martian
		return true
	}
	if dst>>28 == 14 {
		d.verdict, d.cause = dropped, Multicast
		return true
	}
	keeps = true
	target := m.destination
	if !s.nat.Empty() {
		var done bool
		if dst, done = s.fromOutside(in, f, m, d); done {
			return false
		}
		target = address4(dst)
		keeps = !icmpError(m)
	}
	id := m.hop
	if id == notYet || target != m.destination {
		id = s.snap.table.Lookup4(dst)
	}
	h := s.hopOf(id, m.hash)
	if h.kind == hopLocal {
		if d.rewrite == keep && s.permits(in, rules.NoPort, m, target) {
			if c, natted := s.unknownBinding(m); natted && !s.isOwn(m.destination) {
				s.drop(f, c)
				return false
			}
			s.deliver(in, f)
			return false
		}
		d.verdict, d.cause = dropped, Denied
		return keeps && d.rewrite == keep
	}
	if d.rewrite == keep && target == m.destination && !s.nat.Empty() {
		if c, natted := s.unknownBinding(m); natted {
			s.drop(f, c)
			return false
		}
	}
	if linkLocal4(src) || linkLocal4(dst) {
		d.verdict, d.cause = dropped, Martian
		return true
	}
	if h.kind != hopVia && h.kind != hopLink {
		return s.noWay(in, f, m, d, h.kind)
	}
	if !s.permits(in, int(h.port), m, target) {
		d.verdict, d.cause = dropped, Denied
		return keeps && d.rewrite == keep
	}
	mac, next, ok := s.resolve(h, target)
	if !ok {
		s.hold(in, f, int(h.port), next)
		return false
	}
	if d.rewrite == keep && !s.nat.Empty() {
		if s.toOutside(in, f, m, int(h.port), d) {
			return false
		}
	}
	s.fill(d, int(h.port), mac)
	return keeps
}

// unknownBinding says whether a packet goes to an address that is only
// translated to.
func (s *Shard) unknownBinding(m *meta) (Cause, bool) {
	if s.nat.Empty() {
		return 0, false
	}
	_, outside := s.nat.Owner(endpoint(m))
	return NATUnknown, outside
}

// handle6 is handle4 for IPv6.
func (s *Shard) handle6(in *port, f *driver.Frame, m *meta) {
	var d *decision
	if s.six != nil {
		d = s.six.lookup(m.place, m.hash, m.key6(), s.snap.generation, s.tick)
	}
	if d != nil {
		s.counters.CacheHits++
		s.window.found++
	} else {
		s.counters.CacheMisses++
		d = &s.scratch
		*d = decision{generation: s.snap.generation, used: s.tick}
		keeps := s.decide6(in, f, m, d)
		if d.verdict == undecided {
			return
		}
		if keeps && s.six != nil && s.admit() {
			d = s.six.store(m.hash, m.key6(), d)
		}
	}
	if d.verdict == dropped {
		s.drop(f, d.cause)
		return
	}
	b := f.Data[ethernet:]
	if b[7] <= 1 {
		s.counters.Dropped[HopLimit]++
		s.error6(in, f, m, icmp6TimeExceeded, 0, 0)
		s.free(f)
		return
	}
	if m.length > d.mtu {
		s.counters.Dropped[TooBig]++
		s.error6(in, f, m, icmp6TooBig, 0, uint32(d.mtu))
		s.free(f)
		return
	}
	b[7]--
	*(*[12]byte)(f.Data) = d.header
	if end := ethernet + int(m.length); len(f.Data) > end && end >= 60 {
		f.Data = f.Data[:end]
	}
	s.counters.Forwarded++
	s.output(&s.ports[d.port], f, m.hash)
}

func (s *Shard) decide6(in *port, f *driver.Frame, m *meta, d *decision) (keeps bool) {
	if martian6(m.source) || m.source.multicast6() || martian6(m.destination) || s.isOwn(m.source) {
		d.verdict, d.cause = dropped, Martian
		return true
	}
	if m.destination.multicast6() {
		d.verdict, d.cause = dropped, Multicast
		return true
	}
	if m.destination.linkLocal6() || m.source.linkLocal6() {
		// Never off its link (RFC 4291 2.5.6); to the box only on this one.
		if s.ownOn(in.index, m.destination) || m.source.linkLocal6() && !m.destination.linkLocal6() && s.isOwn(m.destination) {
			if s.permits(in, rules.NoPort, m, m.destination) {
				s.deliver(in, f)
				return false
			}
			d.verdict, d.cause = dropped, Denied
			return true
		}
		d.verdict, d.cause = dropped, Martian
		return true
	}
	if m.hop == notYet {
		m.hop = s.snap.table.Lookup6(m.destination.high, m.destination.low)
	}
	h := s.hopOf(m.hop, m.hash)
	switch h.kind {
	case hopLocal:
		if s.permits(in, rules.NoPort, m, m.destination) {
			s.deliver(in, f)
			return false
		}
		d.verdict, d.cause = dropped, Denied
		return true
	case hopVia, hopLink:
	default:
		return s.noWay(in, f, m, d, h.kind)
	}
	if !s.permits(in, int(h.port), m, m.destination) {
		d.verdict, d.cause = dropped, Denied
		return true
	}
	mac, next, ok := s.resolve(h, m.destination)
	if !ok {
		s.hold(in, f, int(h.port), next)
		return false
	}
	s.fill(d, int(h.port), mac)
	return true
}

// hopOf is what a number of the forwarding table stands for; where there are
// several next hops, the flow's.
func (s *Shard) hopOf(id uint32, hash uint64) *hop {
	h := &s.snap.hops[id]
	if h.kind == hopSeveral {
		h = &s.snap.hops[s.snap.members[h.first+uint32(hash>>33)%h.n]]
	}
	return h
}

// resolve returns the Ethernet address of the next hop to a destination.
func (s *Shard) resolve(h *hop, destination address) (mac [6]byte, next address, ok bool) {
	if h.kind == hopVia {
		return h.mac, h.gateway, h.resolved
	}
	if n := s.snap.neighbours.find(int(h.port), destination); n != nil {
		return n.mac, destination, true
	}
	return mac, destination, false
}

// fill completes a decision to forward.
func (s *Shard) fill(d *decision, out int, mac [6]byte) {
	d.verdict, d.port = forwarded, uint8(out)
	d.mtu = uint16(min(s.snap.ports[out].mtu, 0xffff))
	copy(d.header[:], mac[:])
	own := s.ports[out].mac
	be.PutUint16(d.header[6:], uint16(own>>32))
	be.PutUint32(d.header[8:], uint32(own))
}

// noWay drops a packet that cannot be forwarded, and says so to its sender.
func (s *Shard) noWay(in *port, f *driver.Frame, m *meta, d *decision, k hopKind) (keeps bool) {
	cause, code4, code6 := NoRoute, byte(0), byte(0)
	switch k {
	case hopBlackhole:
		d.verdict, d.cause = dropped, Blackhole
		return true
	case hopUnreachable:
		cause, code4 = Unreachable, 1
	case hopAway:
		cause = NoPort
	}
	s.counters.Dropped[cause]++
	if m.kind == packet4 {
		s.error4(in, f, m, icmpUnreachable, code4, 0)
	} else {
		s.error6(in, f, m, icmp6Unreachable, code6, 0)
	}
	s.free(f)
	return false
}

// permits asks the access rules about a packet, which goes to target inside.
func (s *Shard) permits(in *port, out int, m *meta, target address) bool {
	p := rules.Packet{In: in.index, Out: out, Protocol: m.protocol, IPv6: m.kind == packet6}
	if p.IPv6 {
		p.From, p.To = [2]uint64{m.source.high, m.source.low}, [2]uint64{target.high, target.low}
	} else {
		p.From, p.To = [2]uint64{0, m.source.low & 0xffffffff}, [2]uint64{0, target.low & 0xffffffff}
	}
	if m.ports && m.protocol != protocolICMP {
		p.FromPort, p.ToPort, p.HasPorts = m.from, m.toward, true
		if target != m.destination {
			if i, ok := s.nat.Inbound(m.protocol, endpoint(m)); ok {
				p.ToPort = s.nat.Binding(i).Inside.Port
			}
		}
	}
	ok, _ := s.snap.filter.Permits(&p)
	return ok
}

func (s *Shard) deliver(in *port, f *driver.Frame) {
	if s.local == nil {
		s.drop(f, NoLocal)
		return
	}
	s.counters.Delivered++
	s.local.Deliver(in.index, f)
	s.free(f)
}

// isOwn says whether an address is one of the box's, on any port.
func (s *Shard) isOwn(a address) bool {
	for i := range s.snap.own {
		if s.snap.own[i] == a {
			return true
		}
	}
	return false
}

func (s *Shard) ownOn(port int, a address) bool {
	list := s.snap.ports[port].addresses
	for i := range list {
		if list[i].address == a {
			return true
		}
	}
	return false
}

// The martians of RFC 1812 5.3.7: this network, loopback, and as a source
// multicast, broadcast and class E, which as a destination is one too.
func martianSource4(a uint32) bool { return a>>24 == 0 || a>>24 == 127 || a>>28 >= 14 }
func martianDestination4(a uint32) bool {
	return a>>24 == 0 || a>>24 == 127 || a>>28 == 15
}

// linkLocal4 addresses stay on their link: RFC 3927 7.
func linkLocal4(a uint32) bool { return a>>16 == 169<<8|254 }

// martian6 addresses are not for any wire: unspecified, loopback (RFC 4291 2.5)
// and IPv4 mapped into IPv6.
func martian6(a address) bool { return a.high == 0 && (a.low <= 1 || a.low>>32 == 0xffff) }
