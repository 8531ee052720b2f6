package forward

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/pollux-net/pollux/bpf/trio"
)

// prepared is a network whose router knows its neighbours for good.
func prepared(t testing.TB) (*trio.Network, *Forwarder) {
	n := trio.New(t, trio.Options{Forwarding: true})
	for i, p := range []trio.Port{n.ClientPort, n.ServerPort} {
		for _, a := range []netip.Addr{p.V4.Addr(), p.V6.Addr()} {
			n.Router.Run(t, "ip", "neigh", "replace", a.String(), "lladdr", mac(p), "dev", n.RouterPorts[i].Name)
		}
	}
	return n, attach(t, n)
}

func mac(p trio.Port) string {
	s := ""
	for i, b := range p.MAC {
		if i > 0 {
			s += ":"
		}
		s += string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15])
	}
	return s
}

// toServer is a datagram of the client's to the server, as the router gets it.
func toServer(n *trio.Network, six bool) datagram {
	d := datagram{to: n.RouterPorts[0].MAC, from: n.ClientPort.MAC, protocol: 17, sourcePort: 1000, toPort: 2000, ttl: 64,
		source: n.ClientPort.V4.Addr(), target: n.ServerPort.V4.Addr(), payload: 20}
	if six {
		d.source, d.target = n.ClientPort.V6.Addr(), n.ServerPort.V6.Addr()
	}
	return d
}

// until runs the program until it forwards: the first frame to a next hop, and
// one a second, is the kernel's.
func until(f *Forwarder, port trio.Port, frame []byte) (verdict uint32, out []byte, cause Cause, err error) {
	for range 3 {
		if verdict, out, cause, err = f.run(port, frame); err != nil || cause != Refresh {
			break
		}
	}
	return verdict, out, cause, err
}

func TestAForwardedFrameHasNewAddressesAndOneHopLessAndIsElseTheSame(t *testing.T) {
	n, f := prepared(t)
	n.Router.Must(t, func() error {
		for _, six := range []bool{false, true} {
			for ttl := 2; ttl < 256; ttl++ {
				d := toServer(n, six)
				d.ttl, d.payload = uint8(ttl), ttl*5
				verdict, got, cause, err := until(f, n.RouterPorts[0], d.frame())
				if err != nil {
					return err
				}
				d.to, d.from, d.ttl = n.ServerPort.MAC, n.RouterPorts[1].MAC, d.ttl-1
				if want := d.frame(); verdict != xdpRedirect || cause != Forwarded || !bytes.Equal(got, want) {
					t.Fatalf("verdict %d, %s\n%x, want\n%x", verdict, cause, got, want)
				}
			}
		}
		return nil
	})
}

func TestTheChecksumIsRightAfterAnyHeader(t *testing.T) {
	n, f := prepared(t)
	const seed = 1
	r := rand.New(rand.NewPCG(seed, 0))
	n.Router.Must(t, func() error {
		for range 3000 {
			b := toServer(n, false).frame()
			h := b[14:34]
			h[1] = byte(r.Uint32()) &^ 3
			binary.BigEndian.PutUint16(h[4:], uint16(r.Uint32())) // identity
			h[8] = byte(2 + r.IntN(254))
			binary.BigEndian.PutUint16(h[10:], 0)
			binary.BigEndian.PutUint16(h[10:], ^sum(h))
			_, got, cause, err := until(f, n.RouterPorts[0], b)
			if err != nil {
				return err
			}
			if cause != Forwarded || sum(got[14:34]) != 0xffff {
				t.Fatalf("seed %d: %s, header %x became %x", seed, cause, h, got[14:34])
			}
		}
		return nil
	})
}

