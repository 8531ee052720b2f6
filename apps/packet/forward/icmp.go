package forward

import "github.com/pollux-net/pollux/driver"

// Types of ICMP errors (RFC 792, RFC 4443).
const (
	icmpUnreachable  = 3
	icmpTimeExceeded = 11

	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
)

// How much of the packet an error quotes: so that the error fits into what every
// host takes (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
const (
	quote4 = 576 - ip4 - 8
	quote6 = 1280 - ip6 - 8
)

// error4 tells the sender of a packet what became of it. The packet must be as it
// came in, and stays the caller's.
func (s *Shard) error4(in *port, f *driver.Frame, m *meta, kind, code byte, rest uint32) {
	// None about errors, about fragments but the first, and to nobody in
	// particular (RFC 1812 4.3.2.7).
	if m.fragment == tail || m.protocol == protocolICMP && (!m.ports && m.icmpType != 8 && m.icmpType != 0) || martianSource4(uint32(m.source.low)) {
		return
	}
	source := s.snap.ports[in.index].own4
	for i := range s.snap.ports {
		if source == 0 {
			source = s.snap.ports[i].own4
		}
	}
	if source == 0 {
		return
	}
	packet := f.Data[ethernet : ethernet+int(m.length)]
	quote := packet[:min(len(packet), quote4)]
	e, ok := s.errorFrame(in, ip4+8+len(quote))
	if !ok {
		return
	}
	b := e.Data[ethernet:]
	clear(b[:ip4+8])
	b[0], b[1], b[8], b[9] = 0x45, 0xc0, 64, protocolICMP // precedence: RFC 1812 4.3.2.5
	be.PutUint16(b[2:], uint16(len(b)))
	be.PutUint32(b[12:], source)
	be.PutUint32(b[16:], uint32(m.source.low))
	be.PutUint16(b[10:], ^fold(sum(b[:ip4], 0)))
	o := b[ip4:]
	o[0], o[1] = kind, code
	be.PutUint32(o[4:], rest)
	copy(o[8:], quote)
	be.PutUint16(o[2:], ^fold(sum(o, 0)))
	be.PutUint16(e.Data[12:], typeIPv4)
	s.counters.ICMPSent++
	s.Originate(&e, in.index)
}

// error6 is error4 for IPv6.
func (s *Shard) error6(in *port, f *driver.Frame, m *meta, kind, code byte, rest uint32) {
	if m.fragment == tail || m.protocol == protocolICMP6 && m.icmpType < 128 || m.source.multicast6() || martian6(m.source) {
		return
	}
	source := address{}
	for k := range s.snap.ports {
		// Of the port where the packet came in, if it has a global address.
		p := &s.snap.ports[(in.index+k)%len(s.snap.ports)]
		for i := range p.addresses {
			if a := p.addresses[i].address; !a.is4() && (source == address{}) && (!a.linkLocal6() || m.source.linkLocal6()) {
				source = a
			}
		}
	}
	if source == (address{}) {
		return
	}
	packet := f.Data[ethernet : ethernet+int(m.length)]
	quote := packet[:min(len(packet), quote6)]
	e, ok := s.errorFrame(in, ip6+8+len(quote))
	if !ok {
		return
	}
	b := e.Data[ethernet:]
	clear(b[:ip6+8])
	b[0], b[6], b[7] = 0x60, protocolICMP6, 64
	be.PutUint16(b[4:], uint16(len(b)-ip6))
	source.put(b[8:])
	m.source.put(b[24:])
	o := b[ip6:]
	o[0], o[1] = kind, code
	be.PutUint32(o[4:], rest)
	copy(o[8:], quote)
	be.PutUint16(o[2:], checksum6(b))
	be.PutUint16(e.Data[12:], typeIPv6)
	s.counters.ICMPSent++
	s.Originate(&e, in.index)
}

// checksum6 is that of the ICMPv6 message in a packet without extension headers;
// its field must be 0.
func checksum6(b []byte) uint16 {
	return ^fold(sum(b[8:], uint64(len(b)-ip6)+protocolICMP6))
}

// errorFrame is an empty frame for an error, if the rate allows one.
func (s *Shard) errorFrame(in *port, size int) (driver.Frame, bool) {
	if !s.icmp.take(s.now) {
		s.counters.ICMPLimited++
		return driver.Frame{}, false
	}
	return s.allocate(in, ethernet+size)
}

