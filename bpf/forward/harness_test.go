package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/pollux-net/pollux/bpf/trio"
)

// attach makes the twin forward between the router's ports.
func attach(t testing.TB, n *trio.Network, more ...trio.Port) *Forwarder {
	t.Helper()
	c := Config{Interfaces: []int{n.RouterPorts[0].Index, n.RouterPorts[1].Index}}
	for _, p := range more {
		c.Interfaces = append(c.Interfaces, p.Index)
	}
	var f *Forwarder
	n.Router.Must(t, func() (err error) {
		f, err = Load(c)
		return err
	})
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func counters(t testing.TB, f *Forwarder) Counters {
	t.Helper()
	c, err := f.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// since is what was counted between two moments.
func (c Counters) since(before Counters) Counters {
	for i := range c {
		c[i].Frames -= before[i].Frames
		c[i].Bytes -= before[i].Bytes
	}
	return c
}

func (c Counters) String() string {
	s := ""
	for _, cause := range Causes() {
		if n := c[cause].Frames; n > 0 {
			s += fmt.Sprintf(" %s %d", cause, n)
		}
	}
	return s
}

// endpoints are the two ends' addresses of one family.
type endpoints struct{ client, router, server netip.Addr }

func families(n *trio.Network) map[string]endpoints {
	return map[string]endpoints{
		"IPv4": {n.ClientPort.V4.Addr(), n.RouterPorts[0].V4.Addr(), n.ServerPort.V4.Addr()},
		"IPv6": {n.ClientPort.V6.Addr(), n.RouterPorts[0].V6.Addr(), n.ServerPort.V6.Addr()},
	}
}

// XDP's verdicts.
const (
	xdpAborted = iota
	xdpDrop
	xdpPass
	xdpTransmit
	xdpRedirect
)

// run runs the program on one frame that came in by a port, and returns its
// verdict, the frame afterwards, and what was counted. It must be called on the
// router.
func (f *Forwarder) run(port trio.Port, frame []byte) (uint32, []byte, Cause, error) {
	before, err := f.Counters()
	if err != nil {
		return 0, nil, 0, err
	}
	type xdpMD struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32 }
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Repeat: 1,
		Context: xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(port.Index)}}
	verdict, err := f.objects.Forward.Run(&o)
	if err != nil {
		return 0, nil, 0, fmt.Errorf("run the program on %x: %w", frame, err)
	}
	after, err := f.Counters()
	if err != nil {
		return 0, nil, 0, err
	}
	// Other frames (neighbour discovery) are counted, too; not under the causes
	// that tests ask for.
	found, cause := 0, causes
	for _, c := range Causes() {
		if n := after[c].Frames - before[c].Frames; n > 0 && c != Multicast && c != LinkLocal {
			cause = c
			found += int(n)
		}
	}
	if found == 0 && after[Multicast] != before[Multicast] {
		cause, found = Multicast, 1
	}
	if found == 0 && after[LinkLocal] != before[LinkLocal] {
		cause, found = LinkLocal, 1
	}
	if found != 1 {
		return 0, nil, 0, errors.New("not one frame was counted:" + after.since(before).String())
	}
	return verdict, o.DataOut, cause, nil
}

// A datagram is written as a frame.
type datagram struct {
	to, from           [6]byte
	source, target     netip.Addr
	protocol           uint8
	sourcePort, toPort uint16
	fragment           uint16 // IPv4's field
	ttl                uint8
	payload            int
}

func (d datagram) frame() []byte {
	b := append(append([]byte{}, d.to[:]...), d.from[:]...)
	body := make([]byte, 8+d.payload)
	binary.BigEndian.PutUint16(body, d.sourcePort)
	binary.BigEndian.PutUint16(body[2:], d.toPort)
	binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	if d.source.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, d.ttl, d.protocol
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		binary.BigEndian.PutUint16(h[6:], d.fragment)
		copy(h[12:], d.source.AsSlice())
		copy(h[16:], d.target.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^sum(h))
		return append(append(append(b, 8, 0), h...), body...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, d.protocol, d.ttl
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], d.source.AsSlice())
	copy(h[24:], d.target.AsSlice())
	return append(append(append(b, 0x86, 0xdd), h...), body...)
}

// sum is the Internet checksum's sum.
func sum(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
