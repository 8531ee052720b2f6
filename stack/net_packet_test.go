package stack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
)

// echo sends every datagram back until the socket is closed.
func echo(p net.PacketConn) {
	b := make([]byte, MaxDatagram)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		p.WriteTo(b[:n], from)
	}
}

// listenUDP listens on right and says where left can dial it.
func listenUDP(t testing.TB, right *looper, network, host string) (net.PacketConn, string) {
	t.Helper()
	p, err := right.ListenPacket(network, ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, net.JoinHostPort(host, fmt.Sprint(p.LocalAddr().(*net.UDPAddr).Port))
}

func TestDatagramsOfAllSizesComeBack(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		for _, host := range []string{rightHost, rightHost6} {
			p, address := listenUDP(t, right, "udp", host)
			go echo(p)
			c, err := left.Dial("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if c.RemoteAddr().String() != address {
				t.Errorf("dialled %s, but it says %v", address, c.RemoteAddr())
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			random := rand.NewChaCha8([32]byte{1})
			// The MTU is 1,500: the fragments of the last are 45.
			for _, size := range []int{0, 1, 100, 1452, 1453, 1472, 1473, commonPacket, commonPacket + 1, 9000, MaxDatagram} {
				sent, got := make([]byte, size), make([]byte, MaxDatagram+1)
				random.Read(sent)
				if _, err := c.Write(sent); err != nil {
					t.Fatalf("%s, %d bytes: %v", host, size, err)
				}
				n, err := c.Read(got)
				if err != nil || !bytes.Equal(got[:n], sent) {
					t.Fatalf("%s: of %d bytes %d came back, or others: %v", host, size, n, err)
				}
			}
			_, err = c.Write(make([]byte, MaxDatagram+1))
			wantOp(t, err, "write", syscall.EMSGSIZE)
		}
	})
}

// A datagram whose fragments arrive in another order is put together again.
func TestFragmentsOutOfOrderAreReassembled(t *testing.T) {
	for seed := range uint64(3) {
		link, err := wire.New(wire.Config{Seed: seed, Faults: [2]wire.Faults{{Reorder: 0.3}, {Reorder: 0.3}}})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // the link's time
			for start := time.Now(); ; time.Sleep(100 * time.Microsecond) {
				select {
				case <-stop:
					return
				default:
					link.Advance(time.Since(start))
				}
			}
		})
		config := func(host string) Config {
			return Config{Addresses: []netip.Prefix{netip.MustParsePrefix(host + "/24")}}
		}
		left, right := loopOn(t, link.Port(wire.A), config(leftHost)), loopOn(t, link.Port(wire.B), config(rightHost))
		p, address := listenUDP(t, right, "udp", rightHost)
		go echo(p)
		c, err := left.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		sent, got := bytes.Repeat([]byte("0123456789"), 2000), make([]byte, MaxDatagram)
		for range 20 {
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
				t.Fatalf("seed %d: of %d bytes %d came back, or others: %v", seed, len(sent), n, err)
			}
		}
		statistics, err := link.Port(wire.A).Statistics()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range statistics {
			if s.Name == "reordered" && s.Value == 0 {
				t.Errorf("seed %d: nothing was reordered", seed)
			}
		}
		c.Close()
		p.Close()
		left.Stop()
		right.Stop()
		close(stop)
		wg.Wait()
	}
}

