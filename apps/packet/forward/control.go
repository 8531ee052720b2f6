package forward

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/apps/packet/fib"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/apps/packet/rules"
)

// snapshot is all that shards decide by. It never changes.
type snapshot struct {
	generation uint32
	table      *fib.Table
	hops       []hop
	members    []uint32 // of hops with several next hops
	neighbours neighbours
	ports      []portState
	own        []address // the box's addresses
	filter     *rules.Filter
	nat        *natRules
}

// natRules are compared by pointer: a shard makes its table anew when they change.
type natRules struct{ list []rules.NAT }

type hopKind uint8

const (
	hopNone hopKind = iota
	hopVia          // by a gateway
	hopLink         // the destination is on the link
	hopLocal
	hopBlackhole
	hopUnreachable
	hopAway // by an interface that is no port
	hopSeveral
)

type hop struct {
	kind     hopKind
	resolved bool // a gateway's mac is known
	port     int8
	mac      [6]byte
	first, n uint32 // members
	gateway  address
}

type portState struct {
	mtu       int
	addresses []ownAddress
	own6      address // link-local, or else another; zero if there is none
	own4      uint32
}

type ownAddress struct {
	address address
	prefix  netip.Prefix
}

// neighbours is an open hash table.
type neighbours struct {
	entries []neighbour
	n       int
	seed    [2]uint64
}

type neighbour struct {
	address address
	mac     [6]byte
	port    int8
	used    bool
}

func (t *neighbours) find(port int, a address) *neighbour {
	if t.n == 0 {
		return nil
	}
	mask := uint64(len(t.entries) - 1)
	for i := a.hash(port, &t.seed) & mask; ; i = (i + 1) & mask {
		e := &t.entries[i]
		if !e.used {
			return nil
		}
		if e.address == a && int(e.port) == port {
			return e
		}
	}
}

func (t *neighbours) insert(e neighbour) {
	mask := uint64(len(t.entries) - 1)
	i := e.address.hash(int(e.port), &t.seed) & mask
	for t.entries[i].used {
		i = (i + 1) & mask
	}
	e.used = true
	t.entries[i] = e
	t.n++
}

// MaxNeighbours bounds those that are learned, so that nobody on a link can fill
// memory.
const MaxNeighbours = 16384

// Neighbours that were learned are asked again when they have not been heard of
// for confirmAfter, and forgotten after askTimes without an answer.
const (
	confirmAfter = 30 * time.Second
	askTimes     = 3
	askEvery     = time.Second
	// Gateways of routes are asked for before they are needed, again and again.
	askGatewaysEvery = 5 * time.Second
)

// Control is the control plane's side. Its methods may be called from any
// goroutine; those that change something publish a new snapshot.
type Control struct {
	forwarder *Forwarder
	current   atomic.Pointer[snapshot]
	seed      [2]uint64 // of the neighbours' hash

	mu         sync.Mutex
	interfaces []string
	index      []int // kernel's index of each port's interface, 0 if unknown
	mtu        []int // of the interface, 0 if unknown
	up         []bool
	builder    *fib.Builder
	routes     map[netip.Prefix]uint32
	ids        map[string]uint32
	hops       []hopRecord
	unused     []uint32
	addresses  map[int][]netip.Prefix // by the kernel's index
	known      map[neighbourKey]*knownNeighbour
	set        *rules.Set
	filter     *rules.Filter
	nat        *natRules
	generation uint32
	gateways   time.Duration // when they were last asked for
}

// hopRecord is an interned hop: a number that prefixes refer to.
type hopRecord struct {
	key        string
	references int
	hop        hop
	inter      int // kernel's index of the interface
	asked      bool
	members    []uint32
}

type neighbourKey struct {
	port int
	a    address
}

type knownNeighbour struct {
	mac       [6]byte
	permanent bool
	confirmed time.Duration
	asked     int
	askedAt   time.Duration
}

