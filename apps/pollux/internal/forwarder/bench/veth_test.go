package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	twin "github.com/pollux-net/pollux/bpf/forward"
	"github.com/pollux-net/pollux/bpf/trio"
	"github.com/pollux-net/pollux/runtime"
)

// BenchmarkVeth: client, router and server are network namespaces joined by
// veths. The kernel's own forwarding, the XDP twin and the packet service on
// AF_XDP have one core; on the other are the generator (an XDP program that sends
// frames of 60 bytes without a stack) and the sink (one that counts and drops
// them). For the kernel and the twin the NAPI instance of the router's input is a
// thread on their core; for the service it stays with the generator, as it only
// does what a NIC would: put the frame into a ring. The service takes part twice: it
// polls, or sleeps and is woken by frames, of which the table tells how many a
// wake-up brought.
func BenchmarkVeth(b *testing.B) {
	for b.Loop() {
		var all []*contestant
		for _, k := range []string{"kernel ip_forward", "XDP twin", ours, interruptedOurs} {
			all = append(all, vethContestant(b, k))
		}
		compete("three namespaces on veth, 60-byte frames, one core to forward", all)
	}
}

const (
	ours            = "pollux on AF_XDP"
	interruptedOurs = "pollux on AF_XDP, by interrupts"
)

func vethContestant(b *testing.B, name string) *contestant {
	c := &contestant{series: series{name: name}}
	user := name == ours || name == interruptedOurs
	mode := runtime.Poll
	if name == interruptedOurs {
		mode = runtime.Interrupt
	}
	n := trio.New(b, trio.Options{Forwarding: !user})
	n.Router.Run(b, "ip", "route", "add", "10.99.0.0/24", "via", n.ServerPort.V4.Addr().String())
	sink := newSink(b, n)
	thread(b, n.Server, n.ServerPort.Name, generatorCore)
	var a *actor
	var threads []string
	switch {
	case user:
		a = perform(b, part{Role: "forwarder", Variant: variants[0].name, Devices: []string{n.RouterPorts[0].Name, n.RouterPorts[1].Name}, Kernel: true, Mode: mode, Measure: measure}, n.Router.Start)
		c.processes = []*os.Process{a.cmd.Process}
	case name == "XDP twin":
		n.Router.Must(b, func() error {
			f, err := twin.Load(twin.Config{Interfaces: []int{n.RouterPorts[0].Index, n.RouterPorts[1].Index}})
			if err == nil {
				b.Cleanup(func() { f.Close() })
			}
			return err
		})
	default:
		n.Router.Run(b, "ethtool", "-K", n.RouterPorts[0].Name, "gro", "on") // else a veth has no NAPI
	}
	if !user {
		threads = thread(b, n.Router, n.RouterPorts[0].Name, dutCore)
	}
	for begin := time.Now(); ; {
		if _, err := n.Client.Try("ping", "-c", "1", "-W", "1", n.ServerPort.V4.Addr().String()); err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			b.Fatalf("%s: the server cannot be reached", name)
		}
	}
	if user {
		pause(a.cmd.Process)
	}
	source := newSource(b, n)
	c.run = func() (r rate) {
		var end atomic.Bool
		flood := make(chan error, 1)
		go func() { flood <- source.flood(n, &end) }()
		time.Sleep(measure / 4)
		var busy time.Duration
		for _, t := range threads {
			d, err := processorTime(t)
			if err != nil {
				b.Fatal(err)
			}
			busy -= d
		}
		r.Frames, r.Offered = sink.total(b), source.total(b)
		begin := time.Now()
		if user {
			said := a.tell(b, goOn)
			r.Woken = said.Woken
			busy = time.Duration(said.Spent.Seconds() / said.Elapsed.Seconds() * float64(measure) * 5 / 4) // it warms up, too
		} else {
			time.Sleep(measure)
		}
		r.Elapsed = time.Since(begin)
		r.Frames, r.Offered = sink.total(b)-r.Frames, source.total(b)-r.Offered
		for _, t := range threads {
			d, err := processorTime(t)
			if err != nil {
				b.Fatal(err)
			}
			busy += d
		}
		r.Busy = busy
		end.Store(true)
		if err := <-flood; err != nil {
			b.Fatal(err)
		}
		c.busy = append(c.busy, busy.Seconds()/r.Elapsed.Seconds())
		return r
	}
	return c
}

