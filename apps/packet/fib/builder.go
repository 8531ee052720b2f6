package fib

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Change sets a prefix's hop, or removes the prefix if Hop is None.
type Change struct {
	Prefix netip.Prefix
	Hop    uint32
}

// Builder keeps all prefixes and compiles Tables of them. It belongs to one
// goroutine; the Tables it made belong to everybody.
type Builder struct {
	short4, short6 []entry            // as long as a page's prefix or shorter
	four           [pages4][]entry    // the longer ones of each page
	six            map[uint16][]entry // up to /64
	deep           map[uint16][]deep  // beyond
	routes         int
	table          *Table
	spans          []span // scratch
}

// entry is a prefix of the first 64 bits: an IPv4 address is in the upper half.
type entry struct {
	start uint64
	hop   uint32
	bits  uint8
}

// deep is a prefix longer than /64: bits are those of the lower half.
type deep struct {
	high uint64
	entry
}

// last is the highest number that the prefix covers.
func (e *entry) last() uint64 {
	if e.bits == 0 {
		return 1<<64 - 1
	}
	return e.start | (1<<(64-e.bits) - 1)
}

func compareEntries(a, b entry) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.bits, b.bits))
}

func compareDeep(a, b deep) int {
	return cmp.Or(cmp.Compare(a.high, b.high), compareEntries(a.entry, b.entry))
}

// NewBuilder makes one without prefixes.
func NewBuilder() *Builder {
	b := &Builder{six: map[uint16][]entry{}, deep: map[uint16][]deep{}}
	b.table = &Table{pages4: new([pages4][]uint32), inherited4: new([pages4]uint32), groups6: new([groupsOfAll6]*group6)}
	return b
}

// Table is the last that Apply made.
func (b *Builder) Table() *Table { return b.table }

// Apply makes the changes, in order, and returns the table that results. Only
// the pages that a change lies in are compiled anew; what the others hold is
// shared with the table before. A change that cannot be made is an error, and
// then none is made.
func (b *Builder) Apply(changes []Change) (*Table, error) {
	var short4, short6 []entry
	four, six, deeper := map[uint16][]entry{}, map[uint16][]entry{}, map[uint16][]deep{}
	for _, c := range changes {
		if !c.Prefix.IsValid() || c.Hop > MaxHop {
			return nil, fmt.Errorf("forwarding table: prefix %v to hop %d: want a valid prefix and a hop of at most %d", c.Prefix, c.Hop, MaxHop)
		}
		a, bits := c.Prefix.Masked().Addr(), uint8(c.Prefix.Bits())
		e := entry{hop: c.Hop, bits: bits}
		if a.Is4() {
			v := a.As4()
			e.start = uint64(binary.BigEndian.Uint32(v[:])) << 32
			if bits <= pageBits4 {
				short4 = append(short4, e)
			} else {
				page := uint16(e.start >> (64 - pageBits4))
				four[page] = append(four[page], e)
			}
			continue
		}
		v := a.As16()
		e.start = binary.BigEndian.Uint64(v[:8])
		page := uint16(e.start >> 48)
		switch {
		case bits <= pageBits6:
			short6 = append(short6, e)
		case bits <= 64:
			six[page] = append(six[page], e)
		default:
			d := deep{e.start, entry{binary.BigEndian.Uint64(v[8:]), c.Hop, bits - 64}}
			deeper[page] = append(deeper[page], d)
		}
	}

	t := *b.table
	if len(four) > 0 {
		pages := *t.pages4
		for page, changed := range four {
			b.four[page] = merge(b, b.four[page], changed, compareEntries, func(e *entry) uint32 { return e.hop })
			pages[page] = b.compile4(uint64(page)<<(64-pageBits4), b.four[page])
		}
		t.pages4 = &pages
	}
	if len(short4) > 0 {
		b.short4 = merge(b, b.short4, short4, compareEntries, func(e *entry) uint32 { return e.hop })
		t.inherited4 = new([pages4]uint32)
		b.inherit(b.short4, 64-pageBits4, func(page uint64, hop uint32) { t.inherited4[page] = hop })
	}
	if len(six)+len(deeper)+len(short6) > 0 {
		b.apply6(&t, short6, six, deeper)
	}
	t.routes = b.routes
	b.table = &t
	return b.table, nil
}

