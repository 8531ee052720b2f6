package dpdk

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// openVirtual opens a device that needs no namespace.
func openVirtual(t testing.TB, device string, edit func(*Config)) *Port {
	t.Helper()
	c := Config{Device: device}
	if edit != nil {
		edit(&c)
	}
	p, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.closed {
			return
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// vdev is a virtual device's name that no other test of this process uses.
func vdev(driver string) string { return fmt.Sprintf("net_%s%d", driver, serial.Add(1)) }

// receive polls until n frames have come and calls each with them in order.
func receive(t testing.TB, q driver.Queue, n int, each func(i int, f driver.Frame)) {
	t.Helper()
	frames := make([]driver.Frame, 32)
	got := 0
	within(t, "frames to arrive", func() bool {
		m := q.Receive(frames)
		for _, f := range frames[:m] {
			if got < n {
				each(got, f)
			}
			got++
		}
		driver.Free(frames[:m])
		return got >= n
	})
	if got != n {
		t.Fatalf("%d frames arrived, not %d", got, n)
	}
}

// TestRingCarriesByReference: what a ring device carries is the very memory
// that was sent, and all of it comes back to the pool.
func TestRingCarriesByReference(t *testing.T) {
	p := openVirtual(t, vdev("ring"), nil)
	q, before := p.Queue(0), p.FreeFrames()
	available := p.available()
	if q.Interrupt() != nil {
		t.Error("a ring has an interrupt")
	}
	frames := make([]driver.Frame, 300)
	n := q.Allocate(frames, 1000)
	if n != burst {
		t.Fatalf("allocated %d frames", n)
	}
	if got := p.FreeFrames(); got != before-n {
		t.Errorf("%d free frames with %d allocated of %d", got, n, before)
	}
	var addresses []*byte
	for i := range n {
		if f := frames[i]; len(f.Data) != 0 || cap(f.Data) < 1000 {
			t.Fatalf("empty frame of length %d and capacity %d", len(f.Data), cap(f.Data))
		}
		frames[i].Data = append(frames[i].Data, numbered(60+i, i)...)
		addresses = append(addresses, &frames[i].Data[0])
	}
	if sent := q.Transmit(frames[:n]); sent != n {
		t.Fatalf("sent %d of %d", sent, n)
	}
	for i := range n {
		if frames[i].Pool != nil || frames[i].Data != nil {
			t.Fatal("a frame that was taken is not cleared")
		}
	}
	receive(t, q, n, func(i int, f driver.Frame) {
		if &f.Data[0] != addresses[i] {
			t.Errorf("frame %d was copied", i)
		}
		if !bytes.Equal(f.Data, numbered(60+i, i)) {
			t.Errorf("frame %d changed", i)
		}
	})
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
	if after := p.available(); after != available {
		t.Errorf("%d frames in the pools before, %d after", available, after)
	}
}

// TestForwardByReference: a frame received on one port leaves through another,
// and returns to the pool that it came from.
func TestForwardByReference(t *testing.T) {
	a, b := openVirtual(t, vdev("ring"), nil), openVirtual(t, vdev("ring"), nil)
	freeA, freeB := a.FreeFrames(), b.FreeFrames()
	send(t, a.Queue(0), numbered(100, 0), numbered(200, 1))
	frames := make([]driver.Frame, 8)
	if n := a.Queue(0).Receive(frames); n != 2 {
		t.Fatalf("received %d", n)
	}
	address := &frames[0].Data[0]
	if n := b.Queue(0).Transmit(frames[:2]); n != 2 {
		t.Fatalf("forwarded %d", n)
	}
	receive(t, b.Queue(0), 2, func(i int, f driver.Frame) {
		if i == 0 && &f.Data[0] != address {
			t.Error("the frame was copied")
		}
		if number(f.Data) != i {
			t.Errorf("frame %d came as %d", i, number(f.Data))
		}
	})
	if a.FreeFrames() != freeA || b.FreeFrames() != freeB {
		t.Errorf("free frames: %d and %d before, %d and %d after", freeA, freeB, a.FreeFrames(), b.FreeFrames())
	}
}

// goPool is memory of Go's that counts what comes back.
type goPool struct{ freed int }

func (p *goPool) Free(frames []driver.Frame) { p.freed += len(frames) }

// TestForeignFramesAreCopiedOnce: frames of other pools, in any mixture with
// ours, arrive in order, and their memory goes back exactly when it was sent.
func TestForeignFramesAreCopiedOnce(t *testing.T) {
	p := openVirtual(t, vdev("ring"), nil)
	q, before, pool := p.Queue(0), p.FreeFrames(), &goPool{}
	const total = 200
	frames := make([]driver.Frame, total)
	foreign := 0
	for i := range frames {
		switch i % 7 {
		case 1, 2, 6:
			frames[i] = driver.Frame{Data: numbered(60+i, i), Pool: pool}
			foreign++
		case 4:
			frames[i] = driver.Frame{Data: numbered(60+i, i)} // Nobody needs it back.
		default:
			if q.Allocate(frames[i:i+1], 60+i) != 1 {
				t.Fatal("no frame")
			}
			frames[i].Data = append(frames[i].Data, numbered(60+i, i)...)
		}
	}
	for sent := 0; sent < total; {
		n := q.Transmit(frames[sent:])
		if n == 0 {
			t.Fatalf("stuck after %d", sent)
		}
		sent += n
	}
	if pool.freed != foreign {
		t.Errorf("%d foreign frames were freed, not %d", pool.freed, foreign)
	}
	receive(t, q, total, func(i int, f driver.Frame) {
		if !bytes.Equal(f.Data, numbered(60+i, i)) {
			t.Errorf("frame %d changed", i)
		}
	})
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
}

// TestExhaustedPoolGivesWhatItHas: Allocate gives fewer frames, then none, and
// everything again once they were freed; Transmit gives back what a full ring
// does not take.
func TestExhaustedPoolGivesWhatItHas(t *testing.T) {
	p := openVirtual(t, vdev("ring"), func(c *Config) { c.PoolFrames = 3000 })
	q, before := p.Queue(0), p.FreeFrames()
	frames := make([]driver.Frame, before+100)
	got := 0
	for n := -1; n != 0; got += n {
		n = q.Allocate(frames[got:], 60)
	}
	if got != before || p.FreeFrames() != 0 {
		t.Errorf("%d frames of %d could be had, %d left", got, before, p.FreeFrames())
	}
	if q.Statistics().AllocationFailures == 0 {
		t.Error("no failure was counted")
	}
	for i := range got {
		frames[i].Data = append(frames[i].Data, numbered(60, i)...)
	}
	sent := 0
	for n := -1; n != 0; sent += n {
		n = q.Transmit(frames[sent:got])
	}
	if sent == 0 || sent >= got {
		t.Fatalf("a ring of 1024 took %d of %d", sent, got)
	}
	if q.Statistics().TransmitRefused == 0 {
		t.Error("no refusal was counted")
	}
	for i := sent; i < got; i++ {
		if number(frames[i].Data) != i {
			t.Fatalf("frame %d was given back changed", i)
		}
	}
	driver.Free(frames[sent:got])
	receive(t, q, sent, func(i int, f driver.Frame) {})
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
	if n := q.Allocate(frames[:burst], 60); n != burst {
		t.Errorf("allocated %d", n)
	}
	driver.Free(frames[:burst])
	if n := q.Allocate(frames, room*2); n != 0 {
		t.Errorf("%d frames larger than the pool's could be had", n)
	}
}

// TestUnsendableFramesAreDropped: a frame that the device could never send is
// taken and counted; those around it are sent.
func TestUnsendableFramesAreDropped(t *testing.T) {
	p := openVirtual(t, vdev("ring"), nil)
	q, before := p.Queue(0), p.FreeFrames()
	frames := make([]driver.Frame, 6)
	q.Allocate(frames, room)
	for i := range frames {
		frames[i].Data = append(frames[i].Data, numbered(60, i)...)
	}
	frames[0].Data = frames[0].Data[:0]          // Empty.
	frames[2].Data = frames[2].Data[:p.MTU()+40] // Too long.
	frames[3].Flags = driver.SegmentTCP          // Not on this device.
	for sent := 0; sent < len(frames); {
		n := q.Transmit(frames[sent:])
		if n == 0 {
			t.Fatalf("stuck after %d", sent)
		}
		sent += n
	}
	want := []int{1, 4, 5}
	receive(t, q, len(want), func(i int, f driver.Frame) {
		if number(f.Data) != want[i] {
			t.Errorf("frame %d arrived instead of %d", number(f.Data), want[i])
		}
	})
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
	if got := statistic(t, p, "transmit_unsendable"); got != 3 {
		t.Errorf("counted %d unsendable frames", got)
	}
}

// statistic is one of a port's counters.
func statistic(t testing.TB, p *Port, name string) uint64 {
	t.Helper()
	list, err := p.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("no statistic %q in %v", name, list)
	return 0
}

// crossing sends frames both ways between two ports.
func crossing(t *testing.T, a, b *Port) {
	t.Helper()
	freeA, freeB := a.FreeFrames(), b.FreeFrames()
	const total = 2000
	for _, way := range []struct{ from, to driver.Queue }{{a.Queue(0), b.Queue(0)}, {b.Queue(0), a.Queue(0)}} {
		next := 0
		frames := make([]driver.Frame, 32)
		take := func() {
			n := way.to.Receive(frames)
			for _, f := range frames[:n] {
				checkNumbered(t, f.Data, next)
				next++
			}
			driver.Free(frames[:n])
		}
		for i := range total {
			var f [1]driver.Frame
			within(t, "a frame to send", func() bool { return way.from.Allocate(f[:], 1514) == 1 })
			f[0].Data = append(f[0].Data, numbered(60+i%1455, i)...)
			// Of memif, the receiver makes the room, when it is polled.
			within(t, "room to send", func() bool { take(); return way.from.Transmit(f[:]) == 1 })
		}
		within(t, "the last frames", func() bool { take(); return next == total })
	}
	if a.FreeFrames() != freeA || b.FreeFrames() != freeB {
		t.Errorf("free frames: %d and %d before, %d and %d after", freeA, freeB, a.FreeFrames(), b.FreeFrames())
	}
}

// up waits for the link of both.
func up(t testing.TB, ports ...*Port) {
	t.Helper()
	for _, p := range ports {
		within(t, "the link of "+p.Name(), func() bool {
			l, err := p.Link()
			if err != nil {
				t.Fatal(err)
			}
			return l.Up
		})
	}
}

// TestFramesCrossMemif: two processes' worth of memif, in one.
func TestFramesCrossMemif(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memif")
	a := openVirtual(t, vdev("memif")+",role=server,socket-abstract=no,socket="+path, nil)
	b := openVirtual(t, vdev("memif")+",role=client,socket-abstract=no,socket="+path, nil)
	if a.Queue(0).Interrupt() != nil {
		t.Error("memif has an interrupt")
	}
	up(t, a, b)
	crossing(t, a, b)
}

// vhostPair is a vhost device and the virtio_user device that is its peer.
func vhostPair(t *testing.T, queues int, interrupts bool) (vhost, virtio *Port) {
	path := filepath.Join(t.TempDir(), "vhost")
	edit := func(c *Config) { c.Queues, c.Interrupts = queues, interrupts }
	vhost = openVirtual(t, fmt.Sprintf("%s,iface=%s,queues=%d,tso=1", vdev("vhost"), path, queues), edit)
	virtio = openVirtual(t, fmt.Sprintf("%s,path=%s,queues=%d", vdev("virtio_user"), path, queues), edit)
	up(t, vhost, virtio)
	return vhost, virtio
}

// TestFramesCrossVhost: vhost and virtio_user.
func TestFramesCrossVhost(t *testing.T) {
	a, b := vhostPair(t, 1, false)
	crossing(t, a, b)
	t.Logf("vhost %+v", a.Capabilities())
	t.Logf("virtio_user %+v", b.Capabilities())
}

// TestEveryFrameWakesVirtio: the device interrupts of virtio_user and of vhost.
func TestEveryFrameWakesVirtio(t *testing.T) {
	a, b := vhostPair(t, 1, true)
	for _, way := range []struct{ from, to *Port }{{a, b}, {b, a}} {
		t.Run(way.to.driver, func(t *testing.T) {
			if got := way.to.Capabilities().Interrupt; got != interruptDevice {
				t.Fatalf("interrupts are made of %q", got)
			}
			from := way.from.Queue(0)
			wakes(t, way.to.Queue(0), 1000, func(i int) { send(t, from, numbered(60, i)) })
		})
	}
}

// TestVhostPeerReturns: a peer of vhost that goes and another that comes are
// served, also by interrupts, through the same port.
func TestVhostPeerReturns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vhost")
	edit := func(c *Config) { c.Interrupts = true }
	a := openVirtual(t, vdev("vhost")+",iface="+path, edit)
	before := a.FreeFrames()
	for range 3 {
		// Whoever falls asleep before the peer is there is woken by its frames.
		slept, err := a.Queue(0).Interrupt().Arm()
		if err != nil {
			t.Fatal(err)
		}
		b := openVirtual(t, vdev("virtio_user")+",path="+path, edit)
		up(t, a, b)
		if slept {
			send(t, b.Queue(0), numbered(60, 7))
			within(t, "a frame to wake", func() bool { return readable(t, a.Queue(0).Interrupt().FD()) })
			if err := a.Queue(0).Interrupt().Disarm(); err != nil {
				t.Fatal(err)
			}
			receive(t, a.Queue(0), 1, func(int, driver.Frame) {})
		}
		wakes(t, a.Queue(0), 100, func(i int) { send(t, b.Queue(0), numbered(60, i)) })
		wakes(t, b.Queue(0), 100, func(i int) { send(t, a.Queue(0), numbered(60, i)) })
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		within(t, "the link to go down", func() bool {
			l, err := a.Link()
			return err == nil && !l.Up
		})
	}
	if after := a.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
}
