package user

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

// mirror returns each datagram, or says which address it came to.
type mirror struct{}

func (mirror) Packet(c polluxruntime.PacketConn, from netip.AddrPort, in []byte) {
	if string(in) == "where" {
		in = fmt.Appendf(nil, "%v on shard %d", c.LocalAddr(), c.Shard())
	}
	c.WriteTo(in, from)
}

// newMirror is a server of two addresses in two shards, and a client.
func newMirror(t *testing.T, address netip.AddrPort) (server, client *Runtime) {
	t.Helper()
	link, err := wire.New(wire.Config{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	addresses := []netip.Prefix{serverPrefix, netip.MustParsePrefix("10.99.0.7/24"), netip.MustParsePrefix("fd99::1/64")}
	if server, err = New(link.Port(wire.A), Config{Stack: stack.Config{Addresses: addresses}}); err != nil {
		t.Fatal(err)
	}
	if err := server.ListenPacket(address, mirror{}); err != nil {
		t.Fatal(err)
	}
	client, err = New(link.Port(wire.B), Config{Stack: stack.Config{Addresses: []netip.Prefix{clientPrefix, netip.MustParsePrefix("fd99::2/64")}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Runtime{server, client} {
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, r := range []*Runtime{client, server} {
			if err := shutdown(r, 5*time.Second); err != nil {
				t.Error(err)
			}
		}
		link.Port(wire.A).Close()
		link.Port(wire.B).Close()
	})
	return server, client
}

// exchange sends a datagram from a connected socket, which hears no other
// address, and returns the answer. The first may be lost to address resolution
// on either side.
func exchange(t *testing.T, c net.Conn, p []byte) []byte {
	t.Helper()
	b := make([]byte, stack.MaxDatagram)
	for range 20 {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(b); err == nil {
			return b[:n]
		}
	}
	t.Fatalf("a datagram of %d bytes was not answered 20 times", len(p))
	return nil
}

func dialPacket(t *testing.T, client *Runtime, shard int, to string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Stack(shard).DialContext(ctx, "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDatagramsOfEverySizeAreAnswered(t *testing.T) {
	server, client := newMirror(t, netip.MustParseAddrPort("[::]:7"))
	for _, to := range []string{"10.99.0.1:7", "[fd99::1]:7"} {
		c := dialPacket(t, client, 0, to)
		for _, size := range []int{0, 1, 1400, 1472, 9000, 60000} {
			p := bytes.Repeat([]byte{byte(size)}, size)
			if got := exchange(t, c, p); !bytes.Equal(got, p) {
				t.Errorf("%s: sent %d bytes, got %d back", to, size, len(got))
			}
		}
	}
	all, err := server.Statistics(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var received, sent uint64
	for _, s := range all {
		received, sent = received+s.PacketsReceived, sent+s.PacketsSent
	}
	if received < 12 || sent < 12 || sent > received {
		t.Errorf("counted %d received, %d sent", received, sent)
	}
}

func TestADatagramIsAnsweredFromTheAddressThatItWasSentTo(t *testing.T) {
	_, client := newMirror(t, netip.MustParseAddrPort("[::]:7"))
	for _, to := range []string{"10.99.0.1:7", "10.99.0.7:7", "[fd99::1]:7"} {
		got := string(exchange(t, dialPacket(t, client, 0, to), []byte("where")))
		if !strings.HasPrefix(got, to+" on shard ") {
			t.Errorf("sent to %s: the handler saw %q", to, got)
		}
	}
}

func TestAnUnspecifiedIPv4AddressServesThatFamilyOnly(t *testing.T) {
	_, client := newMirror(t, netip.MustParseAddrPort("0.0.0.0:7"))
	exchange(t, dialPacket(t, client, 0, "10.99.0.7:7"), []byte("x"))
	c := dialPacket(t, client, 0, "[fd99::1]:7")
	for range 20 {
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return // the refusal came
		}
		if n, err := c.Read(make([]byte, 8)); err == nil {
			t.Fatalf("answered with %d bytes", n)
		} else if strings.Contains(err.Error(), "refused") {
			return
		}
	}
	t.Error("no refusal came")
}

func TestDatagramsAtNoPortOrNoAddressAreRefused(t *testing.T) {
	link, err := wire.New(wire.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(link.Port(wire.A), Config{Stack: stack.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("fd99::1/64")}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	for address, names := range map[string]string{"[::]:0": "port", "0.0.0.0:7": "no address of that family", "10.1.2.3:7": "10.1.2.3"} {
		if err := r.ListenPacket(netip.MustParseAddrPort(address), mirror{}); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v; should name %q", address, err, names)
		}
	}
}
