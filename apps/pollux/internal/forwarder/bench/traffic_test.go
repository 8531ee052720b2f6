package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/pollux-net/pollux/apps/packet/fib/generate"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/driver"
)

var be = binary.BigEndian

// variant is a state of the forwarder and the traffic that suits it.
type variant struct {
	name   string
	full   bool // 1 M IPv4 and 200 k IPv6 routes, and destinations in them at random
	six    bool // every fourth packet is IPv6
	flows  int
	nocach bool
	rules  string
}

const (
	accessRules = `
deny proto tcp to-port 25
deny from 10.0.9.0/24
deny proto udp to-port 1900
permit proto udp from 10.0.0.0/8
permit proto tcp from 10.0.0.0/8 to-port 80-443
default permit
`
	translation = "nat out p1 from 10.0.0.0/8 to 198.51.100.1\n"
)

var variants = []variant{
	{name: "1 route, cache", flows: 1000},
	{name: "1 route, no cache", flows: 1000, nocach: true},
	{name: "1 route, cache, ACL", flows: 1000, rules: accessRules},
	{name: "1 route, no cache, ACL", flows: 1000, nocach: true, rules: accessRules},
	{name: "1 route, cache, ACL+NAT", flows: 1000, rules: accessRules + translation},
	{name: "1 route, no cache, ACL+NAT", flows: 1000, nocach: true, rules: accessRules + translation},
	{name: "1 M routes, random, cache", full: true, flows: 1 << 17},
	{name: "1 M routes, random, no cache", full: true, flows: 1 << 17, nocach: true},
	{name: "1.2 M routes, IPv4 and IPv6, no cache", full: true, six: true, flows: 1 << 17, nocach: true},
}

func variantOf(name string) (variant, error) {
	for _, v := range variants {
		if v.name == name {
			return v, nil
		}
	}
	return variant{}, fmt.Errorf("no such variant: %q", name)
}

func (v variant) flowCache() int {
	if v.nocach {
		return -1
	}
	return 0
}

const neighbours = 200

func mac(port, host int) [6]byte { return [6]byte{2, 0, 0, 0, byte(port), byte(host)} }

func gateway(i int, six bool) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: byte(2 + i)})
	}
	return netip.AddrFrom4([4]byte{10, 1, 0, byte(2 + i)})
}

// prefixes of the full table.
func prefixes() (four, six []netip.Prefix) {
	return generate.Prefixes4(7, 1_000_000), generate.Prefixes6(7, 200_000)
}

// update is what the kernel would tell of two ports, p0 and p1, and the routes,
// which all lead out of p1.
func (v variant) update() (u routes.Update) {
	for i := range 2 {
		u.Links = append(u.Links, routes.Link{Interface: i + 1, Name: fmt.Sprint("p", i), MTU: 1500, Up: true, Running: true})
		for _, a := range []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), 16),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(i), 15: 1}), 64),
		} {
			u.Addresses = append(u.Addresses, routes.Address{Interface: i + 1, Prefix: a})
			u.Routes = append(u.Routes, routes.Route{Prefix: a.Masked(), NextHops: []routes.NextHop{{Interface: i + 1}}},
				routes.Route{Prefix: netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), Local: true})
		}
	}
	for i := range neighbours {
		for _, six := range []bool{false, true} {
			u.Neighbours = append(u.Neighbours, routes.Neighbour{Interface: 2, Address: gateway(i, six), MAC: mac(1, 2), Valid: true, Permanent: true})
		}
	}
	if !v.full {
		u.Routes = append(u.Routes, routes.Route{Prefix: netip.MustParsePrefix("20.0.0.0/8"), NextHops: []routes.NextHop{{Gateway: gateway(0, false), Interface: 2}}})
		return u
	}
	four, six := prefixes()
	for k, list := range [][]netip.Prefix{four, six} {
		for i, p := range list {
			u.Routes = append(u.Routes, routes.Route{Prefix: p, NextHops: []routes.NextHop{{Gateway: gateway(i%neighbours, k == 1), Interface: 2}}})
		}
	}
	return u
}

