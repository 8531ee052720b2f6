// Package testnet makes, for the tests of this room, two network namespaces that
// a veth joins. It is like the lab of package compare/lab, which is above this
// room, without what makes a comparison fair: receive work is the sender's.
package testnet

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A Network is two namespaces joined by a veth.
type Network struct {
	// Server and Client are the namespaces, as ip netns knows them.
	Server, Client string
}

// The ends of the veth.
const ServerDevice, ClientDevice = "bpf0", "bpf1"

// The server's addresses; the client's end in 2.
var (
	ServerIPv4 = netip.MustParseAddr("10.98.0.1")
	ServerIPv6 = netip.MustParseAddr("fd98::1")
)

var networks atomic.Int32

// Run runs a command of space-separated words.
func Run(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	argv := strings.Fields(line)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// NeedRoot skips a test that has not the privilege for what this package does.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces and eBPF")
	}
}

// New makes a network whose veth has some queues, for the time of a test.
func New(t testing.TB, queues int) *Network {
	t.Helper()
	NeedRoot(t)
	name := fmt.Sprintf("bpf-%d-%d", os.Getpid(), networks.Add(1))
	n := &Network{Server: name + "-s", Client: name + "-c"}
	for _, ns := range []string{n.Server, n.Client} {
		Run(t, "ip netns add %s", ns)
		t.Cleanup(func() { Run(t, "ip netns del %s", ns) })
		Run(t, "ip -n %s link set lo up", ns)
		// Addresses are usable at once, and nobody asks for routers: tests count frames.
		Run(t, "ip netns exec %s sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0"+
			" net.ipv6.conf.default.accept_ra=0 net.ipv6.conf.default.router_solicitations=0", ns)
	}
	Run(t, "ip -n %s link add %s numrxqueues %d numtxqueues %d type veth peer name %s numrxqueues %d numtxqueues %d netns %s",
		n.Server, ServerDevice, queues, queues, ClientDevice, queues, queues, n.Client)
	Run(t, "ip -n %s addr add 10.98.0.1/24 dev %s", n.Server, ServerDevice)
	Run(t, "ip -n %s addr add fd98::1/64 dev %s nodad", n.Server, ServerDevice)
	Run(t, "ip -n %s addr add 10.98.0.2/24 dev %s", n.Client, ClientDevice)
	Run(t, "ip -n %s addr add fd98::2/64 dev %s nodad", n.Client, ClientDevice)
	for ns, device := range map[string]string{n.Server: ServerDevice, n.Client: ClientDevice} {
		// Without GRO a veth has no NAPI, and without checksums in software what
		// passes an XDP program has none.
		Run(t, "ip netns exec %s ethtool -K %s gro on tso off gso off tx off", ns, device)
		Run(t, "ip -n %s link set %s up", ns, device)
	}
	return n
}

// In runs f on a thread in a namespace.
func In[T any](t testing.TB, ns string, f func() (T, error)) T {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var r result
		defer func() { done <- r }()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			r.err = fmt.Errorf("open namespace %s: %w", ns, err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			r.err = fmt.Errorf("enter namespace %s: %w", ns, err)
			return
		}
		r.v, r.err = f()
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Receiver opens a socket of a reuseport group in a namespace: a listener, or
// a bound UDP socket. With port 0 the kernel chooses, and the port is returned.
func Receiver(t testing.TB, ns string, kind int, at netip.AddrPort) (fd int, port uint16) {
	t.Helper()
	fd = In(t, ns, func() (int, error) {
		fd, err := unix.Socket(family(at.Addr()), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open a socket: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return -1, fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
		if err := unix.Bind(fd, sockaddr(at)); err != nil {
			return -1, fmt.Errorf("bind to %v: %w", at, err)
		}
		if kind == unix.SOCK_STREAM {
			if err := unix.Listen(fd, 1024); err != nil {
				return -1, fmt.Errorf("listen at %v: %w", at, err)
			}
		}
		return fd, nil
	})
	t.Cleanup(func() { unix.Close(fd) })
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		port = uint16(name.Port)
	case *unix.SockaddrInet6:
		port = uint16(name.Port)
	}
	return fd, port
}

// Connect connects a blocking socket of a namespace.
func Connect(t testing.TB, ns string, kind int, to netip.AddrPort) int {
	t.Helper()
	return In(t, ns, func() (int, error) { return ConnectHere(kind, to) })
}

// ConnectHere is Connect in the calling thread's namespace.
func ConnectHere(kind int, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(family(to.Addr()), kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %v: %w", to, err)
	}
	return fd, nil
}

// OnCPU runs f on a thread of one processor in a namespace.
func OnCPU[T any](t testing.TB, ns string, cpu int, f func() (T, error)) T {
	t.Helper()
	return In(t, ns, func() (T, error) {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			var none T
			return none, fmt.Errorf("run on processor %d: %w", cpu, err)
		}
		return f()
	})
}

// Usable are the processors that this process may run on.
func Usable(t testing.TB) (cpus []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}
