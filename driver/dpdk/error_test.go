package dpdk

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// fails opens a device that cannot be opened and checks that the error names
// what is wrong and what to do.
func fails(t *testing.T, namespace string, c Config, words ...string) {
	t.Helper()
	var err error
	in(t, namespace, func() error {
		var p *Port
		if p, err = Open(c); err == nil {
			p.Close()
		}
		return nil
	})
	check(t, err, words...)
}

func check(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	t.Log(err)
}

// TestInitOnlyOnce: a second start is refused, and the first goes on.
func TestInitOnlyOnce(t *testing.T) {
	if err := Init(Options{}); !errors.Is(err, ErrStarted) {
		t.Errorf("second Init: %v", err)
	}
}

// TestOpenSaysWhatIsWrong: each thing that can be wrong at start has an error
// that names it, and leaves nothing behind that a correct start trips over.
func TestOpenSaysWhatIsWrong(t *testing.T) {
	v := newVeth(t, 2)
	ns := v.server
	good := Config{Device: v.device, Queues: 2}

	t.Run("no such device", func(t *testing.T) {
		fails(t, ns, Config{Device: "nonesuch"}, `no such device: "nonesuch"`, v.device, "lo")
		fails(t, ns, Config{}, "no device was named", v.device)
	})
	t.Run("no such driver", func(t *testing.T) {
		fails(t, ns, Config{Device: v.device, Driver: "e1000"}, `no such driver: "e1000"`, AFXDP, AFPacket, TAP)
	})
	t.Run("no such virtual device", func(t *testing.T) {
		fails(t, ns, Config{Device: "net_nonesuch0"}, "net_nonesuch0", "probing")
	})
	t.Run("PCI device that was not named", func(t *testing.T) {
		fails(t, ns, Config{Device: "0000:3b:00.0"}, "Options.PCI")
	})
	t.Run("a queue is not covered", func(t *testing.T) {
		fails(t, ns, Config{Device: v.device, Queues: 1}, "not be covered", "ethtool -L "+v.device+" rx 1 tx 1")
		fails(t, ns, Config{Device: v.device, Queues: 3}, "2 receive", "ethtool -L "+v.device+" rx 3 tx 3")
	})
	t.Run("out of range", func(t *testing.T) {
		fails(t, ns, Config{Device: v.device, Queues: -1}, "out of range")
		fails(t, ns, Config{Device: v.device, Queues: 1000}, "out of range")
	})
	t.Run("too little memory", func(t *testing.T) {
		fails(t, ns, Config{Device: v.device, Queues: 2, PoolFrames: 1 << 20}, "too little memory", "Options.Memory", "MiB")
		fails(t, ns, Config{Device: v.device, Queues: 2, PoolFrames: 64}, "64 frames are too few", "5120")
	})
	t.Run("peer offloads", func(t *testing.T) {
		run(t, "ip", "netns", "exec", v.client, "ethtool", "-K", v.peer, "tx", "on")
		for _, driver := range []string{AFXDP, AFPacket} {
			fails(t, ns, Config{Device: v.device, Queues: 2, Driver: driver},
				"ethtool -K "+v.peer+" tx off tso off gso off", "transmit checksumming", v.client)
		}
		run(t, "ip", "netns", "exec", v.client, "ethtool", "-K", v.peer, "tx", "off")
	})
	t.Run("opened twice", func(t *testing.T) {
		p := openIn(t, ns, good)
		fails(t, ns, good, "has it open already")
		fails(t, ns, Config{Device: v.device, Queues: 2, Driver: AFPacket}, "has it open already")
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		check(t, p.Close(), "closed already")
	})
	t.Run("missing capabilities", func(t *testing.T) {
		for _, c := range []struct {
			drop   int
			driver string
			name   string
		}{{capNetRaw, AFXDP, "CAP_NET_RAW"}, {capNetAdmin, AFXDP, "CAP_NET_ADMIN"}, {capNetRaw, AFPacket, "CAP_NET_RAW"}, {capNetAdmin, TAP, "CAP_NET_ADMIN"}} {
			config := Config{Device: v.device, Queues: 2, Driver: c.driver}
			if c.driver == TAP {
				config = Config{Device: unique("t"), Driver: TAP}
			}
			var err error
			in(t, ns, func() error {
				// This thread ends with its goroutine, and its loss with it.
				runtime.LockOSThread()
				if err := dropCapability(c.drop); err != nil {
					return err
				}
				_, err = Open(config)
				return nil
			})
			check(t, err, c.name, "root")
		}
	})
	t.Run("and then it works", func(t *testing.T) {
		openIn(t, ns, good)
	})
}

// TestPeerIsFoundEverywhere: the peer of a veth is looked at in our own
// namespace, in one with a name, and is let pass where nobody can reach it.
func TestPeerIsFoundEverywhere(t *testing.T) {
	ns, a, b := namespace(t), unique("a"), unique("b")
	run(t, "ip", "-n", ns, "link", "add", a, "type", "veth", "peer", "name", b)
	fails(t, ns, Config{Device: a}, "ethtool -K "+b+" tx off")
	fails(t, ns, Config{Device: b}, "ethtool -K "+a+" tx off")
	run(t, "ip", "netns", "exec", ns, "ethtool", "-K", b, "tx", "off", "tso", "off", "gso", "off")
	p := openIn(t, ns, Config{Device: a})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// dropCapability takes an effective capability from the calling thread.
func dropCapability(c int) error {
	header := struct {
		version uint32
		pid     int32
	}{version: 0x20080522}
	var data [2]struct{ effective, permitted, inheritable uint32 }
	if _, _, e := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		return fmt.Errorf("capget: %w", e)
	}
	data[c/32].effective &^= 1 << (c % 32)
	if _, _, e := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		return fmt.Errorf("capset: %w", e)
	}
	return nil
}

// TestOptionsAreChecked: what cannot work is refused before the EAL starts,
// which it can only once.
func TestOptionsAreChecked(t *testing.T) {
	if _, err := (Options{PCI: []string{"eth0"}}).arguments(); err == nil {
		t.Error("a PCI address that is none was accepted")
	}
	a, err := Options{Memory: 64}.arguments()
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(a, " ")
	for _, w := range []string{"--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m 64"} {
		if !strings.Contains(line, w) {
			t.Errorf("%q lacks %s", line, w)
		}
	}
	a, err = Options{PCI: []string{"0000:3b:00.0"}, HugePages: true, Memory: 64}.arguments()
	if err != nil {
		t.Fatal(err)
	}
	line = strings.Join(a, " ")
	if strings.Contains(line, "--no-pci") || strings.Contains(line, "--no-huge") || !strings.Contains(line, "-a 0000:3b:00.0") {
		t.Errorf("%q does not allow the device", line)
	}
	if err := checkHugePages(1 << 30); err == nil {
		t.Error("more hugepages than any machine has are said to be free")
	}
}