func newControl(f *Forwarder, interfaces []string) *Control {
	c := &Control{
		forwarder: f, interfaces: interfaces, index: make([]int, len(interfaces)), mtu: make([]int, len(interfaces)), up: make([]bool, len(interfaces)),
		builder: fib.NewBuilder(), routes: map[netip.Prefix]uint32{}, ids: map[string]uint32{},
		addresses: map[int][]netip.Prefix{}, known: map[neighbourKey]*knownNeighbour{},
		hops: make([]hopRecord, 1), set: &rules.Set{}, nat: &natRules{},
	}
	r := rand.New(rand.NewPCG(f.config.Seed, 1<<32)) // no shard has that number
	c.seed = [2]uint64{r.Uint64(), r.Uint64()}
	c.filter = c.set.Compile(f.names)
	c.current.Store(&snapshot{table: c.builder.Table(), hops: make([]hop, 1), ports: make([]portState, len(interfaces)), filter: c.filter, nat: c.nat})
	c.publish()
	return c
}

// port is the port of a kernel's interface.
func (c *Control) port(inter int) (int, bool) {
	if inter != 0 {
		for i, k := range c.index {
			if k == inter {
				return i, true
			}
		}
	}
	return 0, false
}

// Apply takes over what the kernel's tables say. The shards have it soon after,
// see Acknowledged.
func (c *Control) Apply(u routes.Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range u.Links {
		for i, name := range c.interfaces {
			switch {
			case l.Deleted && c.index[i] == l.Interface:
				c.index[i] = 0
			case !l.Deleted && name == l.Name:
				c.index[i], c.mtu[i], c.up[i] = l.Interface, l.MTU, l.Up
			}
		}
	}
	for _, a := range u.Addresses {
		list := slices.DeleteFunc(c.addresses[a.Interface], func(p netip.Prefix) bool { return p == a.Prefix })
		if !a.Deleted {
			list = append(list, a.Prefix)
		}
		c.addresses[a.Interface] = list
	}
	for _, n := range u.Neighbours {
		port, ok := c.port(n.Interface)
		if !ok {
			continue
		}
		k := neighbourKey{port, addressOf(n.Address)}
		switch old := c.known[k]; {
		case n.Valid && n.Permanent:
			c.known[k] = &knownNeighbour{mac: n.MAC, permanent: true}
		case old != nil && old.permanent:
			delete(c.known, k) // what was configured is no longer
		}
	}
	changes := make([]fib.Change, 0, len(u.Routes)+len(u.Deleted))
	var released []uint32
	for _, r := range u.Routes {
		id, err := c.intern(r)
		if err != nil {
			return fmt.Errorf("route to %v: %w", r.Prefix, err)
		}
		if old, ok := c.routes[r.Prefix]; ok {
			released = append(released, old)
			if old == id {
				continue
			}
		}
		c.routes[r.Prefix] = id
		changes = append(changes, fib.Change{Prefix: r.Prefix, Hop: id})
	}
	for _, p := range u.Deleted {
		if old, ok := c.routes[p]; ok {
			released = append(released, old)
			delete(c.routes, p)
			changes = append(changes, fib.Change{Prefix: p})
		}
	}
	for _, id := range released {
		c.release(id)
	}
	if len(changes) > 0 {
		if _, err := c.builder.Apply(changes); err != nil {
			return err
		}
	}
	c.publish()
	c.askGateways(false)
	return nil
}

// askGateways has the gateways asked for that are not known, before the first
// packet needs them: those that never were, or all.
func (c *Control) askGateways(again bool) {
	shard := c.forwarder.shards[0]
	for i, h := range c.current.Load().hops {
		if h.kind == hopVia && !h.resolved && (again || !c.hops[i].asked) {
			c.hops[i].asked = true
			shard.Post(func() { shard.ask(int(h.port), h.gateway, [6]byte{}) })
		}
	}
}

