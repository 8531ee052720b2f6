package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// seed is that of all tests here; a failure prints it.
const seed = 20240611

func newLink(t testing.TB, c Config) *Link {
	t.Helper()
	if c.Seed == 0 {
		c.Seed = seed
	}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range []Side{A, B} {
			if err := l.Port(s).Close(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("seed %d", l.config.Seed)
		}
	})
	return l
}

// allocate gives one frame with these bytes.
func allocate(t testing.TB, q driver.Queue, data []byte) driver.Frame {
	t.Helper()
	var f [1]driver.Frame
	if q.Allocate(f[:], len(data)) != 1 {
		t.Fatalf("no frame of %d bytes", len(data))
	}
	f[0].Data = append(f[0].Data, data...)
	return f[0]
}

func transmit(t testing.TB, q driver.Queue, frames ...driver.Frame) {
	t.Helper()
	if n := q.Transmit(frames); n != len(frames) {
		t.Fatalf("transmitted %d of %d frames", n, len(frames))
	}
	for i := range frames {
		if frames[i].Pool != nil || frames[i].Data != nil {
			t.Fatalf("frame %d was accepted but not cleared", i)
		}
	}
}

// numbered is a frame that is neither IP nor anything else.
func numbered(n, size int) []byte {
	b := make([]byte, max(size, ethernetHeader+4))
	be.PutUint16(b[12:], 0x88b5) // local experimental ethertype
	be.PutUint32(b[ethernetHeader:], uint32(n))
	return b
}

func number(data []byte) int { return int(be.Uint32(data[ethernetHeader:])) }

// drain receives all that is there, and frees it.
func drain(q driver.Queue) (numbers []int) {
	var frames [7]driver.Frame
	for {
		n := q.Receive(frames[:])
		if n == 0 {
			return numbers
		}
		for i := range frames[:n] {
			numbers = append(numbers, number(frames[i].Data))
		}
		driver.Free(frames[:n])
	}
}

func counter(t testing.TB, p *Port, name string) int {
	t.Helper()
	all, err := p.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Name == name {
			return int(s.Value)
		}
	}
	t.Fatalf("no counter %q", name)
	return 0
}

func TestFramesPassByReferenceInOrderBothWays(t *testing.T) {
	l := newLink(t, Config{})
	before := l.FreeFrames()
	for _, s := range []Side{A, B} {
		from, to := l.Port(s).Queue(0), l.Port(s.Other()).Queue(0)
		var memory []*byte
		for i := range 100 {
			f := allocate(t, from, numbered(i, 60))
			memory = append(memory, &f.Data[0])
			transmit(t, from, f)
		}
		var got [128]driver.Frame
		if n := to.Receive(got[:]); n != 100 {
			t.Fatalf("received %d frames, want 100", n)
		}
		for i, f := range got[:100] {
			if number(f.Data) != i || len(f.Data) != 60 {
				t.Fatalf("frame %d holds number %d in %d bytes", i, number(f.Data), len(f.Data))
			}
			if &f.Data[0] != memory[i] {
				t.Fatalf("frame %d was copied", i)
			}
		}
		if free := l.FreeFrames(); free != before-100 {
			t.Fatalf("%d frames free while 100 of %d are held", free, before)
		}
		driver.Free(got[:100])
		st := to.Statistics()
		if st.ReceivedFrames != 100 || st.ReceivedBytes != 6000 {
			t.Fatalf("statistics of the receiver: %+v", st)
		}
		if st := from.Statistics(); st.TransmittedFrames != 100 || st.TransmittedBytes != 6000 {
			t.Fatalf("statistics of the sender: %+v", st)
		}
	}
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free at the end, %d at the start", free, before)
	}
}

func TestAFullRingRefusesAndTheSenderKeepsItsFrame(t *testing.T) {
	l := newLink(t, Config{Ring: 64})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	frames := make([]driver.Frame, 70)
	for i := range frames {
		frames[i] = allocate(t, a, numbered(i, 60))
	}
	if n := a.Transmit(frames); n != 64 {
		t.Fatalf("a ring of 64 took %d frames", n)
	}
	for i, f := range frames[64:] {
		if f.Pool == nil || number(f.Data) != 64+i {
			t.Fatalf("refused frame %d was touched: %+v", 64+i, f)
		}
	}
	if st := a.Statistics(); st.TransmitRefused != 6 {
		t.Fatalf("statistics: %+v", st)
	}
	if got := drain(b); len(got) != 64 {
		t.Fatalf("received %d", len(got))
	}
	transmit(t, a, frames[64:]...)
	if got := drain(b); fmt.Sprint(got) != "[64 65 66 67 68 69]" {
		t.Fatalf("received %v", got)
	}
}

