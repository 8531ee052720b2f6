package forward

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/trio"
	"golang.org/x/sys/unix"
)

func TestPingIsForwardedBothWays(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	f := attach(t, n)
	for family, e := range families(n) {
		before := counters(t, f)
		n.Client.Run(t, "ping", "-c", "50", "-i", "0.002", "-W", "5", e.server.String())
		// What the kernel was left: the first to an unknown neighbour, and one
		// refresh each way, or two on a slow day.
		c := counters(t, f).since(before)
		if c.Sent() < 90 || c[Forwarded].Bytes < 90*98 {
			t.Errorf("%s: of 100 packets %d were forwarded:%s", family, c.Sent(), c)
		}
	}
}

// socket opens one on the host that this is called on.
func socket(domain, kind, protocol int) (int, error) {
	s, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	return s, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// hop sends a UDP datagram that lives for some hops and returns who sent the
// ICMP error about it, and its type.
func hop(target netip.Addr, hops int) (netip.Addr, byte, error) {
	domain, protocol, level, option, header := unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_TTL, 20
	if target.Is6() {
		domain, protocol, level, option, header = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 40
	}
	errs, err := socket(domain, unix.SOCK_RAW, protocol)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	defer unix.Close(errs)
	probe, err := socket(domain, unix.SOCK_DGRAM, 0)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	defer unix.Close(probe)
	port := 33433 + hops
	if err := errors.Join(unix.SetsockoptInt(probe, level, option, hops),
		unix.Sendto(probe, []byte("where?"), 0, sockaddr(target, port))); err != nil {
		return netip.Addr{}, 0, err
	}
	b := make([]byte, 2000)
	for {
		size, from, err := unix.Recvfrom(errs, b, 0)
		if err != nil {
			return netip.Addr{}, 0, fmt.Errorf("no ICMP error came: %w", err)
		}
		m := b[:size]
		var sender netip.Addr
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			sender = netip.AddrFrom4(from.Addr)
			m = m[int(m[0]&15)*4:]
		case *unix.SockaddrInet6:
			sender = netip.AddrFrom16(from.Addr)
		}
		if len(m) >= 8+header+8 && int(binary.BigEndian.Uint16(m[8+header+2:])) == port {
			return sender, m[0], nil
		}
	}
}

func TestTracerouteShowsOurHop(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	f := attach(t, n)
	for family, e := range families(n) {
		exceeded, unreachable := byte(11), byte(3)
		if e.server.Is6() {
			exceeded, unreachable = 3, 1
		}
		n.Client.Run(t, "ping", "-c", "2", "-i", "0.01", e.server.String()) // all know each other
		before := counters(t, f)
		n.Client.Must(t, func() error {
			for i, want := range []struct {
				from netip.Addr
				kind byte
			}{{e.router, exceeded}, {e.server, unreachable}} {
				from, kind, err := hop(e.server, i+1)
				if err != nil {
					return fmt.Errorf("%s, %d hops: %w", family, i+1, err)
				}
				if from != want.from || kind != want.kind {
					t.Errorf("%s: after %d hops an ICMP error of type %d from %s, want %d from %s", family, i+1, kind, from, want.kind, want.from)
				}
			}
			return nil
		})
		if c := counters(t, f).since(before); c[HopLimit].Frames != 1 {
			t.Errorf("%s:%s, want hop-limit 1", family, c)
		}
	}
}

// transfer sends bytes from the client to the server over TCP, or back, and
// compares digests.
func transfer(t *testing.T, n *trio.Network, server netip.Addr, size int64, back bool) {
	t.Helper()
	var listener net.Listener
	n.Server.Must(t, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(server, 0)))
		return err
	})
	defer listener.Close()
	digests, errs := make(chan [32]byte, 2), make(chan error, 2)
	send := func(c net.Conn, _ error) {
		h := sha256.New()
		source := rand.NewChaCha8([32]byte{1})
		_, err := io.CopyN(io.MultiWriter(c, h), source, size)
		digests <- [32]byte(h.Sum(nil))
		errs <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}
	receive := func(c net.Conn, _ error) {
		h := sha256.New()
		got, err := io.Copy(h, c)
		if err == nil && got != size {
			err = fmt.Errorf("%d bytes of %d", got, size)
		}
		digests <- [32]byte(h.Sum(nil))
		errs <- err
	}
	if back {
		send, receive = receive, send
	}
	go func() {
		c, err := listener.Accept()
		if err != nil {
			digests <- [32]byte{}
			errs <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		receive(c, nil)
	}()
	n.Client.Must(t, func() error {
		c, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		send(c, nil)
		return nil
	})
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	if one, other := <-digests, <-digests; one != other {
		t.Error("what arrived is not what was sent")
	}
}