// SetRules takes over access rules, translation and rates. Translations go on if
// their rules are the same, else all bindings end.
func (c *Control) SetRules(s *rules.Set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.EqualFunc(s.NAT, c.set.NAT, func(a, b rules.NAT) bool { a.Line, b.Line = 0, 0; return a == b }) {
		c.nat = &natRules{s.NAT}
	}
	c.set, c.filter = s, s.Compile(c.forwarder.names)
	for i, name := range c.forwarder.names {
		c.forwarder.outputs[i].SetRate(s.Rates[name])
	}
	c.publish()
}

// intern returns the number of what a route does, with one reference more.
func (c *Control) intern(r routes.Route) (uint32, error) {
	switch {
	case r.Local:
		return c.single("l", hopRecord{hop: hop{kind: hopLocal}})
	case r.Blackhole:
		return c.single("b", hopRecord{hop: hop{kind: hopBlackhole}})
	case r.Unreachable || len(r.NextHops) == 0:
		return c.single("u", hopRecord{hop: hop{kind: hopUnreachable}})
	case len(r.NextHops) == 1:
		return c.nextHop(r.NextHops[0])
	}
	record := hopRecord{hop: hop{kind: hopSeveral}}
	key := []byte("s")
	for _, n := range r.NextHops {
		id, err := c.nextHop(n)
		if err != nil {
			for _, id := range record.members {
				c.release(id)
			}
			return 0, err
		}
		record.members = append(record.members, id)
		key = binary.BigEndian.AppendUint32(key, id)
	}
	if _, exists := c.ids[string(key)]; exists {
		for _, id := range record.members {
			c.release(id) // the existing one has references of its own
		}
	}
	return c.single(string(key), record)
}

func (c *Control) nextHop(n routes.NextHop) (uint32, error) {
	key := binary.BigEndian.AppendUint64([]byte("n"), uint64(n.Interface))
	record := hopRecord{hop: hop{kind: hopLink}, inter: n.Interface}
	if n.Gateway.IsValid() {
		record.hop.kind, record.hop.gateway = hopVia, addressOf(n.Gateway)
		key = append(key, n.Gateway.AsSlice()...)
	}
	return c.single(string(key), record)
}

func (c *Control) single(key string, record hopRecord) (uint32, error) {
	id, ok := c.ids[key]
	if !ok {
		if n := len(c.unused); n > 0 {
			id, c.unused = c.unused[n-1], c.unused[:n-1]
		} else if id = uint32(len(c.hops)); id > fib.MaxHop {
			return 0, fmt.Errorf("more than %d different next hops", fib.MaxHop)
		} else {
			c.hops = append(c.hops, hopRecord{})
		}
		record.key = key
		c.hops[id], c.ids[key] = record, id
	}
	c.hops[id].references++
	return id, nil
}

func (c *Control) release(id uint32) {
	r := &c.hops[id]
	if r.references--; r.references > 0 {
		return
	}
	members := r.members
	delete(c.ids, r.key)
	*r = hopRecord{}
	c.unused = append(c.unused, id)
	for _, m := range members {
		c.release(m)
	}
}

