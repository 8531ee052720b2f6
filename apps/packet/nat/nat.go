// Package nat is one shard's share of source translation: it gives inside
// endpoints (address and port, or the identifier of an ICMP echo) an outside
// address and port, and finds them again for replies. The outside ports of
// every address are divided among the shards, so any shard can tell whose a
// packet is and no two shards share anything.
//
// A shard maps an inside endpoint to one outside endpoint for all destinations,
// and whoever is sent to may answer (RFC 4787: endpoint-independent mapping and
// filtering; filter with access rules). Another shard that gets packets of the
// same endpoint, as receive-side scaling goes by flows, makes a mapping of its
// own. Only IPv4, and TCP, UDP and ICMP echo, are translated.
package nat

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"

	"github.com/pollux-net/pollux/apps/packet/rules"
)

// The protocols that are translated.
const (
	ICMP = 1
	TCP  = 6
	UDP  = 17
)

// Timeouts after the last packet, outbound or inbound.
type Timeouts struct {
	// TCP: a connection with traffic both ways, 2 h 4 min (RFC 5382 REQ-5).
	// TCPTransitory: one that is being opened or closed, 4 min. UDP: 5 min (RFC
	// 4787 REQ-5). ICMP: 60 s (RFC 5508 REQ-2).
	TCP, TCPTransitory, UDP, ICMP time.Duration
}

// Config of a shard's table.
type Config struct {
	Rules []rules.NAT
	// Ports are the names of ports by index, for the rules.
	Ports []string
	// Shard of Shards is whose table this is.
	Shard, Shards int
	// Bindings bounds how many there are at a time: 65,536.
	Bindings int
	Timeouts Timeouts // zero fields mean the defaults
	// Reserved are TCP ports that are not translated to: the box's own services
	// have them.
	Reserved []uint16
	// Seed is of the hash, so that nobody outside can foresee it.
	Seed [2]uint64
	// Prefer, if not nil, says whether replies from remote to an outside
	// endpoint arrive at this shard by themselves; ports for which they do are
	// taken where there is a choice.
	Prefer func(protocol uint8, outside uint32, port uint16, remote uint32, remotePort uint16) bool
}

// Endpoint is an IPv4 address in host order and a port.
type Endpoint struct {
	Address uint32
	Port    uint16
}

// Binding is one mapping. Epoch changes when it is given to somebody else.
type Binding struct {
	Inside, Outside Endpoint
	Epoch           uint32
	used            uint32 // in ticks
	next, nextOut   int32  // chains
	pool            uint16
	protocol        uint8 // 0: free
	state           uint8
}

// What has been seen of a binding's TCP connection.
const (
	seenInside uint8 = 1 << iota
	seenOutside
	finInside
	finOutside
	reset
)

// tick is the unit of age.
const tick = 100 * time.Millisecond

// Table belongs to one shard.
type Table struct {
	config   Config
	pools    []pool
	outside  []addressRange // of all pools
	bindings []Binding
	inside   []int32 // by hash of the inside endpoint: first of a chain
	out      []int32 // by hash of the outside endpoint
	free     int32
	used     int
	sweep    int
	timeouts [3]uint32 // TCP, transitory, UDP, in ticks
	icmp     uint32
}

type addressRange struct {
	first, last uint32
	ports       rules.Ports
}

// pool is what one rule translates to: the shard's ports of each address.
type pool struct {
	out        int
	from, mask uint32
	first      uint32
	n          int
	low        uint16
	span       int // ports of this shard
	taken      [][]uint64
	count      []int
	cursor     []int
	same       int // the pool that owns the ports, of an earlier rule with the same
}

