package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/bpf/trio"
)

// permitted judges a datagram by the rules one after the other, as their
// documentation says.
func permitted(rules []Rule, deny bool, in, out int, d datagram) bool {
	hasPorts := (d.protocol == 6 || d.protocol == 17 || d.protocol == 132) && d.fragment&0x1fff == 0
	for _, r := range rules {
		within := func(p *Ports, port uint16) bool { return p == nil || hasPorts && p.First <= port && port <= p.Last }
		if (r.In == 0 || r.In == in) && (r.Out == 0 || r.Out == out) && (r.Protocol == 0 || r.Protocol == d.protocol) &&
			(!r.From.IsValid() || r.From.Contains(d.source)) && (!r.To.IsValid() || r.To.Contains(d.target)) &&
			within(r.FromPorts, d.sourcePort) && within(r.ToPorts, d.toPort) {
			return !r.Deny
		}
	}
	return !deny
}

// A lawyer makes rules and datagrams of few values, so that they meet.
type lawyer struct {
	*rand.Rand
	n *trio.Network
}

func (l lawyer) prefix(six bool, ends ...netip.Addr) netip.Prefix {
	if l.IntN(3) == 0 {
		return netip.Prefix{}
	}
	a := ends[l.IntN(len(ends))]
	bits := a.BitLen() - []int{0, 0, 1, 3, 8, 16, a.BitLen()}[l.IntN(7)]
	if six && l.IntN(4) == 0 {
		bits = []int{1, 16, 63, 64, 65, 127}[l.IntN(6)]
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (l lawyer) ports() *Ports {
	if l.IntN(2) == 0 {
		return nil
	}
	first := uint16(l.IntN(8))
	if l.IntN(6) == 0 {
		return &Ports{first, 65535}
	}
	return &Ports{first, first + uint16(l.IntN(4))}
}

func (l lawyer) protocol() uint8 { return []uint8{6, 17, 132, 47}[l.IntN(4)] }

func (l lawyer) rule() Rule {
	six := l.IntN(2) == 0
	r := Rule{Deny: l.IntN(2) == 0, FromPorts: l.ports(), ToPorts: l.ports()}
	clients, servers := []netip.Addr{l.n.ClientPort.V4.Addr()}, []netip.Addr{l.n.ServerPort.V4.Addr()}
	if six {
		clients, servers = []netip.Addr{l.n.ClientPort.V6.Addr()}, []netip.Addr{l.n.ServerPort.V6.Addr()}
	}
	r.From, r.To = l.prefix(six, clients...), l.prefix(six, servers...)
	if l.IntN(2) == 0 {
		r.Protocol = l.protocol()
	}
	interfaces := []int{0, 0, l.n.RouterPorts[0].Index, l.n.RouterPorts[1].Index}
	r.In, r.Out = interfaces[l.IntN(4)], interfaces[l.IntN(4)]
	return r
}

func (l lawyer) datagram() (d datagram, out int) {
	d = toServer(l.n, l.IntN(2) == 0)
	out = l.n.RouterPorts[1].Index
	b := d.source.AsSlice()
	b[len(b)-1] ^= byte(l.IntN(8)) // 0 is the client
	b[len(b)-2] ^= byte(l.IntN(2))
	d.source, _ = netip.AddrFromSlice(b)
	if l.IntN(4) == 0 { // to the box
		d.target, out = l.n.RouterPorts[1].V4.Addr(), 0
		if d.source.Is6() {
			d.target = l.n.RouterPorts[1].V6.Addr()
		}
	}
	d.protocol, d.sourcePort, d.toPort = l.protocol(), uint16(l.IntN(12)), uint16(l.IntN(12))
	if l.IntN(20) == 0 {
		d.sourcePort = 65535
	}
	if d.source.Is4() && l.IntN(4) == 0 {
		d.fragment = []uint16{0x2000, 0x2001, 0x00b9}[l.IntN(3)]
	}
	return d, out
}

func TestCompiledRulesJudgeAsTheListDoes(t *testing.T) {
	n, f := prepared(t)
	denied, allowed := 0, 0
	for seed := range uint64(12) {
		l := lawyer{rand.New(rand.NewPCG(seed, 0)), n}
		var rules []Rule
		for range []int{0, 1, 3, 10, 63, 64, 65, 200, 20, 30, 500, MaxRules}[seed] {
			rules = append(rules, l.rule())
		}
		deny := seed%2 == 0
		if err := f.SetRules(rules, deny); err != nil {
			t.Fatal(err)
		}
		n.Router.Must(t, func() error {
			for range 800 {
				d, out := l.datagram()
				want := permitted(rules, deny, n.RouterPorts[0].Index, out, d)
				_, _, cause, err := f.run(n.RouterPorts[0], d.frame())
				if err != nil {
					return err
				}
				if got := cause != Denied; got != want {
					return fmt.Errorf("seed %d: %+v: permitted %v (%s), want %v", seed, d, got, cause, want)
				}
				if want {
					allowed++
				} else {
					denied++
				}
			}
			return nil
		})
	}
	if denied < 1000 || allowed < 1000 {
		t.Errorf("%d denied, %d allowed: not much of a test", denied, allowed)
	}
}

func TestPortsAreFoundBehindExtensionHeadersAndNeverInTheTailOfADatagram(t *testing.T) {
	n, f := prepared(t)
	if err := f.SetRules([]Rule{{Deny: true, Protocol: 17, ToPorts: &Ports{2000, 2000}}}, false); err != nil {
		t.Fatal(err)
	}
	// with puts extension headers between the IPv6 header and UDP.
	with := func(first byte, extensions ...byte) []byte {
		b := toServer(n, true).frame()
		head, body := b[:54], b[54:]
		head[20] = first
		head[19] += byte(len(extensions))
		return append(append(append([]byte{}, head...), extensions...), body...)
	}
	options := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	eight := append(bytes.Repeat(options(60), 7), options(17)...)
	for name, c := range map[string]struct {
		frame []byte
		want  Cause
	}{
		"none":                     {with(17), Denied},
		"hop-by-hop":               {with(0, options(17)...), Denied},
		"hop-by-hop, destination":  {with(0, append(options(60), options(17)...)...), Denied},
		"first fragment":           {with(44, 17, 0, 0, 1, 0, 0, 0, 9), Denied},
		"later fragment":           {with(44, 17, 0, 0, 8, 0, 0, 0, 9), Forwarded},
		"cut in an extension":      {with(0, options(60)...)[:58], Malformed},
		"extension beyond the end": {with(0, 17, 200, 1, 4, 0, 0, 0, 0), Malformed},
		"eight":                    {with(60, eight...), Denied},
		"nine":                     {with(60, append(options(60), eight...)...), Extensions},
	} {
		if name == "cut in an extension" {
			c.frame[18], c.frame[19] = 0, 4
		}
		n.Router.Must(t, func() error {
			_, _, cause, err := until(f, n.RouterPorts[0], c.frame)
			if err == nil && cause != c.want {
				t.Errorf("%s: %s, want %s", name, cause, c.want)
			}
			return err
		})
	}
}

func TestAFirstFragmentWithHalfATCPHeaderIsDroppedWhateverTheRules(t *testing.T) {
	n, f := prepared(t)
	four, six := toServer(n, false), toServer(n, true)
	four.protocol, six.protocol = 6, 44
	for size, want := range map[int]Cause{8: TinyFragment, 16: TinyFragment, 24: Forwarded} {
		four.payload, four.fragment = size-8, 0x2000
		six.payload = size
		b := six.frame()
		copy(b[54:], []byte{6, 0, 0, 1, 0, 0, 0, 9})
		for _, frame := range [][]byte{four.frame(), b} {
			n.Router.Must(t, func() error {
				_, _, cause, err := until(f, n.RouterPorts[0], frame)
				if err == nil && cause != want {
					t.Errorf("%d bytes of TCP in %x: %s, want %s", size, frame, cause, want)
				}
				return err
			})
		}
	}
}

// optional is a datagram with four bytes of IPv4 options.
func optional(d datagram) []byte {
	b := d.frame()
	b = slices.Insert(b, 34, 1, 1, 1, 0)
	b[14]++
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], ^sum(b[14:38]))
	return b
}