func TestAnExhaustedPoolGivesWhatItHas(t *testing.T) {
	l := newLink(t, Config{Frames: 10})
	q := l.Port(A).Queue(0)
	var frames [16]driver.Frame
	if n := q.Allocate(frames[:], 60); n != 10 {
		t.Fatalf("a pool of 10 gave %d", n)
	}
	if st := q.Statistics(); st.AllocationFailures != 6 {
		t.Fatalf("statistics: %+v", st)
	}
	if n := q.Allocate(frames[10:], 2000); n != 0 {
		t.Fatalf("%d frames of 2,000 bytes from a link with MTU 1,500", n)
	}
	driver.Free(frames[:10])
	if l.FreeFrames() != 10 {
		t.Fatalf("%d frames free", l.FreeFrames())
	}
}

func TestFramesOfAnotherPoolAreCopiedAndFreedOnce(t *testing.T) {
	l, other := newLink(t, Config{}), newLink(t, Config{})
	before, otherBefore := l.FreeFrames(), other.FreeFrames()
	f := allocate(t, other.Port(A).Queue(0), numbered(7, 100))
	memory := &f.Data[0]
	nobodys := driver.Frame{Data: numbered(8, 100)}
	transmit(t, l.Port(A).Queue(0), f, nobodys)
	if free := other.FreeFrames(); free != otherBefore {
		t.Fatalf("the other pool has %d frames free, want %d", free, otherBefore)
	}
	var got [4]driver.Frame
	if n := l.Port(B).Queue(0).Receive(got[:]); n != 2 {
		t.Fatalf("received %d", n)
	}
	if &got[0].Data[0] == memory || number(got[0].Data) != 7 || number(got[1].Data) != 8 || len(got[0].Data) != 100 {
		t.Fatalf("received %v", got[:2])
	}
	driver.Free(got[:2])
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free, want %d", free, before)
	}
}

func TestFreeingAFrameTwicePanics(t *testing.T) {
	l := newLink(t, Config{})
	f := allocate(t, l.Port(A).Queue(0), numbered(0, 60))
	twin := f
	driver.Free([]driver.Frame{f})
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	driver.Free([]driver.Frame{twin})
}

func TestDelayHoldsAFrameUntilTimeIsAdvanced(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Delay: 10 * time.Millisecond}}})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	l.Advance(time.Second)
	transmit(t, a, allocate(t, a, numbered(1, 60)))
	if next, ok := l.Next(); !ok || next != 1010*time.Millisecond {
		t.Fatalf("next at %v, %v", next, ok)
	}
	l.Advance(1010*time.Millisecond - 1)
	if got := drain(b); len(got) != 0 {
		t.Fatalf("received %v a nanosecond early", got)
	}
	l.Advance(1010 * time.Millisecond)
	if got := drain(b); len(got) != 1 {
		t.Fatalf("received %v when due", got)
	}
	if _, ok := l.Next(); ok {
		t.Fatal("something is still under way")
	}
	// The other direction has no delay, and time does not go back.
	l.Advance(0)
	transmit(t, b, allocate(t, b, numbered(2, 60)))
	if got := drain(a); len(got) != 1 {
		t.Fatalf("received %v without a delay", got)
	}
}

func TestRateSpacesFrames(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Rate: 8_000_000, Delay: time.Millisecond}}}) // 1 byte a microsecond
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	for i := range 5 {
		transmit(t, a, allocate(t, a, numbered(i, 100)))
	}
	for i := range 5 {
		due := time.Millisecond + time.Duration(i+1)*100*time.Microsecond
		if next, _ := l.Next(); next != due {
			t.Fatalf("frame %d is due at %v, want %v", i, next, due)
		}
		l.Advance(due)
		if got := drain(b); len(got) != 1 || got[0] != i {
			t.Fatalf("received %v at %v, want %d", got, due, i)
		}
	}
	if link, err := l.Port(A).Link(); err != nil || link.Speed != 8 || !link.Up {
		t.Fatalf("link %+v, %v", link, err)
	}
}