// New makes a table without bindings.
func New(c Config) *Table {
	if c.Bindings == 0 {
		c.Bindings = 1 << 16
	}
	or := func(d *time.Duration, def time.Duration) uint32 {
		if *d == 0 {
			*d = def
		}
		return uint32(*d / tick)
	}
	t := &Table{config: c, bindings: make([]Binding, c.Bindings)}
	t.timeouts = [3]uint32{or(&c.Timeouts.TCP, 124*time.Minute), or(&c.Timeouts.TCPTransitory, 4*time.Minute), or(&c.Timeouts.UDP, 5*time.Minute)}
	t.icmp = or(&c.Timeouts.ICMP, time.Minute)
	buckets := 1
	for buckets < c.Bindings {
		buckets *= 2
	}
	t.inside, t.out = make([]int32, buckets), make([]int32, buckets)
	for i := range t.inside {
		t.inside[i], t.out[i] = -1, -1
	}
	for i := range t.bindings {
		t.bindings[i].next = int32(i) + 1
	}
	t.bindings[c.Bindings-1].next = -1
	for i, r := range c.Rules {
		p := pool{out: rules.NoPort, first: number(r.First), same: i}
		p.n = int(number(r.Last)-p.first) + 1
		for j, name := range c.Ports {
			if name == r.Out {
				p.out = j
			}
		}
		if r.From.IsValid() {
			p.mask = ^uint32(0) << (32 - r.From.Bits())
			p.from = number(r.From.Addr())
		}
		p.low, p.span = share(r.Ports, c.Shard, c.Shards)
		for j := range t.pools {
			if q := &t.pools[j]; q.first == p.first && q.n == p.n && q.low == p.low && q.span == p.span {
				p.same = q.same
			}
		}
		if p.same == i {
			const protocols = 3
			p.taken, p.count, p.cursor = make([][]uint64, p.n*protocols), make([]int, p.n*protocols), make([]int, p.n*protocols)
			for j := range p.taken {
				p.taken[j] = make([]uint64, (p.span+63)/64)
			}
			for at := 0; at < len(p.taken); at += protocols { // TCP's, see class
				for _, port := range c.Reserved {
					p.reserve(at, port)
				}
			}
		}
		t.pools = append(t.pools, p)
		t.outside = append(t.outside, addressRange{p.first, p.first + uint32(p.n) - 1, r.Ports})
	}
	return t
}

// reserve has a port never given away, if it is one of the pool's.
func (p *pool) reserve(at int, port uint16) {
	k := int(port) - int(p.low)
	if k >= 0 && k < p.span && p.taken[at][k/64]>>(k%64)&1 == 0 {
		p.taken[at][k/64] |= 1 << (k % 64)
		p.count[at]++
	}
}

