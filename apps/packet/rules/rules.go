// Package rules reads the file that says what a forwarder lets pass, what it
// translates and how fast its outputs may be, and compiles the access rules.
//
// The file has one rule a line; # begins a comment, blank lines are ignored.
//
//	permit|deny [in PORT] [out PORT] [proto tcp|udp|sctp|icmp|icmp6|NUMBER]
//	            [from PREFIX] [from-port N[-M]] [to PREFIX] [to-port N[-M]]
//	default permit|deny
//	nat out PORT [from PREFIX] to ADDRESS[-ADDRESS] [ports N-M]
//	rate PORT RATE
//
// The first access rule that matches decides, in the order of the file; default
// (permit, if there is none) decides for the rest. PORT is a device's name as
// the command line has it, PREFIX an address or prefix of either family, RATE a
// number of bits per second with an optional suffix kbit, mbit or gbit. Access
// rules see the inside: the addresses before translation on the way out, and
// after it on the way in. A rule with ports matches TCP, UDP and SCTP only, and
// never a fragment without its transport header; so what must not pass in
// fragments needs a rule without ports.
//
// A file with an error anywhere is refused whole.
package rules

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// Set is the contents of a file. The zero Set permits everything.
type Set struct {
	Rules []Rule
	// Deny is what happens to packets that no rule matches.
	Deny bool
	NAT  []NAT
	// Rates are in bits per second, by the port's name.
	Rates map[string]int64
}

// Rule is one access rule. Zero fields match everything.
type Rule struct {
	Line     int
	Deny     bool
	In, Out  string
	Protocol uint8 // 0 is any
	From, To netip.Prefix
	// FromPorts and ToPorts are ranges; nil is any.
	FromPorts, ToPorts *Ports
}

// Ports is a range, both ends included.
type Ports struct{ First, Last uint16 }

// NAT translates the source of IPv4 packets that leave by a port.
type NAT struct {
	Line        int
	Out         string
	From        netip.Prefix // IPv4; invalid is everything
	First, Last netip.Addr   // the addresses to translate to
	Ports       Ports
}

// Defaults and limits.
const (
	MaxRules     = 4096
	maxAddresses = 256
)

// DefaultPorts are what NAT takes if the rule does not say: RFC 4787 4.2.1 wants
// those below 1,024 left alone.
var DefaultPorts = Ports{1024, 65535}

