package forwarding

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A host is a network namespace without a name in the system: only this process
// and its children hold it, so it is gone when they are, however they end.
type host struct {
	name      string
	namespace netns.NsHandle
}

func newHost(name string) (*host, error) {
	h := &host{name: name, namespace: netns.None()}
	err := onSpareThread(func() (err error) {
		h.namespace, err = netns.New()
		return err
	})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w; that takes root", err)
	}
	if err != nil {
		return nil, fmt.Errorf("make the network namespace of the %s: %w", name, err)
	}
	return h, h.do(func() error { return up("lo") })
}

// do runs f on a thread in the host's namespace, which ends with f.
func (h *host) do(f func() error) error {
	return onSpareThread(func() error {
		if err := netns.Set(h.namespace); err != nil {
			return fmt.Errorf("enter the network namespace of the %s: %w", h.name, err)
		}
		return f()
	})
}

// start starts a command on the host, with a /sys that shows the host's devices.
func (h *host) start(cmd *exec.Cmd) error {
	return h.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("detach the mount namespace: %w", err)
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			return fmt.Errorf("mount the namespace's /sys: %w", err)
		}
		return cmd.Start()
	})
}

// onSpareThread runs f on a thread that ends afterwards, so that f may change what
// cannot be changed back.
func onSpareThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the main thread does not end
			result <- onSpareThread(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}

// A port is an interface of a host.
type port struct {
	name    string
	index   int
	address net.HardwareAddr
	prefix  netip.Prefix
}

// network is client, router and server in a row:
//
//	client0 10.71.1.2 ── 10.71.1.1 router0, router1 10.71.2.1 ── 10.71.2.2 server0
//
// What is sent goes to destination, which lies behind the server.
type network struct {
	client, router, server *host
	from, in, out, to      port
}

var (
	destination = netip.MustParseAddr("10.99.0.1")
	beyond      = netip.MustParsePrefix("10.99.0.0/24")
)

// newNetwork makes one. With forwarding, the router's kernel forwards.
func newNetwork(forwarding bool) (n *network, err error) {
	n = &network{}
	defer func() {
		if err != nil {
			n.close()
			n = nil
		}
	}()
	for _, h := range []struct {
		to   **host
		name string
	}{{&n.client, "client"}, {&n.router, "router"}, {&n.server, "server"}} {
		if *h.to, err = newHost(h.name); err != nil {
			return n, err
		}
	}
	setting := "0"
	if forwarding {
		setting = "1"
	}
	err = n.router.do(func() error {
		return errors.Join(sysctl("ipv4/conf/all/forwarding", setting), sysctl("ipv4/conf/all/rp_filter", "0"))
	})
	if err != nil {
		return n, err
	}
	if n.from, n.in, err = join(n.client, "client0", "10.71.1.2/24", n.router, "router0", "10.71.1.1/24"); err != nil {
		return n, err
	}
	if n.out, n.to, err = join(n.router, "router1", "10.71.2.1/24", n.server, "server0", "10.71.2.2/24"); err != nil {
		return n, err
	}
	err = errors.Join(
		n.client.do(func() error { return fit(n.from.name) }),
		n.server.do(func() error { return fit(n.to.name) }),
		n.client.do(func() error { return route(netip.Prefix{}, n.in.prefix.Addr()) }),
		n.server.do(func() error { return route(netip.Prefix{}, n.out.prefix.Addr()) }),
		n.router.do(func() error { return route(beyond, n.to.prefix.Addr()) }))
	return n, err
}

func (n *network) close() {
	for _, h := range []*host{n.client, n.router, n.server} {
		if h != nil {
			h.namespace.Close()
		}
	}
}

// join joins two hosts by a veth, up and with addresses.
func join(a *host, nameA, addressA string, b *host, nameB, addressB string) (portA, portB port, err error) {
	err = a.do(func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = nameA
		veth := netlink.NewVeth(attributes)
		veth.PeerName, veth.PeerNamespace = nameB, netlink.NsFd(b.namespace)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make the veth %s and %s: %w", nameA, nameB, err)
		}
		return nil
	})
	if err == nil {
		portA, err = a.open(nameA, addressA)
	}
	if err == nil {
		portB, err = b.open(nameB, addressB)
	}
	return portA, portB, err
}

// open takes an interface into use.
func (h *host) open(name, address string) (p port, err error) {
	p = port{name: name, prefix: netip.MustParsePrefix(address)}
	err = h.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		p.index, p.address = link.Attrs().Index, link.Attrs().HardwareAddr
		a, err := netlink.ParseAddr(address)
		if err == nil {
			err = netlink.AddrAdd(link, a)
		}
		if err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, address, err)
		}
		return up(name)
	})
	return p, err
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("turn %s on: %w", name, err)
	}
	return nil
}

// route adds a route; the zero prefix is the default route.
func route(to netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Gw: via.AsSlice()}
	if to.IsValid() {
		r.Dst = &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add the route to %v by %v: %w", to, via, err)
	}
	return nil
}

func sysctl(path, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	return nil
}

// fit makes an interface a neighbour that XDP and poll-mode drivers can stand, as
// one at the far end of a wire would be: checksums are complete when frames leave.
// GRO gives it a NAPI instance, without which a veth drops what XDP redirects to it.
func fit(name string) error {
	return change(name, map[string]bool{
		"tx-checksum-ip-generic": false, "tx-checksum-sctp": false, "tx-generic-segmentation": false,
		"tx-tcp-segmentation": false, "tx-tcp-ecn-segmentation": false, "tx-tcp-mangleid-segmentation": false, "tx-tcp6-segmentation": false,
		"rx-gro": true,
	})
}

func change(name string, features map[string]bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer e.Close()
	if err := e.Change(name, features); err != nil {
		return fmt.Errorf("set features %v of %s: %w", features, name, err)
	}
	return nil
}

// answers says whether the server answers the client through the router, which has
// found its neighbours then; if not, why.
func (n *network) answers() error {
	cmd := exec.Command("ping", "-c", "1", "-W", "1", n.to.prefix.Addr().String())
	return n.client.do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ping: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}