func TestPacketConnTellsItsPeersApart(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	p, address := listenUDP(t, right, "udp", rightHost)
	go echo(p)
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c, err := left.ListenPacket("udp4", ":0")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			got := make([]byte, 100)
			for round := range 50 {
				sent := fmt.Appendf(nil, "socket %d, round %d", i, round)
				if _, err := c.WriteTo(sent, to); err != nil {
					t.Error(err)
					return
				}
				n, from, err := c.ReadFrom(got)
				if err != nil || from.String() != address || !bytes.Equal(got[:n], sent) {
					t.Errorf("sent %q to %s, got %q from %v: %v", sent, address, got[:n], from, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestPacketConnBlocksUntilItsDeadline(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	p, err := left.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	p.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _, err = p.ReadFrom(make([]byte, 1))
	wantOp(t, err, "read", os.ErrDeadlineExceeded)
	if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Errorf("%v is not a timeout", err)
	}
	p.SetReadDeadline(time.Time{})
	blocked := make(chan error)
	go func() { _, _, err := p.ReadFrom(make([]byte, 1)); blocked <- err }()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wantOp(t, <-blocked, "read", net.ErrClosed)
	_, err = p.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(rightHost), Port: 9})
	wantOp(t, err, "write", net.ErrClosed)
	wantOp(t, p.Close(), "close", net.ErrClosed)
}

func TestDatagramsToNobodyAreRefused(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	c, err := left.Dial("udp", net.JoinHostPort(rightHost, "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("anyone?")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	wantOp(t, err, "read", syscall.ECONNREFUSED)
}

func TestBadDestinationsAreRefused(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	p, err := left.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, to := range []net.Addr{
		nil, (*net.UDPAddr)(nil), &net.TCPAddr{IP: net.ParseIP(rightHost), Port: 9}, &net.UDPAddr{Port: 9},
		&net.UDPAddr{IP: net.ParseIP(rightHost)}, &net.UDPAddr{IP: net.ParseIP(rightHost6), Port: 9},
	} {
		_, err := p.WriteTo([]byte("x"), to)
		wantOp(t, err, "write", syscall.EINVAL)
	}
	c, err := left.Dial("udp", net.JoinHostPort(rightHost, "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.(net.PacketConn).WriteTo([]byte("x"), c.RemoteAddr())
	wantOp(t, err, "write", net.ErrWriteToConnected)
	// No route is found out on the loop, and told by the next call.
	if _, err := p.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: 9}); err != nil {
		t.Fatal(err)
	}
	p.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, _, err = p.ReadFrom(make([]byte, 1))
	if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("error %v, want no route", err)
	}
}

// Writers wait while datagrams are held for an address that is being resolved,
// and go on once that has failed.
func TestDatagramsWaitForTheLinkAddress(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	before := left.endpoints(t)
	c, err := left.Dial("udp", "10.7.0.77:9")
	if err != nil {
		t.Fatal(err)
	}
	c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for range 2000 {
		if _, err := c.Write(make([]byte, 10_000)); err != nil {
			if errors.Is(err, syscall.EHOSTUNREACH) {
				continue
			}
			t.Fatal(err)
		}
	}
	c.Close()
	eventually(t, func() string {
		if n := left.endpoints(t); n != before {
			return "the endpoint of a closed socket"
		}
		return ""
	})
}

// packetOwner is told of events on the loop.
type packetOwner func(*PacketSocket)

func (o packetOwner) Ready(k *PacketSocket) { o(k) }

func TestPacketEventsEchoOnTheLoop(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		var k *PacketSocket
		var err error
		b := make([]byte, MaxDatagram)
		right.gate.do(func() {
			k, err = right.ListenPacketEvents(netip.MustParseAddrPort("0.0.0.0:7"), packetOwner(func(k *PacketSocket) {
				for {
					n, from, err := k.ReadFrom(b)
					if err != nil {
						if err != ErrWouldBlock {
							t.Error(err)
						}
						return
					}
					if _, err := k.WriteTo(b[:n], from); err != nil {
						t.Error(err)
					}
				}
			}))
		})
		if err != nil {
			t.Fatal(err)
		}
		right.gate.do(func() {
			if port := k.LocalAddr().Port(); port != 7 {
				t.Errorf("bound to port %d, want 7", port)
			}
			if _, err := right.ListenPacketEvents(netip.MustParseAddrPort("0.0.0.0:7"), nil); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("the port is taken, but: %v", err)
			}
		})
		c, err := left.Dial("udp", net.JoinHostPort(rightHost, "7"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		got := make([]byte, 6000)
		for _, sent := range [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte{7}, 5000)} {
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
				t.Fatalf("sent %d bytes, got %d: %v", len(sent), n, err)
			}
		}
		right.gate.do(func() {
			k.Close()
			if _, _, err := k.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read from a closed socket: %v", err)
			}
			if _, err := k.WriteTo(b[:1], netip.MustParseAddrPort(leftHost+":9")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write to a closed socket: %v", err)
			}
		})
	})
}

// A socket that is connected gets a port whose replies the device delivers here.
func TestConnectedPortLeadsBackToTheShard(t *testing.T) {
	left, right := newPair(t, Inline, func(c *Config) {
		c.OwnsFlow = func(local, remote netip.AddrPort) bool {
			return local.Port()%16 == 3 && remote.Addr().String() == rightHost
		}
	})
	for _, network := range []string{"udp", "tcp"} {
		address := net.JoinHostPort(rightHost, "9")
		if network == "tcp" {
			_, address = listen(t, right, "tcp")
		}
		c, err := left.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		local := netip.MustParseAddrPort(c.LocalAddr().String())
		if local.Port()%16 != 3 || local.Addr().String() != leftHost {
			t.Errorf("%s leaves from %v, which does not lead back", network, local)
		}
	}
}
