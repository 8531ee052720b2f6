package steer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pollux-net/pollux/bpf/internal/testnet"
	"golang.org/x/sys/unix"
)

// TestMain is also the process that a test kills.
func TestMain(m *testing.M) {
	if device := os.Getenv("POLLUX_STEER_SPREAD_ON"); device != "" {
		fmt.Println(hold(device))
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func hold(device string) string {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return err.Error()
	}
	s, err := Spread(i.Index, []int{0})
	if err != nil {
		return err.Error()
	}
	info, err := s.objects.Spread.Info()
	if err != nil {
		return err.Error()
	}
	id, _ := info.ID()
	return fmt.Sprintf("program %d", id)
}

// unattached is a Spreader with its programs loaded, for no device.
func unattached(t *testing.T, seed uint32) *Spreader {
	t.Helper()
	testnet.NeedRoot(t)
	s := &Spreader{cpus: testnet.Usable(t)}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, s.load(seed))
	return s
}

// stays is where says that a frame is not sent elsewhere.
const stays = -1

// where runs the program on a frame and returns the index of the processor that
// it chose.
func where(t *testing.T, s *Spreader, frame []byte) int {
	t.Helper()
	before := spreadCounts(t, s)
	action, err := s.objects.Spread.Run(&ebpf.RunOptions{Data: frame, Repeat: 1})
	if err != nil {
		t.Fatalf("run on %x: %v", frame, err)
	}
	after := spreadCounts(t, s)
	const pass, redirect = 2, 4
	chosen := stays
	for i := range after.Frames {
		if after.Frames[i] != before.Frames[i] {
			chosen = i
		}
	}
	if counted := sum(after.Frames) + after.Stayed - sum(before.Frames) - before.Stayed; counted != 1 {
		t.Fatalf("%x was counted %d times", frame, counted)
	}
	if chosen == stays && action != pass || chosen != stays && action != redirect {
		t.Fatalf("%x: action %d, but counted at %d", frame, action, chosen)
	}
	return chosen
}

