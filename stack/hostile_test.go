package stack

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// stillServes checks that a new connection gets its reply.
func (b *bench) stillServes(t *testing.T, port uint16) {
	t.Helper()
	c := b.peer.Connect(port)
	for tries := 0; !c.Established; tries++ {
		if tries > 1000 {
			t.Fatal("a new connection is not established any more")
		}
		b.step()
	}
	b.peer.Send(c, []byte("get k\r\n"))
	for tries := 0; c.Received < len(reply); tries++ {
		if tries > 1000 {
			t.Fatalf("a new connection received %d of %d bytes", c.Received, len(reply))
		}
		b.step()
	}
}

// noFramesLost checks that the stack gave back every frame of the link.
func (b *bench) noFramesLost(t *testing.T, before int) {
	t.Helper()
	b.stack.Close()
	b.peer.Receive()
	if after := b.link.FreeFrames(); after != before {
		t.Errorf("%d frames of the wire are missing", before-after)
	}
}

func TestGarbageFramesAreDroppedAndTheStackServesOn(t *testing.T) {
	const seed, frames = 7, 200_000
	rng := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	b, free := newHostileBench(t)
	kinds := []uint16{uint16(ipv4.ProtocolNumber), uint16(ipv6.ProtocolNumber), uint16(arp.ProtocolNumber), 0x8100, 0xffff}
	for n := range frames {
		f := b.peer.Frame(1500, 0)
		f.Data = f.Data[:ethernet+rng.IntN(1500-ethernet)]
		for i := range f.Data {
			f.Data[i] = byte(rng.Uint32())
		}
		if n%4 != 0 {
			// Enough that is right to get further in than the first check.
			copy(f.Data, b.server[:])
			binary.BigEndian.PutUint16(f.Data[12:], kinds[rng.IntN(len(kinds))])
			plausible(f.Data[ethernet:], rng)
		}
		if n%32 == 31 {
			b.step()
			// The wire carries nothing shorter than an Ethernet header.
			b.stack.Inject(&driver.Frame{Data: make([]byte, n%ethernet)}, 0)
		}
	}
	b.step()
	b.stillServes(t, 40000)
	st := b.stack.Statistics()
	t.Logf("dropped: %d short, %d for others, %d malformed IP, %d invalid segments, %d wrong checksums", st.DroppedShort, st.DroppedOtherHost, st.IPMalformed, st.TCP.InvalidSegments, st.DroppedChecksum+st.TCP.ChecksumErrors)
	if st.DroppedShort == 0 || st.DroppedOtherHost == 0 || st.IPMalformed == 0 {
		t.Error("garbage was not counted under its cause")
	}
	b.noFramesLost(t, free)
}

// plausible makes the beginning of a random packet look like a header: version,
// plausible lengths, our address, sometimes a right header checksum.
func plausible(ip []byte, rng *rand.Rand) {
	if len(ip) < 40 {
		return
	}
	if rng.IntN(2) == 0 {
		ip[0] = 0x40 | byte(rng.IntN(16))
		binary.BigEndian.PutUint16(ip[2:], uint16(rng.IntN(len(ip)+40)))
		ip[9] = []byte{1, 6, 17, byte(rng.Uint32())}[rng.IntN(4)]
		server := stacktest.ServerAddress.As4()
		copy(ip[16:], server[:])
		if n := int(ip[0]&15) * 4; n >= 20 && n <= len(ip) && rng.IntN(4) > 0 {
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^checksum.Checksum(ip[:n], 0))
		}
		return
	}
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], uint16(rng.IntN(len(ip))))
	ip[6] = []byte{0, 6, 17, 43, 44, 58, 60, byte(rng.Uint32())}[rng.IntN(8)]
}

