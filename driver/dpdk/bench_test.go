package dpdk

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// registered runs a benchmark as a loop runs: on a thread that the EAL knows.
func registered(b *testing.B) {
	runtime.LockOSThread()
	if err := RegisterThread(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		UnregisterThread()
		runtime.UnlockOSThread()
	})
}

// BenchmarkEmptyPoll is a Receive that finds nothing.
func BenchmarkEmptyPoll(b *testing.B) {
	for _, kind := range []string{"ring", AFXDP} {
		b.Run(kind, func(b *testing.B) {
			var p *Port
			if kind == AFXDP {
				v := newVeth(b, 1)
				p = openIn(b, v.server, Config{Device: v.device})
			} else {
				p = openVirtual(b, vdev(kind), nil)
			}
			registered(b)
			q, frames := p.Queue(0), make([]driver.Frame, 32)
			b.ReportAllocs()
			for b.Loop() {
				driver.Free(frames[:q.Receive(frames)])
			}
		})
	}
}

// BenchmarkBurst is a burst that is sent and received again, or received and
// sent on, by reference; an operation is the whole burst.
func BenchmarkBurst(b *testing.B) {
	for _, kind := range []string{"ring", "null"} {
		for _, size := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("%s/%d", kind, size), func(b *testing.B) {
				p := openVirtual(b, vdev(kind), nil)
				registered(b)
				q, frames := p.Queue(0), make([]driver.Frame, size)
				if kind == "ring" {
					n := q.Allocate(frames, 60)
					for i := range n {
						frames[i].Data = append(frames[i].Data, numbered(60, i)...)
					}
					if q.Transmit(frames) != size {
						b.Fatal("not sent")
					}
				}
				b.ReportAllocs()
				for b.Loop() {
					if n := q.Receive(frames); n != size || q.Transmit(frames[:n]) != n {
						b.Fatal("a frame was lost")
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/frame")
				for n := -1; n != 0 && kind == "ring"; {
					n = q.Receive(frames)
					driver.Free(frames[:n])
				}
			})
		}
	}
}

// BenchmarkAllocateFree is a burst of 32 that is allocated and freed.
func BenchmarkAllocateFree(b *testing.B) {
	p := openVirtual(b, vdev("ring"), nil)
	registered(b)
	q, frames := p.Queue(0), make([]driver.Frame, 32)
	b.ReportAllocs()
	for b.Loop() {
		driver.Free(frames[:q.Allocate(frames, 1514)])
	}
}

// TestHotPathAllocatesNothing: bursts, empty polls and arming leave no garbage.
func TestHotPathAllocatesNothing(t *testing.T) {
	v := newVeth(t, 1)
	p := openIn(t, v.server, Config{Device: v.device, Interrupts: true})
	ring := openVirtual(t, vdev("ring"), nil)
	frames := make([]driver.Frame, 32)
	for name, f := range map[string]func(){
		"empty poll": func() { p.Queue(0).Receive(frames) },
		"arm":        func() { p.Queue(0).Interrupt().Arm(); p.Queue(0).Interrupt().Disarm() },
		"allocate":   func() { driver.Free(frames[:p.Queue(0).Allocate(frames, 60)]) },
		"send, receive": func() {
			q := ring.Queue(0)
			n := q.Allocate(frames, 60)
			for i := range n {
				frames[i].Data = frames[i].Data[:60]
			}
			q.Transmit(frames[:n])
			driver.Free(frames[:q.Receive(frames)])
		},
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 && !raced {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