func spreadCounts(t *testing.T, s *Spreader) SpreadCounts {
	t.Helper()
	c, err := s.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func randomPacket(r *rand.Rand) packet {
	p := packet{transport: 6, ports: [2]uint16{uint16(r.Uint32()), uint16(r.Uint32())}, tags: r.IntN(3)}
	if r.IntN(2) == 0 {
		p.transport = 17
	}
	if r.IntN(2) == 0 {
		p.src = netip.AddrFrom4([4]byte{10, 1, byte(r.Uint32()), byte(r.Uint32())})
		p.dst = netip.AddrFrom4([4]byte{10, 2, byte(r.Uint32()), byte(r.Uint32())})
	} else {
		p.src = netip.AddrFrom16([16]byte{0xfd, 15: byte(r.Uint32())})
		p.dst = netip.AddrFrom16([16]byte{0xfd, 9: byte(r.Uint32()), 15: byte(r.Uint32())})
		for range r.IntN(5) {
			p.extensions = append(p.extensions, []uint8{0, 43, 60}[r.IntN(3)])
		}
	}
	return p
}

func TestBothDirectionsOfAFlowGoToOneProcessor(t *testing.T) {
	const seed, flows = 7, 2000
	s := unattached(t, seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range flows {
		p := randomPacket(r)
		there, back := where(t, s, p.frame()), where(t, s, p.reply().frame())
		if there == stays || there != back {
			t.Fatalf("seed %d: %+v goes to %d and its reply to %d", seed, p, there, back)
		}
	}
	// Evenly: the odds against a deviation of five in a hundred are beyond
	// counting, but the seeds are fixed anyway.
	for i, n := range spreadCounts(t, s).Frames {
		if even := 2 * flows / len(s.cpus); int(n) < even*9/10 || int(n) > even*11/10 {
			t.Errorf("seed %d: processor %d got %d of %d frames, want about %d", seed, s.cpus[i], n, 2*flows, even)
		}
	}
}

func TestFlowsThatDifferInOnePortAreSpread(t *testing.T) {
	s := unattached(t, 3)
	if len(s.cpus) < 2 {
		t.Skip("needs two processors")
	}
	for _, base := range []packet{
		{src: testnet.ServerIPv4, dst: testnet.ServerIPv4, transport: 6, ports: [2]uint16{0, 80}},
		{src: testnet.ServerIPv6, dst: testnet.ServerIPv6, transport: 17, ports: [2]uint16{0, 80}},
	} {
		got := make([]int, len(s.cpus))
		for port := range 400 {
			p := base
			p.ports[0] = uint16(port)
			got[where(t, s, p.frame())]++
		}
		for i, n := range got {
			if even := 400 / len(got); n < even/2 {
				t.Errorf("%+v from 400 ports: processor %d got %d of them, want about %d", base, s.cpus[i], n, even)
			}
		}
	}
}

func TestFragmentsOfADatagramGoToOneProcessor(t *testing.T) {
	const seed = 11
	s := unattached(t, seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		first := randomPacket(r)
		first.extensions = nil
		first.fragment, first.more = true, true
		middle, last, other := first, first, first
		middle.offset, last.offset = 90, 180
		last.more = false
		other.ports[0]++
		a := where(t, s, first.frame())
		if b, c, d, e := where(t, s, middle.frame()), where(t, s, last.frame()), where(t, s, other.frame()),
			where(t, s, last.reply().frame()); a == stays || a != b || a != c || a != d || a != e {
			t.Fatalf("seed %d: fragments of %+v go to %d, %d, %d; one of another datagram to %d, of the reply to %d", seed, first, a, b, c, d, e)
		}
	}
}

func TestWhatIsNoFlowStays(t *testing.T) {
	s := unattached(t, 5)
	tcp4 := packet{src: testnet.ServerIPv4, dst: netip.MustParseAddr("10.98.0.2"), transport: 6, ports: [2]uint16{1, 2}}
	tcp6 := packet{src: testnet.ServerIPv6, dst: netip.MustParseAddr("fd98::2"), transport: 6, ports: [2]uint16{1, 2}}
	with := func(p packet, change func(*packet)) []byte { change(&p); return p.frame() }
	bytesOf := func(p packet, change func([]byte)) []byte { b := p.frame(); change(b); return b }
	arp := make([]byte, 42)
	arp[12], arp[13] = 0x08, 0x06
	for what, frame := range map[string][]byte{
		"ARP":                                arp,
		"ICMP":                               with(tcp4, func(p *packet) { p.transport = 1 }),
		"ICMPv6":                             with(tcp6, func(p *packet) { p.transport = 58 }),
		"ESP":                                with(tcp6, func(p *packet) { p.transport = 50 }),
		"three VLAN tags":                    with(tcp4, func(p *packet) { p.tags = 3 }),
		"five extension headers":             with(tcp6, func(p *packet) { p.extensions = []uint8{0, 60, 60, 60, 60} }),
		"an IPv4 header of 16 bytes":         bytesOf(tcp4, func(b []byte) { b[14] = 0x44 }),
		"version 5 as IPv4":                  bytesOf(tcp4, func(b []byte) { b[14] = 0x55 }),
		"version 4 as IPv6":                  bytesOf(tcp6, func(b []byte) { b[14] = 0x40 }),
		"an IPv4 header beyond the frame":    bytesOf(tcp4, func(b []byte) { b[14] = 0x4f }),
		"an extension header beyond the end": bytesOf(packet{src: tcp6.src, dst: tcp6.dst, transport: 6, extensions: []uint8{60}}, func(b []byte) { b[14+40+1] = 255 }),
	} {
		if i := where(t, s, frame); i != stays {
			t.Errorf("%s was sent to processor %d", what, s.cpus[i])
		}
	}
	// Cut anywhere before its ports, a frame has no flow; after them it has.
	for _, p := range []packet{tcp4, tcp6, {tags: 2, src: tcp6.src, dst: tcp6.dst, transport: 17, extensions: []uint8{0, 43}}} {
		whole := p.frame()
		ports := len(whole) - 20 + 4
		for size := 14; size <= len(whole); size++ {
			if i := where(t, s, whole[:size]); (i == stays) != (size < ports) {
				t.Errorf("%+v cut to %d bytes (ports end at %d): goes to %d", p, size, ports, i)
			}
		}
	}
}

// echo answers whatever arrives on one connection.
func echo(fd int) error {
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		for out := buf[:n]; len(out) > 0; {
			m, err := unix.Write(fd, out)
			if err != nil {
				return err
			}
			out = out[m:]
		}
	}
}

func xdpOn(t *testing.T, ns, device string) bool {
	t.Helper()
	out, err := exec.Command("ip", "-n", ns, "link", "show", "dev", device).CombinedOutput()
	if err != nil {
		t.Fatalf("ip link show %s: %v\n%s", device, err, out)
	}
	return bytes.Contains(out, []byte("xdp"))
}

func index(t *testing.T, ns, device string) int {
	t.Helper()
	return testnet.In(t, ns, func() (int, error) {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return 0, err
		}
		return i.Index, nil
	})
}

