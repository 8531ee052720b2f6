package stack

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

// family says which of the two internet protocols a socket speaks.
type family byte

const (
	both family = iota
	only4
	only6
)

// familyOf is the family of a socket bound or connected to a: both if the
// address is unspecified.
func familyOf(a netip.AddrPort) family {
	switch {
	case !a.Addr().IsValid() || a.Addr().IsUnspecified():
		return both
	case a.Addr().Unmap().Is4():
		return only4
	}
	return only6
}

// protocol is what netstack calls the family: its IPv6 sockets speak both.
func (f family) protocol() tcpip.NetworkProtocolNumber {
	if f == only4 {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// endpointName is what a network name and an address of package net's kind mean.
type endpointName struct {
	network string // as given
	udp     bool
	family  family
	address netip.AddrPort
}

// parseName reads a network and an address. The host must be an IP address or,
// where listening, may be empty; the port may be a service's name.
func parseName(network, address string, listening bool) (endpointName, error) {
	n := endpointName{network: network}
	protocol := strings.TrimRight(network, "46")
	switch protocol {
	case "tcp":
	case "udp":
		n.udp = true
	default:
		return n, net.UnknownNetworkError(network)
	}
	switch network[len(protocol):] {
	case "":
	case "4":
		n.family = only4
	case "6":
		n.family = only6
	default:
		return n, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return n, err
	}
	port, err := net.DefaultResolver.LookupPort(context.Background(), network, service)
	if err != nil {
		return n, err
	}
	var a netip.Addr
	if host != "" {
		if a, err = netip.ParseAddr(host); err != nil {
			return n, &net.AddrError{Err: "not an IP address (a stack resolves no names)", Addr: host}
		}
		a = a.WithZone("").Unmap() // there is one interface only
	}
	if unspecified := !a.IsValid() || a.IsUnspecified(); unspecified && !listening {
		return n, &net.AddrError{Err: "a stack has no loopback: name the host", Addr: address}
	} else if !unspecified {
		if n.family == only4 && !a.Is4() || n.family == only6 && a.Is4() {
			return n, &net.AddrError{Err: "not an address of network " + network, Addr: host}
		}
		n.family = familyOf(netip.AddrPortFrom(a, 0))
	}
	n.address = netip.AddrPortFrom(a, uint16(port))
	return n, nil
}

// addr is a as package net would give it for this name.
func (n endpointName) addr(a netip.AddrPort) net.Addr {
	host := a.Addr().Unmap()
	if !host.IsValid() {
		if host = netip.IPv6Unspecified(); n.family == only4 {
			host = netip.IPv4Unspecified()
		}
	}
	if n.udp {
		return &net.UDPAddr{IP: host.AsSlice(), Port: int(a.Port())}
	}
	return &net.TCPAddr{IP: host.AsSlice(), Port: int(a.Port())}
}
