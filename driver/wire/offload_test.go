package wire

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// naive is RFC 1071 as its text has it: 16-bit words, carries folded.
func naive(parts ...[]byte) uint16 {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	s := uint32(0)
	for i := 0; i < len(all); i += 2 {
		s += uint32(all[i])<<8 | uint32(all[i+1])
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func pseudo(data []byte, protocol byte, length int) []byte {
	ip := data[ethernetHeader:]
	tail := []byte{0, protocol, byte(length >> 8), byte(length)}
	if ip[0]>>4 == 4 {
		return append(bytes.Clone(ip[12:20]), tail...)
	}
	return append(bytes.Clone(ip[8:40]), tail...)
}

// l4Frame is a frame with headers and random payload whose checksums are left to
// the device, as a stack would leave them.
func l4Frame(ipv6 bool, protocol byte, port uint16, payload []byte) driver.Frame {
	l3, l4 := ipv4Header, udpHeader
	if ipv6 {
		l3 = ipv6Header
	}
	if protocol == protoTCP {
		l4 = tcpHeader + 12
	}
	b := make([]byte, ethernetHeader+l3+l4+len(payload))
	copy(b[ethernetHeader+l3+l4:], payload)
	f := driver.Frame{Data: b, L2: ethernetHeader, L3: uint16(l3), L4: uint8(l4)}
	ip, tp := b[ethernetHeader:], b[ethernetHeader+l3:]
	if ipv6 {
		be.PutUint16(b[12:], etherIPv6)
		ip[0] = 6 << 4
		be.PutUint16(ip[4:], uint16(len(tp)))
		ip[6], ip[7] = protocol, 64
		copy(ip[8:], []byte{0xfd, 0x99, 15: 1})
		copy(ip[24:], []byte{0xfd, 0x99, 15: 2})
		f.Flags = driver.IPv6
	} else {
		be.PutUint16(b[12:], etherIPv4)
		ip[0] = 4<<4 | 5
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[4:], 1000)
		ip[8], ip[9] = 64, protocol
		copy(ip[12:], []byte{10, 99, 0, 1})
		copy(ip[16:], []byte{10, 99, 0, 2})
		f.Flags = driver.ComputeIPChecksum
	}
	be.PutUint16(tp, 1024+port)
	be.PutUint16(tp[2:], 11211)
	field := udpChecksum
	if protocol == protoTCP {
		field = tcpChecksum
		be.PutUint32(tp[4:], 0xfffffff0) // wraps when cut
		tp[12] = tcpHeader / 4 << 4
		tp[12] = uint8(l4) / 4 << 4
		tp[13] = 0x10 | tcpPSH
		f.Flags |= driver.ComputeTCPChecksum
	} else {
		be.PutUint16(tp[4:], uint16(len(tp)))
		f.Flags |= driver.ComputeUDPChecksum
	}
	be.PutUint16(tp[field:], naive(pseudo(b, protocol, len(tp))))
	return f
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// tcpFrame is an l4Frame of a flow; its bytes depend on the arguments only.
func tcpFrame(ipv6 bool, port uint16, n uint32, payload int) driver.Frame {
	return l4Frame(ipv6, protoTCP, port, randomBytes(rand.New(rand.NewPCG(uint64(n), uint64(port))), payload))
}

// adopt moves f's bytes into a frame of the queue, with the same offloads.
func adopt(t testing.TB, q driver.Queue, f driver.Frame) driver.Frame {
	t.Helper()
	own := allocate(t, q, f.Data)
	own.Flags, own.SegmentSize, own.L2, own.L3, own.L4 = f.Flags, f.SegmentSize, f.L2, f.L3, f.L4
	return own
}

// mustBeIntact fails unless the checksums of a frame are right.
func mustBeIntact(t *testing.T, data []byte) {
	t.Helper()
	ip := data[ethernetHeader:]
	protocol, l3 := ip[6], ipv6Header
	if ip[0]>>4 == 4 {
		protocol, l3 = ip[9], ipv4Header
		if naive(ip[:l3]) != 0xffff {
			t.Fatalf("wrong IPv4 header checksum in %x", data)
		}
		if int(be.Uint16(ip[2:])) != len(ip) {
			t.Fatalf("IPv4 total length %d in a packet of %d bytes", be.Uint16(ip[2:]), len(ip))
		}
	} else if int(be.Uint16(ip[4:])) != len(ip)-ipv6Header {
		t.Fatalf("IPv6 payload length %d in a packet of %d bytes", be.Uint16(ip[4:]), len(ip))
	}
	if naive(pseudo(data, protocol, len(ip)-l3), ip[l3:]) != 0xffff {
		t.Fatalf("wrong checksum of protocol %d in %x", protocol, data)
	}
}

func receiveOne(t *testing.T, q driver.Queue) driver.Frame {
	t.Helper()
	var f [2]driver.Frame
	if n := q.Receive(f[:]); n != 1 {
		t.Fatalf("received %d frames, want 1", n)
	}
	return f[0]
}

func TestChecksumSumsLikeRFC1071(t *testing.T) {
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 300 {
		b := randomBytes(r, n)
		if n%3 == 0 {
			for i := range b {
				b[i] = 0xff // carries everywhere
			}
		}
		if got, want := fold(sum(0, b)), naive(b); got != want {
			t.Fatalf("seed %d: %x: %#04x, want %#04x", seed, b, got, want)
		}
	}
}

func TestChecksumsLeftToTheDeviceAreFilledIn(t *testing.T) {
	l := newLink(t, Config{TransmitChecksum: true, ReceiveChecksum: true})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 400 {
		protocol := []byte{protoTCP, protoUDP}[i%2]
		f := l4Frame(i%4 < 2, protocol, uint16(i), randomBytes(r, r.IntN(1400)))
		if i%8 < 4 { // by reference, else as a foreign frame
			f = adopt(t, a, f)
		}
		transmit(t, a, f)
		got := receiveOne(t, b)
		mustBeIntact(t, got.Data)
		if got.Flags != driver.ChecksumValid {
			t.Fatalf("flags %b, want ChecksumValid", got.Flags)
		}
		driver.Free([]driver.Frame{got})
	}
}

func TestAUDPChecksumOfZeroIsSentAsOnes(t *testing.T) {
	l := newLink(t, Config{TransmitChecksum: true})
	for i := range 0x10000 {
		f := l4Frame(false, protoUDP, 1, []byte{byte(i >> 8), byte(i)})
		transmit(t, l.Port(A).Queue(0), f)
		got := receiveOne(t, l.Port(B).Queue(0))
		field := be.Uint16(got.Data[ethernetHeader+ipv4Header+udpChecksum:])
		if field == 0 {
			t.Fatalf("payload %#04x was sent without a checksum", i)
		}
		driver.Free([]driver.Frame{got})
	}
}

func TestPartialChecksumsArriveUncomputedButValid(t *testing.T) {
	l := newLink(t, Config{TransmitChecksum: true, ReceiveChecksum: true, PartialChecksums: true})
	f := l4Frame(false, protoTCP, 1, []byte("hello"))
	want := bytes.Clone(f.Data)
	transmit(t, l.Port(A).Queue(0), f)
	got := receiveOne(t, l.Port(B).Queue(0))
	if !bytes.Equal(got.Data, want) || got.Flags != driver.ChecksumValid {
		t.Fatalf("flags %b, data %x, want %x", got.Flags, got.Data, want)
	}
	driver.Free([]driver.Frame{got})
	// A checksum that nobody left to the device is looked at.
	f = l4Frame(false, protoTCP, 1, []byte("hello"))
	f.Flags = 0
	transmit(t, l.Port(A).Queue(0), f)
	if got = receiveOne(t, l.Port(B).Queue(0)); got.Flags != driver.ChecksumWrong {
		t.Fatalf("flags %b, want ChecksumWrong", got.Flags)
	}
	driver.Free([]driver.Frame{got})
}

func TestACorruptedFrameIsNeverMarkedValid(t *testing.T) {
	for _, partial := range []bool{false, true} {
		l := newLink(t, Config{TransmitChecksum: true, ReceiveChecksum: true, PartialChecksums: partial, Faults: [2]Faults{A: {Corrupt: 0.5}}})
		a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
		corrupted, wrong := 0, 0
		for i := range 4000 {
			f := l4Frame(i%4 < 2, []byte{protoTCP, protoUDP}[i%2], uint16(i), make([]byte, 20))
			clean := l4FrameFilled(f)
			transmit(t, a, f)
			got := receiveOne(t, b)
			switch intact := bytes.Equal(got.Data, clean); {
			case intact && got.Flags != driver.ChecksumValid:
				t.Fatalf("an intact frame has flags %b", got.Flags)
			case !intact && got.Flags&driver.ChecksumValid != 0:
				t.Fatalf("a corrupted frame is marked valid: %x, sent %x", got.Data, clean)
			case !intact:
				corrupted++
				if got.Flags&driver.ChecksumWrong != 0 {
					wrong++
				}
			}
			driver.Free([]driver.Frame{got})
		}
		if corrupted < 1800 || wrong < corrupted/2 {
			t.Fatalf("%d frames corrupted, %d of them found wrong", corrupted, wrong)
		}
	}
}

// l4FrameFilled returns the bytes of f with the checksums that it asks for.
func l4FrameFilled(f driver.Frame) []byte {
	b := bytes.Clone(f.Data)
	ip := b[ethernetHeader:]
	if f.Flags&driver.ComputeIPChecksum != 0 {
		be.PutUint16(ip[ipChecksum:], ^naive(ip[:f.L3]))
	}
	tp := ip[f.L3:]
	field := tcpChecksum
	if f.Flags&driver.ComputeUDPChecksum != 0 {
		field = udpChecksum
	}
	be.PutUint16(tp[field:], ^naive(tp))
	return b
}

func TestALargeFrameIsCutIntoSegmentsThatAddUp(t *testing.T) {
	const size = 1400
	r := rand.New(rand.NewPCG(seed, 0))
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{1, size, size + 1, 10*size - 7, 60000} {
			l := newLink(t, Config{SegmentTCP: true, ReceiveChecksum: true})
			before := l.FreeFrames()
			a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
			payload := randomBytes(r, n)
			f := l4Frame(v6, protoTCP, 1, payload)
			f.Flags |= driver.SegmentTCP
			f.SegmentSize = size
			tcp := f.Data[f.L2+uint8(f.L3):]
			tcp[13] |= tcpFIN | tcpCWR
			be.PutUint16(tcp[tcpChecksum:], 0x1234) // without length, and not looked at
			head := headers(&f)
			f = adopt(t, a, f)
			transmit(t, a, f)
			var got [64]driver.Frame
			count := b.Receive(got[:])
			if want := (n + size - 1) / size; count != want {
				t.Fatalf("%d bytes came as %d segments, want %d", n, count, want)
			}
			var whole []byte
			for i := range count {
				data := got[i].Data
				mustBeIntact(t, data)
				if got[i].Flags != driver.ChecksumValid || len(data) > 1514 {
					t.Fatalf("segment %d: flags %b, %d bytes", i, got[i].Flags, len(data))
				}
				tcp := data[head-tcpHeader-12:]
				if seq, want := be.Uint32(tcp[4:]), uint32(0xfffffff0)+uint32(len(whole)); seq != want {
					t.Fatalf("segment %d: sequence number %d, want %d", i, seq, want)
				}
				if !v6 && be.Uint16(data[ethernetHeader+4:]) != uint16(1000+i) {
					t.Fatalf("segment %d: IP identification %d", i, be.Uint16(data[ethernetHeader+4:]))
				}
				want := byte(0x10)
				if i == 0 {
					want |= tcpCWR
				}
				if i == count-1 {
					want |= tcpFIN | tcpPSH
				}
				if tcp[13] != want {
					t.Fatalf("segment %d of %d: flags %#x, want %#x", i, count, tcp[13], want)
				}
				whole = append(whole, data[head:]...)
			}
			if !bytes.Equal(whole, payload) {
				t.Fatal("the payload changed")
			}
			driver.Free(got[:count])
			if free := l.FreeFrames(); free != before {
				t.Fatalf("%d frames free, want %d", free, before)
			}
		}
	}
}

func TestALargeFrameArrivesWholeWhereLargeOnesAreTaken(t *testing.T) {
	l := newLink(t, Config{SegmentTCP: true, ReceiveLarge: true, ReceiveChecksum: true})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	f := tcpFrame(false, 1, 1, 50000)
	f.Flags |= driver.SegmentTCP
	f.SegmentSize = 1400
	transmit(t, a, adopt(t, a, f))
	got := receiveOne(t, b)
	mustBeIntact(t, got.Data)
	if got.SegmentSize != 1400 || got.Flags != driver.ChecksumValid || len(got.Data) != len(f.Data) {
		t.Fatalf("%d bytes, segment size %d, flags %b", len(got.Data), got.SegmentSize, got.Flags)
	}
	driver.Free([]driver.Frame{got})
}

func TestALargeFrameIsRefusedWholeWhenItsSegmentsHaveNoRoom(t *testing.T) {
	l := newLink(t, Config{SegmentTCP: true, Ring: 64})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	for i := range 30 {
		transmit(t, a, allocate(t, a, numbered(i, 60)))
	}
	f := tcpFrame(false, 1, 1, 50000) // 36 segments
	f.Flags |= driver.SegmentTCP
	f.SegmentSize = 1400
	frames := []driver.Frame{adopt(t, a, f)}
	if a.Transmit(frames) != 0 || frames[0].Pool == nil || !bytes.Equal(frames[0].Data, f.Data) {
		t.Fatal("34 places took 36 segments, or the frame was touched")
	}
	drain(b)
	transmit(t, a, frames...)
	var got [64]driver.Frame
	if n := b.Receive(got[:]); n != 36 {
		t.Fatalf("received %d segments, want 36", n)
	}
	driver.Free(got[:36])
}

func TestAnOffloadThatMakesNoSenseIsCountedAndDropped(t *testing.T) {
	r := rand.New(rand.NewPCG(seed, 0))
	for _, c := range []Config{
		{SegmentTCP: true, ReceiveChecksum: true, Queues: 2},
		{SegmentTCP: true, ReceiveLarge: true, ReceiveChecksum: true, PartialChecksums: true},
	} {
		l := newLink(t, c)
		before := l.FreeFrames()
		a := l.Port(A).Queue(0)
		var got [64]driver.Frame
		for range 50000 {
			f := l4Frame(r.IntN(2) == 0, []byte{protoTCP, protoUDP}[r.IntN(2)], uint16(r.IntN(10)), randomBytes(r, r.IntN(100)))
			for range r.IntN(4) { // garble the headers
				f.Data[r.IntN(len(f.Data))] = byte(r.Uint32())
			}
			f.Data = f.Data[:r.IntN(len(f.Data)+1)]
			f.Flags = driver.Flags(r.IntN(int(driver.IPv6) * 2))
			switch r.IntN(3) {
			case 0:
				f.L2, f.L3, f.L4 = uint8(r.Uint32()), uint16(r.IntN(200)), uint8(r.Uint32())
			case 1:
				f.L2, f.L3, f.L4 = 0, 0, 0
			}
			f.SegmentSize = uint16(r.IntN(60))
			frames := []driver.Frame{f}
			if len(f.Data) > 0 && r.IntN(2) == 0 {
				frames[0] = adopt(t, a, f)
			}
			transmit(t, a, frames...)
			for k := range l.Port(B).Queues() {
				for n := 1; n > 0; {
					n = l.Port(B).Queue(k).Receive(got[:])
					driver.Free(got[:n])
				}
			}
		}
		if n := counter(t, l.Port(A), "malformed"); n < 1000 {
			t.Fatalf("only %d of 50,000 garbled frames were counted as malformed", n)
		}
		if free := l.FreeFrames(); free != before {
			t.Fatalf("%d frames free, want %d", free, before)
		}
	}
}