func TestTCPWorksOnTheProcessorsThatItsFlowsAreSpreadOver(t *testing.T) {
	const connections, size, seed = 32, 128 << 10, 1
	n := testnet.New(t, 1)
	cpus := testnet.Usable(t)
	device := index(t, n.Server, testnet.ServerDevice)
	spreader := testnet.In(t, n.Server, func() (*Spreader, error) { return spread(device, cpus, seed) })
	defer func() {
		if err := spreader.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !xdpOn(t, n.Server, testnet.ServerDevice) {
		t.Fatal("no XDP program on the device")
	}

	// Steered by processor: who accepts a connection tells where its SYN was
	// processed. All clients are on one processor, and so would be all receive
	// work if it were not spread.
	s := load(t, len(cpus))
	for _, at := range []netip.Addr{testnet.ServerIPv4, testnet.ServerIPv6} {
		fds, to := group(t, n.Server, unix.SOCK_STREAM, at, len(cpus))
		for worker, cpu := range cpus {
			must(t, s.Add(worker, fds[worker]))
			must(t, s.SetCPU(cpu, worker))
		}
		must(t, s.Attach(fds[0]))
		before, steered := spreadCounts(t, spreader), counts(t, s)
		accepted := make([]uint64, len(cpus))
		r := rand.New(rand.NewPCG(seed, 0))
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		for range connections {
			c := testnet.OnCPU(t, n.Client, cpus[0], func() (int, error) { return testnet.ConnectHere(unix.SOCK_STREAM, to) })
			worker, conn := accept(t, fds)
			accepted[worker]++
			served := make(chan error, 1)
			go func() { served <- errors.Join(echo(conn), unix.Close(conn)) }()
			f := os.NewFile(uintptr(c), "client")
			sent := make(chan error, 1)
			go func() {
				_, err := f.Write(data)
				sent <- errors.Join(err, unix.Shutdown(c, unix.SHUT_WR))
			}()
			back, err := io.ReadAll(f)
			if err := errors.Join(err, <-sent, <-served, f.Close()); err != nil {
				t.Fatalf("%v: %v", to, err)
			}
			if sha256.Sum256(back) != sha256.Sum256(data) {
				t.Fatalf("%v: sent %d bytes, got others back (%d)", to, len(data), len(back))
			}
		}
		after, k := spreadCounts(t, spreader), counts(t, s)
		for i, cpu := range cpus {
			frames := after.Frames[i] - before.Frames[i]
			t.Logf("%v: processor %d took %d frames and %d of %d connections", at, cpu, frames, accepted[i], connections)
			if frames == 0 || accepted[i] == 0 {
				t.Errorf("%v: processor %d took %d frames and %d connections", at, cpu, frames, accepted[i])
			}
			if got := k.CPU[i] - steered.CPU[i]; got < accepted[i] {
				t.Errorf("%v: %d SYNs processed on processor %d, %d accepted there", at, got, cpu, accepted[i])
			}
		}
		if k.Fallback != 0 {
			t.Errorf("%v: %d connections were not steered", at, k.Fallback)
		}
	}
	if !slices.Equal(spreadCounts(t, spreader).CPUs, cpus) {
		t.Errorf("counts are of processors %v, want %v", spreadCounts(t, spreader).CPUs, cpus)
	}
	must(t, spreader.Close())
	if xdpOn(t, n.Server, testnet.ServerDevice) {
		t.Error("an XDP program is on the device after Close")
	}
	// And the network works as before.
	fd, port := testnet.Receiver(t, n.Server, unix.SOCK_STREAM, netip.AddrPortFrom(testnet.ServerIPv4, 0))
	c := testnet.Connect(t, n.Client, unix.SOCK_STREAM, netip.AddrPortFrom(testnet.ServerIPv4, port))
	defer unix.Close(c)
	take(t, unix.SOCK_STREAM, []int{fd})
}

// accept waits for a connection at one of some listeners.
func accept(t *testing.T, fds []int) (worker, conn int) {
	t.Helper()
	polled := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	for range 30 {
		if _, err := unix.Poll(polled, 1000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		for i, p := range polled {
			if p.Revents&unix.POLLIN != 0 {
				conn, _, err := unix.Accept4(fds[i], unix.SOCK_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				return i, conn
			}
		}
	}
	t.Fatal("no connection arrived at any worker within 30 s")
	return 0, 0
}

func TestWhatFindsNoRoomIsCounted(t *testing.T) {
	n := testnet.New(t, 1)
	device, cpu := index(t, n.Server, testnet.ServerDevice), testnet.Usable(t)[0]
	s := testnet.In(t, n.Server, func() (*Spreader, error) { return spread(device, []int{cpu}, 1) })
	defer s.Close()
	frame := packet{src: testnet.ServerIPv4, dst: netip.MustParseAddr("10.98.0.2"), transport: 17}.frame()
	// A thread that does not leave the processor on which they are to be taken
	// out sends more frames than there is room for.
	const frames, live = 100 * spreadRoom, 2 // BPF_F_TEST_XDP_LIVE_FRAMES
	testnet.OnCPU(t, n.Server, cpu, func() (uint32, error) {
		return s.objects.Spread.Run(&ebpf.RunOptions{Data: frame, Repeat: frames, Flags: live})
	})
	c := spreadCounts(t, s)
	if c.Frames[0] < frames || c.Dropped[0] == 0 || c.Dropped[0] > c.Frames[0] {
		t.Errorf("counted %+v of %d frames, of which only %d had room at once", c, frames, spreadRoom)
	}
	t.Logf("%+v", c)
}

func TestAKilledProcessLeavesNothingOnTheDevice(t *testing.T) {
	n := testnet.New(t, 1)
	cmd := exec.Command("ip", "netns", "exec", n.Server, os.Args[0])
	cmd.Env = append(os.Environ(), "POLLUX_STEER_SPREAD_ON="+testnet.ServerDevice)
	// Never written to: the process waits until it is killed, or this one dies.
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	var id uint32
	if _, scan := fmt.Sscanf(line, "program %d", &id); err != nil || scan != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("the other process: %q, %v", line, err)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil || !xdpOn(t, n.Server, testnet.ServerDevice) {
		_ = cmd.Process.Kill()
		t.Fatalf("program %d is not loaded or not on the device: %v", id, err)
	}
	must(t, p.Close())
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	// The kernel lets go of a program some time after its last user did.
	for range 1000 {
		if p, err = ebpf.NewProgramFromID(ebpf.ProgramID(id)); err != nil {
			break
		}
		must(t, p.Close())
		time.Sleep(10 * time.Millisecond)
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("program %d is still loaded after its process was killed (%v)", id, err)
	}
	if xdpOn(t, n.Server, testnet.ServerDevice) {
		t.Error("an XDP program is still on the device after its process was killed")
	}
}

func TestSpreadRefusesWhatCannotBe(t *testing.T) {
	n := testnet.New(t, 1)
	device, loopback := index(t, n.Server, testnet.ServerDevice), index(t, n.Server, "lo")
	refused := func(what, want string, ifindex int, cpus ...int) {
		t.Helper()
		err := testnet.In(t, n.Server, func() (error, error) {
			s, err := Spread(ifindex, cpus)
			if err == nil {
				_ = s.Close()
			}
			return err, nil
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", what, err, want)
		}
	}
	refused("no processors", "0 processors", device)
	refused("processor -1", "no processor -1", device, -1)
	refused("processor 2^20", "no processor", device, 1<<20)
	refused("one processor twice", "named twice", device, 0, 0)
	refused("no such device", "find interface 1048576", 1<<20, 0)
	refused("a device without native XDP", "native XDP", loopback, 0)

	first := testnet.In(t, n.Server, func() (*Spreader, error) { return Spread(device, []int{0}) })
	refused("a device with a program", "already", device, 0)
	must(t, first.Close())
	again := testnet.In(t, n.Server, func() (*Spreader, error) { return Spread(device, []int{0}) })
	must(t, again.Close())
}
