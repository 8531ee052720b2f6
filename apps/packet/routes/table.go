package routes

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A table is what the kernel has, and what of it has not been told yet.
type table struct {
	paths map[netip.Prefix][]path
	// objects counts the paths that use each of the kernel's nexthop objects.
	objects map[uint32]int
	// shared has each list of next hops once.
	shared map[string]*hops
	// untold has what was told last of the prefixes that changed since.
	untold map[netip.Prefix]view

	neighbours set[neighbourKey, Neighbour]
	addresses  set[Address, struct{}]
	links      set[int, Link]

	// stale: the kernel has changed routes in ways of which it does not tell.
	stale bool
	// changes counts those of IPv4 and IPv6 routes, for the sake of dumps.
	changes [2]int
}

type neighbourKey struct {
	link    int
	address netip.Addr
}

// A view is what is told of a prefix.
type view struct {
	hops  *hops
	kind  kind
	known bool
}

func (v view) equal(o view) bool {
	return v.known == o.known && v.kind == o.kind && (v.kind != forward || !v.known || equalLiving(v.hops, o.hops))
}

func equalLiving(a, b *hops) bool {
	if a == b {
		return true
	}
	if len(a.living) != len(b.living) {
		return false
	}
	for i := range a.living {
		if a.living[i] != b.living[i] {
			return false
		}
	}
	return true
}

func see(paths []path) view {
	p, ok := best(paths)
	return view{p.hops, p.kind, ok}
}

func newTable() *table {
	return &table{
		paths:   make(map[netip.Prefix][]path),
		objects: make(map[uint32]int),
		shared:  make(map[string]*hops),
		untold:  make(map[netip.Prefix]view),
	}
}

// share returns the one copy of a list of next hops.
func (t *table) share(h *hops) *hops {
	if len(t.shared) >= 1<<16 { // the old ones live on where they are used
		clear(t.shared)
	}
	var stack [256]byte
	key := stack[:0]
	for _, hop := range h.all {
		key = binary.NativeEndian.AppendUint32(key, uint32(hop.Interface))
		gateway := hop.Gateway.As16() // an IPv4 gateway is a mapped one here, and no IPv6 one is
		if hop.Gateway.IsValid() {
			key = append(key, gateway[:]...)
		}
		if hop.dead {
			key = append(key, 1)
		} else {
			key = append(key, 0)
		}
		key = append(key, byte(hop.Gateway.BitLen()))
	}
	if known, ok := t.shared[string(key)]; ok {
		return known
	}
	t.shared[string(key)] = h
	return h
}

// route applies what the kernel told of a route.
func (t *table) route(m routeMessage, how how) {
	m.path.hops = t.share(m.path.hops)
	paths := t.paths[m.prefix]
	if _, ok := t.untold[m.prefix]; !ok {
		t.untold[m.prefix] = see(paths)
	}
	t.count(paths, -1)
	change, family := change4, 0
	if m.prefix.Addr().Is6() {
		change, family = change6, 1
	}
	paths, sensible := change(paths, m.path, how)
	t.changes[family]++
	t.stale = t.stale || !sensible
	t.count(paths, +1)
	if len(paths) == 0 {
		delete(t.paths, m.prefix)
	} else {
		t.paths[m.prefix] = paths
	}
}

func (t *table) count(paths []path, by int) {
	for _, p := range paths {
		if p.object != 0 {
			if t.objects[p.object] += by; t.objects[p.object] == 0 {
				delete(t.objects, p.object)
			}
		}
	}
}

// message applies one of the kernel's messages; flags are those of its header.
func (t *table) message(kind, flags uint16, b []byte) error {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		m, followed, err := parseRoute(b)
		if err != nil || !followed {
			return err
		}
		how := add
		switch {
		case kind == unix.RTM_DELROUTE:
			how = remove
		case flags&unix.NLM_F_REPLACE != 0:
			how = replace
		case flags&unix.NLM_F_APPEND != 0:
			how = append_
		}
		t.route(m, how)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, followed, err := parseNeighbour(b)
		if err != nil || !followed {
			return err
		}
		if key := (neighbourKey{n.Interface, n.Address}); kind == unix.RTM_NEWNEIGH && n.Valid {
			t.neighbours.put(key, n)
		} else {
			t.neighbours.delete(key)
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, usable, err := parseAddress(b)
		if err != nil {
			return err
		}
		if kind == unix.RTM_NEWADDR && usable {
			t.addresses.put(a, struct{}{})
		} else {
			t.addresses.delete(a)
		}
		// IPv4 routes that prefer it as their source go without a word.
		t.stale = t.stale || kind == unix.RTM_DELADDR && a.Prefix.Addr().Is4()
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, followed, err := parseLink(b)
		if err != nil || !followed {
			return err
		}
		was, known := t.links.now[l.Interface]
		if kind == unix.RTM_DELLINK {
			t.links.delete(l.Interface)
		} else {
			t.links.put(l.Interface, l)
		}
		// IPv4 routes go, and next hops die and live again, without a word.
		t.stale = t.stale || known && (kind == unix.RTM_DELLINK || was.Up != l.Up || was.Running != l.Running)
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		// IPv4 routes go with their object.
		if kind == unix.RTM_DELNEXTHOP || flags&unix.NLM_F_REPLACE != 0 {
			t.stale = t.stale || t.objects[parseNextHopObject(b)] > 0
		}
	}
	return nil
}

// become takes over what another table has, and keeps what has to be told.
func (t *table) become(fresh *table) {
	for prefix, paths := range t.paths {
		if _, ok := t.untold[prefix]; !ok {
			if was := see(paths); !was.equal(see(fresh.paths[prefix])) {
				t.untold[prefix] = was
			}
		}
	}
	for prefix := range fresh.paths {
		if _, ok := t.paths[prefix]; !ok {
			if _, ok := t.untold[prefix]; !ok {
				t.untold[prefix] = view{}
			}
		}
	}
	t.paths, t.objects, t.shared, t.stale = fresh.paths, fresh.objects, fresh.shared, fresh.stale
	t.neighbours.become(fresh.neighbours.now)
	t.addresses.become(fresh.addresses.now)
	t.links.become(fresh.links.now)
}

// take returns what has not been told, of links for which wanted is true.
func (t *table) take(wanted func(link int) bool) *Update {
	u := new(Update)
	for prefix, was := range t.untold {
		now := see(t.paths[prefix])
		switch {
		case now.equal(was):
		case !now.known:
			u.Deleted = append(u.Deleted, prefix)
		default:
			r := Route{Prefix: prefix, Local: now.kind == local, Blackhole: now.kind == blackhole,
				Unreachable: now.kind == unreachable}
			if now.kind == forward {
				r.NextHops = now.hops.living
			}
			u.Routes = append(u.Routes, r)
		}
	}
	if len(t.untold) > 1<<12 {
		t.untold = make(map[netip.Prefix]view) // a map never shrinks
	} else {
		clear(t.untold)
	}
	for key, n := range t.neighbours.take() {
		if wanted(key.link) {
			n.Interface, n.Address = key.link, key.address // if it is gone
			u.Neighbours = append(u.Neighbours, n)
		}
	}
	for a := range t.addresses.take() {
		if wanted(a.Interface) {
			_, there := t.addresses.now[a]
			a.Deleted = !there
			u.Addresses = append(u.Addresses, a)
		}
	}
	for index, l := range t.links.take() {
		if wanted(index) {
			_, there := t.links.now[index]
			l.Interface, l.Deleted = index, !there
			u.Links = append(u.Links, l)
		}
	}
	return u
}