func TestJitterStaysWithinItsBoundsAndKeepsOrder(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Delay: 5 * time.Millisecond, Jitter: 3 * time.Millisecond}}})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	want, seen := 0, map[time.Duration]bool{}
	for i := range 300 {
		l.Advance(time.Duration(i) * 10 * time.Millisecond) // further apart than the jitter
		transmit(t, a, allocate(t, a, numbered(i, 60)))
		due, _ := l.Next()
		took := due - time.Duration(i)*10*time.Millisecond
		if took < 5*time.Millisecond || took > 8*time.Millisecond {
			t.Fatalf("frame %d takes %v", i, took)
		}
		seen[took] = true
		l.Advance(due)
		for _, n := range drain(b) {
			if n != want {
				t.Fatalf("received %d, want %d", n, want)
			}
			want++
		}
	}
	if len(seen) < 250 {
		t.Fatalf("only %d different delays in 300", len(seen))
	}
	for i := range 300 { // at one instant
		transmit(t, a, allocate(t, a, numbered(300+i, 60)))
	}
	l.Advance(time.Hour)
	for _, n := range drain(b) {
		if n != want {
			t.Fatalf("received %d, want %d: jitter changed the order", n, want)
		}
		want++
	}
	if want != 600 {
		t.Fatalf("%d frames arrived, want 600", want)
	}
}

// carry sends n numbered frames one at a time from A to B, a microsecond apart.
func carryNumbers(t *testing.T, l *Link, n int) []int {
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	var got []int
	for i := range n {
		l.Advance(time.Duration(i) * time.Microsecond)
		transmit(t, a, allocate(t, a, numbered(i, 60)))
		got = append(got, drain(b)...)
	}
	l.Advance(time.Hour)
	return append(got, drain(b)...)
}

func TestLossDropsItsShareAndLeaksNothing(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Loss: 0.1}}})
	before := l.FreeFrames()
	got := carryNumbers(t, l, 20000)
	lost := 20000 - len(got)
	if lost < 1800 || lost > 2200 {
		t.Fatalf("%d of 20,000 frames were lost, want about 2,000", lost)
	}
	if n := counter(t, l.Port(A), "lost"); n != lost {
		t.Fatalf("counted %d lost, %d are missing", n, lost)
	}
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Fatalf("%d arrived after %d", got[i], got[i-1])
		}
	}
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free, want %d", free, before)
	}
}

func TestDuplicationRepeatsItsShareAndLeaksNothing(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Duplicate: 0.1}}})
	before := l.FreeFrames()
	got := carryNumbers(t, l, 20000)
	extra := len(got) - 20000
	if extra < 1800 || extra > 2200 || extra != counter(t, l.Port(A), "duplicated") {
		t.Fatalf("%d duplicates of 20,000 frames, %d counted", extra, counter(t, l.Port(A), "duplicated"))
	}
	times := map[int]int{}
	for _, n := range got {
		times[n]++
	}
	for i := range 20000 {
		if times[i] < 1 || times[i] > 2 {
			t.Fatalf("frame %d arrived %d times", i, times[i])
		}
	}
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free, want %d", free, before)
	}
}

func TestReorderingLetsOthersOvertakeAndLosesNothing(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Reorder: 0.1, ReorderDelay: 20 * time.Microsecond}}})
	got := carryNumbers(t, l, 20000)
	seen, overtaken, last := map[int]bool{}, 0, -1
	for _, n := range got {
		seen[n] = true
		if n < last {
			overtaken++
		} else {
			last = n
		}
	}
	if len(got) != 20000 || len(seen) != 20000 {
		t.Fatalf("%d frames, %d different, want 20,000", len(got), len(seen))
	}
	if overtaken < 1800 || overtaken > 2200 {
		t.Fatalf("%d frames were overtaken, want about 2,000 (%d counted)", overtaken, counter(t, l.Port(A), "reordered"))
	}
}

func TestCorruptionInvertsOneBit(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Corrupt: 0.5}}})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	want := numbered(1, 200)
	corrupted, places := 0, map[int]bool{}
	for range 2000 {
		transmit(t, a, allocate(t, a, want))
		var f [2]driver.Frame
		if b.Receive(f[:]) != 1 {
			t.Fatal("nothing received")
		}
		bits := 0
		for i := range want {
			for x := want[i] ^ f[0].Data[i]; x != 0; x &= x - 1 {
				bits++
				places[i] = true
			}
		}
		if bits > 1 {
			t.Fatalf("%d bits differ", bits)
		}
		corrupted += bits
		driver.Free(f[:1])
	}
	if corrupted != counter(t, l.Port(A), "corrupted") || corrupted < 900 || corrupted > 1100 {
		t.Fatalf("%d of 2,000 frames corrupted, %d counted", corrupted, counter(t, l.Port(A), "corrupted"))
	}
	if len(places) < 190 {
		t.Fatalf("only %d of 200 bytes were ever hit", len(places))
	}
}

