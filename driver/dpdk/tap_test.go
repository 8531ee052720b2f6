package dpdk

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// TestTapComesAndGoes: the device of a tap exists exactly while it is open, in
// the namespace it was opened in, as often as one likes.
func TestTapComesAndGoes(t *testing.T) {
	ns, device := namespace(t), unique("t")
	exists := func() bool { return exec.Command("ip", "-n", ns, "link", "show", device).Run() == nil }
	for range 3 {
		p := openIn(t, ns, Config{Device: device, Driver: TAP})
		if !exists() {
			t.Error("no device while open")
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if exists() {
			t.Error("the device is still there")
		}
	}
}

// TestTapQueues: the kernel spreads flows over the queues of a tap, and each
// sends and wakes by itself.
func TestTapQueues(t *testing.T) {
	ns, device := namespace(t), unique("t")
	p := openIn(t, ns, Config{Device: device, Driver: TAP, Queues: 2, Interrupts: true})
	quiet(t, ns, device)
	s := rawSocket(t, ns, device)
	const total = 256
	k := packet{udp: true, payload: make([]byte, 32)}
	length := len(k.build(true))
	counts, frames := [2]int{}, make([]driver.Frame, 32)
	drain := func() {
		for i := range counts {
			n := p.Queue(i).Receive(frames)
			for _, f := range frames[:n] {
				if len(f.Data) == length { // not what the kernel said before it was quiet
					counts[i]++
				}
			}
			driver.Free(frames[:n])
		}
	}
	for i := range total {
		b := k.build(true)
		b[35] = byte(i)
		b[40], b[41] = 0, 0
		if _, err := syscall.Write(s, b); err != nil {
			t.Fatal(err)
		}
		drain()
	}
	within(t, "all frames", func() bool { drain(); return counts[0]+counts[1] == total })
	if counts[0] == 0 || counts[1] == 0 {
		t.Errorf("the queues received %v", counts)
	}
	buf := make([]byte, 2048)
	for i := range counts {
		send(t, p.Queue(i), numbered(60, i))
		if n, err := syscall.Read(s, buf); err != nil || number(buf[:n]) != i {
			t.Errorf("queue %d sent %d, %v", i, number(buf[:n]), err)
		}
		if p.Queue(i).Interrupt() == nil {
			t.Errorf("queue %d has no interrupt", i)
		}
	}
}
