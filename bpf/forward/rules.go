package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// MaxRules is how many rules there can be (RULES_MAX in forward.h).
const MaxRules = 1000

// A Rule permits or denies packets that match all of its fields; a zero field
// matches everything.
type Rule struct {
	Deny bool
	// In and Out are interface indices. A packet to the box itself leaves by
	// none.
	In, Out  int
	Protocol uint8 // IPv4's or IPv6's number; 0 is any
	// From and To: a prefix matches packets of its family only.
	From, To netip.Prefix
	// FromPorts and ToPorts: a rule with ports matches TCP, UDP and SCTP only,
	// and never a fragment without its transport header.
	FromPorts, ToPorts *Ports
}

// Ports is a range, both ends included.
type Ports struct{ First, Last uint16 }

// SetRules replaces all rules at once: once it returns no packet is judged by the
// old ones. The first rule that matches decides; deny is what happens if none
// does. Every unicast IP packet is judged, also those that are left to the
// kernel's stack, except IPv6 neighbour discovery; not what other Ethernet types
// carry (VLAN tags, say), which the kernel's own rules must judge.
func (f *Forwarder) SetRules(rules []Rule, deny bool) error {
	compiled, err := compile(rules, deny, f.interfaces)
	if err != nil {
		return fmt.Errorf("forward: compile the access rules: %w", err)
	}
	inner, err := ebpf.NewMap(f.inner)
	if err != nil {
		return fmt.Errorf("forward: make room for the access rules: %w", err)
	}
	defer inner.Close()
	if err := inner.Put(uint32(0), compiled); err != nil {
		return fmt.Errorf("forward: write the access rules: %w", err)
	}
	// The kernel waits until no program uses the old ones.
	if err := f.objects.Access.Put(uint32(0), inner); err != nil {
		return fmt.Errorf("forward: set the access rules: %w", err)
	}
	return nil
}

// words is the size of a set of rules, and toBox where packets to the box itself
// find theirs.
const (
	words = (MaxRules + 63) / 64
	toBox = MaxInterfaces
)

type set = [words]uint64

func insert(s *set, rule int) { s[rule/64] |= 1 << (rule % 64) }

// number is a value of a field, an IPv6 address at most: two halves.
type number [2]uint64

func (n number) compare(m number) int { return slices.Compare(n[:], m[:]) }

// next is false for the last of all.
func (n number) next() (number, bool) {
	n[1]++
	if n[1] == 0 {
		n[0]++
	}
	return n, n != number{}
}

// interval is what a rule says of a field; empty matches nothing.
type interval struct {
	first, last number
	empty       bool
}

var everything = interval{last: number{^uint64(0), ^uint64(0)}}

// compile makes what the program looks up. See struct rules in forward.h.
func compile(rules []Rule, deny bool, interfaces []int) (*forwardRules, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("there are %d, of which at most %d can be", len(rules), MaxRules)
	}
	c := &forwardRules{Words: uint32(len(rules)+63) / 64}
	if deny {
		c.Deny = 1
	}
	var from, to [2][]interval
	var ports [2][]interval
	for i, r := range rules {
		if err := r.check(interfaces); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if r.Deny {
			insert(&c.Denying, i)
		}
		for slot, index := range interfaces {
			if r.In == 0 || r.In == index {
				insert(&c.In[slot], i)
			}
			if r.Out == 0 || r.Out == index {
				insert(&c.Out[slot], i)
			}
		}
		if r.Out == 0 {
			insert(&c.Out[toBox], i)
		}
		for p := range 256 {
			if r.Protocol == 0 || int(r.Protocol) == p {
				insert(&c.Protocol[p], i)
			}
		}
		if r.FromPorts == nil && r.ToPorts == nil {
			insert(&c.Portless, i)
		}
		for family := range 2 {
			from[family] = append(from[family], addresses(r.From, r.To, family == 1))
			to[family] = append(to[family], addresses(r.To, r.From, family == 1))
		}
		for end, p := range []*Ports{r.FromPorts, r.ToPorts} {
			all := interval{last: number{0, 65535}}
			if p != nil {
				all.first[1], all.last[1] = uint64(p.First), uint64(p.Last)
			}
			ports[end] = append(ports[end], all)
		}
	}
	for i := range 2 {
		c.From[i].cut(from[i])
		c.To[i].cut(to[i])
		c.Ports[i].cut(ports[i])
	}
	return c, nil
}

func (r *Rule) check(interfaces []int) error {
	for _, index := range []int{r.In, r.Out} {
		if index != 0 && !slices.Contains(interfaces, index) {
			return fmt.Errorf("interface %d is none of those that forward", index)
		}
	}
	for _, p := range []netip.Prefix{r.From, r.To} {
		if p.IsValid() && p.Addr().Is4In6() {
			return fmt.Errorf("prefix %s is an IPv4 one written as IPv6", p)
		}
	}
	for _, p := range []*Ports{r.FromPorts, r.ToPorts} {
		if p != nil && p.First > p.Last {
			return fmt.Errorf("ports %d to %d are none", p.First, p.Last)
		}
	}
	return nil
}

// addresses is what a prefix covers of a family, where other is the rule's other
// prefix: with one family named, packets of the other match nothing.
func addresses(p, other netip.Prefix, six bool) interval {
	if !p.IsValid() {
		if other.IsValid() && other.Addr().Is6() != six {
			return interval{empty: true}
		}
		return everything
	}
	if p.Addr().Is6() != six {
		return interval{empty: true}
	}
	p = p.Masked()
	bits := p.Bits()
	var first number
	if six {
		b := p.Addr().As16()
		first = number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	} else {
		b := p.Addr().As4()
		first[1] = uint64(binary.BigEndian.Uint32(b[:]))
		bits += 96
	}
	last := first
	last[0] |= ^uint64(0) >> min(bits, 64)
	last[1] |= ^uint64(0) >> max(bits-64, 0)
	return interval{first: first, last: last}
}

// cut cuts a field at the ends of the rules' intervals.
func (a *forwardAxis) cut(intervals []interval) {
	cuts := []number{{}}
	for _, i := range intervals {
		if i.empty {
			continue
		}
		cuts = append(cuts, i.first)
		if next, ok := i.last.next(); ok {
			cuts = append(cuts, next)
		}
	}
	slices.SortFunc(cuts, number.compare)
	cuts = slices.Compact(cuts)
	a.N = uint64(len(cuts))
	for at, start := range cuts {
		a.Starts[at].High, a.Starts[at].Low = start[0], start[1]
		for rule, i := range intervals {
			if !i.empty && i.first.compare(start) <= 0 && start.compare(i.last) <= 0 {
				insert(&a.Sets[at], rule)
			}
		}
	}
}
