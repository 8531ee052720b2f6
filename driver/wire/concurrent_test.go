package wire

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// exchange has each end send n frames to the other from a goroutine of its own,
// and fails unless all arrive in order. Idle is called when there is nothing to do.
func exchange(t *testing.T, l *Link, n int, idle func(driver.Queue)) {
	t.Helper()
	before := l.FreeFrames()
	var wg sync.WaitGroup
	for _, s := range []Side{A, B} {
		wg.Go(func() {
			q := l.Port(s).Queue(0)
			var in, out [32]driver.Frame
			sent, received, held := 0, 0, 0
			for sent < n || received < n {
				got := q.Receive(in[:])
				for _, f := range in[:got] {
					if number(f.Data) != received {
						t.Errorf("side %s received %d, want %d", s, number(f.Data), received)
						driver.Free(in[:got])
						return
					}
					received++
				}
				driver.Free(in[:got])
				if want := min(len(out)-held, n-sent-held); want > 0 {
					fresh := q.Allocate(out[held:held+want], 60)
					for range fresh {
						f := &out[held]
						f.Data = f.Data[:60]
						copy(f.Data, numbered(sent+held, 60))
						held++
					}
				}
				done := q.Transmit(out[:held])
				sent += done
				copy(out[:], out[done:held])
				held -= done
				if got == 0 && done == 0 {
					idle(q)
				}
			}
		})
	}
	wg.Wait()
	if free := l.FreeFrames(); free != before && !t.Failed() {
		t.Fatalf("%d frames free, want %d", free, before)
	}
}

func TestTwoLoopsExchangeFramesWithoutARace(t *testing.T) {
	l := newLink(t, Config{Ring: 64, Faults: [2]Faults{{Delay: time.Microsecond}, {Delay: time.Microsecond}}})
	stop := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() { // time comes from a third goroutine
		for now := time.Duration(0); ; now += time.Microsecond {
			select {
			case <-stop:
				return
			default:
				l.Advance(now)
				l.Next()
				runtime.Gosched()
			}
		}
	})
	exchange(t, l, 20000, func(driver.Queue) { runtime.Gosched() })
	close(stop)
	clock.Wait()
}

func TestNoWakeUpIsLost(t *testing.T) {
	l := newLink(t, Config{Ring: 64, Interrupts: true})
	var mu sync.Mutex
	sleeps := 0
	exchange(t, l, 20000, func(q driver.Queue) {
		i := q.Interrupt()
		armed, err := i.Arm()
		if err != nil {
			t.Error(err)
		}
		if !armed {
			return
		}
		if q.(*queue).stats.ReceivedFrames < 20000 {
			// The peer still has to send: if the wake-up is lost, this times out.
			if n := poll(t, i.FD(), 20*time.Second); n == 0 {
				t.Error("no wake-up within 20 s")
			}
			mu.Lock()
			sleeps++
			mu.Unlock()
		}
		if err := i.Disarm(); err != nil {
			t.Error(err)
		}
	})
	if sleeps == 0 {
		t.Error("nobody ever slept")
	}
	t.Logf("%d sleeps", sleeps)
}

// poll waits until fd is readable and returns 1, or 0 after the timeout.
func poll(t *testing.T, fd int, timeout time.Duration) int {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer syscall.Close(ep)
	if err := syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
		t.Error(err)
		return 0
	}
	var ev [1]syscall.EpollEvent
	for {
		n, err := syscall.EpollWait(ep, ev[:], int(timeout.Milliseconds()))
		if err == syscall.EINTR {
			continue
		}
		return n
	}
}

