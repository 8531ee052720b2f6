package doctor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// about returns what is found on one subject.
func about(t *testing.T, findings []Finding, subject string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.Subject == subject {
			return f
		}
	}
	t.Fatalf("nothing on %q in %+v", subject, findings)
	return Finding{}
}

func TestWhatTheKernelSaysOfADeviceIsJudged(t *testing.T) {
	one := napi.NAPI{ID: 8193, Queue: 0, IRQ: 41}
	good := Link{
		NAPI:  napi.State{NAPIs: []napi.NAPI{one}, Interrupts: map[int][]int{41: {0, 1}}},
		XDP:   napi.XDPBasic | napi.XDPRedirect | napi.XDPZeroCopy,
		Rings: napi.Rings{Split: napi.HeaderSplitOn},
		Modes: map[runtime.Mode]error{},
	}
	files := map[string]string{
		"sys/class/net/ens1/operstate":            "up\n",
		"sys/class/net/ens1/device/numa_node":     "1\n",
		"sys/devices/system/node/node1/cpulist":   "4-7\n",
		"proc/self/status":                        "Cpus_allowed_list:\t0-7\n",
		"sys/class/net/ens2/operstate":            "down\n",
		"sys/devices/system/node/node0/unrelated": "",
	}
	for _, c := range []struct {
		name, subject string
		change        func(*Machine, *Link)
		level         Level
		found, mend   string
	}{
		{"a queue and its interrupt", "queues", nil, OK, "0: NAPI 8193, interrupt 41 on 0-1", ""},
		{"a queue and its thread", "queues", func(_ *Machine, l *Link) {
			l.NAPI = napi.State{NAPIs: []napi.NAPI{{ID: 9, Queue: 0, Thread: 77}}, Threads: map[uint32][]int{9: {1}}}
		}, OK, "0: NAPI 9, thread 77 on 1", ""},
		{"no interrupt", "queues", func(_ *Machine, l *Link) {
			l.NAPI = napi.State{NAPIs: []napi.NAPI{{ID: 9, Queue: -1}}}
		}, OK, "?: NAPI 9, no interrupt known", "/proc/interrupts"},
		{"no NAPI", "queues", func(_ *Machine, l *Link) { l.NAPI = napi.State{} }, Warn, "no NAPI", "ethtool -K ens1 gro on"},
		{"NAPI not told", "queues", func(_ *Machine, l *Link) { l.NAPIError = errors.New("no family") }, Warn, "no family", "6.8"},

		{"far from all processors", "NUMA", nil, Warn, "on node 1, but processors 0-3 are not", "choose from 4-7"},
		{"near those chosen", "NUMA", func(m *Machine, _ *Link) { m.Cores = []int{4, 5} }, OK, "on node 1, as the processors 4-5", ""},
		{"far from one chosen", "NUMA", func(m *Machine, _ *Link) { m.Cores = []int{3, 4} }, Warn, "but processors 3 are not", "choose from 4-7"},

		{"all modes", "modes", nil, OK, "vanilla, irq-packing, irq-suppression, busy-poll, kernel-polling", ""},
		{"an older kernel", "modes", func(_ *Machine, l *Link) {
			why := errors.New("it needs Linux 6.9")
			l.Modes = map[runtime.Mode]error{runtime.BusyPoll: why, runtime.KernelPolling: why}
		}, Warn, "irq-suppression; not busy-poll, kernel-polling", "it needs Linux 6.9"},

		{"XDP and AF_XDP", "XDP", nil, OK, "basic redirect zero-copy; AF_XDP without copies", ""},
		{"AF_XDP with copies", "XDP", func(_ *Machine, l *Link) { l.XDP = napi.XDPBasic }, OK, "basic; AF_XDP with copies", ""},
		{"no native XDP", "XDP", func(_ *Machine, l *Link) { l.XDP = 0 }, Warn, "generic XDP", "whose driver has XDP"},
		{"XDP not told", "XDP", func(_ *Machine, l *Link) { l.XDPError = errors.New("no such command") }, Warn, "no such command", "6.3"},

		{"XDP as the kernel tells", "", nil, OK, "XDP native", ""},
		{"XDP as the kernel tells, without", "", func(_ *Machine, l *Link) { l.XDP = 0 }, OK, "XDP generic", ""},

		{"device memory", "devmem", nil, OK, "header split on; memory may be bound", ""},
		{"header split off", "devmem", func(_ *Machine, l *Link) { l.Rings.Split = napi.HeaderSplitOff }, OK, "header split off; memory may be bound", "tcp-data-split on"},
		{"no header split", "devmem", func(_ *Machine, l *Link) { l.Rings.Split = napi.HeaderSplitUnknown }, OK, "header split not by this device, so no memory", "a NIC whose driver"},
		{"no rings", "devmem", func(_ *Machine, l *Link) { l.RingError = napi.ErrUnsupported }, OK, "header split not by this device", "a NIC whose driver"},
		{"a kernel without", "devmem", func(m *Machine, _ *Link) { m.Network.BindMemory = false }, OK, "the kernel cannot bind", "CONFIG_NET_DEVMEM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, l := machine(t, files), good
			m.Network = &Network{BindMemory: true}
			if c.change != nil {
				c.change(&m, &l)
			}
			m.Network.Devices = map[string]Link{"ens1": l, "ens2": {}}
			findings := append(m.kernelPath(), m.interfaces()...)
			subject := "  ens1 " + c.subject
			if c.subject == "" {
				subject = "device ens1"
			}
			f := about(t, findings, subject)
			if f.Level != c.level || !strings.Contains(f.Found, c.found) || !strings.Contains(f.Mend, c.mend) || (f.Mend == "") != (c.mend == "") {
				t.Errorf("got %+v\nwant %s, %q, %q", f, c.level, c.found, c.mend)
			}
			if down := about(t, findings, "  ens2 queues"); down.Level != OK || !strings.Contains(down.Mend, "ip link set ens2 up") {
				t.Errorf("a device that is down: %+v", down)
			}
		})
	}
}

