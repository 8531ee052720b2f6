package endtoend

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/pollux-net/pollux/compare/lab"
	"golang.org/x/sys/unix"
)

// raw sends whole frames out of the client's end of the veth.
type raw struct {
	socket         int
	client, server net.HardwareAddr
}

func newRaw(t *testing.T, l *lab.Lab) *raw {
	t.Helper()
	r := &raw{}
	mac := func(side lab.Side) (address net.HardwareAddr, index int) {
		err := l.Do(side, func() error {
			i, err := net.InterfaceByName(lab.Interface(side))
			if err == nil {
				address, index = i.HardwareAddr, i.Index
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return address, index
	}
	var index int
	r.client, index = mac(lab.Client)
	r.server, _ = mac(lab.Server)
	err := l.Do(lab.Client, func() (err error) {
		// Protocol 0: for sending only.
		if r.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(r.socket, &unix.SockaddrLinklayer{Ifindex: index}),
			unix.SetsockoptInt(r.socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(r.socket) })
	return r
}

// send sends a frame; it may be anything from an Ethernet header to the MTU.
func (r *raw) send(t *testing.T, frame []byte) {
	t.Helper()
	for {
		_, err := unix.Write(r.socket, frame)
		switch {
		case err == nil:
			return
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
		default:
			t.Fatalf("send %d bytes: %v", len(frame), err)
		}
	}
}

// frame puts layers together, with right lengths and checksums.
func frame(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for _, l := range all {
		transport, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		})
		if !ok {
			continue
		}
		for _, n := range all {
			if network, ok := n.(gopacket.NetworkLayer); ok {
				if err := transport.SetNetworkLayerForChecksum(network); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (r *raw) ethernet(kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: r.client, DstMAC: r.server, EthernetType: kind}
}

func (r *raw) ip4(source string, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 1, Protocol: protocol,
		SrcIP: net.ParseIP(source).To4(), DstIP: lab.ServerIPv4.Addr().AsSlice(),
	}
}

func (r *raw) ip6(source string, protocol layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 255, NextHeader: protocol,
		SrcIP: net.ParseIP(source), DstIP: lab.ServerIPv6.Addr().AsSlice(),
	}
}

// update is a checksum after 16 bits that it covers have changed (RFC 1624).
func update(sum, was, is uint16) uint16 {
	s := uint32(^sum) + uint32(^was) + uint32(is)
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// adjust replaces 16 bits at an even offset, and the checksum that covers them.
func adjust(b []byte, at, sum int, value uint16) {
	binary.BigEndian.PutUint16(b[sum:], update(binary.BigEndian.Uint16(b[sum:]), binary.BigEndian.Uint16(b[at:]), value))
	binary.BigEndian.PutUint16(b[at:], value)
}
