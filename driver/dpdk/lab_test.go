package dpdk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		child(role)
		return
	}
	// One start per process: every test shares it.
	if err := Init(Options{Memory: 512}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var serial atomic.Int32

// unique is a name for a namespace or a device that no other test binary uses.
func unique(kind string) string {
	return fmt.Sprintf("%s%d_%d", kind, os.Getpid()%1000000, serial.Add(1))
}

func run(t testing.TB, command string, arguments ...string) string {
	t.Helper()
	out, err := exec.Command(command, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", command, strings.Join(arguments, " "), err, out)
	}
	return string(out)
}

// namespace makes a network namespace that ends with the test.
func namespace(t testing.TB) string {
	t.Helper()
	name := unique("px")
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// in calls f on a thread in a network namespace.
func in(t testing.TB, namespace string, f func() error) {
	t.Helper()
	file, err := os.Open("/run/netns/" + namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := inNamespace(file.Fd(), f); err != nil {
		t.Fatal(err)
	}
}

// veth is a pair of devices: ours to open in one namespace, and one in another
// whose frames a raw socket sends and receives.
type veth struct {
	server, client string // namespaces
	device, peer   string
	socket         int // on peer, in client
}

func newVeth(t testing.TB, queues int) *veth {
	t.Helper()
	v := &veth{server: namespace(t), client: namespace(t), device: unique("a"), peer: unique("b")}
	n := fmt.Sprint(queues)
	run(t, "ip", "-n", v.server, "link", "add", v.device, "numrxqueues", n, "numtxqueues", n, "type", "veth",
		"peer", "name", v.peer, "netns", v.client, "numrxqueues", n, "numtxqueues", n)
	run(t, "ip", "netns", "exec", v.client, "ethtool", "-K", v.peer, "tx", "off", "tso", "off", "gso", "off")
	run(t, "ip", "netns", "exec", v.client, "sysctl", "-qw", "net.ipv6.conf."+v.peer+".disable_ipv6=1")
	run(t, "ip", "netns", "exec", v.server, "sysctl", "-qw", "net.ipv6.conf."+v.device+".disable_ipv6=1")
	run(t, "ip", "-n", v.client, "link", "set", v.peer, "up")
	run(t, "ip", "-n", v.server, "link", "set", v.device, "up")
	v.socket = rawSocket(t, v.client, v.peer)
	return v
}

// rawSocket sends and receives whole frames on a device of the kernel.
func rawSocket(t testing.TB, namespace, device string) int {
	t.Helper()
	var s int
	in(t, namespace, func() (err error) {
		d, err := openNetdev(device)
		if err != nil {
			return err
		}
		defer d.close()
		if s, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, int(htons(syscall.ETH_P_ALL))); err != nil {
			return err
		}
		return errors.Join(
			syscall.Bind(s, &syscall.SockaddrLinklayer{Protocol: htons(syscall.ETH_P_ALL), Ifindex: d.index}),
			syscall.SetsockoptInt(s, syscall.SOL_PACKET, packetIgnoreOutgoing, 1),
			syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 64<<20),
			syscall.SetsockoptTimeval(s, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 5}))
	})
	t.Cleanup(func() { syscall.Close(s) })
	return s
}

const packetIgnoreOutgoing = 23

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// openIn opens a device in a namespace; it is closed with the test, with every
// frame back in its pool.
func openIn(t testing.TB, namespace string, c Config) *Port {
	t.Helper()
	var p *Port
	in(t, namespace, func() (err error) {
		p, err = Open(c)
		return err
	})
	t.Cleanup(func() {
		if p.closed {
			return
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// numbered is a frame of size bytes that carries a number, of the Ethernet type
// for local experiments.
func numbered(size, number int) []byte {
	b := make([]byte, size)
	copy(b, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5")
	for i := range 4 {
		b[14+i] = byte(number >> (24 - 8*i))
	}
	for i := 18; i < size; i++ {
		b[i] = byte(number + i)
	}
	return b
}

// number is the number that a frame made by numbered carries, or -1.
func number(b []byte) int {
	if len(b) < 18 || b[12] != 0x88 || b[13] != 0xb5 {
		return -1
	}
	return int(b[14])<<24 | int(b[15])<<16 | int(b[16])<<8 | int(b[17])
}

// within polls until done says true, for as long as a test may take.
func within(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		runtime.Gosched()
	}
}

// send transmits copies of the packets and fails if the device never takes them.
func send(t testing.TB, q driver.Queue, packets ...[]byte) {
	t.Helper()
	for _, b := range packets {
		var f [1]driver.Frame
		within(t, "a frame to send", func() bool { return q.Allocate(f[:], len(b)) == 1 })
		f[0].Data = append(f[0].Data, b...)
		within(t, "room to send", func() bool { return q.Transmit(f[:]) == 1 })
	}
}

// quiet keeps the kernel from sending anything by itself on a device.
func quiet(t testing.TB, namespace, device string) {
	t.Helper()
	run(t, "ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf."+device+".disable_ipv6=1")
	run(t, "ip", "-n", namespace, "link", "set", device, "up")
}