func TestDamagedSegmentsOfAConnectionNeverReachTheApplication(t *testing.T) {
	b, free := newHostileBench(t)
	b.stillServes(t, 40000)
	c := b.peer.Conns[40000]
	served := b.app.served
	request := []byte("get k\r\n")
	seq := c.Seq
	for _, damage := range []struct {
		name string
		do   func(frame []byte)
	}{
		{"TCP checksum", func(f []byte) { f[ethernet+20+16] ^= 0x40 }},
		{"payload bit", func(f []byte) { f[len(f)-1] ^= 1 }},
		{"IP checksum", func(f []byte) { f[ethernet+10] ^= 1 }},
		{"IP version", func(f []byte) { f[ethernet] = 0x55 }},
		{"IP total length beyond the frame", func(f []byte) { f[ethernet+2] = 0x40; fixIP(f) }},
		{"IP total length short of TCP", func(f []byte) { f[ethernet+2], f[ethernet+3] = 0, 30; fixIP(f) }},
		{"TCP data offset beyond the segment", func(f []byte) { f[ethernet+20+12] = 0xf0 }},
		{"TCP data offset too small", func(f []byte) { f[ethernet+20+12] = 0x10 }},
	} {
		c.Seq = seq
		b.peer.Send(c, request)
		f := &b.peer.Out[len(b.peer.Out)-1]
		completeTCP(f.Data)
		f.Flags = 0
		damage.do(f.Data)
		b.step()
		b.step()
		if b.app.served != served {
			t.Errorf("%s: the application was given a damaged segment", damage.name)
			served = b.app.served
		}
	}
	// The same segment undamaged is taken: the damage was what kept it out.
	c.Seq = seq
	b.peer.Send(c, request)
	b.step()
	b.step()
	if b.app.served != served+1 {
		t.Error("the undamaged segment did not reach the application")
	}
	b.noFramesLost(t, free)
}

// alone is the siblings of a stack that has none.
type alone struct{}

func (alone) Share(*driver.Frame)          {}
func (alone) Pass(*driver.Frame, int) bool { return false }

func TestOnlyAValidSYNForUsSaysThatTheDeviceMisdirects(t *testing.T) {
	link, err := wire.New(wire.Config{TransmitChecksum: true})
	if err != nil {
		t.Fatal(err)
	}
	free := link.FreeFrames()
	b := newBenchOn(t, link, Config{
		Siblings: alone{}, OwnsFlow: func(local, remote netip.AddrPort) bool { return remote.Port() < 20000 },
	}, 0)
	port := uint16(20000)
	for _, c := range []struct {
		name  string
		do    func(f []byte)
		flags driver.Flags
		seen  int // by how many stacks before
		want  uint64
	}{
		{name: "TCP checksum", do: func(f []byte) { f[ethernet+20+16] ^= 0x40 }},
		{name: "a checksum that the device knows to be wrong", flags: driver.ChecksumWrong},
		{name: "IP checksum", do: func(f []byte) { f[ethernet+10] ^= 1 }},
		{name: "TCP data offset", do: func(f []byte) { f[ethernet+20+12] = 0xf0; resum(f) }},
		{name: "another address", do: func(f []byte) { f[ethernet+19] = 77; fixIP(f); resum(f) }},
		{name: "another host", do: func(f []byte) { f[5] ^= 1 }},
		{name: "everybody", do: func(f []byte) { copy(f, "\xff\xff\xff\xff\xff\xff") }},
		{name: "a fragment", do: func(f []byte) { f[ethernet+6] = 0x20; fixIP(f) }},
		{name: "no SYN", do: func(f []byte) { f[ethernet+20+13] = uint8(header.TCPFlagAck); resum(f) }},
		{name: "passed on by a sibling", seen: 1},
		{name: "our own", do: func(f []byte) { f[ethernet+20] = 0; resum(f) }},
		{name: "a valid SYN", want: 1},
		{name: "a valid SYN, says the device", flags: driver.ChecksumValid, do: func(f []byte) { f[ethernet+20+16] ^= 0x40 }, want: 1},
	} {
		before := b.stack.Misdirected()
		b.peer.Connect(port)
		port++
		last := len(b.peer.Out) - 1
		f := driver.Frame{Data: append([]byte(nil), b.peer.Out[last].Data...), Flags: c.flags}
		driver.Free(b.peer.Out[last:])
		b.peer.Out = b.peer.Out[:last]
		completeTCP(f.Data)
		if c.do != nil {
			c.do(f.Data)
		}
		b.stack.Inject(&f, c.seen)
		if got := b.stack.Misdirected() - before; got != c.want {
			t.Errorf("%s: counted %d times, want %d", c.name, got, c.want)
		}
	}
	b.noFramesLost(t, free)
}

