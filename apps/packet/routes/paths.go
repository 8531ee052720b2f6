package routes

import "slices"

// kind is what a route does with a packet.
type kind uint8

const (
	forward kind = iota
	local
	blackhole
	unreachable
)

// A hop is a next hop, and whether the kernel has given it up (its link is down).
type hop struct {
	NextHop
	dead bool
}

// hops are the next hops of a path. They are shared and never changed.
type hops struct {
	all    []hop
	living []NextHop
}

func newHops(all []hop) *hops {
	h := &hops{all: all}
	for _, hop := range all {
		if !hop.dead {
			h.living = append(h.living, hop.NextHop)
		}
	}
	return h
}

// same says whether they are the same but for who is dead.
func (h *hops) same(o *hops) bool {
	return h == o || slices.EqualFunc(h.all, o.all, func(a, b hop) bool { return a.NextHop == b.NextHop })
}

func (h *hops) has(n NextHop) bool {
	return slices.ContainsFunc(h.all, func(o hop) bool { return o.NextHop == n })
}

// A path is one of the kernel's routes to a prefix.
type path struct {
	hops *hops
	// identity tells apart IPv4 routes that have the same next hops: all else
	// that the kernel compares.
	identity uint64
	priority uint32
	object   uint32 // the kernel's nexthop object, or 0
	kind     kind
	main     bool // table main, not local
	// ecmp: IPv6's kernel keeps paths with gateways and one metric as one
	// multipath route.
	ecmp bool
}

// before says whether a path is in an earlier group than another. The kernel
// asks table local first.
func (p path) before(q path) bool {
	if p.main != q.main {
		return q.main
	}
	return p.priority < q.priority
}

// group finds the paths of the same table and metric, paths[from:to].
func group(paths []path, p path) (from, to int) {
	for from < len(paths) && paths[from].before(p) {
		from++
	}
	for to = from; to < len(paths) && !p.before(paths[to]); {
		to++
	}
	return from, to
}

// how says how a path meets those that are there.
type how uint8

const (
	add     how = iota
	append_     // behind its equals, where add is before them (IPv4)
	replace     // the first of its equals
	remove
)

// change4 applies what the kernel told of an IPv4 route as its fib_table_insert
// and fib_table_delete do. It is false if that makes no sense.
func change4(paths []path, p path, how how) ([]path, bool) {
	from, to := group(paths, p)
	equal := func(q path) bool {
		return p.kind == q.kind && p.identity == q.identity && p.hops.same(q.hops)
	}
	at := slices.IndexFunc(paths[from:to], equal)
	switch how {
	case remove:
		if at < 0 {
			return paths, from == to // none of its group is left: it was gone
		}
		return slices.Delete(paths, from+at, from+at+1), true
	case replace:
		if from == to {
			return slices.Insert(paths, from, p), true
		}
		if at > 0 { // it cannot be there twice: what was told came before the dump
			paths = slices.Delete(paths, from+at, from+at+1)
		}
		paths[from] = p
		return paths, true
	}
	if at >= 0 {
		paths = slices.Delete(paths, from+at, from+at+1)
		to--
	}
	if how == append_ {
		return slices.Insert(paths, to, p), true
	}
	return slices.Insert(paths, from, p), true
}

// change6 does the same for IPv6, as fib6_add_rt2node and fib6_del_route do. The
// kernel scatters the next hops of a multipath route among other routes of the
// same metric (if somebody mixes them), and tells of no order: false then, too.
func change6(paths []path, p path, how how) ([]path, bool) {
	from, to := group(paths, p)
	mixed := func() bool {
		from, to := group(paths, p)
		return to-from > 1 && slices.ContainsFunc(paths[from:to], func(q path) bool { return q.ecmp })
	}
	sure := !mixed()
	switch how {
	case remove:
		at := slices.IndexFunc(paths[from:to], func(q path) bool { return q.kind == p.kind && contains(q.hops, p.hops) })
		if at < 0 {
			return paths, from == to
		}
		if left := without(paths[from+at].hops, p.hops); len(left) > 0 {
			paths[from+at].hops = newHops(left)
		} else {
			paths = slices.Delete(paths, from+at, from+at+1)
		}
	case replace:
		// One of its like; if there is none, any.
		at := max(0, slices.IndexFunc(paths[from:to], func(q path) bool { return q.ecmp == p.ecmp }))
		if from == to {
			paths = slices.Insert(paths, from, p)
		} else {
			paths[from+at] = p // also if it is there already, behind
		}
	default:
		// The multipath route, which is told whole, or one that is the same.
		at := slices.IndexFunc(paths[from:to], func(q path) bool {
			return p.ecmp && q.ecmp || p.kind == q.kind && p.ecmp == q.ecmp && p.hops.same(q.hops)
		})
		if at < 0 {
			paths = slices.Insert(paths, to, p)
		} else {
			paths[from+at] = p
		}
	}
	return paths, sure && !mixed()
}

func contains(h, some *hops) bool {
	return !slices.ContainsFunc(some.all, func(o hop) bool { return !h.has(o.NextHop) })
}

func without(h, some *hops) []hop {
	var left []hop
	for _, o := range h.all {
		if !some.has(o.NextHop) {
			left = append(left, o)
		}
	}
	return left
}

// best is the path that the kernel uses; false if all are dead.
func best(paths []path) (path, bool) {
	for _, p := range paths {
		if p.kind != forward || len(p.hops.living) > 0 {
			return p, true
		}
	}
	return path{}, false
}
