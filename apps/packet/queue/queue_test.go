package queue_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/queue"
	"github.com/pollux-net/pollux/driver"
)

// pool counts frames that are not free, and panics at one freed twice.
type pool struct{ out map[uintptr]bool }

func (p *pool) Free(frames []driver.Frame) {
	for _, f := range frames {
		if !p.out[f.Handle] {
			panic("freed twice")
		}
		delete(p.out, f.Handle)
	}
}

func (p *pool) frame(flow uint32, size int) driver.Frame {
	h := uintptr(rand.Uint64())
	p.out[h] = true
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, flow)
	return driver.Frame{Data: b, Pool: p, Handle: h}
}

func newPool() *pool { return &pool{map[uintptr]bool{}} }

func TestFlowsOfSmallAndLargeFramesShareARateInBytes(t *testing.T) {
	p, o := newPool(), new(queue.Output)
	o.SetRate(100_000_000)
	q := queue.New(queue.Config{}, o)
	sizes := []int{64, 1500}
	sent := make([]int, 2)
	var frames [32]driver.Frame
	now := time.Duration(0)
	for ; now < time.Second; now += 50 * time.Microsecond {
		for range 20 { // each offers far more than its half
			for flow, size := range sizes {
				f := p.frame(uint32(flow), size)
				q.Push(&f, uint32(flow), now)
			}
		}
		for {
			n := q.Pop(frames[:], now)
			if n == 0 {
				break
			}
			for _, f := range frames[:n] {
				sent[binary.BigEndian.Uint32(f.Data)] += len(f.Data)
			}
			driver.Free(frames[:n])
		}
	}
	total := float64(sent[0] + sent[1])
	if share := float64(sent[0]) / total; share < 0.475 || share > 0.525 {
		t.Errorf("the flow of small frames has %.1f %% of the bytes, want 50 within 5", 100*share)
	}
	if rate := total * 8 / now.Seconds(); rate < 98e6 || rate > 102e6 {
		t.Errorf("%.1f Mbit/s left, the limit is 100", rate/1e6)
	}
	q.Clear()
	if len(p.out) != 0 {
		t.Errorf("%d frames lost", len(p.out))
	}
}

func TestAFlowThatEmptiesItsQueueInDebtStillPays(t *testing.T) {
	for _, size := range []int{1500, 9000} {
		p, o := newPool(), new(queue.Output)
		q := queue.New(queue.Config{}, o)
		waits := make([]int, 2) // frames of each flow
		sent := make([]int, 2)
		var frames [1]driver.Frame
		flow := uint32(0)
		for range 50_000 {
			for waits[0] < 200 { // always has more
				f := p.frame(0, 64)
				q.Push(&f, 0, 0)
				waits[0]++
			}
			if waits[1] == 0 && flow == 0 { // comes back with two frames a moment after they have left
				for range 2 {
					f := p.frame(1, size)
					q.Push(&f, 1, 0)
					waits[1]++
				}
			}
			if q.Pop(frames[:], 0) != 1 {
				t.Fatal("nothing is sent")
			}
			flow = binary.BigEndian.Uint32(frames[0].Data)
			waits[flow]--
			sent[flow] += len(frames[0].Data)
			driver.Free(frames[:])
		}
		if share := float64(sent[1]) / float64(sent[0]+sent[1]); share < 0.475 || share > 0.525 {
			t.Errorf("the flow of two frames of %d bytes at a time has %.1f %% of the bytes, want 50 within 5", size, 100*share)
		}
		q.Clear()
		if len(p.out) != 0 {
			t.Errorf("%d frames lost", len(p.out))
		}
	}
}

func TestTwoCoresShareARate(t *testing.T) {
	p, o := newPool(), new(queue.Output)
	o.SetRate(100_000_000)
	queues := []*queue.Queue{queue.New(queue.Config{}, o), queue.New(queue.Config{}, o)}
	sent := make([]int, 2)
	var frames [32]driver.Frame
	for now := time.Duration(0); now < time.Second; now += 50 * time.Microsecond {
		for i, q := range queues {
			if i == 1 && now < 500*time.Millisecond {
				continue // alone, the first has it all
			}
			for range 10 {
				f := p.frame(0, 1500)
				q.Push(&f, 0, now)
			}
			n := q.Pop(frames[:], now)
			for _, f := range frames[:n] {
				sent[i] += len(f.Data)
			}
			driver.Free(frames[:n])
		}
	}
	if a, b := float64(sent[0])*8/75e6, float64(sent[1])*8/25e6; a < 0.95 || a > 1.05 || b < 0.95 || b > 1.05 {
		t.Errorf("sent %v bytes; want 75 and 25 Mbit within 5 %%", sent)
	}
}