// apply6 makes the groups of IPv6 that changed.
func (b *Builder) apply6(t *Table, short []entry, six map[uint16][]entry, deeper map[uint16][]deep) {
	groups := *t.groups6
	fresh := map[uint8]bool{}
	group := func(page uint16) *group6 {
		i := uint8(page >> 8)
		if !fresh[i] {
			fresh[i] = true
			g := new(group6)
			if groups[i] != nil {
				*g = *groups[i]
			} else {
				b.inheritGroup(i, g)
			}
			groups[i] = g
		}
		return groups[i]
	}
	if len(short) > 0 {
		b.short6 = merge(b, b.short6, short, compareEntries, func(e *entry) uint32 { return e.hop })
		for i := range groupsOfAll6 {
			g := group(uint16(i) << 8)
			g.inherited = [groupPages6]uint32{}
		}
		b.inherit(b.short6, 64-pageBits6, func(page uint64, hop uint32) { groups[page>>8].inherited[uint8(page)] = hop })
	}
	dirty := map[uint16]bool{}
	for page, changed := range six {
		b.six[page] = merge(b, b.six[page], changed, compareEntries, func(e *entry) uint32 { return e.hop })
		dirty[page] = true
	}
	for page, changed := range deeper {
		b.deep[page] = merge(b, b.deep[page], changed, compareDeep, func(d *deep) uint32 { return d.hop })
		dirty[page] = true
	}
	for page := range dirty {
		group(page).pages[uint8(page)] = b.compile6(page, b.six[page], b.deep[page])
		if len(b.six[page]) == 0 {
			delete(b.six, page)
		}
		if len(b.deep[page]) == 0 {
			delete(b.deep, page)
		}
	}
	t.groups6 = &groups
}

// inheritGroup fills in a new group what the short prefixes say.
func (b *Builder) inheritGroup(i uint8, g *group6) {
	b.inherit(b.short6, 64-pageBits6, func(page uint64, hop uint32) {
		if uint8(page>>8) == i {
			g.inherited[uint8(page)] = hop
		}
	})
}

// merge applies changes, in order, to a sorted list and counts the routes.
func merge[E any](b *Builder, list, changes []E, compare func(a, b E) int, hop func(*E) uint32) []E {
	slices.SortStableFunc(changes, compare)
	merged := make([]E, 0, len(list)+len(changes))
	for i := range changes {
		c := &changes[i]
		if i+1 < len(changes) && compare(*c, changes[i+1]) == 0 {
			continue // a later change of the same prefix
		}
		at, found := slices.BinarySearchFunc(list, *c, compare)
		merged = append(merged, list[:at]...)
		list = list[at:]
		if found {
			list = list[1:]
			b.routes--
		}
		if hop(c) != None {
			merged = append(merged, *c)
			b.routes++
		}
	}
	return append(merged, list...)
}

// span is a range: from start to the next one's.
type span struct {
	start uint64
	hop   uint32
}

// sweep turns sorted prefixes within from…last into ranges that cover it all;
// what no prefix covers has the hop base.
func (b *Builder) sweep(prefixes []entry, from, last uint64, base uint32) []span {
	spans := append(b.spans[:0], span{from, base})
	emit := func(start uint64, hop uint32) {
		if end := &spans[len(spans)-1]; end.start == start {
			end.hop = hop
		} else {
			spans = append(spans, span{start, hop})
		}
	}
	var open [65]*entry // prefixes that cover the present place, nested
	depth := 0
	pop := func() {
		end := open[depth-1].last()
		depth--
		if end == last {
			return
		}
		if depth > 0 {
			emit(end+1, open[depth-1].hop)
		} else {
			emit(end+1, base)
		}
	}
	for i := range prefixes {
		p := &prefixes[i]
		for depth > 0 && open[depth-1].last() < p.start {
			pop()
		}
		open[depth] = p
		depth++
		emit(p.start, p.hop)
	}
	for depth > 0 {
		pop()
	}
	b.spans = spans
	return slices.CompactFunc(spans, func(a, b span) bool { return a.hop == b.hop })
}

// inherit calls set for each page that a short prefix covers.
func (b *Builder) inherit(short []entry, shift uint, set func(page uint64, hop uint32)) {
	spans := b.sweep(short, 0, 1<<64-1, None)
	for i, s := range spans {
		end := uint64(1<<64-1) >> shift
		if i+1 < len(spans) {
			end = (spans[i+1].start - 1) >> shift
		}
		if s.hop != None {
			for page := s.start >> shift; page <= end; page++ {
				set(page, s.hop)
			}
		}
	}
}