func TestTCPArrivesWhole(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	f := attach(t, n)
	for family, e := range families(n) {
		for _, back := range []bool{false, true} {
			size := int64(1 << 30)
			if back {
				size = 64 << 20
			}
			before := counters(t, f)
			transfer(t, n, e.server, size, back)
			c := counters(t, f).since(before)
			t.Logf("%s, %d bytes:%s", family, size, c)
			if all := c[Forwarded].Bytes; all < uint64(size) {
				t.Errorf("%s: %d bytes were forwarded", family, all)
			}
			if lost := c[OutputUnready].Frames + c[Redirect].Frames; lost > 0 {
				t.Errorf("%s:%s", family, c)
			}
		}
	}
}

func TestPathMTUIsDiscovered(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true, MTU: 1400})
	f := attach(t, n)
	for family, e := range families(n) {
		before := counters(t, f)
		out, err := n.Client.Try("ping", "-c", "2", "-i", "0.1", "-W", "2", "-M", "do", "-s", "1440", e.server.String())
		if err == nil || !strings.Contains(out, "mtu") && !strings.Contains(out, "too big") && !strings.Contains(out, "too long") {
			t.Errorf("%s: a ping of 1,440 bytes: %v\n%s", family, err, out)
		}
		route := n.Client.Run(t, "ip", "route", "get", e.server.String())
		if !strings.Contains(route, "mtu 1400") {
			t.Errorf("%s: the client did not learn the path's MTU: %s", family, route)
		}
		n.Client.Run(t, "ip", "route", "flush", "cache")
		n.Client.Run(t, "ip", "-6", "route", "flush", "cache")
		transfer(t, n, e.server, 8<<20, false)
		if c := counters(t, f).since(before); c[TooBig].Frames == 0 {
			t.Errorf("%s:%s, want too-big", family, c)
		}
	}
	// IPv4 without "don't fragment" is the kernel's to fragment.
	n.Client.Run(t, "ping", "-c", "1", "-W", "5", "-M", "dont", "-s", "1440", n.ServerPort.V4.Addr().String())
}

