package dpdk

import (
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// TestEveryQueueIsServed: on a device of two queues, frames that the sender
// puts on either arrive on ours, none twice and none lost, and each queue sends
// and sleeps by itself.
func TestEveryQueueIsServed(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v := newVeth(t, 2)
			p := openIn(t, v.server, Config{Device: v.device, Driver: name, Queues: 2, Interrupts: true})
			if p.Queues() != 2 {
				t.Fatalf("%d queues", p.Queues())
			}
			before := p.FreeFrames()
			// A veth chooses the queue by the flow, and so does a fanout.
			const flows, total = 64, 1024
			counts := [2]int{}
			frames := make([]driver.Frame, 32)
			seen := map[int]int{}
			drain := func() {
				for i := range 2 {
					for n := -1; n != 0; {
						n = p.Queue(i).Receive(frames)
						for _, f := range frames[:n] {
							if len(f.Data) < 60 || f.Data[12] != 8 {
								continue
							}
							seen[int(f.Data[42])<<8|int(f.Data[43])]++
							counts[i]++
						}
						driver.Free(frames[:n])
					}
				}
			}
			for i := range total {
				k := packet{udp: true, payload: append([]byte{byte(i >> 8), byte(i)}, make([]byte, 30)...)}
				b := k.build(true)
				b[35] = byte(i % flows) // source port
				b[40], b[41] = 0, 0     // no checksum
				if _, err := syscall.Write(v.socket, b); err != nil {
					t.Fatal(err)
				}
				drain()
			}
			within(t, "all frames", func() bool { drain(); return counts[0]+counts[1] >= total })
			for i := range total {
				if seen[i] != 1 {
					t.Fatalf("frame %d came %d times", i, seen[i])
				}
			}
			if counts[0] == 0 || counts[1] == 0 {
				t.Errorf("the queues received %v", counts)
			}
			for i := range 2 {
				send(t, p.Queue(i), numbered(60, i))
				buf := make([]byte, 2048)
				if n, err := syscall.Read(v.socket, buf); err != nil || number(buf[:n]) != i {
					t.Errorf("queue %d sent %d, %v", i, number(buf[:n]), err)
				}
			}
			if after := p.FreeFrames(); after != before {
				t.Errorf("%d free frames before, %d after", before, after)
			}
			// A frame that waits on one queue does not wake the other.
			b := packet{udp: true, payload: make([]byte, 32)}.build(true)
			b[40], b[41] = 0, 0
			for i := range 2 {
				if ok, err := p.Queue(i).Interrupt().Arm(); !ok || err != nil {
					t.Fatalf("queue %d does not arm: %v, %v", i, ok, err)
				}
			}
			if _, err := syscall.Write(v.socket, b); err != nil {
				t.Fatal(err)
			}
			ready := [2]bool{}
			within(t, "a queue to wake", func() bool {
				for i := range 2 {
					ready[i] = readable(t, p.Queue(i).Interrupt().FD())
				}
				return ready[0] || ready[1]
			})
			if ready[0] && ready[1] {
				t.Error("both queues woke")
			}
			for i := range 2 {
				if err := p.Queue(i).Interrupt().Disarm(); err != nil {
					t.Fatal(err)
				}
				n := p.Queue(i).Receive(frames)
				if (n > 0) != ready[i] {
					t.Errorf("queue %d: awake %v, %d frames", i, ready[i], n)
				}
				driver.Free(frames[:n])
			}
		})
	}
}

func readable(t testing.TB, fd int) bool {
	var set syscall.FdSet
	set.Bits[fd/64] |= 1 << (fd % 64)
	n, err := syscall.Select(fd+1, &set, nil, nil, &syscall.Timeval{})
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// TestManyQueuesOfVhost: each queue of a virtio_user device meets the same one
// of vhost.
func TestManyQueuesOfVhost(t *testing.T) {
	a, b := vhostPair(t, 2, true)
	for i := range 2 {
		send(t, a.Queue(i), numbered(60, i))
		receive(t, b.Queue(i), 1, func(_ int, f driver.Frame) {
			if number(f.Data) != i {
				t.Errorf("queue %d received %d", i, number(f.Data))
			}
		})
		wakes(t, b.Queue(i), 100, func(n int) { send(t, a.Queue(i), numbered(60, n)) })
	}
}

// TestRSSIsTold: a device with receive-side scaling tells its key and table.
func TestRSSIsTold(t *testing.T) {
	p := openVirtual(t, vdev("null"), func(c *Config) { c.Queues = 4 })
	r, ok := p.RSS()
	if !ok {
		t.Fatal("no RSS")
	}
	if len(r.Key) != 40 || slices.Max(r.Key) == 0 {
		t.Errorf("key %x", r.Key)
	}
	if len(r.Table) == 0 || slices.Max(r.Table) != 3 {
		t.Errorf("table %v", r.Table)
	}
	t.Logf("%+v", r)
	if _, ok := openVirtual(t, vdev("null"), nil).RSS(); ok {
		t.Error("one queue has RSS")
	}
}

// TestManyThreads: queues of one port, each on a registered thread, allocate,
// send, receive and free at the same time, also what another queue allocated,
// and no frame is lost.
func TestManyThreads(t *testing.T) {
	const queues, rounds = 3, 2000
	p := openVirtual(t, vdev("ring"), func(c *Config) { c.Queues = queues })
	before, available := p.FreeFrames(), p.available()
	cross := make(chan []driver.Frame, queues)
	errs := make(chan error, queues)
	for i := range queues {
		go func() {
			errs <- func() error {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				if i != 0 { // One thread remains unknown to the EAL.
					if err := RegisterThread(); err != nil {
						return err
					}
					defer UnregisterThread()
				}
				q := p.Queue(i)
				frames := make([]driver.Frame, 32)
				for r := range rounds {
					n := q.Allocate(frames, 100)
					for j := range frames[:n] {
						frames[j].Data = append(frames[j].Data, numbered(60, r)...)
					}
					driver.Free(frames[q.Transmit(frames[:n]):n])
					n = q.Receive(frames)
					for _, f := range frames[:n] {
						if number(f.Data) > r {
							return fmt.Errorf("round %d: frame %d", r, number(f.Data))
						}
					}
					if r%16 == 0 {
						cross <- slices.Clone(frames[:n])
						driver.Free(<-cross)
					} else {
						driver.Free(frames[:n])
					}
				}
				for n := -1; n != 0; {
					n = q.Receive(frames)
					driver.Free(frames[:n])
				}
				return nil
			}()
		}()
	}
	for range queues {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	close(cross)
	for frames := range cross {
		driver.Free(frames)
	}
	if after := p.FreeFrames(); after != before {
		t.Errorf("%d free frames before, %d after", before, after)
	}
	if after := p.available(); after != available {
		t.Errorf("%d frames in the pools before, %d after", available, after)
	}
}
