package forward

import (
	"github.com/pollux-net/pollux/apps/packet/nat"
	"github.com/pollux-net/pollux/driver"
)

// bindings is the size of a table for rules: next to nothing without any.
func (f *Forwarder) bindings(r *natRules) int {
	if len(r.list) == 0 {
		return 1
	}
	return f.config.Bindings
}

// prefer says whether the device brings replies to a shard by itself.
func (f *Forwarder) prefer(shard int) func(uint8, uint32, uint16, uint32, uint16) bool {
	if f.config.Shards == 1 {
		return nil
	}
	rss, ok := f.ports[0].RSS()
	if !ok || len(rss.Key) < 16 {
		return nil
	}
	for _, p := range f.ports[1:] { // by whichever port the reply comes
		other, ok := p.RSS()
		if !ok || string(other.Key) != string(rss.Key) || len(other.Table) != len(rss.Table) {
			return nil
		}
	}
	hasher := driver.NewHasher(rss.Key)
	return func(protocol uint8, outside uint32, port uint16, remote uint32, remotePort uint16) bool {
		var b [12]byte
		be.PutUint32(b[:], remote)
		be.PutUint32(b[4:], outside)
		n := 8
		if protocol == protocolTCP && rss.TCP4 || protocol == protocolUDP && rss.UDP4 {
			be.PutUint16(b[8:], remotePort)
			be.PutUint16(b[10:], port)
			n = 12
		}
		return rss.Queue(hasher.Sum(b[:n])) == shard
	}
}

// icmpError says whether an ICMP message reports an error, and so holds the
// beginning of a packet.
func icmpError(m *meta) bool {
	if m.protocol != protocolICMP || m.fragment != whole {
		return false
	}
	switch m.icmpType {
	case 3, 4, 5, 11, 12:
		return true
	}
	return false
}

// quoted reads the packet that an ICMP error quotes: where its header is, and
// its endpoints.
func quoted(b []byte, m *meta) (at int, protocol uint8, from, to nat.Endpoint, ok bool) {
	at = int(m.l4) + 8
	q := b[min(at, int(m.length)):m.length]
	if len(q) < ip4+8 || q[0]>>4 != 4 {
		return 0, 0, from, to, false
	}
	size := int(q[0]&15) * 4
	if size < ip4 || len(q) < size+8 || be.Uint16(q[6:])&0x1fff != 0 {
		return 0, 0, from, to, false
	}
	protocol = q[9]
	from.Address, to.Address = be.Uint32(q[12:]), be.Uint32(q[16:])
	switch l4 := q[size:]; protocol {
	case protocolTCP, protocolUDP:
		from.Port, to.Port = be.Uint16(l4), be.Uint16(l4[2:])
	case protocolICMP:
		// The identifier is that of whoever asked.
		if l4[0] == 8 {
			from.Port = be.Uint16(l4[4:])
		} else if l4[0] == 0 {
			to.Port = be.Uint16(l4[4:])
		} else {
			return 0, 0, from, to, false
		}
	default:
		return 0, 0, from, to, false
	}
	return at, protocol, from, to, true
}

// translateQuote rewrites one endpoint of the packet that an ICMP error quotes,
// and the error's own checksum: RFC 5508 4.2. The first 8 bytes of the quoted
// transport header are there, its checksum maybe not.
func translateQuote(b []byte, m *meta, at int, source bool, e nat.Endpoint) {
	q := b[at:m.length]
	size := int(q[0]&15) * 4
	end := len(q)
	outer := b[m.l4:m.length]
	// Summing what changes before and after keeps the error's checksum right
	// also over an odd number of bytes, as all fields lie at even places.
	before := fold(sum(q[:end], 0))
	where := 16
	if source {
		where = 12
	}
	was := be.Uint32(q[where:])
	be.PutUint32(q[where:], e.Address)
	be.PutUint16(q[10:], adjust(be.Uint16(q[10:]), was, e.Address))
	l4 := q[size:]
	portAt, checksumAt := 2, -1
	switch q[9] {
	case protocolTCP:
		checksumAt = 16
	case protocolUDP:
		checksumAt = 6
	case protocolICMP:
		portAt, checksumAt = 4, 2
	}
	if source && q[9] != protocolICMP {
		portAt = 0
	}
	wasPort := be.Uint16(l4[portAt:])
	be.PutUint16(l4[portAt:], e.Port)
	if checksumAt >= 0 && checksumAt+2 <= len(l4) && !(q[9] == protocolUDP && be.Uint16(l4[6:]) == 0) {
		c := be.Uint16(l4[checksumAt:])
		c = adjust(c, uint32(wasPort), uint32(e.Port))
		if q[9] != protocolICMP {
			c = adjust(c, was, e.Address)
		}
		be.PutUint16(l4[checksumAt:], c)
	}
	after := fold(sum(q[:end], 0))
	be.PutUint16(outer[2:], adjust(be.Uint16(outer[2:]), uint32(before), uint32(after)))
}

// setAddress rewrites the source or destination address of an IPv4 packet, with
// the header's checksum.
func setAddress(b []byte, where int, is uint32) {
	was := be.Uint32(b[where:])
	be.PutUint32(b[where:], is)
	be.PutUint16(b[10:], adjust(be.Uint16(b[10:]), was, is))
}

