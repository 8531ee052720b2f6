package rules

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// Filter is the access rules of a Set, compiled: for each field of a packet the
// set of rules that its value matches is looked up, and the first rule in all of
// the sets decides (Lakshman and Stiliadis, SIGCOMM 1998). So the cost grows
// with the logarithm of the number of rules, and a 64th of it. It never changes
// and may be used by any number of goroutines.
type Filter struct {
	rules    []Rule
	deny     bool
	words    int
	in, out  []uint64 // a set for each port, and one for none
	protocol []uint64 // a set for each protocol
	portless []uint64 // the rules without ports
	from, to [2]axis  // IPv4, IPv6
	ports    [2]axis  // source, destination
}

// axis cuts the values of a field into ranges that match the same rules.
type axis struct {
	starts []number
	sets   []uint64
}

// number is a value of a field, an IPv6 address at most.
type number struct{ high, low uint64 }

func (n number) less(m number) bool { return n.high < m.high || n.high == m.high && n.low < m.low }

func (n number) next() number {
	n.low++
	if n.low == 0 {
		n.high++
	}
	return n
}

// interval is what a rule says of a field.
type interval struct{ first, last number }

// Packet is what rules look at.
type Packet struct {
	// In and Out are indices of ports; NoPort if the packet comes from or goes to
	// the box itself.
	In, Out  int
	Protocol uint8
	// From and To are the addresses, of one family: an IPv4 address is the low
	// 32 bits of the second number.
	From, To [2]uint64
	IPv6     bool
	// Ports are valid if HasPorts: not in fragments but the first.
	FromPort, ToPort uint16
	HasPorts         bool
}

// NoPort is the index of no port.
const NoPort = -1

// Compile makes a filter. Ports are the names by index.
func (s *Set) Compile(ports []string) *Filter {
	n := len(s.Rules)
	f := &Filter{rules: s.Rules, deny: s.Deny, words: (n + 63) / 64}
	if n == 0 {
		return f
	}
	f.in, f.out = f.names(ports, func(r *Rule) string { return r.In }), f.names(ports, func(r *Rule) string { return r.Out })
	f.protocol = make([]uint64, 256*f.words)
	f.portless = make([]uint64, f.words)
	var from, to [2][]*interval
	var both [2][]*interval
	for i := range s.Rules {
		r := &s.Rules[i]
		for p := range 256 {
			if r.Protocol == 0 || int(r.Protocol) == p {
				set(f.protocol[p*f.words:], i)
			}
		}
		if r.FromPorts == nil && r.ToPorts == nil {
			set(f.portless, i)
		}
		both[0], both[1] = append(both[0], portInterval(r.FromPorts)), append(both[1], portInterval(r.ToPorts))
		for family := range 2 {
			from[family] = append(from[family], addressInterval(r.From, r.To, family))
			to[family] = append(to[family], addressInterval(r.To, r.From, family))
		}
	}
	for i := range 2 {
		f.from[i], f.to[i], f.ports[i] = f.axis(from[i]), f.axis(to[i]), f.axis(both[i])
	}
	return f
}

func set(s []uint64, i int) { s[i/64] |= 1 << (i % 64) }

// names makes the sets of a field that is a port's name; the last is of no port.
func (f *Filter) names(ports []string, name func(*Rule) string) []uint64 {
	sets := make([]uint64, (len(ports)+1)*f.words)
	for i := range f.rules {
		want := name(&f.rules[i])
		for p := range len(ports) + 1 {
			if want == "" || p < len(ports) && ports[p] == want {
				set(sets[p*f.words:], i)
			}
		}
	}
	return sets
}

func portInterval(p *Ports) *interval {
	if p == nil {
		return &interval{number{}, number{0, 65535}}
	}
	return &interval{number{0, uint64(p.First)}, number{0, uint64(p.Last)}}
}

// addressInterval is what a prefix covers of a family, where other is the rule's
// other prefix: with one family named, packets of the other match nothing.
func addressInterval(p, other netip.Prefix, family int) *interval {
	all := &interval{number{}, number{1<<64 - 1, 1<<64 - 1}}
	if !p.IsValid() {
		if other.IsValid() && other.Addr().Is4() != (family == 0) {
			return nil
		}
		return all
	}
	if p.Addr().Is4() != (family == 0) {
		return nil
	}
	if family == 0 {
		first := uint64(number4(p.Addr()))
		return &interval{number{0, first}, number{0, first | (1<<(32-p.Bits()) - 1)}}
	}
	b := p.Addr().As16()
	first := number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	last := first
	if p.Bits() <= 64 {
		last.low = 1<<64 - 1
		if p.Bits() == 0 {
			last.high = 1<<64 - 1
		} else {
			last.high |= 1<<(64-p.Bits()) - 1
		}
	} else {
		last.low |= 1<<(128-p.Bits()) - 1
	}
	return &interval{first, last}
}

// axis cuts a field at the ends of the rules' intervals; nil matches nothing.
func (f *Filter) axis(intervals []*interval) axis {
	starts := []number{{}}
	for _, i := range intervals {
		if i != nil {
			starts = append(starts, i.first)
			if next := i.last.next(); next != (number{}) {
				starts = append(starts, next)
			}
		}
	}
	slices.SortFunc(starts, func(a, b number) int {
		switch {
		case a.less(b):
			return -1
		case b.less(a):
			return 1
		}
		return 0
	})
	starts = slices.Compact(starts)
	a := axis{starts, make([]uint64, len(starts)*f.words)}
	for rule, i := range intervals {
		if i == nil {
			continue
		}
		for at := a.find(i.first); at < len(starts) && !i.last.less(starts[at]); at++ {
			set(a.sets[at*f.words:], rule)
		}
	}
	return a
}

// find returns the index of the range that holds n.
func (a *axis) find(n number) int {
	low, high := 0, len(a.starts)
	for high-low > 1 {
		if middle := (low + high) / 2; n.less(a.starts[middle]) {
			high = middle
		} else {
			low = middle
		}
	}
	return low
}

func (a *axis) set(n number, words int) []uint64 {
	at := a.find(n) * words
	return a.sets[at : at+words]
}

// Permits says whether a packet may pass, and the line of the rule that decided,
// 0 for the default.
func (f *Filter) Permits(p *Packet) (bool, int) {
	if f.words == 0 {
		return !f.deny, 0
	}
	w := f.words
	port := func(sets []uint64, i int) []uint64 {
		if i < 0 {
			i = len(sets)/w - 1
		}
		return sets[i*w : i*w+w]
	}
	in, out := port(f.in, p.In), port(f.out, p.Out)
	protocol := f.protocol[int(p.Protocol)*w:][:w]
	family := 0
	if p.IPv6 {
		family = 1
	}
	from := f.from[family].set(number{p.From[0], p.From[1]}, w)
	to := f.to[family].set(number{p.To[0], p.To[1]}, w)
	fromPorts, toPorts := f.portless, f.portless
	if p.HasPorts {
		fromPorts = f.ports[0].set(number{0, uint64(p.FromPort)}, w)
		toPorts = f.ports[1].set(number{0, uint64(p.ToPort)}, w)
	}
	for i := range in {
		if x := in[i] & out[i] & protocol[i] & from[i] & to[i] & fromPorts[i] & toPorts[i]; x != 0 {
			r := &f.rules[i*64+bits.TrailingZeros64(x)]
			return !r.Deny, r.Line
		}
	}
	return !f.deny, 0
}