func TestInterruptSpeaksOnlyOfFramesAfterArm(t *testing.T) {
	l := newLink(t, Config{Interrupts: true, Faults: [2]Faults{A: {Delay: time.Second}}})
	a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
	i := b.Interrupt()
	arm := func(want bool) {
		t.Helper()
		if got, err := i.Arm(); err != nil || got != want {
			t.Fatalf("Arm: %v, %v; want %v", got, err, want)
		}
	}
	readable := func(want int) {
		t.Helper()
		if got := poll(t, i.FD(), 0); got != want {
			t.Fatalf("readable: %d, want %d", got, want)
		}
	}
	arm(true)
	readable(0)
	transmit(t, a, allocate(t, a, numbered(1, 60)))
	readable(0) // under way, not there
	l.Advance(time.Second)
	readable(1)
	if err := i.Disarm(); err != nil {
		t.Fatal(err)
	}
	readable(0)
	arm(false) // the frame waits
	if got := drain(b); len(got) != 1 {
		t.Fatalf("received %v", got)
	}
	arm(true)
	if err := i.Disarm(); err != nil {
		t.Fatal(err)
	}
	transmit(t, a, allocate(t, a, numbered(2, 60)))
	l.Advance(time.Hour)
	readable(0) // not armed
	if newLink(t, Config{}).Port(A).Queue(0).Interrupt() != nil {
		t.Fatal("a link without interrupts has one")
	}
}

// burst sends 32 frames of a size over the link and frees them at the other end.
func burst(a, b driver.Queue, frames []driver.Frame, template driver.Frame) {
	n := a.Allocate(frames, len(template.Data))
	for i := range frames[:n] {
		f := &frames[i]
		f.Data = f.Data[:len(template.Data)]
		copy(f.Data, template.Data)
		f.Flags, f.L2, f.L3, f.L4 = template.Flags, template.L2, template.L3, template.L4
	}
	driver.Free(frames[a.Transmit(frames[:n]):n])
	driver.Free(frames[:b.Receive(frames)])
}

// firstQueue returns a TCP frame that RSS puts on queue 0 of any link.
func firstQueue(l *Link) driver.Frame {
	for port := uint16(0); ; port++ {
		f := tcpFrame(false, port, 1, 100)
		if rss, _ := l.Port(A).RSS(); rss.Queue(rss.Hash(flowOf(f.Data))) == 0 {
			return f
		}
	}
}

var offloads = []struct {
	name   string
	config Config
}{
	{"plain", Config{}},
	{"checksums", Config{TransmitChecksum: true, ReceiveChecksum: true}},
	{"partial", Config{TransmitChecksum: true, ReceiveChecksum: true, PartialChecksums: true}},
	{"rss", Config{Queues: 2}},
	{"faults", Config{Faults: [2]Faults{A: {Loss: 0.01, Duplicate: 0.01, Corrupt: 0.01, Reorder: 0.01}}}},
}

func TestNothingIsAllocatedPerFrame(t *testing.T) {
	for _, o := range offloads {
		l := newLink(t, o.config)
		a, b := l.Port(A).Queue(0), l.Port(B).Queue(0)
		template := firstQueue(l)
		var frames [32]driver.Frame
		now := time.Duration(0)
		if n := testing.AllocsPerRun(100, func() {
			now += time.Millisecond
			l.Advance(now)
			burst(a, b, frames[:], template)
		}); n != 0 {
			t.Errorf("%s: %v allocations per burst", o.name, n)
		}
	}
}

// BenchmarkBurst allocates, fills, transmits, receives and frees bursts of 32
// frames with 100 bytes of TCP payload; ns/op is per burst.
func BenchmarkBurst(b *testing.B) {
	for _, o := range offloads {
		b.Run(o.name, func(b *testing.B) {
			l := newLink(b, o.config)
			from, to := l.Port(A).Queue(0), l.Port(B).Queue(0)
			template := firstQueue(l)
			var frames [32]driver.Frame
			b.ReportAllocs()
			for now := time.Duration(0); b.Loop(); now += time.Millisecond {
				l.Advance(now)
				burst(from, to, frames[:], template)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32, "ns/frame")
		})
	}
}

func BenchmarkEmptyPoll(b *testing.B) {
	q := newLink(b, Config{}).Port(A).Queue(0)
	var frames [32]driver.Frame
	b.ReportAllocs()
	for b.Loop() {
		q.Receive(frames[:])
	}
}
