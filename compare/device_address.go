package compare

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deviceAddress is whether the kernel has the server's address on a NIC, and the
// routes that go with it: on the kernel's path it must, on the user path it would
// answer beside the stack in user space.
type deviceAddress struct {
	device string
	prefix netip.Prefix
	was    *netlink.Addr // nil if the kernel did not have it
	routes []netlink.Route
}

func saveAddress(device string, prefix netip.Prefix) (*deviceAddress, error) {
	a := &deviceAddress{device: device, prefix: prefix}
	link, is, err := a.read()
	if err != nil {
		return nil, err
	}
	if a.was = is; is == nil {
		return a, nil
	}
	// They go with the address.
	if a.routes, err = netlink.RouteList(link, netlink.FAMILY_V4); err != nil {
		return nil, fmt.Errorf("list the routes of %s: %w", device, err)
	}
	return a, nil
}

// read finds the address, nil if the kernel does not have it.
func (a *deviceAddress) read() (netlink.Link, *netlink.Addr, error) {
	link, err := netlink.LinkByName(a.device)
	if err != nil {
		return nil, nil, fmt.Errorf("find device %s: %w", a.device, err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses of %s: %w", a.device, err)
	}
	for i := range list {
		is, err := netip.ParsePrefix(list[i].IPNet.String())
		if err != nil || is.Addr() != a.prefix.Addr() {
			continue
		}
		if is != a.prefix {
			return nil, nil, fmt.Errorf("%s has %s, not %s: give the prefix length that it has", a.device, is, a.prefix)
		}
		if list[i].Broadcast == nil {
			list[i].Broadcast = net.IPv4zero // or the package makes one up
		}
		return link, &list[i], nil
	}
	return link, nil, nil
}

// set gives the address to the kernel, or takes it away, and reads back.
func (a *deviceAddress) set(kernel bool) error {
	link, is, err := a.read()
	if err != nil {
		return err
	}
	switch {
	case is != nil && !kernel:
		if err := netlink.AddrDel(link, is); err != nil {
			return fmt.Errorf("take address %s from the kernel: %w", a.prefix, err)
		}
	case is == nil && kernel:
		address := a.was
		if address == nil {
			address = &netlink.Addr{IPNet: &net.IPNet{IP: a.prefix.Addr().AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.prefix.Addr().BitLen())}}
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("give address %s to the kernel: %w", a.prefix, err)
		}
	}
	if kernel { // even if it had the address: an earlier attempt may have ended here
		if err := a.setRoutes(link); err != nil {
			return err
		}
	}
	if _, is, err = a.read(); err == nil && (is != nil) != kernel {
		err = fmt.Errorf("address %s of %s did not stay as it was set: does another program manage the device?", a.prefix, a.device)
	}
	return err
}

// setRoutes puts back the routes that are missing.
func (a *deviceAddress) setRoutes(link netlink.Link) error {
	now, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the routes of %s: %w", a.device, err)
	}
	// First those that others lead through.
	for _, direct := range []bool{true, false} {
		for i := range a.routes {
			r := &a.routes[i]
			there := slices.ContainsFunc(now, func(n netlink.Route) bool { return n.Equal(*r) })
			if there || (r.Scope == unix.RT_SCOPE_LINK) != direct {
				continue
			}
			if err := netlink.RouteReplace(r); err != nil {
				return fmt.Errorf("put route %s back: %w", r, err)
			}
		}
	}
	return nil
}

// restore leaves it as it was.
func (a *deviceAddress) restore() error { return a.set(a.was != nil) }
