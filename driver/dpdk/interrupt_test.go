package dpdk

import (
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// sleep does what a loop does when it has nothing to do: arm, wait, disarm. It
// returns whether it slept at all.
func sleep(t testing.TB, q driver.Queue, outer int) bool {
	t.Helper()
	i := q.Interrupt()
	ok, err := i.Arm()
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return false
	}
	var events [1]syscall.EpollEvent
	n := 0
	for {
		if n, err = syscall.EpollWait(outer, events[:], 5000); err != syscall.EINTR {
			break
		}
	}
	if err != nil || n != 1 {
		t.Fatalf("slept without being woken: %d events, %v", n, err)
	}
	if err := i.Disarm(); err != nil {
		t.Fatal(err)
	}
	return true
}

// nest puts a queue's interrupt into an epoll instance, as a loop does.
func nest(t testing.TB, q driver.Queue) int {
	t.Helper()
	if q.Interrupt() == nil {
		t.Fatal("the queue has no interrupt")
	}
	outer, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(outer) })
	fd := q.Interrupt().FD()
	if err := syscall.EpollCtl(outer, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	return outer
}

// wakes sends single frames, each after the receiver was given the time to fall
// asleep, and fails if one is lost or out of order. Every sleep must end by a
// frame: a wake-up that finds nothing may happen, but not for each frame.
func wakes(t *testing.T, q driver.Queue, total int, send func(i int)) {
	outer := nest(t, q)
	turns, finished := make(chan int), make(chan struct{})
	defer func() {
		close(turns)
		<-finished // The queue that sends belongs to that goroutine until then.
	}()
	go func() {
		defer close(finished)
		for i := range turns {
			send(i)
		}
	}()
	frames := make([]driver.Frame, 32)
	slept, empty := 0, 0
	for i := range total {
		turns <- i
		for {
			n := q.Receive(frames)
			if n == 0 {
				if sleep(t, q, outer) {
					slept++
				}
				empty++
				continue
			}
			found := false
			for _, f := range frames[:n] {
				if m := number(f.Data); m == i {
					found = true
				} else if m >= 0 {
					t.Fatalf("frame %d came for %d", m, i)
				}
			}
			driver.Free(frames[:n])
			if found {
				break
			}
		}
	}
	t.Logf("%d frames, %d sleeps", total, slept)
	if slept == 0 {
		t.Error("never slept")
	}
	// With nothing on the way, a queue that was drained and disarmed is quiet.
	for q.Receive(frames) > 0 {
	}
	if ok, err := q.Interrupt().Arm(); !ok || err != nil {
		t.Fatalf("a drained queue does not arm: %v, %v", ok, err)
	}
	var events [1]syscall.EpollEvent
	if n, err := syscall.EpollWait(outer, events[:], 20); n != 0 || err != nil {
		t.Errorf("woken by nothing: %d events, %v", n, err)
	}
	if err := q.Interrupt().Disarm(); err != nil {
		t.Error(err)
	}
}

// TestEveryFrameWakes: of a thousand frames that come alone, none is slept
// through, with each kind of interrupt.
func TestEveryFrameWakes(t *testing.T) {
	const total = 1000
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v := newVeth(t, 1)
			p := openIn(t, v.server, Config{Device: v.device, Driver: name, Interrupts: true})
			if got := p.Capabilities().Interrupt; got != interruptSocket {
				t.Errorf("interrupts are made of %q", got)
			}
			wakes(t, p.Queue(0), total, func(i int) { syscall.Write(v.socket, numbered(60, i)) })
		})
	}
	t.Run(TAP, func(t *testing.T) {
		ns, device := namespace(t), unique("t")
		p := openIn(t, ns, Config{Device: device, Driver: TAP, Interrupts: true})
		if got := p.Capabilities().Interrupt; got != interruptDevice {
			t.Errorf("interrupts are made of %q", got)
		}
		quiet(t, ns, device)
		s := rawSocket(t, ns, device)
		wakes(t, p.Queue(0), total, func(i int) { syscall.Write(s, numbered(60, i)) })
	})
}

// TestArmKeepsWhatItFinds: frames that wait forbid sleep, and Receive hands
// them out.
func TestArmKeepsWhatItFinds(t *testing.T) {
	v := newVeth(t, 1)
	p := openIn(t, v.server, Config{Device: v.device, Interrupts: true})
	q, before := p.Queue(0), p.FreeFrames()
	for i := range 40 {
		if _, err := syscall.Write(v.socket, numbered(60, i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if ok, err := q.Interrupt().Arm(); ok || err != nil {
			t.Fatalf("armed with frames waiting: %v, %v", ok, err)
		}
	}
	next := 0
	frames := make([]driver.Frame, 7)
	within(t, "all frames", func() bool {
		n := q.Receive(frames)
		for _, f := range frames[:n] {
			if number(f.Data) != next {
				t.Fatalf("frame %d instead of %d", number(f.Data), next)
			}
			next++
		}
		driver.Free(frames[:n])
		return next == 40
	})
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
}