// share is a shard's part of a range of ports.
func share(r rules.Ports, shard, shards int) (low uint16, span int) {
	all := int(r.Last) - int(r.First) + 1
	each := all / shards
	return r.First + uint16(shard*each), each
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// Empty says whether there is nothing to translate.
func (t *Table) Empty() bool { return len(t.pools) == 0 }

// Used is the number of bindings in use, and Size how many there can be.
func (t *Table) Used() int { return t.used }
func (t *Table) Size() int { return len(t.bindings) }

// Owner says whose an outside endpoint is: no pool has the address (-1, false),
// or the shard, or -1 if the port is nobody's.
func (t *Table) Owner(e Endpoint) (shard int, outside bool) {
	for i := range t.outside {
		r := &t.outside[i]
		if e.Address < r.first || e.Address > r.last {
			continue
		}
		outside = true
		if e.Port < r.ports.First || e.Port > r.ports.Last {
			continue
		}
		each := (int(r.ports.Last) - int(r.ports.First) + 1) / t.config.Shards
		if each == 0 {
			continue
		}
		if shard := int(e.Port-r.ports.First) / each; shard < t.config.Shards {
			return shard, true
		}
	}
	return -1, outside
}

// Wants says which rule translates packets from an address that leave by a port;
// false if none does.
func (t *Table) Wants(out int, from uint32) (rule int, ok bool) {
	for i := range t.pools {
		if p := &t.pools[i]; p.out == out && from&p.mask == p.from {
			return i, true
		}
	}
	return 0, false
}

func (t *Table) hash(e Endpoint, protocol uint8, pool int) int {
	x := uint64(e.Address)<<32 | uint64(e.Port)<<16 | uint64(protocol)<<8 | uint64(pool)
	h, l := bits.Mul64(x^0x9e3779b97f4a7c15^t.config.Seed[0], 0xd6e8feb86659fd93^t.config.Seed[1])
	return int(h^l) & (len(t.inside) - 1)
}

// class is the index of a protocol's ports in a pool.
func class(protocol uint8) (int, bool) {
	switch protocol {
	case TCP:
		return 0, true
	case UDP:
		return 1, true
	case ICMP:
		return 2, true
	}
	return 0, false
}

// Translates says whether a protocol can be translated.
func Translates(protocol uint8) bool {
	_, ok := class(protocol)
	return ok
}

// Find returns the binding of an inside endpoint under a rule, if there is one.
func (t *Table) Find(rule int, protocol uint8, inside Endpoint) (int, bool) {
	owner := t.pools[rule].same
	return t.find(t.hash(inside, protocol, owner), owner, protocol, inside)
}

func (t *Table) find(bucket, owner int, protocol uint8, inside Endpoint) (int, bool) {
	for i := t.inside[bucket]; i >= 0; i = t.bindings[i].next {
		if b := &t.bindings[i]; b.Inside == inside && b.protocol == protocol && int(b.pool) == owner {
			return int(i), true
		}
	}
	return 0, false
}

// Outbound returns the binding of an inside endpoint under a rule, a new one if
// need be; false if bindings or ports are used up.
func (t *Table) Outbound(rule int, protocol uint8, inside Endpoint, remote Endpoint, now time.Duration) (int, bool) {
	owner := t.pools[rule].same
	bucket := t.hash(inside, protocol, owner)
	if i, ok := t.find(bucket, owner, protocol, inside); ok {
		return i, true
	}
	kind, ok := class(protocol)
	if !ok || t.free < 0 {
		return 0, false
	}
	outside, ok := t.allocate(&t.pools[owner], kind, protocol, inside, remote)
	if !ok {
		return 0, false
	}
	i := t.free
	b := &t.bindings[i]
	t.free = b.next
	t.used++
	*b = Binding{Inside: inside, Outside: outside, Epoch: b.Epoch + 1, used: ticks(now), pool: uint16(owner), protocol: protocol}
	b.next, t.inside[bucket] = t.inside[bucket], i
	bucket = t.hash(outside, protocol, 0)
	b.nextOut, t.out[bucket] = t.out[bucket], i
	return int(i), true
}

// preferences is how many free ports are looked at for one that is preferred.
const preferences = 16

// allocate takes a port. An inside address keeps its outside address while that
// has ports (RFC 4787 REQ-2: paired).
func (t *Table) allocate(p *pool, kind int, protocol uint8, inside, remote Endpoint) (Endpoint, bool) {
	start := int(inside.Address*2654435761>>16) % p.n
	for k := range p.n {
		a := (start + k) % p.n
		at := a*3 + kind
		if p.count[at] >= p.span {
			continue
		}
		address, chosen := p.first+uint32(a), -1
		port := p.cursor[at]
		for range preferences {
			port = nextFree(p.taken[at], port, p.span)
			if chosen < 0 {
				chosen = port
			}
			if t.config.Prefer == nil || t.config.Prefer(protocol, address, p.low+uint16(port), remote.Address, remote.Port) {
				chosen = port
				break
			}
			port = (port + 1) % p.span
		}
		p.taken[at][chosen/64] |= 1 << (chosen % 64)
		p.count[at]++
		p.cursor[at] = (chosen + 1) % p.span
		return Endpoint{address, p.low + uint16(chosen)}, true
	}
	return Endpoint{}, false
}

// nextFree is the first port at or after start, round the end, whose bit is
// clear; there must be one.
func nextFree(taken []uint64, start, n int) int {
	for {
		word := ^taken[start/64] >> (start % 64)
		if word == 0 {
			start = (start/64 + 1) * 64
		} else if start += bits.TrailingZeros64(word); start < n {
			return start
		}
		if start >= n {
			start = 0
		}
	}
}

// Inbound returns the binding of an outside endpoint.
func (t *Table) Inbound(protocol uint8, outside Endpoint) (int, bool) {
	for i := t.out[t.hash(outside, protocol, 0)]; i >= 0; i = t.bindings[i].nextOut {
		if b := &t.bindings[i]; b.Outside == outside && b.protocol == protocol {
			return int(i), true
		}
	}
	return 0, false
}

// Binding is that of an index that Outbound or Inbound returned.
func (t *Table) Binding(i int) *Binding { return &t.bindings[i] }

// Flags of TCP that end a connection.
const (
	tcpFIN = 1
	tcpRST = 4
)

// Touch notes a packet of a binding, and false if the binding has meanwhile been
// given to somebody else. Flags are TCP's, 0 for others.
func (t *Table) Touch(i int, epoch uint32, inbound bool, flags uint8, now time.Duration) bool {
	b := &t.bindings[i]
	if b.Epoch != epoch || b.protocol == 0 {
		return false
	}
	b.used = ticks(now)
	if b.protocol != TCP {
		return true
	}
	seen, fin := seenInside, finInside
	if inbound {
		seen, fin = seenOutside, finOutside
	}
	const syn = 2
	if flags&syn != 0 && !inbound && b.state&(reset|finInside|finOutside) != 0 {
		b.state = 0 // the port is used again
	}
	b.state |= seen
	if flags&tcpFIN != 0 {
		b.state |= fin
	}
	if flags&tcpRST != 0 {
		b.state |= reset
	}
	return true
}

// ticks are at least one, and wrap after 13 years.
func ticks(now time.Duration) uint32 { return uint32(now/tick) + 1 }

func (t *Table) timeout(b *Binding) uint32 {
	switch b.protocol {
	case ICMP:
		return t.icmp
	case UDP:
		return t.timeouts[2]
	}
	const both = seenInside | seenOutside
	if b.state&both == both && b.state&reset == 0 && b.state&(finInside|finOutside) != finInside|finOutside {
		return t.timeouts[0]
	}
	return t.timeouts[1]
}

// Expire looks at the next n bindings and ends those whose time is over. It
// returns how many it ended.
func (t *Table) Expire(n int, now time.Duration) (ended int) {
	if t.used == 0 {
		return 0
	}
	for range min(n, len(t.bindings)) {
		b := &t.bindings[t.sweep]
		if b.protocol != 0 && ticks(now)-b.used > t.timeout(b) {
			t.end(int32(t.sweep))
			ended++
		}
		if t.sweep++; t.sweep == len(t.bindings) {
			t.sweep = 0
		}
	}
	return ended
}

func (t *Table) end(i int32) {
	b := &t.bindings[i]
	p := &t.pools[b.pool]
	kind, _ := class(b.protocol)
	at := int(b.Outside.Address-p.first)*3 + kind
	port := int(b.Outside.Port - p.low)
	p.taken[at][port/64] &^= 1 << (port % 64)
	p.count[at]--
	for link := &t.inside[t.hash(b.Inside, b.protocol, int(b.pool))]; ; link = &t.bindings[*link].next {
		if *link == i {
			*link = b.next
			break
		}
	}
	for link := &t.out[t.hash(b.Outside, b.protocol, 0)]; ; link = &t.bindings[*link].nextOut {
		if *link == i {
			*link = b.nextOut
			break
		}
	}
	*b = Binding{Epoch: b.Epoch + 1, next: t.free}
	t.free = i
	t.used--
}