// chunk is called for each piece of a page with its ranges, the first of which
// begins at or before it.
func chunks(spans []span, from uint64, shift uint, n int, chunk func(i int, first uint64, spans []span)) {
	for i := range n {
		first := from + uint64(i)<<shift
		last := first + (1<<shift - 1)
		for len(spans) > 1 && spans[1].start <= first {
			spans = spans[1:]
		}
		end := 1
		for end < len(spans) && spans[end].start <= last {
			end++
		}
		chunk(i, first, spans[:end])
		spans = spans[end-1:]
	}
}

// compile4 makes the words of a page.
func (b *Builder) compile4(from uint64, prefixes []entry) []uint32 {
	if len(prefixes) == 0 {
		return nil
	}
	spans := b.sweep(prefixes, from, from|(1<<(64-pageBits4)-1), inherit)
	words := make([]uint32, chunks4, chunks4+len(spans)+chunks4)
	const shift = 64 - pageBits4 - chunkBits4
	chunks(spans, from, shift, chunks4, func(i int, first uint64, spans []span) {
		if len(spans) == 1 {
			words[i] = immediate4 | spans[0].hop
			return
		}
		count := uint32(len(spans))
		if count >= countMany4 {
			words = append(words, count)
			count = countMany4
		}
		words[i] = count<<countShift4 | uint32(len(words))
		for _, s := range spans {
			words = append(words, uint32(max(s.start, first)>>32)<<hopBits|s.hop)
		}
	})
	return slices.Clip(words)
}

// compile6 makes a page of IPv6.
func (b *Builder) compile6(page uint16, prefixes []entry, longer []deep) page6 {
	if len(prefixes)+len(longer) == 0 {
		return page6{}
	}
	from := uint64(page) << 48
	var p page6
	if len(longer) > 0 {
		prefixes, p.deep = b.compileDeep(prefixes, longer)
	}
	spans := b.sweep(prefixes, from, from|(1<<48-1), inherit)
	index := minIndex6
	for index < maxIndex6 && 1<<index < len(spans) {
		index++
	}
	p.shift = uint8(48 - index)
	words := make([]uint64, 1<<index, 1<<index+2*len(spans))
	chunks(spans, from, uint(p.shift), 1<<index, func(i int, first uint64, spans []span) {
		if len(spans) == 1 {
			words[i] = immediate6 | uint64(spans[0].hop)
			return
		}
		words[i] = uint64(len(spans))<<countShift6 | uint64(len(words))
		for _, s := range spans {
			words = append(words, max(s.start, first)<<hopBits|uint64(s.hop))
		}
	})
	p.words = slices.Clip(words)
	return p
}

// compileDeep makes the lists of the /64s that hold longer prefixes, and returns
// the page's prefixes with a reference to the list at each of those.
func (b *Builder) compileDeep(prefixes []entry, longer []deep) ([]entry, *deep6) {
	d := &deep6{first: []uint32{0}}
	var references []entry
	var group []entry
	for len(longer) > 0 {
		high := longer[0].high
		group = group[:0]
		for len(longer) > 0 && longer[0].high == high {
			group = append(group, longer[0].entry)
			longer = longer[1:]
		}
		for _, s := range b.sweep(group, 0, 1<<64-1, covering(prefixes, high)) {
			d.starts, d.hops = append(d.starts, s.start), append(d.hops, s.hop)
		}
		references = append(references, entry{high, deepFlag | uint32(len(d.first)-1), 64})
		d.first = append(d.first, uint32(len(d.starts)))
	}
	// A reference takes the place of the /64 itself, which the list contains.
	all := slices.DeleteFunc(append(references, prefixes...), func(e entry) bool {
		if e.bits != 64 || e.hop&deepFlag != 0 {
			return false
		}
		_, found := slices.BinarySearchFunc(references, e, compareEntries)
		return found
	})
	slices.SortFunc(all, compareEntries)
	return all, d
}

// covering is the hop of the longest of a page's sorted prefixes that covers a /64.
func covering(prefixes []entry, high uint64) uint32 {
	for bits := uint8(64); bits > pageBits6; bits-- {
		e := entry{start: high &^ (1<<(64-bits) - 1), bits: bits}
		if i, found := slices.BinarySearchFunc(prefixes, e, compareEntries); found {
			return prefixes[i].hop
		}
	}
	return inherit
}
