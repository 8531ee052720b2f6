package wire

import (
	"fmt"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// impaired is a link whose end A has faults before it.
func impaired(t testing.TB, inner, faulty Config, now *time.Duration) (p *Impaired, peer driver.Queue) {
	t.Helper()
	l := newLink(t, inner)
	faulty.Seed = seed
	p, err := Impair(l.Port(A), faulty, func() time.Duration { return *now })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, l.Port(B).Queue(0)
}

func TestFaultsBeforeADeviceHappenInBothDirections(t *testing.T) {
	run := func(faults Faults) (out, in []int, p *Impaired) {
		var now time.Duration
		p, peer := impaired(t, Config{}, Config{Faults: [2]Faults{faults, faults}}, &now)
		q := p.Queue(0)
		before := p.FreeFrames()
		for i := range 5000 {
			now += time.Microsecond
			transmit(t, q, allocate(t, q, numbered(i, 60)))
			transmit(t, peer, allocate(t, peer, numbered(i, 60)))
			in = append(in, drain(q)...)
			out = append(out, drain(peer)...)
		}
		now += time.Hour
		in = append(in, drain(q)...)
		out = append(out, drain(peer)...)
		if free := p.FreeFrames(); free != before {
			t.Fatalf("%d frames free, want %d", free, before)
		}
		return out, in, p
	}
	out, in, _ := run(Faults{})
	for i := range 5000 {
		if out[i] != i || in[i] != i {
			t.Fatalf("without faults, frame %d is %d out and %d in", i, out[i], in[i])
		}
	}
	faults := Faults{Loss: 0.02, Reorder: 0.02, Duplicate: 0.02, ReorderDelay: 5 * time.Microsecond}
	out, in, p := run(faults)
	again, inAgain, _ := run(faults)
	if fmt.Sprint(out, in) != fmt.Sprint(again, inAgain) {
		t.Fatal("the same seed gives other faults")
	}
	all, err := p.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, s := range all {
		count[s.Name] = int(s.Value)
	}
	for direction, got := range map[string][]int{"transmit": out, "receive": in} {
		lost, twice, late := count[direction+" lost"], count[direction+" duplicated"], count[direction+" reordered"]
		for _, n := range []int{lost, twice, late} {
			if n < 60 || n > 140 {
				t.Errorf("%s: %d lost, %d duplicated, %d reordered of 5,000", direction, lost, twice, late)
			}
		}
		if len(got) != 5000-lost+twice {
			t.Errorf("%s: %d frames arrived; %d lost, %d duplicated", direction, len(got), lost, twice)
		}
	}
}

func TestAFullDeviceLosesNoFrameOfAnImpairedQueue(t *testing.T) {
	var now time.Duration
	p, peer := impaired(t, Config{Ring: 64}, Config{Ring: 128}, &now)
	q := p.Queue(0)
	sent := 0
	for range 1000 {
		f := []driver.Frame{allocate(t, q, numbered(sent, 60))}
		if q.Transmit(f) == 0 {
			driver.Free(f)
			break
		}
		sent++
	}
	if sent < 128+64 || sent > 128+64+32 {
		t.Fatalf("%d frames were accepted before anything was refused", sent)
	}
	want := 0
	for range 100 {
		for _, n := range drain(peer) {
			if n != want {
				t.Fatalf("received %d, want %d", n, want)
			}
			want++
		}
		drain(q) // any call moves frames on
	}
	if want != sent {
		t.Fatalf("%d of %d frames arrived", want, sent)
	}
}

func TestAnImpairedQueueDoesNotSleepWhileAFrameIsUnderWay(t *testing.T) {
	var now time.Duration
	p, peer := impaired(t, Config{Interrupts: true}, Config{Faults: [2]Faults{B: {Delay: time.Second}}}, &now)
	q := p.Queue(0)
	arm := func(want bool) {
		t.Helper()
		got, err := q.Interrupt().Arm()
		if err != nil || got != want {
			t.Fatalf("Arm: %v, %v; want %v", got, err, want)
		}
		if got {
			if err := q.Interrupt().Disarm(); err != nil {
				t.Fatal(err)
			}
		}
	}
	arm(true)
	transmit(t, peer, allocate(t, peer, numbered(1, 60)))
	arm(false) // waits at the device
	if got := drain(q); len(got) != 0 {
		t.Fatalf("received %v before its time", got)
	}
	arm(false) // under way
	now = time.Second
	if got := drain(q); len(got) != 1 {
		t.Fatalf("received %v", got)
	}
	arm(true)
	if c := p.Capabilities(); c.Interrupt != "pipe" || c.MaxFrame != 1514 {
		t.Fatalf("capabilities %+v", c)
	}
}

func TestAnImpairedFrameKeepsItsRSSHash(t *testing.T) {
	var now time.Duration
	p, peer := impaired(t, Config{Queues: 2}, Config{}, &now)
	f := tcpFrame(false, 1, 1, 10)
	rss, ok := p.RSS()
	if !ok {
		t.Fatal("no RSS")
	}
	hash := rss.Hash(flowOf(f.Data))
	transmit(t, peer, driver.Frame{Data: f.Data})
	got := receiveOne(t, p.Queue(rss.Queue(hash)))
	if got.Flags&driver.HashValid == 0 || got.Hash != hash {
		t.Fatalf("hash %#x, flags %b, want %#x", got.Hash, got.Flags, hash)
	}
	driver.Free([]driver.Frame{got})
}

// refilling is a port whose queue has always more frames than were asked for.
type refilling struct {
	driver.Port
	calls int
}

type refillingQueue struct {
	driver.Queue
	port *refilling
}

func (p *refilling) Queue(i int) driver.Queue { return refillingQueue{p.Port.Queue(i), p} }

func (q refillingQueue) Receive(frames []driver.Frame) int {
	if q.port.calls++; q.port.calls > 100 {
		return 0
	}
	for i := range frames {
		frames[i] = driver.Frame{Data: numbered(i, 60)}
	}
	return len(frames)
}

func TestADeviceThatIsNeverEmptyDoesNotKeepReceive(t *testing.T) {
	link := newLink(t, Config{})
	device := &refilling{Port: link.Port(A)}
	p, err := Impair(device, Config{Seed: seed}, func() time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	frames := make([]driver.Frame, 64)
	n := p.Queue(0).Receive(frames)
	driver.Free(frames[:n])
	if n != len(frames) || device.calls > 4 {
		t.Errorf("%d frames after asking the device %d times; want %d after a few", n, device.calls, len(frames))
	}
}
