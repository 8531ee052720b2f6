package forward_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

var be = binary.BigEndian

// bed is a forwarder whose ports end on wires, in virtual time. Interface i+1 of
// the kernel is port i, called "p0" and so on, with the addresses 10.i.0.1/16 and
// fd00:i::1/64 and the neighbour 10.i.0.2, fd00:i::2.
type bed struct {
	t     testing.TB
	links []*wire.Link
	f     *forward.Forwarder
	now   time.Duration
	free  []int
	seen  [][][]byte // frames that came out, by port
}

type port struct {
	driver.Port
	name string
}

func (p port) Name() string { return p.name }

func name(i int) string { return "p" + string(rune('0'+i)) }

func routerMAC(i int) [6]byte { return [6]byte{2, 0, 0, 0, byte(i), 1} }
func peerMAC(i int) [6]byte   { return [6]byte{2, 0, 0, 0, byte(i), 2} }

func addr4(i, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i), 0, byte(host)}) }
func addr6(i, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(i), 15: byte(host)})
}

func newBed(t testing.TB, ports int, wires wire.Config, c forward.Config) *bed {
	t.Helper()
	b := new(bed)
	b.build(t, ports, wires, c)
	return b
}

// build is newBed for a bed that its configuration already knows.
func (b *bed) build(t testing.TB, ports int, wires wire.Config, c forward.Config) {
	t.Helper()
	b.t, b.seen = t, make([][][]byte, ports)
	for i := range ports {
		w := wires
		w.Name, w.Addresses, w.Queues = name(i), [2][6]byte{peerMAC(i), routerMAC(i)}, max(1, c.Shards)
		l, err := wire.New(w)
		if err != nil {
			t.Fatal(err)
		}
		b.links = append(b.links, l)
		b.free = append(b.free, l.FreeFrames())
		c.Ports = append(c.Ports, port{l.Port(wire.B), name(i)})
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
	f, err := forward.New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.f = f
	b.apply(b.interfaces())
}

// interfaces is what the kernel would tell of the ports at first.
func (b *bed) interfaces() (u routes.Update) {
	for i := range b.links {
		u.Links = append(u.Links, routes.Link{Interface: i + 1, Name: name(i), MTU: b.links[i].Port(wire.B).MTU(), Up: true, Running: true})
		for _, a := range []netip.Prefix{netip.PrefixFrom(addr4(i, 1), 16), netip.PrefixFrom(addr6(i, 1), 64)} {
			u.Addresses = append(u.Addresses, routes.Address{Interface: i + 1, Prefix: a})
			u.Routes = append(u.Routes, routes.Route{Prefix: a.Masked(), NextHops: []routes.NextHop{{Interface: i + 1}}},
				routes.Route{Prefix: netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), Local: true})
		}
		for _, a := range []netip.Addr{addr4(i, 2), addr6(i, 2)} {
			u.Neighbours = append(u.Neighbours, routes.Neighbour{Interface: i + 1, Address: a, MAC: peerMAC(i), Valid: true, Permanent: true})
		}
	}
	return u
}

func (b *bed) apply(u routes.Update) {
	b.t.Helper()
	if err := b.f.Control().Apply(u); err != nil {
		b.t.Fatal(err)
	}
}

// via is a route by a port's neighbour.
func via(prefix string, i int) routes.Route {
	p := netip.MustParsePrefix(prefix)
	gateway := addr4(i, 2)
	if p.Addr().Is6() {
		gateway = addr6(i, 2)
	}
	return routes.Route{Prefix: p, NextHops: []routes.NextHop{{Gateway: gateway, Interface: i + 1}}}
}

// send hands frames to a port's wire.
func (b *bed) send(i int, frames ...[]byte) {
	b.t.Helper()
	for _, data := range frames {
		if !b.offer(i, data) {
			b.t.Fatalf("the wire of port %d is full", i)
		}
	}
}

func (b *bed) offer(i int, data []byte) bool {
	q := b.links[i].Port(wire.A).Queue(0)
	var f [1]driver.Frame
	if q.Allocate(f[:], len(data)) != 1 {
		return false
	}
	f[0].Data = f[0].Data[:len(data)]
	copy(f[0].Data, data)
	if q.Transmit(f[:]) != 1 {
		driver.Free(f[:])
		return false
	}
	return true
}

