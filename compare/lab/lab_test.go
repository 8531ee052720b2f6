package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	paths "github.com/pollux-net/pollux/runtime"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nameFor is a lab's name that no other test process uses.
func nameFor(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	return fmt.Sprintf("t%d-%s", os.Getpid(), name[len(name)-min(len(name), 40):])
}

func up(t *testing.T, c Config) *Lab {
	t.Helper()
	if c.Name == "" {
		c.Name = nameFor(t)
	}
	t.Cleanup(func() {
		if err := Down(c.Name); err != nil {
			t.Error(err)
		}
	})
	l, err := Up(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// identity is what must not change when a lab is brought up again.
func identity(t *testing.T, l *Lab) string {
	t.Helper()
	var b strings.Builder
	for _, side := range Sides {
		err := l.Do(side, func() error {
			ns, err := netns.Get()
			if err != nil {
				return err
			}
			defer ns.Close()
			link, err := netlink.LinkByName(Interface(side))
			if err != nil {
				return err
			}
			fmt.Fprintln(&b, ns.UniqueId(), link.Attrs().Index, link.Attrs().HardwareAddr, link.Attrs().Alias)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	settings, err := l.Verify()
	if err != nil {
		t.Fatal(err)
	}
	list, err := napisOf(l, Client)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&b, settings, list)
	return b.String()
}

func napisOf(l *Lab, side Side) (list []napi, err error) {
	err = l.Do(side, func() error {
		list, err = napis(Interface(side))
		return err
	})
	return list, err
}

// output runs a command in the lab and returns what it printed.
func output(t *testing.T, l *Lab, side Side, argv ...string) (string, error) {
	t.Helper()
	var b bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := l.Start(side, cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	return b.String(), err
}

func TestUpTwiceIsTheSameLab(t *testing.T) {
	for _, path := range []paths.Path{paths.User, paths.Kernel} {
		t.Run(string(path), func(t *testing.T) {
			first := up(t, Config{Path: path})
			before := identity(t, first)
			second := up(t, Config{Path: path})
			if after := identity(t, second); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
			opened, err := Open(nameFor(t))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(opened.Config(), first.Config()) {
				t.Errorf("opened %+v, made %+v", opened.Config(), first.Config())
			}
		})
	}
}

func TestDownLeavesNothing(t *testing.T) {
	l := up(t, Config{Path: paths.Kernel, Queues: 2})
	// Kept open, the namespaces go on, and show whether the links do.
	var kept []netns.NsHandle
	for _, side := range Sides {
		ns, err := netns.GetFromName(l.Namespace(side))
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		kept = append(kept, ns)
	}
	threads, err := napisOf(l, Server)
	if err != nil || len(threads) != 2 {
		t.Fatalf("threads of the server's receive work: %v, %v", threads, err)
	}
	for range 2 {
		if err := Down(l.Config().Name); err != nil {
			t.Fatal(err)
		}
	}
	for i, side := range Sides {
		if _, err := os.Lstat(filepath.Join(namespaceDir, l.Namespace(side))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", l.Namespace(side), err)
		}
		handle, err := netlink.NewHandleAt(kept[i])
		if err != nil {
			t.Fatal(err)
		}
		defer handle.Close()
		if links, err := handle.LinkList(); err != nil || len(links) != 1 || links[0].Attrs().Name != "lo" {
			t.Errorf("interfaces on the %s's side: %v, %v", side, links, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(l.Config().Name)) {
		t.Error("something of the lab is still mounted")
	}
	for _, n := range threads {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", n.thread)); err == nil {
			t.Errorf("thread %d of the receive work is still there", n.thread)
		}
	}
	state, err := Status(l.Config().Name)
	if err != nil || !state.Down || state.Up {
		t.Errorf("status %+v, %v", state, err)
	}
	if _, err := Open(l.Config().Name); !errors.Is(err, ErrDown) {
		t.Errorf("open: %v", err)
	}
	if err := l.Do(Server, func() error { return nil }); err == nil {
		t.Error("entered a lab that is down")
	}
}

func TestHalfALabIsSeenMendedAndRemoved(t *testing.T) {
	damage := map[string]func(t *testing.T, l *Lab){
		"namespace gone": func(t *testing.T, l *Lab) {
			if err := removeNamespace(l.Namespace(Client)); err != nil {
				t.Fatal(err)
			}
		},
		"link gone": func(t *testing.T, l *Lab) {
			if err := removeLink(l.Config().Name, Client); err != nil {
				t.Fatal(err)
			}
		},
		"name without a namespace": func(t *testing.T, l *Lab) {
			if err := unix.Unmount(filepath.Join(namespaceDir, l.Namespace(Server)), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
	}
	for what, harm := range damage {
		t.Run(what, func(t *testing.T) {
			config := Config{Name: nameFor(t), Path: paths.Kernel}
			config.Name = strings.ReplaceAll(config.Name, " ", "-")
			l := up(t, config)
			harm(t, l)
			state, err := Status(config.Name)
			if err != nil || state.Up || state.Down || state.Problem == nil {
				t.Errorf("status of half a lab: %+v, %v", state, err)
			}
			if _, err := Up(config); err != nil {
				t.Fatalf("mend: %v", err)
			}
			harm(t, l)
			if err := Down(config.Name); err != nil {
				t.Fatalf("remove: %v", err)
			}
			for _, side := range Sides {
				if _, err := os.Lstat(filepath.Join(namespaceDir, l.Namespace(side))); err == nil {
					t.Errorf("%s is still there", l.Namespace(side))
				}
			}
		})
	}
}

func TestDoRunsInTheNamespaceAndComesBack(t *testing.T) {
	l := up(t, Config{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here := func() string {
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		return ns.UniqueId()
	}
	home := here()
	seen := map[string]bool{home: true}
	for _, side := range Sides {
		want := errors.New("the function's own")
		err := l.Do(side, func() error {
			if seen[here()] {
				t.Errorf("%s runs in a namespace that was seen before", side)
			}
			seen[here()] = true
			if _, err := net.InterfaceByName(Interface(side)); err != nil {
				t.Error(err)
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Errorf("error %v", err)
		}
		if here() != home {
			t.Fatal("not back in the own namespace")
		}
	}
	func() {
		defer func() { recover() }()
		l.Do(Server, func() error { panic("in the lab") })
	}()
	if here() != home {
		t.Fatal("a panic leaves the thread in the lab")
	}
}

func TestExecRunsInBothNamespaces(t *testing.T) {
	l := up(t, Config{})
	outside, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, side := range Sides {
		got, err := output(t, l, side, "ls", "/sys/class/net")
		if err != nil || strings.Join(strings.Fields(got), " ") != "lo "+Interface(side) {
			t.Errorf("%s's interfaces: %q, %v", side, got, err)
		}
		got, err = output(t, l, side, "ls", "/sys/fs/cgroup")
		if err != nil || len(strings.Fields(got)) != len(outside) {
			t.Errorf("%s's control groups: %q, %v", side, got, err)
		}
	}
	var exit *exec.ExitError
	if err := l.Exec(Client, []string{"sh", "-c", "exit 7"}); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7 became %v", err)
	}
	if err := l.Exec(Client, nil); err == nil {
		t.Error("ran nothing")
	}
	if err := l.Exec(Client, []string{"/no/such/command"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such command: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " / /sys "); n != 1 {
		t.Errorf("/sys is mounted %d times outside the lab", n)
	}
}

func TestKernelPathAnswersPings(t *testing.T) {
	for _, placement := range []Placement{ServerCore, ClientCore} {
		t.Run(string(placement), func(t *testing.T) {
			l := up(t, Config{Path: paths.Kernel, Placement: placement})
			for _, from := range Sides {
				to := Server
				if from == Server {
					to = Client
				}
				for _, address := range Addresses(to) {
					if got, err := output(t, l, from, "ping", "-c", "3", "-i", "0.01", "-W", "5", address.Addr().String()); err != nil {
						t.Errorf("%s to %s: %v\n%s", from, address, err, got)
					}
				}
			}
		})
	}
}

// Whatever the machine's default is, both ends of a connection use CUBIC.
func TestCongestionControlIsPinned(t *testing.T) {
	l := up(t, Config{Path: paths.Kernel})
	for _, address := range Addresses(Server) {
		var listener net.Listener
		err := l.Do(Server, func() (err error) {
			// Not net.Listen alone: it would make an MPTCP socket.
			var config net.ListenConfig
			config.SetMultipathTCP(false)
			listener, err = config.Listen(t.Context(), "tcp", netip.AddrPortFrom(address.Addr(), 0).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		var client net.Conn
		err = l.Do(Client, func() (err error) {
			client, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		for side, conn := range map[Side]net.Conn{Server: server, Client: client} {
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var name string
			if control := raw.Control(func(fd uintptr) {
				name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			}); control != nil || err != nil {
				t.Fatal(control, err)
			}
			if name != "cubic" {
				t.Errorf("the %s's connection over %s uses %s", side, address, name)
			}
		}
	}
}

// A server in user space answers for itself: the kernel on its side must say
// nothing, and the client's frames must be complete, since nobody completes them.
func TestUserPathKernelIsSilentAndPeersFramesAreComplete(t *testing.T) {
	t.Run("server", func(t *testing.T) { silentAndComplete(t, Server, Config{Path: paths.User}) })
	t.Run("client", func(t *testing.T) {
		silentAndComplete(t, Client, Config{Path: paths.Kernel, ClientPath: paths.User})
	})
}

// silentAndComplete looks from the user side at what the other's kernel sends.
func silentAndComplete(t *testing.T, user Side, c Config) {
	l := up(t, c)
	peer := user.other()
	var socket int
	err := l.Do(user, func() (err error) {
		link, err := netlink.LinkByName(Interface(user))
		if err != nil {
			return err
		}
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(10 * time.Second))
		return errors.Join(
			unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
			unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)

	payload := bytes.Repeat([]byte("pollux "), 150)
	err = l.Do(peer, func() error {
		// Asking for the address of a silent end must go unanswered.
		if _, err := output(t, l, peer, "ping", "-c", "1", "-W", "1", Addresses(user)[0].Addr().String()); err == nil {
			t.Errorf("the kernel on the %s's side answers a ping", user)
		}
		link, err := netlink.LinkByName(Interface(peer))
		if err != nil {
			return err
		}
		for _, p := range Addresses(user) {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: p.Addr().AsSlice(),
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
			if err != nil {
				return err
			}
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr(), 9)))
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write(payload); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 64<<10)
	for found := map[uint16]bool{}; len(found) < 2; {
		n, from, err := unix.Recvfrom(socket, frame, 0)
		if err != nil {
			t.Fatalf("of two datagrams the %s's end saw %v: %v", user, found, err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			t.Fatalf("the kernel on the %s's side sent % x", user, frame[:n])
		}
		f := frame[:n]
		if !bytes.Contains(f, payload) {
			continue
		}
		ethertype := binary.BigEndian.Uint16(f[12:])
		var addresses, datagram []byte
		switch ethertype {
		case unix.ETH_P_IP:
			addresses, datagram = f[14+12:14+20], f[14+20:]
		case unix.ETH_P_IPV6:
			addresses, datagram = f[14+8:14+40], f[14+40:]
		default:
			t.Fatalf("the payload came in a frame of type %#x", ethertype)
		}
		if sum := onesSum(addresses, datagram, []byte{0, unix.IPPROTO_UDP, byte(len(datagram) >> 8), byte(len(datagram))}); sum != 0xffff {
			t.Errorf("a frame of type %#x has a wrong checksum (sum %#x)", ethertype, sum)
		}
		found[ethertype] = true
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// onesSum is the Internet checksum's sum (RFC 1071), 0xffff if it includes a
// right checksum.
func onesSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		if len(p)%2 == 1 {
			sum += uint32(p[len(p)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func TestQueuesAreVisibleAtBothEnds(t *testing.T) {
	for _, path := range []paths.Path{paths.User, paths.Kernel} {
		t.Run(string(path), func(t *testing.T) {
			l := up(t, Config{Path: path, Queues: 2})
			for _, side := range Sides {
				got, err := output(t, l, side, "ls", "/sys/class/net/"+Interface(side)+"/queues")
				if err != nil || strings.Join(strings.Fields(got), " ") != "rx-0 rx-1 tx-0 tx-1" {
					t.Errorf("%s's queues: %q, %v", side, got, err)
				}
			}
		})
	}
}

func TestReceiveWorkRunsWhereThePlacementSays(t *testing.T) {
	cores, err := allowedCores()
	if err != nil {
		t.Fatal(err)
	}
	first, last := cores[0], cores[len(cores)-1]
	for _, path := range []paths.Path{paths.User, paths.Kernel} {
		for _, placement := range []Placement{ServerCore, ClientCore} {
			t.Run(fmt.Sprintf("%s/%s", path, placement), func(t *testing.T) {
				l := up(t, Config{Path: path, Placement: placement, Queues: 2, ServerCores: []int{first}, ClientCores: []int{last}})
				check := func(side Side, threaded bool, core int, policy string) {
					t.Helper()
					list, err := napisOf(l, side)
					if err != nil {
						t.Fatal(err)
					}
					if !threaded {
						for _, n := range list {
							if n.thread != 0 {
								t.Errorf("the %s's receive work has a thread", side)
							}
						}
						return
					}
					if len(list) != 2 {
						t.Fatalf("the %s has receive work %v for two queues", side, list)
					}
					for _, n := range list {
						comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.thread))
						if err != nil || !strings.HasPrefix(string(comm), "napi/"+Interface(side)) {
							t.Errorf("thread %d is called %q, %v", n.thread, comm, err)
						}
						status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.thread))
						if err != nil || !strings.Contains(string(status), fmt.Sprintf("Cpus_allowed_list:\t%d\n", core)) {
							t.Errorf("thread %d of the %s may run elsewhere than on %d (%v)", n.thread, side, core, err)
						}
						if got, err := schedulingOf(n.thread); err != nil || got.String() != policy {
							t.Errorf("thread %d of the %s is scheduled %s, %v", n.thread, side, got, err)
						}
					}
				}
				check(Server, placement == ServerCore, first, "fifo 50")
				check(Client, true, last, "nice -20")
				// For a client that polls it must come first.
				l = up(t, Config{Name: l.Config().Name, Path: path, ClientPath: paths.User, Placement: placement, Queues: 2, ServerCores: []int{first}, ClientCores: []int{last}})
				check(Server, placement == ServerCore, first, "fifo 50")
				check(Client, true, last, "fifo 50")
			})
		}
	}
}

func TestUpTurnsALabIntoAnother(t *testing.T) {
	name := nameFor(t)
	steps := []Config{
		{Name: name, Path: paths.User},
		{Name: name, Path: paths.Kernel},
		{Name: name, Path: paths.User, Placement: ServerCore},
		{Name: name, Path: paths.User, Queues: 2},
		{Name: name, Path: paths.Kernel, ClientPath: paths.User},
		{Name: name, Path: paths.User, ClientPath: paths.User},
		{Name: name, Path: paths.Kernel, Placement: ClientCore, Queues: 1},
	}
	for i, c := range steps {
		l := up(t, c)
		state, err := Status(name)
		if err != nil || !state.Up {
			t.Fatalf("step %d: %v, %v", i, state.Problem, err)
		}
		if !reflect.DeepEqual(state.Config, l.Config()) {
			t.Errorf("step %d: status says %+v, made %+v", i, state.Config, l.Config())
		}
		// The client may still be waiting for the answer of a silent server.
		wait := map[paths.Path]string{paths.User: "1", paths.Kernel: "10"}[c.Path]
		_, err = output(t, l, Client, "ping", "-c", "1", "-W", wait, ServerIPv6.Addr().String())
		if answers := err == nil; answers != (c.Path == paths.Kernel && c.ClientPath != paths.User) {
			t.Errorf("step %d, %+v: the kernels talk: %v", i, c, answers)
		}
	}
}

func TestVerifyNamesWhatIsWrongAndUpMendsIt(t *testing.T) {
	l := up(t, Config{Path: paths.Kernel})
	harms := map[string]struct {
		side Side
		do   func(netlink.Link) error
	}{
		"pollux1 mtu":       {Client, func(k netlink.Link) error { return netlink.LinkSetMTU(k, 1400) }},
		"pollux0 gro":       {Server, func(netlink.Link) error { return receiveMerge.write(ServerInterface, false) }},
		"pollux0 tso":       {Server, func(netlink.Link) error { return segmentTCP.write(ServerInterface, true) }},
		"pollux1 up":        {Client, netlink.LinkSetDown},
		"pollux0 addresses": {Server, func(k netlink.Link) error { return netlink.AddrDel(k, linkAddress(ServerIPv6)) }},
		"pollux0 arp":       {Server, netlink.LinkSetARPOff},
		"pollux1 routes": {Client, func(k netlink.Link) error {
			route := labRoute(k.Attrs().Index, ClientIPv4)
			route.Congctl = "reno"
			return netlink.RouteReplace(route)
		}},
		"pollux1 queue 0 proc": {Client, func(netlink.Link) error {
			thread, err := threadOf(ClientInterface, 0)
			if err != nil {
				return err
			}
			return pin(thread, l.Config().ServerCores[0])
		}},
		"pollux0 queue 0 sche": {Server, func(netlink.Link) error {
			thread, err := threadOf(ServerInterface, 0)
			if err != nil {
				return err
			}
			return asPeer.apply(thread)
		}},
	}
	if slices.Equal(l.Config().ServerCores, l.Config().ClientCores) {
		t.Fatal("this test needs two processors")
	}
	for what, harm := range harms {
		err := l.Do(harm.side, func() error {
			link, err := netlink.LinkByName(Interface(harm.side))
			if err != nil {
				return err
			}
			return harm.do(link)
		})
		if err != nil {
			t.Fatalf("harm %s: %v", what, err)
		}
		if _, err := l.Verify(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s was harmed, verify says %v", what, err)
		}
		if _, err := Up(l.Config()); err != nil {
			t.Fatalf("mend %s: %v", what, err)
		}
	}
}

// A server that uses af_xdp attaches a program, which changes the interface's
// offloads; the lab is still what it was, then and afterwards.
func TestAttachedXDPProgramDoesNotSpoilTheLab(t *testing.T) {
	for _, placement := range []Placement{ClientCore, ServerCore} {
		t.Run(string(placement), func(t *testing.T) {
			l := up(t, Config{Path: paths.User, Placement: placement})
			program := loadXDPPass(t)
			defer unix.Close(program)
			attach := func(fd int) {
				t.Helper()
				err := l.Do(Server, func() error {
					link, err := netlink.LinkByName(ServerInterface)
					if err != nil {
						return err
					}
					return netlink.LinkSetXdpFd(link, fd)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			before := identity(t, l)
			attach(program)
			if _, err := l.Verify(); err != nil {
				t.Errorf("attached: %v", err)
			}
			if _, err := Up(l.Config()); err != nil {
				t.Errorf("up while attached: %v", err)
			}
			attach(-1)
			if after := identity(t, l); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}

// loadXDPPass loads the program "r0 = XDP_PASS; exit".
func loadXDPPass(t *testing.T) int {
	t.Helper()
	code := []uint64{uint64(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K) | 2<<32, uint64(unix.BPF_JMP | unix.BPF_EXIT)}
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license unsafe.Pointer
		_             [96]byte
	}{kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(code)), code: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0])}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatalf("load an XDP program: %v", errno)
	}
	return int(fd)
}

func TestRootNamespaceIsUntouched(t *testing.T) {
	look := func() string {
		var b strings.Builder
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			a := link.Attrs()
			if a.Name != "lo" && !strings.HasPrefix(a.Name, "eth") {
				continue // others may come and go meanwhile
			}
			fmt.Fprintln(&b, a.Index, a.Name, a.MTU, a.RawFlags, a.HardwareAddr, a.Alias)
			for _, o := range []offload{transmitChecksum, segmentTCP, segmentGeneric, receiveMerge} {
				on, err := o.read(a.Name)
				fmt.Fprintln(&b, o.name, on, err)
			}
			addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				t.Fatal(err)
			}
			for _, address := range addresses {
				fmt.Fprintln(&b, address.IPNet, address.Flags)
			}
		}
		control, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s", control)
		return b.String()
	}
	before := look()
	l := up(t, Config{Path: paths.Kernel})
	during := look()
	for _, name := range []string{ServerInterface, ClientInterface} {
		if _, err := netlink.LinkByName(name); err == nil {
			t.Errorf("%s is in the root namespace", name)
		}
	}
	if err := Down(l.Config().Name); err != nil {
		t.Fatal(err)
	}
	if after := look(); before != during || before != after {
		t.Errorf("before:\n%sduring:\n%safter:\n%s", before, during, after)
	}
}

func TestFailureHalfWayUndoesWhatWasDone(t *testing.T) {
	name := nameFor(t)
	// A directory that is not empty stands where the client's namespace goes.
	obstacle := filepath.Join(namespaceDir, namespaceOf(name, Client))
	if err := os.MkdirAll(filepath.Join(obstacle, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(obstacle)
	_, err := Up(Config{Name: name})
	if err == nil || !strings.Contains(err.Error(), namespaceOf(name, Client)) {
		t.Errorf("the error does not name the namespace: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(namespaceDir, namespaceOf(name, Server))); err == nil {
		t.Error("the server's namespace is still there")
	}

	// A lab that existed before is not removed by a failing Up.
	existing := up(t, Config{Name: name + "x"})
	before := identity(t, existing)
	if _, err := Up(Config{Name: name + "x", ServerCores: []int{1 << 14}}); err == nil {
		t.Error("there is no such processor")
	}
	if after := identity(t, existing); before != after {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

func TestMissingPrivilegeIsNamedAndNothingIsDone(t *testing.T) {
	name := nameFor(t)
	err := onSpareThread(func() error { // the thread ends, and so do its lacks
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		for what, err := range map[string]error{
			"up":     second(Up(Config{Name: name})),
			"down":   Down(name),
			"status": second(Status(name)),
		} {
			for _, missing := range []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_NICE", "root"} {
				if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), missing) {
					t.Errorf("%s without privilege does not name %s: %v", what, missing, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if state, err := Status(name); err != nil || !state.Down {
		t.Errorf("something was done: %+v, %v", state, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestLabsOfDifferentNamesDoNotMeet(t *testing.T) {
	var group sync.WaitGroup
	labs := make([]*Lab, 3)
	for i := range labs {
		t.Cleanup(func() { Down(fmt.Sprintf("%s-%d", nameFor(t), i)) })
		group.Go(func() {
			l, err := Up(Config{Name: fmt.Sprintf("%s-%d", nameFor(t), i), Path: paths.Kernel})
			if err != nil {
				t.Error(err)
			}
			labs[i] = l
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	if err := Down(labs[0].Config().Name); err != nil {
		t.Fatal(err)
	}
	for _, l := range labs[1:] {
		if _, err := l.Verify(); err != nil {
			t.Error(err)
		}
		if got, err := output(t, l, Client, "ping", "-c", "1", "-W", "5", ServerIPv4.Addr().String()); err != nil {
			t.Error(got, err)
		}
		if err := Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	for want, c := range map[string]Config{
		"cannot name a lab":     {Name: "../x"},
		"is not a path":         {Path: "tunnel"},
		"a path for the client": {ClientPath: "tunnel"},
		"-1 queues":             {Queues: -1},
		"5000 queues":           {Queues: 5000},
		"is not a placement":    {Placement: "nowhere"},
		"16000 does not exist":  {ClientCores: []int{16000}},
		"processor -3 does not": {ServerCores: []int{-3}},
	} {
		if _, err := Up(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestCoresAreWrittenAsTheyAreRead(t *testing.T) {
	for text, cores := range map[string][]int{"": nil, "0": {0}, "0-3,8": {0, 1, 2, 3, 8}, "1,3,5-6": {1, 3, 5, 6}} {
		got, err := ParseCores(text)
		if err != nil || !slices.Equal(got, cores) || FormatCores(cores) != text {
			t.Errorf("%q: %v, %v, %q", text, got, err, FormatCores(cores))
		}
	}
	for _, text := range []string{"a", "1-", "3-1", ",", "-1", "70000", "0-3;5"} {
		if got, err := ParseCores(text); err == nil {
			t.Errorf("%q became %v", text, got)
		}
	}
	for _, c := range []struct {
		allowed        []int
		queues         int
		server, client string
	}{{[]int{4}, 2, "4", "4"}, {[]int{0, 1}, 1, "0", "1"}, {[]int{0, 1}, 2, "0", "1"}, {[]int{0, 1, 2, 3}, 2, "0-1", "2-3"}} {
		server, client := shareCores(c.allowed, c.queues)
		if FormatCores(server) != c.server || FormatCores(client) != c.client {
			t.Errorf("%v for %d queues: %v and %v", c.allowed, c.queues, server, client)
		}
	}
}

// Before Linux 6.8 threads are found by name; here both ways must agree.
func TestThreadsAreFoundByNameToo(t *testing.T) {
	l := up(t, Config{Queues: 2})
	byNetlink, err := napisOf(l, Client)
	if err != nil {
		t.Fatal(err)
	}
	byName, err := napisByThreadName(ClientInterface, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range byNetlink {
		if !slices.Contains(byName, n) {
			t.Errorf("%+v is not among %+v", n, byName)
		}
	}
	if _, err := napisByThreadName(ClientInterface, 1); err == nil {
		t.Error("two threads for one queue raise no doubt")
	}
}
