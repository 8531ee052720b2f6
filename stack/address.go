package stack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

// nic is the one interface of a stack.
const nic tcpip.NICID = 1

func toAddress(a netip.Addr) tcpip.Address {
	if !a.IsValid() {
		return tcpip.Address{}
	}
	if a = a.Unmap(); a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

func fromAddress(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

func toFull(a netip.AddrPort) tcpip.FullAddress {
	full := tcpip.FullAddress{NIC: nic, Port: a.Port()}
	if !a.Addr().IsUnspecified() {
		full.Addr = toAddress(a.Addr())
	}
	return full
}

// toBound is a as an address to bind to. Netstack takes any IPv4 address for its
// own if an interface is named with it.
func toBound(a netip.AddrPort) tcpip.FullAddress {
	full := toFull(a)
	if full.Addr.Len() != header.IPv6AddressSize {
		full.NIC = 0
	}
	return full
}

func fromFull(a tcpip.FullAddress) netip.AddrPort {
	return netip.AddrPortFrom(fromAddress(a.Addr), a.Port)
}

// protocolOf is the network protocol that a belongs to. An unspecified or
// absent address stands for both families, which netstack expresses as IPv6.
func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.IsValid() && a.Unmap().Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
