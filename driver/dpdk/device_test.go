package dpdk

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/pollux-net/pollux/driver"
)

// TestForwardBetweenDevices: what comes from one veth leaves through another,
// also where the second driver must copy into memory of its own.
func TestForwardBetweenDevices(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v, w := newVeth(t, 1), newVeth(t, 1)
			a := openIn(t, v.server, Config{Device: v.device, Driver: name})
			b := openIn(t, w.server, Config{Device: w.device, Driver: name})
			freeA, freeB := a.FreeFrames(), b.FreeFrames()
			frames := make([]driver.Frame, 32)
			buf := make([]byte, 2048)
			const total = 3000 // More than half of AF_XDP's ring of completions.
			for i := range total {
				if _, err := syscall.Write(v.socket, numbered(60+i%1455, i)); err != nil {
					t.Fatal(err)
				}
				n := 0
				within(t, "the frame", func() bool { n = a.Queue(0).Receive(frames); return n > 0 })
				if sent := b.Queue(0).Transmit(frames[:n]); n != 1 || sent != n {
					t.Fatalf("received %d, sent %d", n, sent)
				}
				n, err := syscall.Read(w.socket, buf)
				if err != nil {
					t.Fatal(err)
				}
				checkNumbered(t, buf[:n], i)
			}
			if a.FreeFrames() != freeA || b.FreeFrames() != freeB {
				t.Errorf("free frames: %d and %d before, %d and %d after", freeA, freeB, a.FreeFrames(), b.FreeFrames())
			}
		})
	}
}

// TestOnlyWhatArrivesIsReceived: what the kernel sends through a device is not
// taken for something that came in.
func TestOnlyWhatArrivesIsReceived(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v := newVeth(t, 1)
			p := openIn(t, v.server, Config{Device: v.device, Driver: name})
			local := rawSocket(t, v.server, v.device)
			for i := range 10 {
				if _, err := syscall.Write(local, numbered(60, 1000+i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := syscall.Write(v.socket, numbered(60, 1)); err != nil {
				t.Fatal(err)
			}
			receive(t, p.Queue(0), 1, func(_ int, f driver.Frame) {
				if number(f.Data) != 1 {
					t.Errorf("received %d", number(f.Data))
				}
			})
		})
	}
}

// TestUnreachablePeerIsMended: where the peer of a veth cannot be looked at,
// frames with checksums left to be computed are completed and counted.
func TestUnreachablePeerIsMended(t *testing.T) {
	// A namespace without a name or a process: only this descriptor knows it.
	var hidden *os.File
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // The thread ends with this goroutine.
		made <- func() (err error) {
			if err = syscall.Unshare(syscall.CLONE_NEWNET); err == nil {
				hidden, err = os.Open("/proc/thread-self/ns/net")
			}
			return err
		}()
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	defer hidden.Close()
	ns, a, b := namespace(t), unique("a"), unique("b")
	run(t, "ip", "-n", ns, "link", "add", a, "type", "veth", "peer", "name", b)
	run(t, "ip", "-n", ns, "link", "set", b, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), hidden.Fd()))
	quiet(t, ns, a)
	p := openIn(t, ns, Config{Device: a})
	var s int
	if err := inNamespace(hidden.Fd(), func() error {
		d, err := openNetdev(b)
		if err != nil {
			return err
		}
		defer d.close()
		if err := d.setFlags(syscall.IFF_UP, syscall.IFF_UP); err != nil {
			return err
		}
		s, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		return syscall.Bind(s, &syscall.SockaddrLinklayer{Ifindex: d.index})
	}); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(s)
	count := uint64(0)
	for name, k := range kinds(pattern(777)) {
		for _, finished := range []bool{false, true} {
			frame := k.build(true)
			if finished {
				frame = k.finish(frame)
			} else {
				count++
			}
			if _, err := syscall.Write(s, frame); err != nil {
				t.Fatal(err)
			}
			within(t, name, func() bool {
				var f [1]driver.Frame
				if p.Queue(0).Receive(f[:]) == 0 {
					return false
				}
				defer driver.Free(f[:])
				if f[0].Data[12] != frame[12] || len(f[0].Data) != len(frame) {
					return false // The kernel's own chatter.
				}
				verify(t, f[0].Data)
				return true
			})
		}
	}
	if got := statistic(t, p, "receive_unfinished"); got != count {
		t.Errorf("%d frames were completed, not %d", got, count)
	}
}

// TestDeviceVanishes: a device that is deleted while open is an error to nobody
// but those who ask for its link, and can be closed.
func TestDeviceVanishes(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v := newVeth(t, 1)
			p := openIn(t, v.server, Config{Device: v.device, Driver: name, Interrupts: true})
			run(t, "ip", "-n", v.server, "link", "del", v.device)
			frames := make([]driver.Frame, 8)
			driver.Free(frames[:p.Queue(0).Receive(frames)])
			n := p.Queue(0).Allocate(frames, 60)
			for i := range n {
				frames[i].Data = frames[i].Data[:60]
			}
			driver.Free(frames[p.Queue(0).Transmit(frames[:n]):n])
			if l, err := p.Link(); err == nil && l.Up {
				t.Error("the link of a deleted device is up")
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestForeignProgramIsNamed: a device that carries somebody's XDP program is
// refused, and the program stays.
func TestForeignProgramIsNamed(t *testing.T) {
	v := newVeth(t, 1)
	in(t, v.server, func() error {
		d, err := openNetdev(v.device)
		if err != nil {
			return err
		}
		defer d.close()
		link, err := attachProgram(d.index)
		t.Cleanup(func() { syscall.Close(link) })
		return err
	})
	fails(t, v.server, Config{Device: v.device}, "XDP program", "ip link set dev "+v.device+" xdp off")
	if !strings.Contains(run(t, "ip", "-n", v.server, "link", "show", v.device), "xdp") {
		t.Error("the program is gone")
	}
}

// attachProgram attaches an XDP program that lets everything pass, for as long
// as the descriptor that it returns is open.
func attachProgram(index int) (int, error) {
	const sysBPF, load, createLink, typeXDP, attachXDP = 321, 5, 28, 6, 37
	instructions := [2]uint64{0x00000002_000000b7, 0x95} // r0 = XDP_PASS; exit
	license := [...]byte{'G', 'P', 'L', 0}
	program := struct {
		kind, count           uint32
		instructions, license uintptr
		rest                  [112]byte
	}{kind: typeXDP, count: 2, instructions: uintptr(unsafe.Pointer(&instructions)), license: uintptr(unsafe.Pointer(&license))}
	fd, _, e := syscall.Syscall(sysBPF, load, uintptr(unsafe.Pointer(&program)), unsafe.Sizeof(program))
	runtime.KeepAlive(&instructions)
	runtime.KeepAlive(&license)
	if e != 0 {
		return -1, fmt.Errorf("loading a program: %w", e)
	}
	defer syscall.Close(int(fd))
	link := struct{ program, target, kind, flags uint32 }{uint32(fd), uint32(index), attachXDP, 0}
	fd, _, e = syscall.Syscall(sysBPF, createLink, uintptr(unsafe.Pointer(&link)), unsafe.Sizeof(link))
	if e != 0 {
		return -1, fmt.Errorf("attaching a program: %w", e)
	}
	return int(fd), nil
}