func TestWhatAKilledProcessLeftIsSaid(t *testing.T) {
	m := machine(t, nil)
	m.Network = &Network{Left: []kernel.Restored{{Device: "ens1", PID: 12, Command: "pollux"}}}
	if f := about(t, m.kernelPath(), "ens1"); f.Level != Warn || !strings.Contains(f.Found, "process 12 (pollux)") || f.Mend != "pollux doctor --restore" {
		t.Errorf("%+v", f)
	}
	m = machine(t, nil)
	m.NetworkError = errors.New("no netlink")
	if f := about(t, m.kernelPath(), "kernel path"); f.Level != Warn || !strings.Contains(f.Found, "no netlink") || f.Mend == "" {
		t.Errorf("%+v", f)
	}
}

func TestTheKernelIsAskedAboutTheLabsDevice(t *testing.T) {
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-doctor", os.Getpid()), Path: runtime.Kernel, Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	var n *Network
	var address net.HardwareAddr
	err = l.Do(lab.Server, func() error {
		i, err := net.InterfaceByName(lab.ServerInterface)
		if err != nil {
			return err
		}
		address = i.HardwareAddr
		n, err = AskKernel([]int{0})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	d, found := n.Devices[lab.ServerInterface]
	if !found || len(n.Devices) != 1 {
		t.Fatalf("%+v", n.Devices)
	}
	if d.NAPIError != nil || len(d.NAPI.NAPIs) != 2 || d.NAPI.NAPIs[1].Thread == 0 || d.NAPI.Device.Address != address.String() {
		t.Errorf("%+v, %v", d.NAPI, d.NAPIError)
	}
	for mode, err := range d.Modes {
		if err != nil {
			t.Errorf("%s on the lab's device: %v", mode, err)
		}
	}
	if len(d.Modes) != len(runtime.Modes(runtime.Kernel)) || d.XDPError != nil || d.XDP&napi.XDPBasic == 0 || !n.BindMemory {
		t.Errorf("%+v", n)
	}
}

func TestInterruptPackingIsNotPromisedWhereTheServerWouldTakeAllCores(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	all := len(cores)
	if all > 8 {
		t.Skip("more queues than a lab is made of")
	}
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-packing", os.Getpid()), Path: runtime.Kernel, Queues: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		name  string
		cores []int
		works bool
	}{
		{"a queue for every core, and none chosen", nil, false},
		{"one core chosen", cores[:1], all > 1},
	} {
		var n *Network
		err := l.Do(lab.Server, func() (err error) {
			n, err = AskKernel(c.cores)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		packing := n.Devices[lab.ServerInterface].Modes[runtime.IRQPacking]
		if (packing == nil) != c.works || packing != nil && !strings.Contains(packing.Error(), "no processor is left") {
			t.Errorf("%s: %v", c.name, packing)
		}
	}
}