// translate rewrites a packet's endpoint as its flow's decision says. The port
// is known to be there.
func translate(b []byte, m *meta, d *decision) {
	where, portAt := 12, 0
	if d.rewrite == rewriteDestination {
		where, portAt = 16, 2
	}
	was := be.Uint32(b[where:])
	setAddress(b, where, d.newAddress)
	l4 := b[m.l4:]
	checksumAt := 16
	switch m.protocol {
	case protocolUDP:
		checksumAt = 6
	case protocolICMP:
		portAt, checksumAt = 4, 2
	}
	wasPort := be.Uint16(l4[portAt:])
	be.PutUint16(l4[portAt:], d.newPort)
	c := be.Uint16(l4[checksumAt:])
	if m.protocol == protocolUDP && c == 0 {
		return // the sender computed none
	}
	c = adjust(c, uint32(wasPort), uint32(d.newPort))
	if m.protocol != protocolICMP {
		c = adjust(c, was, d.newAddress)
	}
	if c == 0 && m.protocol == protocolUDP {
		c = 0xffff
	}
	be.PutUint16(l4[checksumAt:], c)
}

// fromOutside deals with packets to an address that is translated to: dst is
// where it goes inside. Done means that the frame is out of our hands.
func (s *Shard) fromOutside(in *port, f *driver.Frame, m *meta, d *decision) (dst uint32, done bool) {
	dst = uint32(m.destination.low)
	outside := nat.Endpoint{Address: dst, Port: m.toward}
	if _, known := s.nat.Owner(outside); !known {
		return dst, false
	}
	b := f.Data[ethernet:]
	protocol, at := m.protocol, 0
	isError := icmpError(m)
	if isError {
		var ok bool
		var from nat.Endpoint
		if at, protocol, from, _, ok = quoted(b, m); !ok {
			return dst, false
		}
		outside.Port = from.Port
		if from.Address != dst {
			return dst, false
		}
	} else if !m.ports || !nat.Translates(protocol) {
		return dst, false
	} else if protocol == protocolICMP && m.icmpType != 0 {
		return dst, false // an echo request is to the box itself
	}
	shard, _ := s.nat.Owner(outside)
	switch {
	case shard < 0:
		return dst, false
	case shard != s.index:
		s.handOver(shard, in, f, 0)
		return 0, true
	}
	i, ok := s.nat.Inbound(protocol, outside)
	if !ok {
		return dst, false
	}
	if m.fragment != whole {
		s.drop(f, NATFragment)
		return 0, true
	}
	binding := s.nat.Binding(i)
	if isError {
		translateQuote(b, m, at, true, binding.Inside)
		setAddress(b, 16, binding.Inside.Address)
		return binding.Inside.Address, false
	}
	d.rewrite, d.newAddress, d.newPort = rewriteDestination, binding.Inside.Address, binding.Inside.Port
	d.binding, d.epoch = uint32(i), binding.Epoch
	return d.newAddress, false
}

// toOutside deals with packets that leave by a port whose sources are
// translated. Done means that the frame is out of our hands.
func (s *Shard) toOutside(in *port, f *driver.Frame, m *meta, out int, d *decision) (done bool) {
	src := uint32(m.source.low)
	rule, wanted := s.nat.Wants(out, src)
	if !wanted {
		return false
	}
	b := f.Data[ethernet:]
	if icmpError(m) {
		// About a packet that came from outside: it quotes what we sent inside.
		at, protocol, _, to, ok := quoted(b, m)
		if !ok {
			s.drop(f, NATProtocol)
			return true
		}
		// The packet came by a binding, which may be any shard's: receive-side
		// scaling knows only the addresses of an error. Nobody makes a new one. And it
		// was made by the rule for who got the packet, not for who reports it.
		i, found := 0, false
		if rule, wanted = s.nat.Wants(out, to.Address); wanted {
			i, found = s.nat.Find(rule, protocol, to)
		}
		if !found {
			if shards := len(s.forwarder.shards); wanted && int(m.passed)+1 < shards {
				s.handOver((s.index+1)%shards, in, f, int(m.passed)+1)
			} else {
				s.drop(f, NATUnknown)
			}
			return true
		}
		binding := s.nat.Binding(i)
		translateQuote(b, m, at, false, binding.Outside)
		setAddress(b, 12, binding.Outside.Address)
		return false
	}
	cause := Cause(causes)
	switch {
	case m.fragment != whole:
		cause = NATFragment
	case !m.ports || !nat.Translates(m.protocol) || m.protocol == protocolICMP && m.icmpType != 8:
		cause = NATProtocol
	}
	if cause != causes {
		s.drop(f, cause)
		return true
	}
	remote := nat.Endpoint{Address: uint32(m.destination.low), Port: m.toward}
	i, ok := s.nat.Outbound(rule, m.protocol, nat.Endpoint{Address: src, Port: m.from}, remote, s.now)
	if !ok {
		s.drop(f, NATFull)
		return true
	}
	binding := s.nat.Binding(i)
	d.rewrite, d.newAddress, d.newPort = rewriteSource, binding.Outside.Address, binding.Outside.Port
	d.binding, d.epoch = uint32(i), binding.Epoch
	return false
}

func endpoint(m *meta) nat.Endpoint {
	return nat.Endpoint{Address: uint32(m.destination.low), Port: m.toward}
}
