package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

// clock is a second later each time.
func clock() func() time.Time {
	now := time.Date(2026, 1, 1, 0, 0, 0, 123456789, time.UTC)
	return func() time.Time {
		now = now.Add(time.Second)
		return now
	}
}

func newLink(t testing.TB, c wire.Config) (a, b *wire.Port) {
	t.Helper()
	l, err := wire.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Port(wire.A).Close(); l.Port(wire.B).Close() })
	return l.Port(wire.A), l.Port(wire.B)
}

// udp is a whole frame with right checksums.
func udp(t testing.TB, payload string) []byte {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	ip := layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 99, 0, 1}, DstIP: []byte{10, 99, 0, 2}}
	u := layers.UDP{SrcPort: 40000, DstPort: 40001}
	if err := u.SetNetworkLayerForChecksum(&ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &eth, &ip, &u, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func frames(t testing.TB, payloads ...string) []driver.Frame {
	var all []driver.Frame
	for _, p := range payloads {
		all = append(all, driver.Frame{Data: udp(t, p)})
	}
	return all
}

// pump moves all that q has to receive into the bin.
func pump(q driver.Queue) (n int) {
	var in [32]driver.Frame
	for {
		k := q.Receive(in[:])
		if k == 0 {
			return n
		}
		n += k
		driver.Free(in[:k])
	}
}

// record is a frame as a reader finds it in the file.
type record struct {
	name string
	at   time.Time
	data []byte
	size int
}

func read(t *testing.T, file []byte) []record {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for {
		data, info, err := r.ReadPacketData()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, record{in.Name, info.Timestamp.UTC(), data, info.Length})
	}
}