func TestAFloodPaysForItself(t *testing.T) {
	p, o := newPool(), new(queue.Output)
	q := queue.New(queue.Config{Frames: 64}, o)
	for range 1000 {
		f := p.frame(1, 1000)
		q.Push(&f, 1, 0)
	}
	for range 10 {
		f := p.frame(2, 100)
		q.Push(&f, 2, 0)
	}
	var frames [64]driver.Frame
	n := q.Pop(frames[:], 0)
	small := 0
	for _, f := range frames[:n] {
		if len(f.Data) == 100 {
			small++
		}
	}
	driver.Free(frames[:n])
	if n != 64 || small != 10 {
		t.Errorf("%d frames of which %d of the flow that does not flood; want 64 and 10", n, small)
	}
	if d := q.Dropped(); d.Full != 1000-64 || d.Cut != 10 || d.CoDel != 0 {
		t.Errorf("dropped %+v; want 936 for lack of room, 10 to make room", d)
	}
	if len(p.out) != 0 {
		t.Errorf("%d frames lost", len(p.out))
	}
}

func TestCoDelEndsAStandingQueueAndSparesOthers(t *testing.T) {
	p, o := newPool(), new(queue.Output)
	o.SetRate(10_000_000)
	q := queue.New(queue.Config{CoDel: true, Frames: 10_000}, o)
	var frames [1]driver.Frame
	var waited time.Duration
	inFlight, window := 0, 200 // a sender that halves its window at each loss, as TCP does
	last, sparse := uint64(0), 0
	for now := time.Duration(0); now < 20*time.Second; now += 500 * time.Microsecond {
		for inFlight < window {
			f := p.frame(1, 1200)
			binary.BigEndian.PutUint64(f.Data[8:], uint64(now))
			q.Push(&f, 1, now)
			inFlight++
		}
		if now%(100*time.Millisecond) == 0 {
			f := p.frame(2, 100)
			q.Push(&f, 2, now)
			sparse++
		}
		for q.Pop(frames[:], now) == 1 {
			if frames[0].Data[3] == 1 {
				inFlight--
				waited = now - time.Duration(binary.BigEndian.Uint64(frames[0].Data[8:]))
			} else {
				sparse--
			}
			driver.Free(frames[:])
		}
		if d := q.Dropped().CoDel; d > last {
			inFlight -= int(d - last)
			window = max(2, window/2)
			last = d
		}
	}
	if waited > 20*time.Millisecond {
		t.Errorf("frames still wait %v after 20 s", waited)
	}
	if d := q.Dropped(); d.CoDel == 0 || d.Full+d.Cut != 0 {
		t.Errorf("dropped %+v, want some by CoDel only", d)
	}
	if sparse > 1 {
		t.Errorf("%d frames of the sparse flow are missing", sparse)
	}
	q.Clear()
	if len(p.out) != 0 {
		t.Errorf("%d frames lost", len(p.out))
	}
}

func TestAFlowKeepsItsOrderAndNoFrameIsLost(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		p, o := newPool(), new(queue.Output)
		q := queue.New(queue.Config{Frames: 50, CoDel: seed%2 == 0}, o)
		var next, expect [8]uint32
		var frames [16]driver.Frame
		popped, pushed := 0, 0
		now := time.Duration(0)
		for range 5000 {
			now += time.Duration(r.IntN(int(time.Millisecond)))
			if r.IntN(100) == 0 {
				q.NewEpoch()
			}
			if r.IntN(2) == 0 {
				for range r.IntN(20) {
					flow := r.Uint32N(8)
					f := p.frame(flow, 64+r.IntN(1400))
					binary.BigEndian.PutUint32(f.Data[4:], next[flow])
					next[flow]++
					q.Push(&f, flow*37, now)
					pushed++
				}
			} else {
				n := q.Pop(frames[:r.IntN(17)], now)
				for _, f := range frames[:n] {
					flow, number := binary.BigEndian.Uint32(f.Data), binary.BigEndian.Uint32(f.Data[4:])
					if number < expect[flow] {
						t.Fatalf("seed %d: frame %d of flow %d after %d", seed, number, flow, expect[flow]-1)
					}
					expect[flow] = number + 1
				}
				driver.Free(frames[:n])
				popped += n
			}
			if q.Stale() < 0 || q.Stale() > q.Len() {
				t.Fatalf("seed %d: %d of %d frames are stale", seed, q.Stale(), q.Len())
			}
		}
		d := q.Dropped()
		if got := popped + q.Len() + int(d.Full+d.Cut+d.CoDel); got != pushed {
			t.Fatalf("seed %d: %d frames accounted for of %d", seed, got, pushed)
		}
		q.Clear()
		if len(p.out) != 0 || q.Len() != 0 || q.Bytes() != 0 || q.Stale() != 0 {
			t.Fatalf("seed %d: %d frames lost; left %d frames, %d bytes, %d stale", seed, len(p.out), q.Len(), q.Bytes(), q.Stale())
		}
	}
}
