package rules

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

var ports = []string{"wan", "lan"}

func TestAFileIsReadAsWritten(t *testing.T) {
	s, err := Parse(strings.NewReader(`
# a small edge box
permit in lan proto tcp from 10.0.0.0/8 to any to-port 443 # the web
deny proto udp from-port 1000-2000 to 192.0.2.1
permit from 2001:db8::/32
default deny
nat out wan from 10.0.0.0/8 to 198.51.100.1-198.51.100.3 ports 2000-3000
rate wan 100mbit
`), "edge.rules", ports)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Rules) != 3 || !s.Deny || len(s.NAT) != 1 || s.Rates["wan"] != 100_000_000 {
		t.Fatalf("read %+v", s)
	}
	r := s.Rules[0]
	if r.Line != 3 || r.Deny || r.In != "lan" || r.Out != "" || r.Protocol != 6 || r.From.String() != "10.0.0.0/8" || r.To.IsValid() || *r.ToPorts != (Ports{443, 443}) || r.FromPorts != nil {
		t.Errorf("the first rule is %+v", r)
	}
	if r := s.Rules[1]; !r.Deny || r.To.String() != "192.0.2.1/32" || *r.FromPorts != (Ports{1000, 2000}) {
		t.Errorf("the second rule is %+v", r)
	}
	if n := s.NAT[0]; n.Out != "wan" || n.First.String() != "198.51.100.1" || n.Last.String() != "198.51.100.3" || n.Ports != (Ports{2000, 3000}) {
		t.Errorf("the translation is %+v", n)
	}
}

func TestABadFileIsRefusedWholeWithTheLine(t *testing.T) {
	for _, c := range []struct{ line, says string }{
		{"allow from any", "begins no rule"},
		{"permit from 10.0.0.1/8", "10.0.0.0/8 meant"},
		{"permit from 10.0.0.300", "not an address"},
		{"permit in dmz", "wan, lan"},
		{"permit proto tcpp", "tcp, udp"},
		{"permit proto icmp to-port 1", "no ports"},
		{"permit to-port 70000", "0 to 65535"},
		{"permit to-port 20-10", "ends before"},
		{"permit from 10.0.0.0/8 to fe80::/10", "families"},
		{"permit from 10.0.0.0/8 from 11.0.0.0/8", "twice"},
		{"permit to", "at the end of the line"},
		{"default maybe", "permit or deny"},
		{"default deny deny", "not expected"},
		{"nat from 10.0.0.0/8 to 192.0.2.1", "out is missing"},
		{"nat out wan", "to is missing"},
		{"nat out wan to 2001:db8::1", "IPv4"},
		{"nat out wan to 192.0.2.9-192.0.2.1", "want 1 to"},
		{"nat out wan to 192.0.2.1 ports 0-5", "port 0"},
		{"rate wan fast", "a rate"},
		{"rate wan 0", "leave the line out"},
	} {
		s, err := Parse(strings.NewReader("permit from any\n\n"+c.line+"\n"), "f", ports)
		if err == nil || s != nil {
			t.Errorf("%q was accepted", c.line)
			continue
		}
		if !strings.HasPrefix(err.Error(), "f:3: ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: error %q, want f:3: and %q", c.line, err, c.says)
		}
	}
	for _, c := range []string{"default deny\ndefault permit", "rate wan 1\nrate wan 2", "nat out wan to 192.0.2.1\nnat out lan to 192.0.2.0-192.0.2.5"} {
		if _, err := Parse(strings.NewReader(c), "f", ports); err == nil || !strings.HasPrefix(err.Error(), "f:2:") {
			t.Errorf("%q: error %v, want one of line 2", c, err)
		}
	}
}

// linear decides by looking at one rule after the other.
func linear(s *Set, p *Packet) bool {
	address := func(n [2]uint64) netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], n[0])
		binary.BigEndian.PutUint64(b[8:], n[1])
		if p.IPv6 {
			return netip.AddrFrom16(b)
		}
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	name := func(want string, i int) bool { return want == "" || i >= 0 && ports[i] == want }
	in := func(r *Ports, port uint16) bool { return r == nil || p.HasPorts && r.First <= port && port <= r.Last }
	for _, r := range s.Rules {
		if name(r.In, p.In) && name(r.Out, p.Out) && (r.Protocol == 0 || r.Protocol == p.Protocol) &&
			(!r.From.IsValid() || r.From.Contains(address(p.From))) && (!r.To.IsValid() || r.To.Contains(address(p.To))) &&
			in(r.FromPorts, p.FromPort) && in(r.ToPorts, p.ToPort) {
			return !r.Deny
		}
	}
	return !s.Deny
}

func TestTheCompiledFilterDecidesLikeOneRuleAfterTheOther(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0))
		prefix := func(six bool) string {
			if six {
				return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::%x", r.IntN(3), r.IntN(4))), []int{0, 32, 48, 64, 126, 128}[r.IntN(6)]).Masked().String()
			}
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), 0, byte(r.IntN(4))}), []int{0, 8, 16, 24, 30, 32}[r.IntN(6)]).Masked().String()
		}
		var b strings.Builder
		for range r.IntN(200) {
			six := r.IntN(2) == 0
			b.WriteString([]string{"permit", "deny"}[r.IntN(2)])
			if r.IntN(3) == 0 {
				fmt.Fprintf(&b, " in %s", ports[r.IntN(2)])
			}
			if r.IntN(3) == 0 {
				fmt.Fprintf(&b, " out %s", ports[r.IntN(2)])
			}
			if r.IntN(2) == 0 {
				fmt.Fprintf(&b, " from %s", prefix(six))
			}
			if r.IntN(2) == 0 {
				fmt.Fprintf(&b, " to %s", prefix(six))
			}
			if r.IntN(2) == 0 {
				first := r.IntN(5)
				fmt.Fprintf(&b, " proto udp to-port %d-%d", first, first+r.IntN(4))
			} else if r.IntN(2) == 0 {
				fmt.Fprintf(&b, " proto %d", []int{1, 6, 17}[r.IntN(3)])
			}
			if r.IntN(4) == 0 {
				b.WriteString("\n# a comment")
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "default %s\n", []string{"permit", "deny"}[r.IntN(2)])
		s, err := Parse(strings.NewReader(b.String()), "f", ports)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		f := s.Compile(ports)
		for range 3000 {
			p := &Packet{In: r.IntN(3) - 1, Out: r.IntN(3) - 1, Protocol: []uint8{1, 6, 17, 50}[r.IntN(4)], IPv6: r.IntN(2) == 0,
				FromPort: uint16(r.IntN(8)), ToPort: uint16(r.IntN(10))}
			p.HasPorts = hasPorts(p.Protocol) && r.IntN(4) > 0
			for _, n := range []*[2]uint64{&p.From, &p.To} {
				if p.IPv6 {
					*n = [2]uint64{0x20010db8<<32 | uint64(r.IntN(4))<<16, uint64(r.IntN(6))}
				} else {
					n[1] = 10<<24 | uint64(r.IntN(4))<<16 | uint64(r.IntN(6))
				}
			}
			if got, line := f.Permits(p); got != linear(s, p) {
				t.Fatalf("seed %d: %+v permitted: %v (line %d), want %v by\n%s", seed, p, got, line, !got, b.String())
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("permit in lan proto tcp from 10.0.0.0/8 to any to-port 443\nnat out wan to 192.0.2.1\nrate wan 5gbit")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := Parse(strings.NewReader(text), "f", ports); err == nil {
			s.Compile(ports).Permits(&Packet{In: NoPort, Out: 1, Protocol: 6})
		}
	})
}