// publish compiles a snapshot and wakes the shards. The lock is held.
func (c *Control) publish() {
	c.generation++
	s := &snapshot{generation: c.generation, table: c.builder.Table(), filter: c.filter, nat: c.nat}
	s.ports = make([]portState, len(c.interfaces))
	for i := range s.ports {
		p := &s.ports[i]
		p.mtu = c.forwarder.ports[i].MTU()
		if c.mtu[i] > 0 {
			p.mtu = min(p.mtu, c.mtu[i])
		}
		if c.index[i] == 0 {
			continue
		}
		for _, prefix := range c.addresses[c.index[i]] {
			a := addressOf(prefix.Addr())
			p.addresses = append(p.addresses, ownAddress{a, prefix.Masked()})
			s.own = append(s.own, a)
			switch {
			case prefix.Addr().Is4():
				if p.own4 == 0 {
					p.own4 = uint32(a.low)
				}
			case p.own6 == address{} || a.linkLocal6():
				p.own6 = a
			}
		}
	}
	size := 16
	for size < 2*len(c.known) {
		size *= 2
	}
	s.neighbours.entries, s.neighbours.seed = make([]neighbour, size), c.seed
	for k, n := range c.known {
		s.neighbours.insert(neighbour{address: k.a, mac: n.mac, port: int8(k.port)})
	}
	s.hops = make([]hop, len(c.hops))
	for i := range c.hops {
		r := &c.hops[i]
		h := r.hop
		switch h.kind {
		case hopVia, hopLink:
			port, ok := c.port(r.inter)
			if !ok {
				h.kind = hopAway
				break
			}
			if !c.up[port] {
				// The kernel takes such routes away without a word (IPv4), and that is
				// noticed only by the next list of all routes.
				h = hop{}
				break
			}
			h.port = int8(port)
			if h.kind == hopVia {
				if n := s.neighbours.find(port, h.gateway); n != nil {
					h.mac, h.resolved = n.mac, true
				}
			}
		}
		s.hops[i] = h
	}
	for i := range s.hops {
		h := &s.hops[i]
		if h.kind != hopSeveral {
			continue
		}
		h.first = uint32(len(s.members))
		for _, m := range c.hops[i].members {
			if s.hops[m].kind != hopNone {
				s.members = append(s.members, m)
			}
		}
		if h.n = uint32(len(s.members)) - h.first; h.n == 0 {
			*h = hop{}
		}
	}
	c.current.Store(s)
	for _, shard := range c.forwarder.shards {
		shard.wake()
	}
}

// Generation is that of the last snapshot.
func (c *Control) Generation() uint32 { return c.current.Load().generation }

// Acknowledged says whether all shards forward by the snapshot of a generation
// or a later one, and nothing that was decided by an earlier one is still
// waiting in a queue.
func (c *Control) Acknowledged(generation uint32) bool {
	for _, s := range c.forwarder.shards {
		if int32(s.acknowledged.Load()-generation) < 0 {
			return false
		}
	}
	return true
}

// Own are the box's addresses on its ports.
func (c *Control) Own() []netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []netip.Prefix
	for _, i := range c.index {
		if i != 0 {
			all = append(all, c.addresses[i]...)
		}
	}
	return all
}

// Routes is the number of prefixes.
func (c *Control) Routes() int { return c.current.Load().table.Routes() }

// Neighbours is the number of neighbours whose address is known.
func (c *Control) Neighbours() int { return c.current.Load().neighbours.n }

// Tick takes over what the shards learned of neighbours, has those asked that
// have been silent, and forgets those that do not answer. Call it whenever
// Learned of the Forwarder says so, and every second. It returns whether
// something changed.
func (c *Control) Tick(now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, s := range c.forwarder.shards {
		for {
			l, ok := s.learned.get()
			if !ok {
				break
			}
			changed = c.learn(l, now) || changed
		}
	}
	for k, n := range c.known {
		if n.permanent || now-n.confirmed < confirmAfter || now-n.askedAt < askEvery {
			continue
		}
		if n.asked == askTimes {
			delete(c.known, k)
			changed = true
			continue
		}
		n.asked++
		n.askedAt = now
		mac := n.mac // n is the lock's, not the shard's
		c.forwarder.shards[0].Post(func() { c.forwarder.shards[0].ask(k.port, k.a, mac) })
	}
	if changed {
		c.publish()
	}
	if now-c.gateways >= askGatewaysEvery {
		c.gateways = now
		c.askGateways(true)
	}
	return changed
}

func (c *Control) learn(l learned, now time.Duration) bool {
	k := neighbourKey{l.port, l.address}
	n := c.known[k]
	switch {
	case n == nil:
		if l.onlyKnown || len(c.known) >= MaxNeighbours {
			return false
		}
		c.known[k] = &knownNeighbour{mac: l.mac, confirmed: now}
		return true
	case n.permanent:
		return false
	}
	n.confirmed, n.asked = now, 0
	if l.mac == n.mac || l.mac == ([6]byte{}) {
		return false
	}
	n.mac = l.mac
	return true
}
