package fib_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/apps/packet/fib"
	"github.com/pollux-net/pollux/bpf/trio"
)

// TestTheTableAgreesWithTheKernel asks the kernel what ip route get asks, about
// random tables of overlapping routes over a few interfaces.
func TestTheTableAgreesWithTheKernel(t *testing.T) {
	const devices, tables, lookups = 6, 4, 10_000
	for seed := range uint64(tables) {
		r := rand.New(rand.NewPCG(seed, 5))
		host := trio.NewHost(t, "router")
		host.Must(t, func() error {
			index := make([]int, devices)
			for i := range index {
				d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("d%d", i)}, PeerName: fmt.Sprintf("peer%d", i)}
				if err := netlink.LinkAdd(d); err != nil {
					return fmt.Errorf("make a veth: %w", err)
				}
				peer, err := netlink.LinkByName(d.PeerName)
				if err != nil {
					return err
				}
				if err := errors.Join(netlink.LinkSetUp(d), netlink.LinkSetUp(peer)); err != nil {
					return err
				}
				for _, a := range []string{fmt.Sprintf("10.250.%d.1/24", i), fmt.Sprintf("fd25:%d::1/64", i)} {
					n, err := netlink.ParseAddr(a)
					if err != nil {
						return err
					}
					n.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
					if err := netlink.AddrAdd(d, n); err != nil {
						return fmt.Errorf("add %s: %w", a, err)
					}
				}
				link, err := netlink.LinkByName(d.Name)
				if err != nil {
					return err
				}
				index[i] = link.Attrs().Index
			}
			b := fib.NewBuilder()
			var list []netip.Prefix
			for n := 0; n < 400; n++ {
				p := candidate(r, n%2 == 1)
				if first := p.Addr().AsSlice()[0]; p.Addr().Is4() && (first == 0 && p.Bits() > 0) || p.Addr().Is6() && first != 0x20 && first != 0x2a {
					continue // what the kernel treats as special
				}
				i := r.IntN(devices)
				route := &netlink.Route{LinkIndex: index[i], Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Scope: netlink.SCOPE_LINK}
				if p.Addr().Is6() {
					route.Scope = netlink.SCOPE_UNIVERSE
				}
				// One route a prefix: a metric would choose between several.
				if err := netlink.RouteAdd(route); errors.Is(err, unix.EEXIST) {
					continue
				} else if err != nil {
					return fmt.Errorf("add a route to %v: %w", p, err)
				}
				duplicate := false
				for _, q := range list {
					duplicate = duplicate || q == p
				}
				if duplicate {
					if err := netlink.RouteDel(route); err != nil {
						return err
					}
					continue
				}
				list = append(list, p)
				if _, err := b.Apply([]fib.Change{{Prefix: p, Hop: uint32(i + 1)}}); err != nil {
					return err
				}
			}
			agreed := 0
			for range lookups {
				a := near(r, list[r.IntN(len(list))])
				if a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] == 127 || a.As4()[0] >= 224) || a.Is6() && (a.As16()[0] == 0xfe || a.As16()[0] == 0) {
					continue
				}
				want := uint32(fib.None)
				got := b.Table().Lookup(a)
				found, err := netlink.RouteGet(net.IP(a.AsSlice()))
				switch {
				case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH):
				case err != nil:
					return fmt.Errorf("ask for the route to %v: %w", a, err)
				default:
					for i, k := range index {
						if len(found) == 1 && found[0].LinkIndex == k {
							want = uint32(i + 1)
						}
					}
				}
				if got != want {
					t.Fatalf("seed %d: %v leads to hop %d, by the kernel %d (%v)", seed, a, got, want, found)
				}
				agreed++
			}
			if agreed < lookups/3 {
				t.Errorf("seed %d: only %d lookups could be compared", seed, agreed)
			}
			t.Logf("seed %d: %d routes, %d lookups agree", seed, len(list), agreed)
			return nil
		})
	}
}