// step moves time on and lets all shards work until nothing is left to do.
func (b *bed) step(d time.Duration) {
	b.now += d
	for _, l := range b.links {
		l.Advance(b.now)
	}
	for round := 0; ; round++ {
		work := 0
		for i := range b.f.Shards() {
			work += b.f.Shard(i).Step(b.now)
		}
		work += b.collect()
		if work == 0 {
			return
		}
		if round == 10_000 {
			b.t.Fatal("the forwarder does not come to rest")
		}
	}
}

// collect takes what came out of the ports.
func (b *bed) collect() (n int) {
	var f [64]driver.Frame
	for i, l := range b.links {
		for k := range l.Port(wire.A).Queues() {
			for {
				got := l.Port(wire.A).Queue(k).Receive(f[:])
				if got == 0 {
					break
				}
				for j := range f[:got] {
					b.seen[i] = append(b.seen[i], append([]byte{}, f[j].Data...))
				}
				driver.Free(f[:got])
				n += got
			}
		}
	}
	return n
}

// out returns what came out of a port since the last call.
func (b *bed) out(i int) [][]byte {
	seen := b.seen[i]
	b.seen[i] = nil
	return seen
}

// one expects exactly one frame out of a port, and none of the others.
func (b *bed) one(i int) []byte {
	b.t.Helper()
	for k := range b.links {
		if k != i && len(b.seen[k]) > 0 {
			b.t.Fatalf("port %d sent %x", k, b.out(k)[0])
		}
	}
	seen := b.out(i)
	if len(seen) != 1 {
		b.t.Fatalf("port %d sent %d frames, want one: dropped %v", i, len(seen), b.drops())
	}
	return seen[0]
}

func (b *bed) none() {
	b.t.Helper()
	for k := range b.links {
		if seen := b.out(k); len(seen) > 0 {
			b.t.Fatalf("port %d sent %x", k, seen[0])
		}
	}
}

// total adds up the shards' counters.
func (b *bed) total() (sum forward.Statistics) {
	for i := range b.f.Shards() {
		s := b.f.Shard(i).Statistics()
		sum.Received += s.Received
		sum.HandedIn += s.HandedIn
		sum.Forwarded += s.Forwarded
		sum.Delivered += s.Delivered
		sum.Resolved += s.Resolved
		sum.HandedOut += s.HandedOut
		sum.CacheHits += s.CacheHits
		sum.CacheMisses += s.CacheMisses
		sum.ICMPSent += s.ICMPSent
		sum.ICMPLimited += s.ICMPLimited
		sum.Asked += s.Asked
		sum.Held += s.Held
		sum.Bindings += s.Bindings
		for c := range s.Dropped {
			sum.Dropped[c] += s.Dropped[c]
		}
	}
	return sum
}

// drops are the causes that have a count.
func (b *bed) drops() map[string]uint64 {
	m := map[string]uint64{}
	t := b.total()
	for _, c := range forward.Causes() {
		if n := t.Dropped[c]; n > 0 {
			m[c.String()] = n
		}
	}
	return m
}

// balanced checks that every frame that came in is accounted for once.
func (b *bed) balanced() {
	b.t.Helper()
	s := b.total()
	in := s.Received + s.HandedIn
	out := s.Forwarded + s.Delivered + s.Resolved + s.HandedOut + s.Drops() + uint64(s.Held)
	for _, c := range []forward.Cause{forward.QueueFull, forward.QueueCut, forward.CoDel} {
		out -= s.Dropped[c] // counted as forwarded before
	}
	if in != out {
		b.t.Errorf("%d frames in, %d accounted for: %+v, dropped %v", in, out, s.Counters, b.drops())
	}
}

// close checks that nothing has leaked.
func (b *bed) close() {
	b.t.Helper()
	b.balanced()
	for i := range b.f.Shards() {
		b.f.Shard(i).Close()
	}
	for i, l := range b.links {
		l.Port(wire.A).Close()
		if got := l.FreeFrames(); got != b.free[i] {
			b.t.Errorf("port %d: %d frames of %d are back", i, got, b.free[i])
		}
	}
}

// packet describes one to make.
type packet struct {
	in         int // the port it comes in by
	from, to   netip.Addr
	protocol   byte
	sport      uint16
	dport      uint16
	ttl        byte
	payload    int
	df         bool
	tcpFlags   byte
	fragment   uint16 // flags and offset
	icmpType   byte
	noChecksum bool
}