// thread makes an interface's NAPI instances threads on one core, and returns the
// files that tell their processor time.
func thread(b testing.TB, h *trio.Host, inter string, core int) (files []string) {
	b.Helper()
	name := "napi/" + inter + "-"
	before := map[string]bool{}
	for _, f := range kernelThreads(name) {
		before[f] = true
	}
	var said strings.Builder
	cmd := exec.Command("sh", "-c", "echo 1 > /sys/class/net/"+inter+"/threaded")
	cmd.Stderr = &said
	if err := errors.Join(h.Start(cmd), cmd.Wait()); err != nil {
		b.Fatalf("make the NAPI of %s a thread: %v %s", inter, err, said.String())
	}
	var set unix.CPUSet
	set.Set(core)
	for _, f := range kernelThreads(name) {
		if before[f] {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err != nil {
			b.Fatal(err)
		}
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			b.Fatalf("pin %s: %v", name, err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		b.Fatalf("%s has no NAPI thread", inter)
	}
	return files
}

func kernelThreads(prefix string) (files []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range all {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), prefix) {
			files = append(files, strings.TrimSuffix(f, "comm")+"schedstat")
		}
	}
	return files
}

const frameSize = 60

// counter counts frames in a program.
type counter struct{ counts *ebpf.Map }

func newCounter(b testing.TB) counter {
	b.Helper()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { counts.Close() })
	return counter{counts}
}

// count is the program's part; it changes R0 to R5.
func (c counter) count(otherwise string) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, c.counts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, otherwise),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	}
}

func (c counter) total(b testing.TB) (total uint64) {
	b.Helper()
	var each []uint64
	if err := c.counts.Lookup(uint32(0), &each); err != nil {
		b.Fatal(err)
	}
	for _, n := range each {
		total += n
	}
	return total
}

// newSink counts and drops the generator's frames at the server.
func newSink(b testing.TB, n *trio.Network) counter {
	b.Helper()
	c := newCounter(b)
	instructions := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, frameSize),
		asm.JNE.Reg(asm.R4, asm.R3, "pass"),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"), // for the verifier
		asm.LoadMem(asm.R4, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R4, 8, "pass"), // ARP may be as long; 8 is 0x0800 as it lies there
	}
	instructions = append(instructions, c.count("pass")...)
	instructions = append(instructions,
		asm.Mov.Imm(asm.R0, 1), // XDP_DROP
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("pass"),
		asm.Return(),
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: instructions})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { program.Close() })
	n.Server.Must(b, func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: n.ServerPort.Index, Flags: link.XDPDriverMode})
		if err == nil {
			b.Cleanup(func() { l.Close() })
		}
		return err
	})
	return c
}

// source sends frames of 1,024 flows out of the client's interface.
type source struct {
	counter
	program *ebpf.Program
	frame   []byte
	index   int
}

func newSource(b testing.TB, n *trio.Network) *source {
	b.Helper()
	f := frame4(n.ClientPort.V4.Addr(), netip.MustParseAddr("10.99.0.1"), 0, 7)
	copy(f.data[:], n.RouterPorts[0].MAC[:])
	copy(f.data[6:], n.ClientPort.MAC[:])
	s := &source{counter: newCounter(b), frame: f.data[:frameSize], index: n.ClientPort.Index}
	// The kernel uses the frames' memory again as the last receiver left it, so
	// all of a header is written anew.
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
	}
	program = append(program, s.count("drop")...)
	program = append(program,
		asm.FnGetPrandomU32.Call(),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 44),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
	)
	for at := 0; at < 44; at += 4 {
		program = append(program, asm.StoreImm(asm.R2, int16(at), int64(int32(binary.NativeEndian.Uint32(f.data[at:]))), asm.Word))
	}
	program = append(program,
		asm.And.Imm(asm.R0, 0xff03),
		asm.StoreMem(asm.R2, 34, asm.R0, asm.Half), // source port
		asm.Mov.Imm(asm.R0, 3),                     // XDP_TX
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"),
		asm.Return(),
	)
	var err error
	if s.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: program}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.program.Close() })
	return s
}

// flood sends on the generator's core as fast as that goes until it is to end.
func (s *source) flood(n *trio.Network, end *atomic.Bool) error {
	return n.Client.Do(func() error {
		var set unix.CPUSet
		set.Set(generatorCore)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pin the generator: %w", err)
		}
		// To begin and to end costs the kernel many milliseconds.
		const batch = 1 << 18
		// Live frames: they are really sent. Of the context the kernel takes the
		// interface that they are to have come by, and where data ends.
		context := make([]byte, 24)
		binary.NativeEndian.PutUint32(context[4:], frameSize)
		binary.NativeEndian.PutUint32(context[12:], uint32(s.index))
		for !end.Load() {
			_, err := s.program.Run(&ebpf.RunOptions{Data: s.frame, Context: context, Repeat: batch, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
			if err != nil {
				return fmt.Errorf("send frames: %w", err)
			}
		}
		return nil
	})
}
