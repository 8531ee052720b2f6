package kernel

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// mirror returns each datagram behind the address that it came to.
type mirror struct{ served atomic.Int64 }

func (m *mirror) Packet(c polluxruntime.PacketConn, from netip.AddrPort, in []byte) {
	m.served.Add(1)
	if string(in) == "where" {
		c.WriteTo(fmt.Appendf(nil, "%v", c.LocalAddr()), from)
		return
	}
	c.WriteTo(in, from)
}

func listenPacket(t *testing.T, address netip.AddrPort) (*Runtime, *mirror) {
	t.Helper()
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	h := &mirror{}
	if err := r.ListenPacket(address, h); err != nil {
		r.Discard()
		t.Fatal(err)
	}
	start(t, r)
	return r, h
}

// talk is a socket connected to address: replies from elsewhere do not reach it.
func talk(t *testing.T, address netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func exchange(t *testing.T, c *net.UDPConn, p []byte) []byte {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, maxDatagram)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestDatagramsOfEverySizeAreAnswered(t *testing.T) {
	for _, address := range []netip.AddrPort{loopback4, loopback6, anywhere} {
		r, _ := listenPacket(t, address)
		c := talk(t, reachable(r.Addresses()[0]))
		for _, size := range []int{0, 1, 1400, 9000, 65507} {
			p := bytes.Repeat([]byte{byte(size)}, size)
			if got := exchange(t, c, p); !bytes.Equal(got, p) {
				t.Errorf("%v: sent %d bytes, got %d back", address, size, len(got))
			}
		}
	}
}

func TestADatagramIsAnsweredFromTheAddressThatItWasSentTo(t *testing.T) {
	for bound, hosts := range map[netip.AddrPort][]string{
		anywhere: {"127.0.0.1", "127.0.0.2", "127.9.8.7", "::1"},
		netip.AddrPortFrom(netip.IPv4Unspecified(), 0): {"127.0.0.1", "127.0.0.2"},
	} {
		r, _ := listenPacket(t, bound)
		for _, host := range hosts {
			to := netip.AddrPortFrom(netip.MustParseAddr(host), r.Addresses()[0].Port())
			if got := exchange(t, talk(t, to), []byte("where")); string(got) != to.String() {
				t.Errorf("bound to %v, sent to %v: the handler saw %s", bound, to, got)
			}
		}
	}
}

func TestManyDatagramsAreServedInBatches(t *testing.T) {
	r, h := listenPacket(t, loopback4)
	c := talk(t, r.Addresses()[0])
	const rounds, each = 50, 60
	for range rounds {
		for range each {
			if _, err := c.Write([]byte("0123456789")); err != nil {
				t.Fatal(err)
			}
		}
		for range each {
			if _, err := c.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if h.served.Load() != rounds*each {
		t.Errorf("%d datagrams were served", h.served.Load())
	}
	if s := statistics(t, r)[0]; s.PacketsReceived != rounds*each || s.PacketsSent != rounds*each || s.PacketsDropped != 0 {
		t.Errorf("counted %d received, %d sent, %d dropped", s.PacketsReceived, s.PacketsSent, s.PacketsDropped)
	}
}

func TestAReplyToAnImpossibleAddressIsAnErrorAndNoMore(t *testing.T) {
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 3)
	h := packets(func(c polluxruntime.PacketConn, from netip.AddrPort, in []byte) {
		for _, to := range []netip.AddrPort{{}, netip.MustParseAddrPort("[::1]:9"), netip.MustParseAddrPort("127.0.0.1:0")} {
			_, err := c.WriteTo(in, to)
			results <- err
		}
		c.WriteTo(in, from)
	})
	if err := r.ListenPacket(loopback4, h); err != nil {
		t.Fatal(err)
	}
	start(t, r)
	exchange(t, talk(t, r.Addresses()[0]), []byte("x"))
	for range 3 {
		if err := <-results; err == nil {
			t.Error("it was sent")
		}
	}
}

type packets func(polluxruntime.PacketConn, netip.AddrPort, []byte)

func (f packets) Packet(c polluxruntime.PacketConn, from netip.AddrPort, in []byte) { f(c, from, in) }