// frame makes it.
func (p packet) frame() []byte {
	if p.protocol == 0 {
		p.protocol = 17
	}
	if p.ttl == 0 {
		p.ttl = 64
	}
	header := map[byte]int{6: 20}[p.protocol]
	if header == 0 {
		header = 8
	}
	size := 20
	if p.from.Is6() {
		size = 40
	}
	b := make([]byte, 14+size+header+p.payload)
	to, from := routerMAC(p.in), peerMAC(p.in)
	copy(b, to[:])
	copy(b[6:], from[:])
	ip, l4 := b[14:], b[14+size:]
	for i := range l4 {
		l4[i] = byte(i)
	}
	if p.from.Is6() {
		be.PutUint16(b[12:], 0x86dd)
		ip[0], ip[6], ip[7] = 0x60, p.protocol, p.ttl
		be.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], p.from.AsSlice())
		copy(ip[24:], p.to.AsSlice())
	} else {
		be.PutUint16(b[12:], 0x0800)
		ip[0], ip[8], ip[9] = 0x45, p.ttl, p.protocol
		be.PutUint16(ip[2:], uint16(size+len(l4)))
		be.PutUint16(ip[4:], 0x1234)
		be.PutUint16(ip[6:], p.fragment)
		if p.df {
			ip[6] |= 0x40
		}
		copy(ip[12:], p.from.AsSlice())
		copy(ip[16:], p.to.AsSlice())
		be.PutUint16(ip[10:], ^checksum(ip[:20], 0))
	}
	switch p.protocol {
	case 1, 58:
		l4[0], l4[1] = p.icmpType, 0
		be.PutUint16(l4[4:], p.sport)
		be.PutUint16(l4[2:], 0)
		if p.protocol == 1 {
			be.PutUint16(l4[2:], ^checksum(l4, 0))
		} else {
			be.PutUint16(l4[2:], ^checksum(l4, pseudo(ip, len(l4))))
		}
	default:
		be.PutUint16(l4, p.sport)
		be.PutUint16(l4[2:], p.dport)
		at := 6
		if p.protocol == 6 {
			l4[12], l4[13], at = 0x50, p.tcpFlags, 16
		} else {
			be.PutUint16(l4[4:], uint16(len(l4)))
		}
		be.PutUint16(l4[at:], 0)
		if !p.noChecksum {
			be.PutUint16(l4[at:], ^checksum(l4, pseudo(ip, len(l4))))
		}
	}
	return b
}

func checksum(b []byte, start uint32) uint16 {
	s := start
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func pseudo(ip []byte, length int) uint32 {
	if ip[0]>>4 == 6 {
		return uint32(checksum(ip[8:40], uint32(ip[6])+uint32(length)))
	}
	return uint32(checksum(ip[12:20], uint32(ip[9])+uint32(length)))
}

// valid checks every checksum of a frame that came out.
func (b *bed) valid(frame []byte) {
	b.t.Helper()
	ip := frame[14:]
	size := 40
	if ip[0]>>4 == 4 {
		size = int(ip[0]&15) * 4
		ip = ip[:be.Uint16(ip[2:])]
		if checksum(ip[:size], 0) != 0xffff {
			b.t.Errorf("the IPv4 checksum of %x is wrong", frame)
		}
		if be.Uint16(ip[6:])&0x3fff != 0 {
			return
		}
	} else {
		ip = ip[:40+int(be.Uint16(ip[4:]))]
	}
	protocol := ip[9]
	if size == 40 {
		protocol = ip[6]
	}
	l4 := ip[size:]
	switch start := pseudo(ip, len(l4)); protocol {
	case 1:
		start = 0
		fallthrough
	case 6, 17, 58:
		if protocol == 17 && be.Uint16(l4[6:]) == 0 {
			return
		}
		if checksum(l4, start) != 0xffff {
			b.t.Errorf("the checksum of protocol %d in %x is wrong", protocol, frame)
		}
	}
}

// drain frees what a queue receives.
func drain(q driver.Queue) int {
	var f [64]driver.Frame
	n := q.Receive(f[:])
	driver.Free(f[:n])
	return n
}