func TestWhatIsLeftToTheKernelIsJudgedByTheSameRules(t *testing.T) {
	n, f := prepared(t)
	four, six := toServer(n, false), toServer(n, true)
	with := func(d datagram, change func(*datagram)) datagram {
		change(&d)
		return d
	}
	local := with(six, func(d *datagram) { d.source, d.target = netip.MustParseAddr("fe80::9"), netip.MustParseAddr("fe80::1") })
	group := func(d *datagram) { d.to = [6]byte{0x33, 0x33, 0, 0, 0, 1} }
	discovery := with(local, func(d *datagram) { d.protocol, d.ttl, d.sourcePort = 58, 255, 135<<8 })
	out := n.RouterPorts[1].Index
	for name, c := range map[string]struct {
		frame []byte
		cause Cause
		match Rule // that this frame meets
	}{
		"options":                     {optional(four), Options, Rule{Out: out, Protocol: 17, From: netip.PrefixFrom(four.source, 32), ToPorts: &Ports{2000, 2000}}},
		"options, to the box":         {optional(with(four, func(d *datagram) { d.target = n.RouterPorts[0].V4.Addr() })), Options, Rule{FromPorts: &Ports{1000, 1000}}},
		"link-local":                  {local.frame(), LinkLocal, Rule{From: netip.MustParsePrefix("fe80::/10"), ToPorts: &Ports{2000, 2000}}},
		"to a group of Ethernet only": {with(four, group).frame(), Multicast, Rule{To: netip.PrefixFrom(four.target, 32), Protocol: 17}},
		"link-local, the same":        {with(local, group).frame(), Multicast, Rule{To: netip.MustParsePrefix("fe80::1/128")}},
		"options, the same":           {optional(with(four, group)), Multicast, Rule{ToPorts: &Ports{2000, 2000}}},
	} {
		other := c.match
		other.In = out // where the frame does not come from
		for _, rule := range []Rule{c.match, other} {
			want := c.cause
			if rule.Deny = true; rule.In == 0 {
				want = Denied
			}
			if err := f.SetRules([]Rule{rule}, false); err != nil {
				t.Fatal(err)
			}
			n.Router.Must(t, func() error {
				_, _, cause, err := f.run(n.RouterPorts[0], c.frame)
				if err == nil && cause != want {
					t.Errorf("%s, with rule %+v: %s, want %s", name, rule, cause, want)
				}
				return err
			})
		}
	}
	if err := f.SetRules(nil, true); err != nil {
		t.Fatal(err)
	}
	n.Router.Must(t, func() error {
		for _, c := range []struct {
			frame []byte
			cause Cause
		}{
			{discovery.frame(), LinkLocal},
			{with(discovery, group).frame(), Multicast},
			{with(four, func(d *datagram) {
				group(d)
				d.source, d.target = netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255")
			}).frame(), Multicast},
		} {
			_, _, cause, err := f.run(n.RouterPorts[0], c.frame)
			if err != nil {
				return err
			}
			if cause != c.cause {
				t.Errorf("%x: %s, want %s whatever the rules", c.frame, cause, c.cause)
			}
		}
		return nil
	})
}