func (s *Shard) allocate(p *port, size int) (driver.Frame, bool) {
	if p.queue.Allocate(s.spare[:], size) != 1 {
		return driver.Frame{}, false
	}
	f := s.spare[0]
	s.spare[0] = driver.Frame{}
	f.Data = f.Data[:size]
	return f, true
}

// Originate sends a packet of the box's own: an Ethernet frame whose addresses
// are filled in here, as the tables lead to its destination. It takes the frame.
// Hint is the port for destinations on a link that the packet does not name.
func (s *Shard) Originate(f *driver.Frame, hint int) {
	s.counters.Originated++
	if !s.originate(f, hint) {
		s.counters.OriginDropped++
		s.free(f)
	}
}

func (s *Shard) originate(f *driver.Frame, hint int) bool {
	if len(f.Data) < ethernet+ip4 {
		return false
	}
	b := f.Data[ethernet:]
	var to address
	var h *hop
	switch be.Uint16(f.Data[12:]) {
	case typeIPv4:
		to = address4(be.Uint32(b[16:]))
		h = s.hopOf(s.snap.table.Lookup4(uint32(to.low)), s.mix(to.low, 0))
	case typeIPv6:
		if len(b) < ip6 {
			return false
		}
		to = address6(b[24:])
		h = s.hopOf(s.snap.table.Lookup6(to.high, to.low), s.mix(to.low, to.high))
	default:
		return false
	}
	out := int(h.port)
	next := to
	var mac [6]byte
	var ok bool
	switch {
	case to.linkLocal6() && hint >= 0:
		out = hint
		if n := s.snap.neighbours.find(out, to); n != nil {
			mac, ok = n.mac, true
		}
	case h.kind == hopVia || h.kind == hopLink:
		mac, next, ok = s.resolve(h, to)
	default:
		return false
	}
	if !ok {
		s.holdOwn(f, out, next, hint)
		return true
	}
	s.fill(&s.own, out, mac)
	copy(f.Data[:12], s.own.header[:])
	s.output(&s.ports[out], f, s.mix(to.low, to.high))
	return true
}

// tooBig4 fragments an IPv4 packet that is larger than its output's MTU, or says
// that it must be smaller (RFC 1191).
func (s *Shard) tooBig4(in *port, f *driver.Frame, m *meta, d *decision) {
	const dontFragment = 0x40
	b := f.Data[ethernet:]
	if b[6]&dontFragment != 0 {
		s.counters.Dropped[TooBig]++
		s.error4(in, f, m, icmpUnreachable, 4, uint32(d.mtu))
		s.free(f)
		return
	}
	size := int(b[0]&15) * 4
	each := (int(d.mtu) - size) &^ 7
	if each <= 0 {
		s.drop(f, TooBig)
		return
	}
	// All pieces or none.
	n := (int(m.length) - size + each - 1) / each
	out := &s.ports[d.port]
	if n > len(s.pieces) || !s.allocatePieces(out, n, ethernet+size+each) {
		s.drop(f, NoFrame)
		return
	}
	s.rewrite4(f, m, d)
	field := be.Uint16(b[6:])
	payload := b[size:m.length]
	for i := range n {
		part := payload[i*each : min((i+1)*each, len(payload))]
		p := &s.pieces[i]
		p.Data = p.Data[:ethernet+size+len(part)]
		copy(p.Data, f.Data[:ethernet+size])
		h := p.Data[ethernet:]
		if i > 0 {
			uncopied(h[ip4:size])
		}
		flags := field
		if i < n-1 {
			flags |= 0x2000
		}
		be.PutUint16(h[6:], flags+uint16(i*each/8))
		be.PutUint16(h[2:], uint16(size+len(part)))
		be.PutUint16(h[10:], 0)
		be.PutUint16(h[10:], ^fold(sum(h[:size], 0)))
		copy(h[size:], part)
		s.output(out, p, m.hash)
	}
	s.counters.Fragments += uint64(n)
	s.counters.Forwarded++
	s.free(f)
}

func (s *Shard) allocatePieces(out *port, n, size int) bool {
	if got := out.queue.Allocate(s.pieces[:n], size); got < n {
		driver.Free(s.pieces[:got])
		return false
	}
	return true
}

// uncopied overwrites the options that only the first fragment carries.
func uncopied(o []byte) {
	for len(o) > 0 && o[0] != 0 {
		n := 1
		if o[0] != 1 {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				return
			}
			n = int(o[1])
		}
		if o[0]&0x80 == 0 {
			for i := range o[:n] {
				o[i] = 1
			}
		}
		o = o[n:]
	}
}
