package forward_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/driver/wire"
)

// A traffic is what a fuzzer writes: frames one after the other, each behind its
// port (the lower bits), whether to make its IPv4 checksum right (the highest
// bit), and its length.
type traffic struct{ bytes.Buffer }

func (t *traffic) add(in int, frame []byte) {
	t.WriteByte(byte(in))
	t.WriteByte(byte(len(frame)))
	t.WriteByte(byte(len(frame) >> 8))
	t.Write(frame)
}

func (t *traffic) next() (in int, frame []byte, ok bool) {
	h := t.Next(3)
	if len(h) < 3 {
		return 0, nil, false
	}
	frame = bytes.Clone(t.Next(int(h[1]) | int(h[2])<<8&0x7ff))
	if h[0]&0x80 != 0 && len(frame) >= 34 {
		be.PutUint16(frame[24:], 0)
		size := min(14+int(frame[14]&15)*4, len(frame))
		be.PutUint16(frame[24:], ^checksum(frame[14:size], 0))
	}
	return int(h[0]&0x7f) % 2, frame, true
}

// everything is a forwarder with all that a packet can meet.
func everything(t testing.TB, c forward.Config) *bed {
	b := newBed(t, 2, wire.Config{Ring: 256, Frames: 512}, c)
	load(t, b, "nat out p1 from 10.0.0.0/16 to 198.51.100.1-198.51.100.2 ports 2000-2063\n"+
		"nat out p1 to 10.1.0.1 ports 3000-3100\ndeny proto tcp to-port 3\ndeny in p1 to-port 9 to fd00::/16\nrate p1 1gbit")
	b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1), via("2001:db8::/32", 1)},
		Links: []routes.Link{{Interface: 2, Name: "p1", MTU: 1300, Up: true, Running: true}}})
	return b
}

// cut is a packet that ends with its IPv4 header.
func cut(p packet) []byte {
	f := p.frame()[:34]
	be.PutUint16(f[16:], 20)
	be.PutUint16(f[24:], 0)
	be.PutUint16(f[24:], ^checksum(f[14:34], 0))
	return f
}

func FuzzFrames(f *testing.F) {
	server, outside := netip.MustParseAddr("20.1.2.3"), netip.MustParseAddr("198.51.100.1")
	seed := func(frames ...packet) {
		var t traffic
		for _, p := range frames {
			t.add(p.in|0x80, p.frame())
		}
		f.Add(t.Bytes())
	}
	for _, protocol := range []byte{6, 17} {
		// The same flow with its ports, which are zero, and without.
		p := packet{from: addr4(0, 2), to: server, protocol: protocol, payload: 20}
		var t traffic
		t.add(0, p.frame())
		t.add(0, cut(p))
		f.Add(t.Bytes())
		p.sport, p.dport = 1, 53
		back := packet{in: 1, from: server, to: outside, protocol: protocol, sport: 53, dport: 2000}
		seed(p, p, back, back, packet{from: addr4(0, 2), to: server, protocol: protocol, fragment: 0x2000}, packet{from: addr4(0, 2), to: server, protocol: protocol, fragment: 1})
		for way, quoted := range []packet{p, back} {
			// An error about it, which has to be translated as well.
			e := packet{in: 1 - way, from: server, to: outside, protocol: 1, icmpType: 3, payload: 28}
			if way == 1 {
				e.from, e.to = e.to, e.from
			}
			frame := e.frame()
			copy(frame[42:], quoted.frame()[14:])
			var t traffic
			t.add(way, quoted.frame())
			t.add(1-way, frame)
			f.Add(t.Bytes())
		}
	}
	seed(packet{from: addr4(0, 2), to: server, protocol: 1, icmpType: 8, sport: 7}, packet{in: 1, from: server, to: outside, protocol: 1, dport: 2000},
		packet{from: addr4(0, 2), to: addr4(1, 2), ttl: 1}, packet{from: addr4(0, 2), to: addr4(1, 9), payload: 1400},
		packet{from: addr6(0, 2), to: addr6(1, 2), protocol: 44}, packet{from: addr6(0, 2), to: addr6(1, 9), protocol: 60, payload: 1400})
	f.Add(append([]byte{0, 60, 0}, arpFrame(1, peerMAC(0), addr4(0, 2), addr4(0, 1))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, flows := range []int{64, -1} {
			b := everything(t, forward.Config{Bindings: 16, Flows: flows})
			in := traffic{*bytes.NewBuffer(data)}
			for range 64 {
				port, frame, ok := in.next()
				if !ok {
					break
				}
				if len(frame) > 0 {
					b.offer(port, frame)
				}
				b.step(time.Millisecond)
				b.f.Control().Tick(b.now)
				b.out(0)
				b.out(1)
			}
			b.close()
		}
	})
}

func TestAFlowWithPortsIsNotOneWithout(t *testing.T) {
	for _, protocol := range []byte{6, 17} {
		b := newBed(t, 2, wire.Config{}, forward.Config{})
		load(t, b, "nat out p1 from 10.0.0.0/16 to 198.51.100.1")
		p := packet{from: addr4(0, 2), to: addr4(1, 2), protocol: protocol}
		for range 2 {
			b.send(0, p.frame())
			b.step(time.Millisecond)
			b.one(1)
			b.send(0, cut(p))
			b.step(time.Millisecond)
			b.none()
		}
		if d := b.drops(); d["nat-protocol"] != 2 {
			t.Errorf("protocol %d: dropped %v, want two that cannot be translated", protocol, d)
		}
		b.close()
	}
}