func TestNeighbourDiscoveryPassesWhateverTheRules(t *testing.T) {
	n, f := prepared(t)
	if err := f.SetRules(nil, true); err != nil {
		t.Fatal(err)
	}
	n.Router.Run(t, "ip", "neigh", "flush", "all")
	n.Router.Run(t, "ip", "neigh", "del", n.ClientPort.V6.Addr().String(), "dev", n.RouterPorts[0].Name)
	n.Router.Run(t, "ping", "-c", "1", "-W", "1", n.RouterPorts[0].V6.Addr().String()) // itself, not over a port
	if out, err := n.Client.Try("ping", "-c", "1", "-W", "1", n.RouterPorts[0].V6.Addr().String()); err == nil {
		t.Errorf("a ping to the router was permitted:\n%s", out)
	}
	out := n.Client.Run(t, "ip", "-6", "neigh", "show", n.RouterPorts[0].V6.Addr().String())
	if want := mac(n.RouterPorts[0]); len(out) == 0 || !strings.Contains(out, want) {
		t.Errorf("the router was not discovered: %q", out)
	}
	if c := counters(t, f); c[Denied].Frames == 0 {
		t.Errorf("the ping was not counted:%s", c)
	}
}

func TestRulesThatMakeNoSenseAreRefusedAndTheOldOnesStay(t *testing.T) {
	n, f := prepared(t)
	if err := f.SetRules(nil, true); err != nil {
		t.Fatal(err)
	}
	for name, rules := range map[string][]Rule{
		"too many":           make([]Rule, MaxRules+1),
		"no such interface":  {{In: 9999}},
		"reversed ports":     {{FromPorts: &Ports{2, 1}}},
		"mapped IPv4 prefix": {{To: netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
	} {
		if err := f.SetRules(rules, false); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	n.Router.Must(t, func() error {
		_, _, cause, err := f.run(n.RouterPorts[0], toServer(n, false).frame())
		if err == nil && cause != Denied {
			t.Errorf("%s, want denied", cause)
		}
		return err
	})
}
