package dpdk

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// kinds are the packets that offloads are tried on.
func kinds(payload []byte) map[string]packet {
	return map[string]packet{
		"tcp4": {payload: payload}, "tcp6": {payload: payload, ipv6: true},
		"udp4": {payload: payload, udp: true}, "udp6": {payload: payload, ipv6: true, udp: true},
	}
}

// transmit sends one frame with offloads.
func transmit(t testing.TB, q driver.Queue, b []byte, describe func(*driver.Frame)) {
	t.Helper()
	var f [1]driver.Frame
	if q.Allocate(f[:], len(b)) != 1 {
		t.Fatalf("no frame of %d bytes", len(b))
	}
	f[0].Data = append(f[0].Data, b...)
	describe(&f[0])
	within(t, "room to send", func() bool { return q.Transmit(f[:]) == 1 })
}

// TestChecksumsAreComputed: what leaves with a Compute flag has the right
// checksum on the kernel's side of a tap.
func TestChecksumsAreComputed(t *testing.T) {
	ns, device := namespace(t), unique("t")
	p := openIn(t, ns, Config{Device: device, Driver: TAP})
	c := p.Capabilities()
	if !c.TransmitIPChecksum || !c.TransmitTCPChecksum || !c.TransmitUDPChecksum || !c.ReceiveChecksum || !c.SegmentTCP {
		t.Fatalf("a tap does less than it should: %+v", c)
	}
	quiet(t, ns, device)
	s, buf := rawSocket(t, ns, device), make([]byte, 65536)
	for _, size := range []int{0, 1, 1000, 1401} {
		for name, k := range kinds(pattern(size)) {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
				b := k.build(true)
				if !k.ipv6 {
					b[24], b[25] = 0, 0
				}
				transmit(t, p.Queue(0), b, func(f *driver.Frame) {
					k.describe(f)
					f.Flags |= driver.ComputeIPChecksum
				})
				n, err := syscall.Read(s, buf)
				if err != nil {
					t.Fatal(err)
				}
				if _, payload := verify(t, buf[:n]); !bytes.Equal(payload, k.payload) {
					t.Error("the payload changed")
				}
			})
		}
	}
}

// TestChecksumsAreVerified: a tap vouches for what is right and for nothing else.
func TestChecksumsAreVerified(t *testing.T) {
	ns, device := namespace(t), unique("t")
	p := openIn(t, ns, Config{Device: device, Driver: TAP})
	quiet(t, ns, device)
	s := rawSocket(t, ns, device)
	const known = driver.ChecksumValid | driver.ChecksumWrong
	try := func(name string, b []byte, want driver.Flags) {
		t.Run(name, func(t *testing.T) {
			if _, err := syscall.Write(s, b); err != nil {
				t.Fatal(err)
			}
			receive(t, p.Queue(0), 1, func(_ int, f driver.Frame) {
				if got := f.Flags & known; got != want {
					t.Errorf("flags %#x instead of %#x", got, want)
				}
				if !bytes.Equal(f.Data, b) {
					t.Error("the frame changed")
				}
			})
		})
	}
	for name, k := range kinds(pattern(500)) {
		b := k.finish(k.build(true))
		try(name+" right", b, driver.ChecksumValid)
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		try(name+" wrong", b, driver.ChecksumWrong)
		if !k.ipv6 {
			b = k.finish(k.build(true))
			b[24] ^= 1
			try(name+" wrong IP header", b, driver.ChecksumWrong)
		}
	}
	try("not IP", numbered(60, 1), 0)
}

// TestUnfinishedChecksumsAreFinished: between virtio_user and vhost a checksum
// is left to be computed; whoever receives such a frame finds it computed, and
// may send it on anywhere.
func TestUnfinishedChecksumsAreFinished(t *testing.T) {
	a, b := vhostPair(t, 1, false)
	for _, way := range []struct{ from, to *Port }{{b, a}, {a, b}} {
		for _, size := range []int{0, 1, 1000, 1401} {
			for name, k := range kinds(pattern(size)) {
				t.Run(fmt.Sprintf("to %s %s %d", way.to.driver, name, size), func(t *testing.T) {
					transmit(t, way.from.Queue(0), k.build(true), k.describe)
					receive(t, way.to.Queue(0), 1, func(_ int, f driver.Frame) {
						if f.Flags&driver.ChecksumValid == 0 || f.Flags&driver.ChecksumWrong != 0 {
							t.Errorf("flags %#x", f.Flags)
						}
						if _, payload := verify(t, f.Data); !bytes.Equal(payload, k.payload) {
							t.Error("the payload changed")
						}
					})
				})
			}
		}
	}
}