func TestEveryFrameThatIsNotForwardedIsCountedUnderItsCause(t *testing.T) {
	n, f := prepared(t)
	for _, r := range []string{"blackhole 192.0.2.0/25", "unreachable 192.0.2.128/25", "blackhole 2001:db8:1::/48",
		"prohibit 2001:db8:2::/48", "192.0.3.0/24 dev lo", "2001:db8:3::/48 dev lo"} {
		n.Router.Run(t, "sh", "-c", "ip route add "+r)
	}
	four, six := toServer(n, false), toServer(n, true)
	with := func(d datagram, change func(*datagram)) []byte {
		change(&d)
		return d.frame()
	}
	target := func(a string) func(*datagram) { return func(d *datagram) { d.target = netip.MustParseAddr(a) } }
	source := func(a string) func(*datagram) { return func(d *datagram) { d.source = netip.MustParseAddr(a) } }
	raw := func(d datagram, change func([]byte) []byte) []byte { return change(d.frame()) }
	fixed := func(change func(h []byte)) []byte { // IPv4, with a right checksum
		b := four.frame()
		change(b[14:34])
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], ^sum(b[14:34]))
		return b
	}
	for name, c := range map[string]struct {
		frame []byte
		cause Cause
	}{
		"IPv4 to us":                  {with(four, target("10.71.2.1")), Local},
		"IPv6 to us":                  {with(six, target("fd71:2::1")), Local},
		"no IPv4 route":               {with(four, target("198.51.100.1")), Local},
		"no IPv6 route":               {with(six, target("2001:db8::1")), Local},
		"IPv4 neighbour unknown":      {with(four, target("10.71.2.99")), NeighbourWait},
		"IPv6 neighbour unknown":      {with(six, target("fd71:2::99")), NeighbourWait},
		"IPv4 too big":                {with(four, func(d *datagram) { d.payload = 1500 }), TooBig},
		"IPv6 too big":                {with(six, func(d *datagram) { d.payload = 1500 }), TooBig},
		"IPv4 at its end":             {with(four, func(d *datagram) { d.ttl = 1 }), HopLimit},
		"IPv6 at its end":             {with(six, func(d *datagram) { d.ttl = 0 }), HopLimit},
		"IPv4 unreachable":            {with(four, target("192.0.2.200")), Unreachable},
		"IPv6 prohibited":             {with(six, target("2001:db8:2::1")), Unreachable},
		"IPv4 blackhole":              {with(four, target("192.0.2.1")), Blackhole},
		"IPv6 blackhole":              {with(six, target("2001:db8:1::1")), Blackhole},
		"IPv4 out of no port of ours": {with(four, target("192.0.3.1")), NoPort},
		"ARP":                         {raw(four, func(b []byte) []byte { b[13] = 6; return b }), EtherType},
		"VLAN":                        {raw(four, func(b []byte) []byte { return slices.Insert(b, 12, 0x81, 0, 0, 7) }), EtherType},
		"priority tag":                {raw(four, func(b []byte) []byte { return slices.Insert(b, 12, 0x81, 0, 0xe0, 0) }), PriorityTag},
		"priority tag, IPv6":          {raw(six, func(b []byte) []byte { return slices.Insert(b, 12, 0x88, 0xa8, 0, 0) }), PriorityTag},
		"VLAN tag cut":                {raw(four, func(b []byte) []byte { b[12], b[13] = 0x81, 0; return b[:16] }), Short},
		"broadcast":                   {with(four, func(d *datagram) { d.to = [6]byte{255, 255, 255, 255, 255, 255} }), Multicast},
		"IPv4 group":                  {with(four, target("224.0.0.5")), Multicast},
		"IPv6 group":                  {with(six, target("ff02::5")), Multicast},
		"IPv6 link-local":             {with(six, target("fe80::1")), LinkLocal},
		"from IPv6 link-local":        {with(six, source("fe80::1")), LinkLocal},
		"somebody else's":             {with(four, func(d *datagram) { d.to[5] ^= 1 }), OtherHost},
		"somebody else's, IPv6":       {with(six, func(d *datagram) { d.to[0] ^= 2 }), OtherHost},
		"IPv4 header cut":             {four.frame()[:30], Short},
		"IPv6 header cut":             {six.frame()[:50], Short},
		"IPv4 longer than its frame":  {raw(four, func(b []byte) []byte { return b[:len(b)-1] }), Malformed},
		"IPv6 longer than its frame":  {raw(six, func(b []byte) []byte { return b[:len(b)-1] }), Malformed},
		"IPv4 of version 5":           {fixed(func(h []byte) { h[0] = 0x55 }), Malformed},
		"IPv4 with a short header":    {fixed(func(h []byte) { h[0] = 0x44 }), Malformed},
		"IPv4 shorter than a header":  {fixed(func(h []byte) { h[2], h[3] = 0, 19 }), Malformed},
		"IPv6 of version 4":           {raw(six, func(b []byte) []byte { b[14] = 0x40; return b }), Malformed},
		"IPv4 options":                {fixed(func(h []byte) { h[0] = 0x46 }), Options},
		"IPv4 checksum":               {raw(four, func(b []byte) []byte { b[24] ^= 1; return b }), Checksum},
		"from 127/8":                  {with(four, source("127.0.0.1")), Martian},
		"to 127/8":                    {with(four, target("127.0.0.1")), Martian},
		"from 0/8":                    {with(four, source("0.1.2.3")), Martian},
		"from a group":                {with(four, source("224.1.2.3")), Martian},
		"to 255.255.255.255":          {with(four, target("255.255.255.255")), Martian},
		"from ::1":                    {with(six, source("::1")), Martian},
		"from ::":                     {with(six, source("::")), Martian},
		"from an IPv6 group":          {with(six, source("ff02::1")), Martian},
		"to ::1":                      {with(six, target("::1")), Martian},
	} {
		n.Router.Must(t, func() error {
			verdict, out, cause, err := f.run(n.RouterPorts[0], c.frame)
			if err != nil {
				return err
			}
			want := uint32(xdpPass)
			if c.cause.Dropped() {
				want = xdpDrop
			}
			if cause != c.cause || verdict != want {
				t.Errorf("%s: %s, verdict %d; want %s, %d", name, cause, verdict, c.cause, want)
			}
			if verdict == xdpPass && !bytes.Equal(out, c.frame) {
				t.Errorf("%s: passed, but changed: %x, was %x", name, out, c.frame)
			}
			return nil
		})
	}
}