// Parse reads a file. Name is for errors, each of which names its line; ports
// are the names that rules may use.
func Parse(r io.Reader, name string, ports []string) (*Set, error) {
	s := &Set{Rates: map[string]int64{}}
	var errs []error
	lines := bufio.NewScanner(r)
	lastDefault := 0
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		p := &parser{words: words[1:], ports: ports}
		switch words[0] {
		case "permit", "deny":
			s.Rules = append(s.Rules, p.rule(n, words[0] == "deny"))
			if len(s.Rules) > MaxRules {
				p.fail("more than %d access rules", MaxRules)
			}
		case "default":
			if lastDefault > 0 {
				p.fail("line %d already says what the default is", lastDefault)
			}
			lastDefault = n
			switch w := p.word("permit or deny"); w {
			case "permit", "deny":
				s.Deny = w == "deny"
			default:
				p.fail("default %q: want permit or deny", w)
			}
		case "nat":
			s.NAT = append(s.NAT, p.nat(n))
		case "rate":
			port := p.port()
			if _, twice := s.Rates[port]; twice {
				p.fail("the rate of %s is set twice", port)
			}
			s.Rates[port] = p.rate()
		default:
			p.fail("%q begins no rule: want permit, deny, default, nat or rate", words[0])
		}
		if p.err == nil && len(p.words) > 0 {
			p.fail("%q is not expected here", p.words[0])
		}
		if p.err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", name, n, p.err))
			if len(errs) == 20 {
				break
			}
		}
	}
	if err := lines.Err(); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	if len(errs) == 0 {
		if err := s.overlap(); err != nil {
			errs = append(errs, fmt.Errorf("%s:%w", name, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// overlap finds NAT rules that would give the same address and port twice.
func (s *Set) overlap() error {
	for i := range s.NAT {
		for j := range i {
			a, b := &s.NAT[i], &s.NAT[j]
			same := a.First == b.First && a.Last == b.Last && a.Ports == b.Ports // one pool, named twice
			apart := a.First.Compare(b.Last) > 0 || b.First.Compare(a.Last) > 0 ||
				a.Ports.First > b.Ports.Last || b.Ports.First > a.Ports.Last
			if !same && !apart {
				return fmt.Errorf("%d: translates to some of the addresses and ports of line %d: use the same ones, or others", a.Line, b.Line)
			}
		}
	}
	return nil
}

// parser reads the words of one line; after the first error it returns zeros.
type parser struct {
	words []string
	ports []string
	err   error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *parser) word(what string) string {
	if len(p.words) == 0 {
		p.fail("want %s at the end of the line", what)
		return ""
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

func (p *parser) port() string {
	w := p.word("a port's name")
	for _, known := range p.ports {
		if w == known {
			return w
		}
	}
	p.fail("no port is called %q: there are %s", w, strings.Join(p.ports, ", "))
	return ""
}

func (p *parser) prefix() netip.Prefix {
	w := p.word("an address or prefix")
	if w == "any" {
		return netip.Prefix{}
	}
	if a, err := netip.ParseAddr(w); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen())
	}
	prefix, err := netip.ParsePrefix(w)
	switch {
	case err != nil:
		p.fail("%q is not an address or prefix", w)
	case prefix != prefix.Masked():
		p.fail("%v has bits beyond its length: is %v meant?", prefix, prefix.Masked())
	}
	return prefix
}

func (p *parser) number(w, what string, most uint64) uint64 {
	n, err := strconv.ParseUint(w, 10, 64)
	if err != nil || n > most {
		p.fail("%q is not %s: want 0 to %d", w, what, most)
		return 0
	}
	return n
}

func (p *parser) portRange() *Ports {
	w := p.word("a port number or range")
	first, last, both := strings.Cut(w, "-")
	if !both {
		last = first
	}
	r := &Ports{uint16(p.number(first, "a port number", 65535)), uint16(p.number(last, "a port number", 65535))}
	if r.First > r.Last {
		p.fail("%q is a range that ends before it begins", w)
	}
	return r
}

var protocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}

func (p *parser) rule(line int, deny bool) Rule {
	r := Rule{Line: line, Deny: deny}
	seen := map[string]bool{}
	for len(p.words) > 0 && p.err == nil {
		w := p.word("")
		if seen[w] {
			p.fail("%s is given twice", w)
		}
		seen[w] = true
		switch w {
		case "in":
			r.In = p.port()
		case "out":
			r.Out = p.port()
		case "proto":
			name := p.word("a protocol")
			known := false
			if r.Protocol, known = protocols[name]; !known && name != "any" {
				r.Protocol = uint8(p.number(name, "a protocol (tcp, udp, sctp, icmp, icmp6 or a number)", 255))
				if r.Protocol == 0 && p.err == nil {
					p.fail("protocol 0 is IPv6's hop-by-hop options, which no packet carries as its last: want any?")
				}
			}
		case "from":
			r.From = p.prefix()
		case "to":
			r.To = p.prefix()
		case "from-port":
			r.FromPorts = p.portRange()
		case "to-port":
			r.ToPorts = p.portRange()
		default:
			p.fail("%q is not expected here: want in, out, proto, from, from-port, to or to-port", w)
		}
	}
	if r.From.IsValid() && r.To.IsValid() && r.From.Addr().Is4() != r.To.Addr().Is4() {
		p.fail("%v and %v are of different families: no packet matches", r.From, r.To)
	}
	if r.FromPorts != nil || r.ToPorts != nil {
		if r.Protocol != 0 && !hasPorts(r.Protocol) {
			p.fail("protocol %d has no ports", r.Protocol)
		}
	}
	return r
}

func (p *parser) nat(line int) NAT {
	n := NAT{Line: line, Ports: DefaultPorts}
	seen := map[string]bool{}
	for len(p.words) > 0 && p.err == nil {
		w := p.word("")
		if seen[w] {
			p.fail("%s is given twice", w)
		}
		seen[w] = true
		switch w {
		case "out":
			n.Out = p.port()
		case "from":
			n.From = p.prefix()
			if p.err == nil && n.From.IsValid() && !n.From.Addr().Is4() {
				p.fail("%v: only IPv4 is translated", n.From)
			}
		case "to":
			first, last, both := strings.Cut(p.word("an address"), "-")
			if !both {
				last = first
			}
			var err1, err2 error
			n.First, err1 = netip.ParseAddr(first)
			n.Last, err2 = netip.ParseAddr(last)
			if err1 != nil || err2 != nil || !n.First.Is4() || !n.Last.Is4() {
				p.fail("to %s: want an IPv4 address, or two with a dash between", first)
				break
			}
			if count := int64(number4(n.Last)) - int64(number4(n.First)) + 1; count < 1 || count > maxAddresses {
				p.fail("%v-%v is %d addresses: want 1 to %d", n.First, n.Last, count, maxAddresses)
			}
		case "ports":
			n.Ports = *p.portRange()
			if n.Ports.First == 0 {
				p.fail("port 0 cannot be used")
			}
		default:
			p.fail("%q is not expected here: want out, from, to or ports", w)
		}
	}
	if n.Out == "" {
		p.fail("out is missing: by which port do the packets leave that are translated?")
	}
	if !n.First.IsValid() {
		p.fail("to is missing: which address is translated to?")
	}
	return n
}

func (p *parser) rate() int64 {
	w := p.word("a rate")
	digits, factor := w, uint64(1)
	for suffix, f := range map[string]uint64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if d, found := strings.CutSuffix(w, suffix); found {
			digits, factor = d, f
		}
	}
	n := p.number(digits, "a rate (bits per second, or with kbit, mbit, gbit)", 1e12/factor)
	if n == 0 {
		p.fail("a rate of 0 would let nothing pass; leave the line out for no limit")
	}
	return int64(n * factor)
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func hasPorts(protocol uint8) bool { return protocol == 6 || protocol == 17 || protocol == 132 }
