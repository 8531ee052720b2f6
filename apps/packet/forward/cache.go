package forward

// decision is all that is to be done with the packets of a flow.
type decision struct {
	generation uint32 // of the snapshot it was made by; 0 is none
	used       uint32 // in units of about a second
	header     [12]byte
	mtu        uint16
	port       uint8
	verdict    verdict
	cause      Cause
	rewrite    rewrite
	newPort    uint16
	newAddress uint32
	binding    uint32 // with rewrite
	epoch      uint32
}

type verdict uint8

const (
	undecided verdict = iota
	forwarded
	dropped
)

type rewrite uint8

const (
	keep rewrite = iota
	rewriteSource
	rewriteDestination
)

// key4 and key6 are a flow: addresses, ports, protocol, input and whether it is
// the tail of a fragmented packet.
type key4 struct{ addresses, rest uint64 }

type key6 struct {
	source, destination address
	rest                uint64
}

type entry[K comparable] struct {
	key K
	decision
}

// cache is set-associative: a flow is in one of two places, side by side, and
// the newcomer replaces what is void, or has not been used for longer.
type cache[K comparable] struct {
	entries []entry[K]
	mask    uint64
}

func newCache[K comparable](n int) *cache[K] {
	size := 2
	for size < n {
		size *= 2
	}
	return &cache[K]{entries: make([]entry[K], size), mask: uint64(size) - 2}
}

// maxAge is how long a decision lives unused, in the cache's units.
const maxAge = 30

// touch reads where a flow would be, so that the memory is on its way.
func (c *cache[K]) touch(hash uint64) uint32 { return c.entries[hash&c.mask].generation }

// find returns the place of the decision for a flow, nowhere if there is none that
// holds.
func (c *cache[K]) find(hash uint64, k K, generation, now uint32) uint32 {
	at := uint32(hash & c.mask)
	e := &c.entries[at]
	if e.generation != generation || e.key != k {
		at++
		e = &c.entries[at]
		if e.generation != generation || e.key != k {
			return nowhere
		}
	}
	if now-e.used > maxAge {
		return nowhere
	}
	e.used = now
	return at
}

// lookup returns the decision for a flow that was found at a place a moment ago, if
// at all; nil if there is none. What was stored since may have taken the place, or
// be what is looked for.
func (c *cache[K]) lookup(place uint32, hash uint64, k K, generation, now uint32) *decision {
	if place != nowhere {
		if e := &c.entries[place]; e.key == k {
			return &e.decision
		}
	}
	if place = c.find(hash, k, generation, now); place == nowhere {
		return nil
	}
	return &c.entries[place].decision
}

// store keeps a decision and returns its place.
func (c *cache[K]) store(hash uint64, k K, d *decision) *decision {
	at := hash & c.mask
	a, b := &c.entries[at], &c.entries[at+1]
	e := a
	switch {
	case a.key == k && a.generation != 0:
	case b.key == k && b.generation != 0:
		e = b
	case a.generation != d.generation:
	case b.generation != d.generation || int32(b.used-a.used) < 0:
		e = b
	}
	e.key, e.decision = k, *d
	return &e.decision
}
