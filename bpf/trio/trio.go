// Package trio is a test network of three hosts in a row, client, router and
// server, joined by two veths:
//
//	client 10.71.1.2 ── 10.71.1.1 router 10.71.2.1 ── 10.71.2.2 server
//	      fd71:1::2 ── fd71:1::1        fd71:2::1 ── fd71:2::2
//
// Client and server route through the router. Whether the router forwards, and
// by what, is the test's business: the kernel, an XDP program, or a process that
// owns the router's ports. All of it belongs to the test process and goes with it.
package trio

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// Options shape the network; the zero value is a plain one.
type Options struct {
	// Queues is the number of queues of each interface; 0 is 1.
	Queues int
	// MTU is that of the link between router and server, in bytes; 0 is 1,500,
	// which the other link always has.
	MTU int
	// Forwarding turns the kernel's own forwarding on in the router.
	Forwarding bool
}

// A Network is the three hosts and the four interfaces between them.
type Network struct {
	Client, Router, Server *Host
	// ClientPort faces RouterPorts[0]; RouterPorts[1] faces ServerPort.
	ClientPort, ServerPort Port
	RouterPorts            [2]Port
}

// A Port is an interface of a host.
type Port struct {
	Name   string
	Index  int
	MAC    [6]byte
	V4, V6 netip.Prefix
}

// New makes the network. It ends with the test.
func New(t testing.TB, o Options) *Network {
	t.Helper()
	n := &Network{Client: NewHost(t, "client"), Router: NewHost(t, "router"), Server: NewHost(t, "server")}
	for _, h := range []*Host{n.Client, n.Router, n.Server} {
		forwarding := "0"
		if h == n.Router && o.Forwarding {
			forwarding = "1"
		}
		h.Sysctl(t,
			// Addresses are usable at once, and nobody else gives any.
			"ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0",
			"ipv6/conf/all/accept_ra=0", "ipv6/conf/default/accept_ra=0",
			"ipv6/conf/default/router_solicitations=0",
			"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
			// A test asks for more errors in a second than a kernel likes to send.
			"ipv4/icmp_ratelimit=0", "ipv6/icmp/ratelimit=0",
			"ipv4/conf/all/forwarding="+forwarding, "ipv4/conf/default/forwarding="+forwarding,
			"ipv6/conf/all/forwarding="+forwarding, "ipv6/conf/default/forwarding="+forwarding)
	}
	n.ClientPort, n.RouterPorts[0] = Join(t, n.Client, n.Router, Link{
		Names: [2]string{"client0", "router0"}, Queues: o.Queues,
		V4: [2]netip.Prefix{netip.MustParsePrefix("10.71.1.2/24"), netip.MustParsePrefix("10.71.1.1/24")},
		V6: [2]netip.Prefix{netip.MustParsePrefix("fd71:1::2/64"), netip.MustParsePrefix("fd71:1::1/64")},
	})
	n.RouterPorts[1], n.ServerPort = Join(t, n.Router, n.Server, Link{
		Names: [2]string{"router1", "server0"}, Queues: o.Queues, MTU: o.MTU,
		V4: [2]netip.Prefix{netip.MustParsePrefix("10.71.2.1/24"), netip.MustParsePrefix("10.71.2.2/24")},
		V6: [2]netip.Prefix{netip.MustParsePrefix("fd71:2::1/64"), netip.MustParsePrefix("fd71:2::2/64")},
	})
	n.Client.PrepareEnd(t, n.ClientPort)
	n.Server.PrepareEnd(t, n.ServerPort)
	for _, c := range []struct {
		host   *Host
		router Port
	}{{n.Client, n.RouterPorts[0]}, {n.Server, n.RouterPorts[1]}} {
		c.host.Run(t, "ip", "route", "add", "default", "via", c.router.V4.Addr().String())
		c.host.Run(t, "ip", "-6", "route", "add", "default", "via", c.router.V6.Addr().String())
	}
	return n
}

// A Link describes a veth between two hosts, its ends in the order of the hosts.
type Link struct {
	Names  [2]string
	V4, V6 [2]netip.Prefix // an invalid one is left out
	Queues int             // 0 is 1
	MTU    int             // 0 is 1,500
}

// Join joins two hosts by a veth, up and with its addresses.
func Join(t testing.TB, a, b *Host, l Link) (Port, Port) {
	t.Helper()
	queues := max(l.Queues, 1)
	mtu := l.MTU
	if mtu == 0 {
		mtu = 1500
	}
	a.Must(t, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = l.Names[0], mtu
		attributes.NumTxQueues, attributes.NumRxQueues = queues, queues
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attributes, PeerName: l.Names[1], PeerNamespace: netlink.NsFd(b.namespace),
			PeerMTU: uint32(mtu), PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues),
		})
		if err != nil {
			return fmt.Errorf("make veth %s with %d queues: %w", l.Names[0], queues, err)
		}
		return nil
	})
	var ports [2]Port
	for i, h := range [2]*Host{a, b} {
		ports[i] = Port{Name: l.Names[i], V4: l.V4[i], V6: l.V6[i]}
		for _, address := range [2]netip.Prefix{l.V4[i], l.V6[i]} {
			if address.IsValid() {
				h.Run(t, "ip", "address", "add", address.String(), "dev", l.Names[i])
			}
		}
		h.Run(t, "ip", "link", "set", l.Names[i], "up")
	}
	for i, h := range [2]*Host{a, b} {
		h.Must(t, func() error {
			link, err := netlink.LinkByName(l.Names[i])
			if err != nil {
				return err
			}
			ports[i].Index = link.Attrs().Index
			if copy(ports[i].MAC[:], link.Attrs().HardwareAddr) != 6 {
				return fmt.Errorf("%s has no Ethernet address", l.Names[i])
			}
			return nil
		})
	}
	return ports[0], ports[1]
}

// PrepareEnd makes an interface a fit neighbour of one that XDP or a poll-mode
// driver holds: checksums are complete and frames are no larger than the MTU
// when they leave the kernel (on a wire they would be; a veth leaves that to the
// receiver, which XDP does not tell), and GRO makes the veth take in what XDP
// redirects to its peer (without NAPI at this end such frames are dropped).
func (h *Host) PrepareEnd(t testing.TB, p Port) {
	t.Helper()
	h.Run(t, "ethtool", "-K", p.Name, "tx", "off", "tso", "off", "gso", "off", "gro", "on")
}