func TestFaultsOfOneDirectionLeaveTheOtherAlone(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Loss: 1, Delay: time.Hour}}})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	for i := range 100 {
		transmit(t, a, allocate(t, a, numbered(i, 60)))
		transmit(t, b, allocate(t, b, numbered(i, 60)))
	}
	if got := drain(a); len(got) != 100 {
		t.Fatalf("%d of 100 frames arrived in the direction without faults", len(got))
	}
	l.Advance(2 * time.Hour)
	if got := drain(b); len(got) != 0 {
		t.Fatalf("%d frames survived total loss", len(got))
	}
	if err := l.SetFaults(A, Faults{}); err != nil {
		t.Fatal(err)
	}
	transmit(t, a, allocate(t, a, numbered(0, 60)))
	if got := drain(b); len(got) != 1 {
		t.Fatal("SetFaults mended nothing")
	}
}

// trace runs random traffic in both directions over a link with every fault and
// returns all that came out.
func trace(t *testing.T, linkSeed uint64) []byte {
	var out bytes.Buffer
	faults := Faults{
		Loss: 0.02, Duplicate: 0.02, Corrupt: 0.02, Reorder: 0.05, Rate: 1e9,
		Delay: 100 * time.Microsecond, Jitter: 50 * time.Microsecond, ReorderDelay: 300 * time.Microsecond,
	}
	l := newLink(t, Config{
		Seed: linkSeed, Queues: 2, Faults: [2]Faults{faults, faults}, ReceiveChecksum: true, SegmentTCP: true,
		Trace: func(from Side, now time.Duration, frame []byte) {
			fmt.Fprintf(&out, "%s %d %x\n", from, now, frame)
		},
	})
	before := l.FreeFrames()
	traffic := rand.New(rand.NewPCG(seed, 1)) // the same for every link
	var got [32]driver.Frame
	for i := range 5000 {
		l.Advance(time.Duration(i) * 5 * time.Microsecond)
		for _, s := range []Side{A, B} {
			p := l.Port(s)
			q := p.Queue(traffic.IntN(2))
			f := tcpFrame(traffic.IntN(2) == 1, uint16(traffic.IntN(1000)), uint32(i), traffic.IntN(1400))
			frames := []driver.Frame{adopt(t, q, f)}
			if q.Transmit(frames) == 0 {
				driver.Free(frames)
			}
			for k := range 2 {
				driver.Free(got[:p.Queue(k).Receive(got[:])])
			}
		}
	}
	l.Advance(time.Hour)
	for _, s := range []Side{A, B} {
		for k := range 2 {
			for n := 1; n > 0; {
				n = l.Port(s).Queue(k).Receive(got[:])
				driver.Free(got[:n])
			}
		}
	}
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free, want %d", free, before)
	}
	return out.Bytes()
}

func TestTheSameSeedReplaysTheSameFrames(t *testing.T) {
	first, again, other := trace(t, 1), trace(t, 1), trace(t, 2)
	if len(first) < 1<<20 {
		t.Fatalf("the trace has only %d bytes", len(first))
	}
	if !bytes.Equal(first, again) {
		t.Fatal("two runs with seed 1 differ")
	}
	if bytes.Equal(first, other) {
		t.Fatal("seeds 1 and 2 give the same trace")
	}
}

