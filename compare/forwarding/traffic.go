package forwarding

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// frameSize is that of what is sent, without the check sequence: as many bytes as
// the shortest frame of Ethernet has.
const frameSize = 60

// A counter counts frames in a program of the kernel's.
type counter struct{ counts *ebpf.Map }

func newCounter() (counter, error) {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return counter{}, fmt.Errorf("make a map to count frames in: %w", err)
	}
	return counter{counts}, nil
}

// count is the counter's part of a program; it changes R0 to R5.
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

func (c counter) total() (total uint64, err error) {
	var each []uint64
	if err := c.counts.Lookup(uint32(0), &each); err != nil {
		return 0, fmt.Errorf("read a count of frames: %w", err)
	}
	for _, n := range each {
		total += n
	}
	return total, nil
}

// What an XDP program says of a frame.
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// A sink counts and drops the generator's frames where they arrive.
type sink struct {
	counter
	program *ebpf.Program
	link    link.Link
}

// newSink attaches one to an interface in the calling thread's namespace.
func newSink(index int) (_ *sink, err error) {
	s := &sink{}
	if s.counter, err = newCounter(); err != nil {
		return nil, err
	}
	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, frameSize),
		asm.JNE.Reg(asm.R4, asm.R3, "pass"),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"), // for the verifier
		asm.LoadMem(asm.R4, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R4, 8, "pass"), // ARP may be as long; 8 is 0x0800 as it lies there
	}
	program = append(program, s.count("pass")...)
	program = append(program,
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	)
	s.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: program})
	if err == nil {
		s.link, err = link.AttachXDP(link.XDPOptions{Program: s.program, Interface: index, Flags: link.XDPDriverMode})
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("count frames at the server: %w", err)
	}
	return s, nil
}

func (s *sink) close() {
	if s.link != nil {
		s.link.Close()
	}
	s.program.Close() // of nil it does nothing
	s.counts.Close()
}

// A source sends frames of 1,024 flows out of the client's interface: an XDP
// program, run on frames that the kernel then really sends, without a stack.
type source struct {
	counter
	program *ebpf.Program
	frame   []byte
	index   int
}

func newSource(n *network) (_ *source, err error) {
	s := &source{index: n.from.index, frame: frameOf(n)}
	if s.counter, err = newCounter(); err != nil {
		return nil, err
	}
	// The kernel uses the frames' memory again as the last receiver left it, so
	// all of a header is written anew.
	const header = 44
	program := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	program = append(program, s.count("drop")...)
	program = append(program,
		asm.FnGetPrandomU32.Call(),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, header),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
	)
	for at := 0; at < header; at += 4 {
		program = append(program, asm.StoreImm(asm.R2, int16(at), int64(int32(binary.NativeEndian.Uint32(s.frame[at:]))), asm.Word))
	}
	program = append(program,
		asm.And.Imm(asm.R0, 0xff03),
		asm.StoreMem(asm.R2, 34, asm.R0, asm.Half), // source port
		asm.Mov.Imm(asm.R0, xdpTX),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
		asm.Return(),
	)
	if s.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: program}); err != nil {
		s.close()
		return nil, fmt.Errorf("load the generator: %w", err)
	}
	return s, nil
}

func (s *source) close() {
	s.program.Close()
	s.counts.Close()
}

// frameOf is a UDP datagram from the client to beyond the server.
func frameOf(n *network) []byte {
	f := make([]byte, frameSize)
	be := binary.BigEndian
	copy(f, n.in.address)
	copy(f[6:], n.from.address)
	be.PutUint16(f[12:], 0x0800)
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	be.PutUint16(ip[2:], frameSize-14)
	copy(ip[12:], n.from.prefix.Addr().AsSlice())
	copy(ip[16:], destination.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	be.PutUint16(ip[10:], ^uint16(sum))
	be.PutUint16(ip[22:], 7)
	be.PutUint16(ip[24:], frameSize-34)
	return f
}

// flood sends from the client, on a processor, as fast as that goes, until end.
func (s *source) flood(n *network, core int, end *atomic.Bool) error {
	return n.client.do(func() error {
		if err := errors.Join(pin(0, core), hurry(0)); err != nil {
			return fmt.Errorf("place the generator: %w", err)
		}
		// To begin and to end a run costs the kernel many milliseconds.
		const batch = 1 << 18
		// Of the context the kernel takes the interface by which frames are to
		// have come, and where their data ends.
		context := make([]byte, 24)
		binary.NativeEndian.PutUint32(context[4:], frameSize)
		binary.NativeEndian.PutUint32(context[12:], uint32(s.index))
		for !end.Load() {
			_, err := s.program.Run(&ebpf.RunOptions{Data: s.frame, Context: context, Repeat: batch, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("send frames: %w", err)
			}
		}
		return nil
	})
}

// pin puts a thread, 0 for the calling one, on a processor.
func pin(thread, core int) error {
	var set unix.CPUSet
	set.Set(core)
	return unix.SchedSetaffinity(thread, &set)
}

// highest is the nice value of everything that takes part, so that other programs
// on the machine matter less.
const highest = -20

// hurry gives it to a thread, 0 for the calling one.
func hurry(thread int) error { return unix.Setpriority(unix.PRIO_PROCESS, thread, highest) }