// resum computes the TCP checksum anew.
func resum(f []byte) {
	ip := header.IPv4(f[ethernet:])
	segment := header.TCP(ip[20:])
	segment.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(segment))))
	completeTCP(f)
}

// completeTCP fills in the checksum that the peer leaves to its device.
func completeTCP(f []byte) {
	segment := header.TCP(f[ethernet+20:])
	sum := segment.Checksum()
	segment.SetChecksum(0)
	segment.SetChecksum(^checksum.Checksum(segment, sum))
}

func fixIP(f []byte) {
	ip := header.IPv4(f[ethernet:])
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

func TestOverlappingFragmentsAreNotReassembled(t *testing.T) {
	b, free := newHostileBench(t)
	b.stillServes(t, 40000)
	for i := range 5000 {
		for _, part := range []struct{ offset, size int }{{0, 64}, {32, 64}, {40, 8}, {96, 32}} {
			ip := make([]byte, 20+part.size)
			h := header.IPv4(ip)
			fields := header.IPv4Fields{
				TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), ID: uint16(i), FragmentOffset: uint16(part.offset),
				SrcAddr: toAddress(stacktest.ClientAddress), DstAddr: toAddress(stacktest.ServerAddress),
			}
			if part.offset < 96 {
				fields.Flags = header.IPv4FlagMoreFragments
			}
			h.Encode(&fields)
			h.SetChecksum(^h.CalculateChecksum())
			b.peer.Raw(ipv4.ProtocolNumber, ip)
		}
		b.step()
	}
	b.stillServes(t, 40001)
	b.noFramesLost(t, free)
}

func TestARealClientConnectsDuringASYNFlood(t *testing.T) {
	const seed = 11
	flood := 1_000_000
	if underRace {
		flood /= 10
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	b, free := newHostileBench(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	client := stacktest.ClientAddress.As4()
	syn := make([]byte, 40)
	for n := range flood {
		h := header.IPv4(syn)
		source := client
		// Half of the sources are on the link and do not answer ARP, half are
		// spoofed to be the client itself.
		if n%2 == 0 {
			source[3] = byte(3 + rng.IntN(250))
		}
		h.Encode(&header.IPv4Fields{TotalLength: 40, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: toAddress(netip.AddrFrom4(source)), DstAddr: toAddress(stacktest.ServerAddress)})
		h.SetChecksum(^h.CalculateChecksum())
		segment := header.TCP(syn[20:])
		segment.Encode(&header.TCPFields{SrcPort: uint16(1024 + rng.IntN(30000)), DstPort: stacktest.ServerPort, SeqNum: rng.Uint32(), DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 1000})
		segment.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, h.SourceAddress(), h.DestinationAddress(), 20))
		b.peer.Raw(ipv4.ProtocolNumber, syn)
		completeTCP(b.peer.Out[len(b.peer.Out)-1].Data)
		if n%64 == 63 {
			b.step()
		}
		if n == flood/2 {
			b.stillServes(t, 50000)
		}
	}
	b.step()
	b.stillServes(t, 50001)
	runtime.GC()
	runtime.ReadMemStats(&after)
	st := b.stack.Statistics()
	t.Logf("%d SYN cookies sent, %d endpoints, %d KiB more memory", st.TCP.SYNCookiesSent, b.stack.Endpoints(), (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10)
	if st.TCP.SYNCookiesSent < uint64(flood)/10 {
		t.Errorf("%d SYN cookies for %d SYNs: half-open connections are kept without bound, or SYNs dropped", st.TCP.SYNCookiesSent, flood)
	}
	if n := b.stack.Endpoints(); n > 2*b.stack.Config().Backlog {
		t.Errorf("%d endpoints after the flood, with a backlog of %d", n, b.stack.Config().Backlog)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	b.noFramesLost(t, free)
}

// newHostileBench is a bench whose device verifies nothing.
func newHostileBench(t *testing.T) (*bench, int) {
	t.Helper()
	link, err := wire.New(wire.Config{TransmitChecksum: true})
	if err != nil {
		t.Fatal(err)
	}
	free := link.FreeFrames()
	return newBenchOn(t, link, Config{}, 0), free
}
