package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addressKnob is about global addresses; link-local ones are the kernel's own.
func addressKnob(ifname string, want []netip.Prefix) knob {
	read := func() ([]netip.Prefix, error) {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return nil, err
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", ifname, err)
		}
		var prefixes []netip.Prefix
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.IPNet.String())
			if err != nil {
				return nil, fmt.Errorf("read an address of %s: %w", ifname, err)
			}
			if !prefix.Addr().IsLinkLocalUnicast() {
				prefixes = append(prefixes, prefix)
			}
		}
		return prefixes, nil
	}
	return knob{
		name: ifname + " addresses", want: joinSorted(prefixStrings(want)),
		get: func() (string, error) {
			got, err := read()
			return joinSorted(prefixStrings(got)), err
		},
		set: func() error {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return err
			}
			got, err := read()
			if err != nil {
				return err
			}
			for _, p := range got {
				if !slices.Contains(want, p) {
					if err := netlink.AddrDel(link, linkAddress(p)); err != nil {
						return fmt.Errorf("remove address %s: %w", p, err)
					}
				}
			}
			for _, p := range want {
				if err := netlink.AddrReplace(link, linkAddress(p)); err != nil {
					return fmt.Errorf("add address %s: %w", p, err)
				}
			}
			return nil
		},
	}
}

func linkAddress(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NOPREFIXROUTE}
	if p.Addr().Is6() {
		a.Flags |= unix.IFA_F_NODAD
	}
	return a
}

// congestionControl of both ends. The machine's default may be another; bbr,
// say, would pace what is measured.
const congestionControl = "cubic"

// labRoute leads to the other end, and pins congestion control on the way: the
// sysctl of a namespace refuses an algorithm that is not open to everyone on the
// machine (tcp_allowed_congestion_control), and that list is not the lab's to
// change. A route's metric (RTAX_CC_ALGO) has no such limit, and both accepted
// and outgoing connections take it from there.
func labRoute(ifindex int, p netip.Prefix) *netlink.Route {
	route := &netlink.Route{LinkIndex: ifindex, Dst: ipNet(p.Masked()), Congctl: congestionControl}
	if p.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
		route.Src = p.Addr().AsSlice()
	}
	return route
}

// routeKnob is about the routes to the networks of an interface's addresses.
func routeKnob(ifname string, addresses []netip.Prefix) knob {
	describe := func(r *netlink.Route) string {
		control := r.Congctl
		if control == "" {
			control = "(default congestion control)"
		}
		return r.Dst.String() + " " + control
	}
	read := func() ([]netlink.Route, error) {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return nil, err
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list the routes of %s: %w", ifname, err)
		}
		return slices.DeleteFunc(routes, func(r netlink.Route) bool {
			return r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()
		}), nil
	}
	var want []string
	for _, p := range addresses {
		want = append(want, describe(labRoute(0, p)))
	}
	return knob{
		name: ifname + " routes", want: joinSorted(want),
		get: func() (string, error) {
			routes, err := read()
			var got []string
			for i := range routes {
				got = append(got, describe(&routes[i]))
			}
			return joinSorted(got), err
		},
		set: func() error {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return err
			}
			routes, err := read()
			if err != nil {
				return err
			}
			for i := range routes {
				if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("remove the route to %s: %w", routes[i].Dst, err)
				}
			}
			for _, p := range addresses {
				if err := netlink.RouteAdd(labRoute(link.Attrs().Index, p)); err != nil {
					return fmt.Errorf("add the route to %s: %w", p.Masked(), err)
				}
			}
			return nil
		},
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixStrings(prefixes []netip.Prefix) []string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return s
}

// joinSorted makes comparable what is a set.
func joinSorted(s []string) string {
	return strings.Join(slices.Sorted(slices.Values(s)), ", ")
}