func TestClosingAnEndFreesWhatIsUnderWayAndDropsTheRest(t *testing.T) {
	l := newLink(t, Config{Faults: [2]Faults{A: {Delay: time.Second}}})
	before := l.FreeFrames()
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	for i := range 10 {
		transmit(t, a, allocate(t, a, numbered(i, 60)))
		transmit(t, b, allocate(t, b, numbered(i, 60)))
	}
	if err := l.Port(B).Close(); err != nil {
		t.Fatal(err)
	}
	transmit(t, a, allocate(t, a, numbered(99, 60)))
	l.Advance(time.Hour)
	if got := append(drain(a), drain(b)...); len(got) != 0 {
		t.Fatalf("received %v over a closed link", got)
	}
	if free := l.FreeFrames(); free != before {
		t.Fatalf("%d frames free, want %d", free, before)
	}
	if link, _ := l.Port(A).Link(); link.Up {
		t.Fatal("the link is still up")
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"queues":      {Queues: 1000},
		"MTU":         {MTU: 10},
		"ring":        {Ring: 3},
		"frames":      {Frames: -1},
		"probability": {Faults: [2]Faults{{Loss: 1.5}}},
		"delay":       {Faults: [2]Faults{{}, {Delay: -1}}},
		"partial":     {PartialChecksums: true},
		"large":       {ReceiveLarge: true},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPortTellsWhatItIs(t *testing.T) {
	l := newLink(t, Config{Name: "left", Queues: 4, MTU: 9000, SegmentTCP: true, ReceiveChecksum: true, Interrupts: true})
	a, b := l.Port(A), l.Port(B)
	if a.Name() != "left-A" || b.Name() != "left-B" || a.Address() == b.Address() || a.MTU() != 9000 || a.Queues() != 4 {
		t.Fatalf("%s %s %x %x %d %d", a.Name(), b.Name(), a.Address(), b.Address(), a.MTU(), a.Queues())
	}
	want := driver.Capabilities{
		Driver: "wire", ReceiveChecksum: true, TransmitIPChecksum: true, TransmitTCPChecksum: true,
		TransmitUDPChecksum: true, SegmentTCP: true, MaxFrame: 65550, Interrupt: "pipe",
	}
	if got := a.Capabilities(); got != want {
		t.Fatalf("capabilities %+v, want %+v", got, want)
	}
	if _, ok := newLink(t, Config{}).Port(A).RSS(); ok {
		t.Fatal("a port of one queue has RSS")
	}
	if got := newLink(t, Config{}).Port(A).Capabilities(); got != (driver.Capabilities{Driver: "wire", MaxFrame: 1514}) {
		t.Fatalf("capabilities of the zero Config: %+v", got)
	}
}

func TestRSSKeepsAFlowOnTheQueueThatToeplitzNames(t *testing.T) {
	l := newLink(t, Config{Queues: 3})
	rss, ok := l.Port(B).RSS()
	if !ok {
		t.Fatal("no RSS")
	}
	a := l.Port(A).Queue(1)
	used := map[int]int{}
	for i := range 600 {
		f := tcpFrame(i%2 == 1, uint16(i), 0, 10)
		src, dst := flowOf(f.Data)
		want := rss.Hash(src, dst)
		queue := rss.Queue(want)
		used[queue]++
		transmit(t, a, driver.Frame{Data: f.Data})
		for k := range 3 {
			var got [2]driver.Frame
			n := l.Port(B).Queue(k).Receive(got[:])
			if (n == 1) != (k == queue) {
				t.Fatalf("%s to %s: %d frames on queue %d, want them on %d", src, dst, n, k, queue)
			}
			if n == 1 && (got[0].Flags&driver.HashValid == 0 || got[0].Hash != want) {
				t.Fatalf("%s to %s: hash %#x, flags %b, want %#x", src, dst, got[0].Hash, got[0].Flags, want)
			}
			driver.Free(got[:n])
		}
	}
	if len(used) != 3 || used[0] < 100 || used[1] < 100 || used[2] < 100 {
		t.Fatalf("600 flows were spread as %v", used)
	}
	// A fragment has no ports, an ARP request not even an IP header.
	fragment := tcpFrame(false, 1, 0, 10).Data
	be.PutUint16(fragment[ethernetHeader+6:], 0x2000)
	for _, data := range [][]byte{numbered(0, 60), fragment} {
		transmit(t, a, driver.Frame{Data: data})
		var got [2]driver.Frame
		if n := l.Port(B).Queue(0).Receive(got[:]); n != 1 || got[0].Flags&driver.HashValid != 0 {
			t.Fatalf("%d frames on queue 0, flags %b", n, got[0].Flags)
		}
		driver.Free(got[:1])
	}
}

func flowOf(data []byte) (src, dst netip.AddrPort) {
	ip := data[ethernetHeader:]
	if ip[0]>>4 == 4 {
		s, _ := netip.AddrFromSlice(ip[12:16])
		d, _ := netip.AddrFromSlice(ip[16:20])
		return netip.AddrPortFrom(s, binary.BigEndian.Uint16(ip[20:])), netip.AddrPortFrom(d, binary.BigEndian.Uint16(ip[22:]))
	}
	s, _ := netip.AddrFromSlice(ip[8:24])
	d, _ := netip.AddrFromSlice(ip[24:40])
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(ip[40:])), netip.AddrPortFrom(d, binary.BigEndian.Uint16(ip[42:]))
}
