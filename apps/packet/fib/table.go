// Package fib holds the forwarding table: the longest matching prefix of an
// address, for IPv4 and IPv6, in arrays without pointers. A Builder keeps the
// routes and compiles them, page by page, into immutable Tables; whoever
// forwards reads one Table without a lock while the Builder makes the next.
//
// The tables are range tables in the manner of DXR (Zec, Rizzo, Mikuc, "DXR:
// towards a billion routing lookups per second in software", CCR 2012): a
// direct index by the leading bits finds a short sorted list of ranges.
package fib

import (
	"encoding/binary"
	"net/netip"
)

// None is the hop of an address that no prefix covers, and MaxHop the largest
// that a prefix may have: hops are numbers that mean something to the caller.
const (
	None   = 0
	MaxHop = deepFlag - 1
)

const (
	hopBits = 20
	hopMask = 1<<hopBits - 1
	// inherit, in a page, refers to what the prefixes shorter than a page say.
	inherit = hopMask
	// deepFlag marks the ranges of one /64 that holds longer prefixes.
	deepFlag = 1 << (hopBits - 1)
)

// IPv4: a page is a /12; its first 256 words are a direct index of its /20s.
const (
	pageBits4   = 12
	pages4      = 1 << pageBits4
	chunkBits4  = 8
	chunks4     = 1 << chunkBits4
	immediate4  = 1 << 31 // the entry is a hop
	countShift4 = 21
	countMany4  = 1<<10 - 1 // the count is in the word before the ranges
	offsetMask4 = 1<<countShift4 - 1
)

// IPv6: a page is a /16, in groups of 256; its direct index grows with it.
const (
	pageBits6    = 16
	minIndex6    = 4 // 16+4 bits gone, the other 44 of a start fit beside a hop
	maxIndex6    = 16
	immediate6   = 1 << 63
	countShift6  = 32
	offsetMask6  = 1<<countShift6 - 1
	groupPages6  = 256
	groupsOfAll6 = 256
)

// Table is one compiled state of the routes. It never changes and may be read by
// any number of goroutines.
type Table struct {
	pages4     *[pages4][]uint32
	inherited4 *[pages4]uint32
	groups6    *[groupsOfAll6]*group6
	routes     int
}

// group6 is the pages of one leading byte.
type group6 struct {
	pages     [groupPages6]page6
	inherited [groupPages6]uint32
}

// page6 is nothing (no words) if no prefix longer than /16 begins there.
type page6 struct {
	words []uint64
	deep  *deep6
	shift uint8
}

// deep6 are the lists of those /64s of a page that hold longer prefixes: list i
// is starts[first[i]:first[i+1]], over the low half of the address.
type deep6 struct {
	first  []uint32
	starts []uint64
	hops   []uint32
}

// Routes is the number of prefixes in the table.
func (t *Table) Routes() int { return t.routes }

// Lookup4 returns the hop of the longest prefix that covers an IPv4 address,
// given as a number in host order, or None.
func (t *Table) Lookup4(a uint32) uint32 {
	words := t.pages4[a>>(32-pageBits4)]
	if len(words) < chunks4 {
		return t.inherited4[a>>(32-pageBits4)]
	}
	e := words[a>>(32-pageBits4-chunkBits4)&(chunks4-1)]
	if e&immediate4 == 0 {
		at, n := e&offsetMask4, e>>countShift4
		if n == countMany4 {
			n = words[at-1]
		}
		// The last range that begins at or before a: a start of 12 bits lies
		// above the hop, so whole words compare like starts.
		list, key := words[at:at+n], a<<hopBits|hopMask
		base := 0
		for n := len(list); n > 1; {
			half := n / 2
			if list[base+half] <= key {
				base += half
			}
			n -= half
		}
		e = list[base]
	}
	if hop := e & hopMask; hop != inherit {
		return hop
	}
	return t.inherited4[a>>(32-pageBits4)]
}

// Lookup6 is Lookup4 for the two halves of an IPv6 address.
func (t *Table) Lookup6(high, low uint64) uint32 {
	g := t.groups6[high>>56]
	if g == nil {
		return None
	}
	which := uint8(high >> 48)
	p := &g.pages[which]
	if len(p.words) == 0 {
		return g.inherited[which]
	}
	e := p.words[high<<pageBits6>>(pageBits6+p.shift)]
	if e&immediate6 == 0 {
		list, key := p.words[e&offsetMask6:][:e>>countShift6], high<<hopBits|hopMask
		base := 0
		for n := len(list); n > 1; {
			half := n / 2
			if list[base+half] <= key {
				base += half
			}
			n -= half
		}
		e = list[base]
	}
	hop := uint32(e & hopMask)
	if hop != inherit && hop&deepFlag != 0 {
		hop = p.deep.lookup(hop&^deepFlag, low)
	}
	if hop != inherit {
		return hop
	}
	return g.inherited[which]
}

func (d *deep6) lookup(i uint32, low uint64) uint32 {
	first, n := int(d.first[i]), int(d.first[i+1]-d.first[i])
	for n > 1 {
		half := n / 2
		if d.starts[first+half] <= low {
			first += half
		}
		n -= half
	}
	return d.hops[first]
}

// Lookup is Lookup4 or Lookup6. IPv4 addresses in IPv6 form count as IPv6.
func (t *Table) Lookup(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return t.Lookup4(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return t.Lookup6(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]))
}