func (v variant) set() (*rules.Set, error) {
	return rules.Parse(strings.NewReader(v.rules), "bench", []string{"p0", "p1"})
}

// frame is one of at most 62 bytes (66 with the check sequence; IPv6 and UDP have
// no shorter ones), ready to be copied.
type frame struct {
	data [63]byte
	size uint8
}

// put makes an empty frame of a device one of these. It copies all 64 bytes, as that
// costs less than to look how many there are.
func (f *frame) put(to *driver.Frame) {
	room := to.Data[:64]
	*(*frame)(unsafe.Pointer(&room[0])) = *f
	to.Data = room[:f.size]
}

// frames are what comes in by p0, one of each flow.
func (v variant) frames() []frame {
	to := []netip.Addr{netip.MustParseAddr("20.0.0.1")}
	var to6 []netip.Addr
	if v.full {
		four, six := prefixes()
		to, to6 = forwardable(generate.Destinations(8, four, v.flows)), forwardable(generate.Destinations(9, six, v.flows))
	}
	r := rand.New(rand.NewPCG(1, 1))
	list := make([]frame, v.flows)
	for i := range list {
		port := uint16(1024 + i%60_000)
		if v.six && i%4 == 3 {
			list[i] = frame6(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0, 14: byte(1 + i%200), 15: byte(i)}), to6[i%len(to6)], port, uint16(4000+r.IntN(100)))
		} else {
			list[i] = frame4(netip.AddrFrom4([4]byte{10, 0, byte(1 + i%8), byte(1 + i%250)}), to[i%len(to)], port, uint16(4000+r.IntN(100)))
		}
	}
	return list
}

// forwardable leaves out the addresses that a router drops, whatever its table.
func forwardable(list []netip.Addr) (good []netip.Addr) {
	for _, a := range list {
		if a.Is6() && a.IsGlobalUnicast() && a.As16()[0]&0xe0 == 0x20 {
			good = append(good, a)
		} else if b := a.AsSlice(); a.Is4() && b[0] != 0 && b[0] != 127 && b[0] < 224 && b[0] != 10 && !(b[0] == 169 && b[1] == 254) {
			good = append(good, a)
		}
	}
	return good
}

func ethernet(f *frame, kind uint16, size int) []byte {
	f.size = uint8(size)
	router, host := mac(0, 1), mac(0, 2)
	copy(f.data[:], router[:])
	copy(f.data[6:], host[:])
	be.PutUint16(f.data[12:], kind)
	return f.data[14:size]
}

func frame4(from, to netip.Addr, sport, dport uint16) (f frame) {
	ip := ethernet(&f, 0x0800, 60)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	be.PutUint16(ip[2:], 46)
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	be.PutUint16(ip[10:], ^uint16(sum))
	udp(ip[20:], sport, dport)
	return f
}

func frame6(from, to netip.Addr, sport, dport uint16) (f frame) {
	ip := ethernet(&f, 0x86dd, 62)
	ip[0], ip[5], ip[6], ip[7] = 0x60, 8, 17, 64
	copy(ip[8:], from.AsSlice())
	copy(ip[24:], to.AsSlice())
	udp(ip[40:], sport, dport)
	be.PutUint16(ip[46:], 1) // no forwarder looks, but 0 is no checksum in IPv6
	return f
}

func udp(b []byte, sport, dport uint16) {
	be.PutUint16(b, sport)
	be.PutUint16(b[2:], dport)
	be.PutUint16(b[4:], uint16(len(b)))
}

// unwanted are the causes of drops that a measurement must not have: all but a
// device that takes no more.
func unwanted(s *forward.Counters) map[string]uint64 {
	m := map[string]uint64{}
	for _, c := range forward.Causes() {
		if n := s.Dropped[c]; n > 0 && c != forward.QueueFull && c != forward.QueueCut {
			m[c.String()] = n
		}
	}
	return m
}