func TestBothDirectionsAreWrittenAsTheyPass(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	var file bytes.Buffer
	c, err := New(&file, Config{Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name() != b.Name() || p.Queues() != 1 || p.FreeFrames() != b.FreeFrames() {
		t.Fatal("the wrapped port does not tell what the port tells")
	}
	if n := a.Queue(0).Transmit(frames(t, "one", "two")); n != 2 {
		t.Fatal(n)
	}
	if n := pump(p.Queue(0)); n != 2 {
		t.Fatalf("received %d frames through the capture, want 2", n)
	}
	if n := p.Queue(0).Transmit(frames(t, "three")); n != 1 {
		t.Fatal(n)
	}
	if n := pump(a.Queue(0)); n != 1 {
		t.Fatalf("%d frames left through the capture, want 1", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 123456789, time.UTC)
	got := read(t, file.Bytes())
	want := []record{
		{"wire-B queue 0 in", start.Add(1 * time.Second), udp(t, "one"), 0},
		{"wire-B queue 0 in", start.Add(1 * time.Second), udp(t, "two"), 0},
		{"wire-B queue 0 out", start.Add(2 * time.Second), udp(t, "three"), 0},
	}
	if len(got) != len(want) {
		t.Fatalf("%d frames in the file, want %d", len(got), len(want))
	}
	for i, w := range want {
		if g := got[i]; g.name != w.name || !g.at.Equal(w.at) || !bytes.Equal(g.data, w.data) || g.size != len(w.data) {
			t.Errorf("frame %d is %v, want %v", i, g, w)
		}
	}
}

// tshark reads a file and returns the fields asked for, a line per frame.
func tshark(t *testing.T, path string, args ...string) string {
	t.Helper()
	cmd := exec.Command("tshark", append([]string{"-n", "-r", path}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark cannot read the file (package tshark: make deps): %v\n%s", err, &stderr)
	}
	return string(out)
}

func TestWiresharkReadsTheFile(t *testing.T) {
	a, b := newLink(t, wire.Config{Queues: 2})
	path := filepath.Join(t.TempDir(), "x.pcapng")
	c, err := Create(path, Config{Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	a.Queue(0).Transmit(frames(t, "a", "bb", "ccc"))
	p.Queue(1).Transmit(frames(t, "dddd"))
	rss, _ := p.RSS()
	hash := rss.Hash(flow(t, udp(t, "a")))
	home := rss.Queue(hash)
	if n := pump(p.Queue(home)); n != 3 {
		t.Fatalf("received %d frames on queue %d", n, home)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got := tshark(t, path, "-o", "udp.check_checksum:TRUE", "-T", "fields",
		"-e", "frame.interface_name", "-e", "frame.time_epoch", "-e", "udp.length", "-e", "udp.checksum.status", "-e", "ip.src")
	in := fmt.Sprintf("wire-B queue %d in\t1767225602.123456789\t", home)
	want := "wire-B queue 1 out\t1767225601.123456789\t12\t1\t10.99.0.1\n" +
		in + "9\t1\t10.99.0.1\n" + in + "10\t1\t10.99.0.1\n" + in + "11\t1\t10.99.0.1\n"
	if got != want {
		t.Fatalf("tshark reads\n%s\nwant\n%s", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode of the file: %v, %v", info.Mode(), err)
	}
}

func TestAPacketLimitStopsTheFileButNotTheTraffic(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	var file bytes.Buffer
	c, _ := New(&file, Config{Packets: 5, Now: clock()})
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		a.Queue(0).Transmit(frames(t, "to", "and fro"))
		if n := pump(p.Queue(0)); n != 2 {
			t.Fatalf("round %d: received %d", i, n)
		}
		p.Queue(0).Transmit(frames(t, "x"))
		if n := pump(a.Queue(0)); n != 1 {
			t.Fatalf("round %d: transmitted %d", i, n)
		}
	}
	if written, skipped := c.Counts(); written != 5 || skipped != 25 {
		t.Fatalf("%d written, %d not; want 5 and 25", written, skipped)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, file.Bytes()); len(got) != 5 {
		t.Fatalf("%d frames in the file, want 5", len(got))
	}
	// The file itself tells what is missing.
	r, err := pcapgo.NewNgReader(bytes.NewReader(file.Bytes()), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = r.ReadPacketData()
	}
	var seen, dropped uint64
	for i := range r.NInterfaces() {
		in, err := r.Interface(i)
		if err != nil {
			t.Fatal(err)
		}
		seen += in.Statistics.PacketsReceived
		dropped += in.Statistics.PacketsDropped
	}
	if seen != 30 || dropped != 25 {
		t.Fatalf("the file's statistics: %d frames seen, %d dropped; want 30 and 25", seen, dropped)
	}
}

func TestTheFileNeverGrowsBeyondItsByteLimit(t *testing.T) {
	for limit := uint64(450); limit < 1500; limit += 7 {
		a, b := newLink(t, wire.Config{})
		var file bytes.Buffer
		c, _ := New(&file, Config{Bytes: limit, Now: clock()})
		p, err := c.Port(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			a.Queue(0).Transmit(frames(t, strings.Repeat("x", i*7)))
			pump(p.Queue(0))
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		written, skipped := c.Counts()
		if uint64(file.Len()) > limit || written == 0 || skipped == 0 || written+skipped != 20 {
			t.Fatalf("limit %d: %d bytes, %d written, %d not", limit, file.Len(), written, skipped)
		}
		if room := limit - uint64(file.Len()); room > 32+42+20*7+3 {
			t.Fatalf("limit %d: %d bytes were left unused", limit, room)
		}
		if got := read(t, file.Bytes()); len(got) != int(written) {
			t.Fatalf("limit %d: %d frames in the file, %d counted", limit, len(got), written)
		}
	}
	_, b := newLink(t, wire.Config{})
	c, _ := New(io.Discard, Config{Bytes: 100, Now: clock()})
	if _, err := c.Port(b); err == nil || !strings.Contains(err.Error(), "100 bytes") {
		t.Fatalf("a limit below the header: %v", err)
	}
}

func TestARefusedFrameIsWrittenOnlyOnceItLeaves(t *testing.T) {
	a, b := newLink(t, wire.Config{Ring: 64})
	var file bytes.Buffer
	c, _ := New(&file, Config{Now: clock()})
	p, err := c.Port(a)
	if err != nil {
		t.Fatal(err)
	}
	q := p.Queue(0)
	var burst []driver.Frame
	for i := range 70 {
		burst = append(burst, frames(t, fmt.Sprint(i))...)
	}
	if n := q.Transmit(burst); n != 64 {
		t.Fatalf("%d accepted", n)
	}
	if n := q.Transmit(burst[64:]); n != 0 {
		t.Fatalf("%d accepted by a full ring", n)
	}
	pump(b.Queue(0))
	if n := q.Transmit(burst[64:]); n != 6 {
		t.Fatalf("%d accepted", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got := read(t, file.Bytes())
	if len(got) != 70 {
		t.Fatalf("%d frames in the file, want 70", len(got))
	}
	for i, g := range got {
		if !bytes.Equal(g.data, udp(t, fmt.Sprint(i))) {
			t.Fatalf("frame %d in the file is %x", i, g.data)
		}
	}
}

func TestSnapKeepsTheBeginningAndTheLength(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	var file bytes.Buffer
	c, _ := New(&file, Config{Snap: 50, Now: clock()})
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("y", 500)
	a.Queue(0).Transmit(frames(t, long, "s"))
	pump(p.Queue(0))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got := read(t, file.Bytes())
	if len(got) != 2 || len(got[0].data) != 50 || got[0].size != 542 || !bytes.Equal(got[0].data, udp(t, long)[:50]) || len(got[1].data) != 50 || got[1].size != 60 {
		t.Fatalf("read %v", got)
	}
}

var errDisk = errors.New("no space left on device")

// fullDisk takes some bytes and then no more.
type fullDisk struct{ room int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.room -= len(b); d.room < 0 {
		return 0, errDisk
	}
	return len(b), nil
}

func TestAFullDiskEndsTheCaptureButNotTheTraffic(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	c, _ := New(&fullDisk{room: bufferSize}, Config{Now: clock()})
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 600 // of 1.4 kB each
	for i := range rounds {
		a.Queue(0).Transmit(frames(t, strings.Repeat("z", 1400)))
		if n := pump(p.Queue(0)); n != 1 {
			t.Fatalf("round %d: received %d", i, n)
		}
	}
	written, skipped := c.Counts()
	if written+skipped != rounds || skipped == 0 {
		t.Fatalf("%d written, %d not", written, skipped)
	}
	if err := c.Close(); !errors.Is(err, errDisk) {
		t.Fatalf("Close: %v, want %v", err, errDisk)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("Close again: %v", err)
	}
}

func TestInterruptIsTheQueuesOwn(t *testing.T) {
	_, b := newLink(t, wire.Config{Interrupts: true})
	c, _ := New(io.Discard, Config{Now: clock()})
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Queue(0).Interrupt() != b.Queue(0).Interrupt() {
		t.Fatal("the interrupt was replaced")
	}
	_, b = newLink(t, wire.Config{})
	q, err := c.Queue(b.Queue(0), "x")
	if err != nil {
		t.Fatal(err)
	}
	if q.Interrupt() != nil {
		t.Fatal("a queue without an interrupt got one")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Queue(b.Queue(0), "late"); err == nil {
		t.Fatal("a closed capture took another queue")
	}
}

func TestQueuesOfSeveralGoroutinesShareAFile(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	var file bytes.Buffer
	c, _ := New(&file, Config{Now: clock()})
	pa, err := c.Port(a)
	if err != nil {
		t.Fatal(err)
	}
	pb, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, q := range []driver.Queue{pa.Queue(0), pb.Queue(0)} {
		wg.Go(func() {
			for range 500 {
				f := frames(t, "hello")
				for q.Transmit(f) == 0 {
					pump(q)
				}
				pump(q)
			}
		})
	}
	for range 100 {
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	pump(pa.Queue(0))
	pump(pb.Queue(0))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, r := range read(t, file.Bytes()) {
		by[r.name]++
	}
	for _, name := range []string{"wire-A queue 0 in", "wire-A queue 0 out", "wire-B queue 0 in", "wire-B queue 0 out"} {
		if by[name] != 500 {
			t.Errorf("%q: %d frames, want 500 (%v)", name, by[name], by)
		}
	}
}

func TestNothingIsAllocatedPerBurst(t *testing.T) {
	a, b := newLink(t, wire.Config{})
	c, _ := New(io.Discard, Config{Now: clock()})
	p, err := c.Port(b)
	if err != nil {
		t.Fatal(err)
	}
	data := udp(t, "hello")
	var burst [32]driver.Frame
	if n := testing.AllocsPerRun(200, func() {
		for _, hop := range [2][2]driver.Queue{{a.Queue(0), p.Queue(0)}, {p.Queue(0), a.Queue(0)}} {
			k := hop[0].Allocate(burst[:], len(data))
			for i := range burst[:k] {
				burst[i].Data = append(burst[i].Data, data...)
			}
			hop[0].Transmit(burst[:k])
			driver.Free(burst[:hop[1].Receive(burst[:])])
		}
	}); n != 0 {
		t.Fatalf("%v allocations per burst", n)
	}
	if written, _ := c.Counts(); written < 2*32*200 {
		t.Fatalf("%d frames written", written)
	}
}

func flow(t *testing.T, data []byte) (src, dst netip.AddrPort) {
	t.Helper()
	s, _ := netip.AddrFromSlice(data[26:30])
	d, _ := netip.AddrFromSlice(data[30:34])
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(data[34:])), netip.AddrPortFrom(d, binary.BigEndian.Uint16(data[36:]))
}