func TestAReplacedRouteIsNotUsedOnceTheKernelSaysSo(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	router, server := trio.Join(t, n.Router, n.Server, trio.Link{
		Names: [2]string{"router2", "server1"},
		V4:    [2]netip.Prefix{netip.MustParsePrefix("10.71.3.1/24"), netip.MustParsePrefix("10.71.3.2/24")},
		V6:    [2]netip.Prefix{netip.MustParsePrefix("fd71:3::1/64"), netip.MustParsePrefix("fd71:3::2/64")},
	})
	n.Server.PrepareEnd(t, server)
	attach(t, n, router)
	for _, c := range []struct {
		target netip.Prefix
		by     [2]netip.Addr
	}{
		{netip.MustParsePrefix("10.99.0.1/32"), [2]netip.Addr{n.ServerPort.V4.Addr(), server.V4.Addr()}},
		{netip.MustParsePrefix("fd99::1/128"), [2]netip.Addr{n.ServerPort.V6.Addr(), server.V6.Addr()}},
	} {
		n.Server.Run(t, "ip", "address", "add", c.target.String(), "dev", "lo", "nodad")
		replace := func(i int) {
			n.Router.Run(t, "ip", "route", "replace", c.target.String(), "via", c.by[i].String())
		}
		domain := unix.AF_INET
		if c.target.Addr().Is6() {
			domain = unix.AF_INET6
		}
		var in, out int
		n.Server.Must(t, func() (err error) {
			if in, err = socket(domain, unix.SOCK_DGRAM, 0); err != nil {
				return err
			}
			if domain == unix.AF_INET {
				err = unix.SetsockoptInt(in, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			} else {
				err = unix.SetsockoptInt(in, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
			return errors.Join(err, unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
				unix.Bind(in, sockaddr(c.target.Addr(), 4000)))
		})
		defer unix.Close(in)
		n.Client.Must(t, func() (err error) {
			out, err = socket(domain, unix.SOCK_DGRAM, 0)
			return errors.Join(err, unix.Connect(out, sockaddr(c.target.Addr(), 4000)))
		})
		defer unix.Close(out)
		for i := range 2 { // every next hop is known
			replace(i)
			n.Client.Run(t, "ping", "-c", "2", "-i", "0.01", "-W", "5", c.target.Addr().String())
		}

		const flips, between = 10, 200
		// Datagrams carry numbers. From number since[i] on, and for some, they
		// must go by link i%2.
		var sent atomic.Uint64
		since, stop := [flips]uint64{}, make(chan struct{})
		sender := make(chan error, 1)
		go func() {
			var b [8]byte
			for {
				select {
				case <-stop:
					sender <- nil
					return
				default:
				}
				binary.BigEndian.PutUint64(b[:], sent.Add(1))
				if err := unix.Send(out, b[:], 0); err != nil {
					sender <- err
					return
				}
				if sent.Load()%16 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
		for i := range flips {
			replace(i % 2)
			since[i] = sent.Load() + 1 // the one that is being sent may be on its way already
			for until := since[i] + between; sent.Load() < until; {
				time.Sleep(time.Millisecond)
			}
		}
		close(stop)
		if err := <-sender; err != nil {
			t.Fatal(err)
		}
		// The last of all, often, as the wire may lose one.
		received, links := 0, map[int]int{n.ServerPort.Index: 0, server.Index: 1}
		stale, last := 0, sent.Load()
		b, control := make([]byte, 8), make([]byte, 256)
		for number := uint64(0); number < last; {
			size, controls, _, _, err := unix.Recvmsg(in, b, control, 0)
			if err != nil || size != 8 {
				t.Fatalf("after number %d of %d: %v", number, last, err)
			}
			number = binary.BigEndian.Uint64(b)
			received++
			messages, err := unix.ParseSocketControlMessage(control[:controls])
			if err != nil || len(messages) != 1 {
				t.Fatalf("no interface of arrival: %v", err)
			}
			index := int(binary.NativeEndian.Uint32(messages[0].Data)) // in_pktinfo begins with it
			if domain == unix.AF_INET6 {
				index = int(binary.NativeEndian.Uint32(messages[0].Data[16:]))
			}
			for i := range flips {
				if number >= since[i] && number < since[i]+between && links[index] != i%2 {
					stale++
				}
			}
		}
		lost := int(last) - received
		t.Logf("%s: %d flips among %d datagrams, %d lost", c.target, flips, last, lost)
		if stale > 0 {
			t.Errorf("%s: %d datagrams went by a route that had been replaced", c.target, stale)
		}
		if lost > flips {
			t.Errorf("%s: %d of %d datagrams were lost in %d flips", c.target, lost, last, flips)
		}
	}
}

func TestADeniedFlowIsCountedAndOthersGoOn(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	f := attach(t, n)
	for family, e := range families(n) {
		icmp := uint8(1)
		if e.server.Is6() {
			icmp = 58
		}
		rules := []Rule{{Deny: true, Protocol: icmp, In: n.RouterPorts[0].Index, Out: n.RouterPorts[1].Index,
			To: netip.PrefixFrom(e.server, e.server.BitLen())}}
		if err := f.SetRules(rules, false); err != nil {
			t.Fatal(err)
		}
		before := counters(t, f)
		if out, err := n.Client.Try("ping", "-c", "5", "-i", "0.01", "-W", "1", e.server.String()); err == nil {
			t.Errorf("%s: a denied ping was answered:\n%s", family, out)
		}
		if c := counters(t, f).since(before); c[Denied].Frames != 5 {
			t.Errorf("%s:%s, want denied 5", family, c)
		}
		n.Client.Run(t, "ping", "-c", "1", "-W", "5", e.router.String()) // Out is none
		transfer(t, n, e.server, 1<<20, false)
		if err := f.SetRules(nil, false); err != nil {
			t.Fatal(err)
		}
		n.Client.Run(t, "ping", "-c", "1", "-W", "5", e.server.String())
	}
}

func TestANeighbourInUseIsAskedForAgain(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	for _, family := range []string{"ipv4", "ipv6"} {
		n.Router.Sysctl(t, family+"/neigh/router1/delay_first_probe_time=1", family+"/neigh/router1/retrans_time_ms=100",
			family+"/neigh/router1/ucast_solicit=1", family+"/neigh/router1/mcast_solicit=1")
	}
	f := attach(t, n)
	for family, e := range families(n) {
		n.Client.Run(t, "ping", "-c", "2", "-i", "0.01", "-W", "5", e.server.String())
		// The server gets another Ethernet address, and says nothing.
		n.Server.Run(t, "ip", "link", "set", "server0", "address", fmt.Sprintf("02:00:00:00:00:%02x", e.server.BitLen()))
		// It was not heard of for long.
		n.Router.Run(t, "ip", "neigh", "replace", e.server.String(), "lladdr", mac(n.ServerPort), "dev", "router1", "nud", "stale")
		before := counters(t, f)
		if out, err := n.Client.Try("ping", "-c", "1", "-i", "0.1", "-w", "30", e.server.String()); err != nil {
			t.Errorf("%s: the server's new address was never found:\n%s", family, out)
		}
		if c := counters(t, f).since(before); c[Refresh].Frames == 0 {
			t.Errorf("%s:%s, want refresh", family, c)
		}
	}
}