// TestLargeSegmentsAreCut: the kernel receives, through a tap, the very bytes
// of a TCP segment larger than the MTU, in segments of the size asked for, each
// with right checksums; as one mbuf and as a chain of pieces.
func TestLargeSegmentsAreCut(t *testing.T) {
	for _, piece := range []int{0, 8192} {
		t.Run(fmt.Sprintf("pieces of %d", piece), func(t *testing.T) {
			ns, device := namespace(t), unique("t")
			p := openIn(t, ns, Config{Device: device, Driver: TAP, piece: piece})
			if piece != p.piece {
				t.Fatalf("frames are cut into pieces of %d", p.piece)
			}
			quiet(t, ns, device)
			s, buf := rawSocket(t, ns, device), make([]byte, 65536)
			q, before, available := p.Queue(0), p.FreeFrames(), p.available()
			for _, mss := range []int{536, 1448, 1460, -1440} {
				// Of IPv6 a tap makes no segments: the kernel, which is the only
				// one to see them, gets it whole.
				ipv6 := mss < 0
				if ipv6 {
					mss = -mss
				}
				for _, size := range []int{100, mss, mss + 1, 10000, 25000} {
					k := packet{payload: pattern(size), sequence: 1<<32 - 5000, ipv6: ipv6}
					transmit(t, q, k.build(false), func(f *driver.Frame) {
						k.describe(f)
						f.Flags |= driver.SegmentTCP
						f.SegmentSize = uint16(mss)
					})
					var got []byte
					for len(got) < size {
						n, err := syscall.Read(s, buf)
						if err != nil {
							t.Fatalf("%d bytes of %d came, then: %v", len(got), size, err)
						}
						sequence, payload := verify(t, buf[:n])
						if want := k.sequence + uint32(len(got)); sequence != want {
							t.Fatalf("sequence number %d instead of %d", sequence, want)
						}
						if len(payload) > mss && !ipv6 {
							t.Errorf("a segment of %d bytes", len(payload))
						}
						got = append(got, payload...)
					}
					if !bytes.Equal(got, k.payload) {
						t.Errorf("%d bytes changed on the way", size)
					}
				}
			}
			if after := p.FreeFrames(); after != before {
				t.Errorf("%d free frames before, %d after", before, after)
			}
			if after := p.available(); after != available {
				t.Errorf("%d frames in the pools before, %d after", available, after)
			}
		})
	}
}

// TestLargeSegmentsCrossVirtio: vhost receives in one frame what virtio_user
// left to be cut.
func TestLargeSegmentsCrossVirtio(t *testing.T) {
	a, b := vhostPair(t, 1, false)
	if !b.Capabilities().SegmentTCP {
		t.Fatal("virtio_user does not segment")
	}
	before := a.FreeFrames()
	for _, ipv6 := range []bool{false, true} {
		for _, size := range []int{1460, 5000, 60000} {
			k := packet{payload: pattern(size), ipv6: ipv6}
			transmit(t, b.Queue(0), k.build(false), func(f *driver.Frame) {
				k.describe(f)
				f.Flags |= driver.SegmentTCP
				f.SegmentSize = 1440
			})
			receive(t, a.Queue(0), 1, func(_ int, f driver.Frame) {
				if _, payload := verify(t, f.Data); !bytes.Equal(payload, k.payload) {
					t.Errorf("the payload of %d bytes changed", size)
				}
				if f.Flags&driver.ChecksumValid == 0 {
					t.Errorf("flags %#x", f.Flags)
				}
			})
		}
	}
	if after := a.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
}

// TestLargeFramesComeBackFromTheRing: a device that collects what it has sent only
// when its ring is nearly full gives large frames again once ordinary ones were
// sent in their place.
func TestLargeFramesComeBackFromTheRing(t *testing.T) {
	a, b := vhostPair(t, 1, false)
	before := b.FreeFrames()
	large, ordinary := packet{payload: pattern(30000)}, packet{payload: pattern(1440)}
	instead, longest := 0, 0
	for sent := 0; sent < 5*largeFrames; {
		k, flags := large, driver.SegmentTCP
		var f [1]driver.Frame
		if b.Queue(0).Allocate(f[:], len(k.build(false))) == 0 {
			k, flags = ordinary, driver.ComputeTCPChecksum
			instead++
			longest = max(longest, instead)
			if b.Queue(0).Allocate(f[:], len(k.build(false))) == 0 {
				t.Fatalf("no frame of any kind after %d large ones", sent)
			}
		} else {
			sent++
			instead = 0
		}
		f[0].Data = append(f[0].Data, k.build(false)...)
		k.describe(&f[0])
		f[0].Flags |= flags
		f[0].SegmentSize = 1440
		within(t, "room to send", func() bool { return b.Queue(0).Transmit(f[:]) == 1 })
		receive(t, a.Queue(0), 1, func(_ int, f driver.Frame) {
			if _, payload := verify(t, f.Data); !bytes.Equal(payload, k.payload) {
				t.Error("the payload changed")
			}
		})
	}
	t.Logf("at most %d ordinary frames had to be sent in a row", longest)
	if ring := 1024; longest > ring {
		t.Errorf("%d ordinary frames had to be sent before there were large ones again", longest)
	}
	if after := b.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
}