func TestHostileFramesAreCountedAndNothingElse(t *testing.T) {
	n, f := prepared(t)
	if err := f.SetRules([]Rule{{Deny: true, Protocol: 17, ToPorts: &Ports{53, 53}}}, false); err != nil {
		t.Fatal(err)
	}
	const seed = 5
	r := rand.New(rand.NewPCG(seed, 0))
	seen := map[Cause]int{}
	n.Router.Must(t, func() error {
		for range 6000 {
			b := toServer(n, r.IntN(2) == 0).frame()
			for range r.IntN(4) {
				b[12+r.IntN(len(b)-12)] = byte(r.Uint32())
			}
			if r.IntN(4) == 0 { // an extension header
				b[20] = []byte{0, 43, 44, 60}[r.IntN(4)]
			}
			b = b[:max(14, len(b)-max(0, r.IntN(100)-60))]
			verdict, _, cause, err := f.run(n.RouterPorts[0], b)
			if err != nil {
				t.Errorf("seed %d", seed)
				return err
			}
			want := uint32(xdpRedirect)
			switch {
			case cause.Dropped():
				want = xdpDrop
			case cause.Passed():
				want = xdpPass
			}
			if verdict != want {
				t.Fatalf("seed %d: %x: %s, but verdict %d", seed, b, cause, verdict)
			}
			seen[cause]++
		}
		return nil
	})
	if len(seen) < 8 {
		t.Errorf("%v: not much of a test", seen)
	}
}
