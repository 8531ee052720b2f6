package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// Network is what the kernel says of devices where it has no files for it.
type Network struct {
	// BindMemory: a queue can receive into memory of another device, if its own
	// device can (devmem TCP).
	BindMemory bool
	Devices    map[string]Link
	// Left are the devices that killed processes left changed.
	Left []kernel.Restored
}

// Link is what the kernel says of one device. A value counts only if its error
// is nil.
type Link struct {
	NAPI      napi.State
	NAPIError error
	XDP       napi.XDPFeatures
	XDPError  error
	Rings     napi.Rings
	RingError error
	// Modes says why a mode of the kernel path cannot work, nil if it can.
	Modes map[runtime.Mode]error
}

// AskKernel asks about all devices of this network namespace, for a server on
// those cores, or if there are none on those that it takes by itself. It changes
// nothing.
func AskKernel(cores []int) (*Network, error) {
	c, err := napi.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	n := &Network{Devices: make(map[string]Link)}
	if n.BindMemory, err = c.CanBindMemory(); err != nil {
		return nil, err
	}
	devices, err := c.Devices()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if d.Name == "lo" {
			continue
		}
		l := Link{Modes: make(map[runtime.Mode]error)}
		l.NAPI, l.NAPIError = c.Save(d)
		l.XDP, l.XDPError = c.XDP(d)
		l.Rings, l.RingError = c.Rings(d)
		server := cores
		if len(server) == 0 {
			if server, err = defaultCores(c, d); err != nil {
				return nil, err
			}
		}
		for _, mode := range runtime.Modes(runtime.Kernel) {
			s, err := kernel.SettingsOf(mode)
			if err == nil {
				err = kernel.Check(d.Name, server, s)
			}
			l.Modes[mode] = err
		}
		n.Devices[d.Name] = l
	}
	n.Left, err = kernel.Pending()
	n.Left = slices.DeleteFunc(n.Left, func(r kernel.Restored) bool { return errors.Is(r.Err, fs.ErrPermission) })
	if errors.Is(err, fs.ErrPermission) {
		err = nil
	}
	return n, err
}

// defaultCores are those that a server takes if it is told no number: as many as
// the device has queues, of those that it may use.
func defaultCores(c *napi.Conn, d napi.Device) ([]int, error) {
	allowed, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	queues, err := c.Queues(d)
	if err != nil {
		return nil, err
	}
	return allowed[:min(max(1, len(queues)), len(allowed), goruntime.GOMAXPROCS(0))], nil
}

// kernelPath says of each device what the kernel path can do with it.
func (m Machine) kernelPath() []Finding {
	if m.NetworkError != nil {
		return []Finding{{Warn, "kernel path", "the kernel does not tell: " + m.NetworkError.Error(), "run as root, on Linux 6.8 or newer"}}
	}
	if m.Network == nil {
		return nil
	}
	var findings []Finding
	for _, name := range m.list("sys/class/net") {
		l, known := m.Network.Devices[name]
		if !known {
			continue
		}
		if m.read("sys/class/net", name, "operstate") == "down" && len(l.NAPI.NAPIs) == 0 {
			findings = append(findings, Finding{OK, "  " + name + " queues", "not to be seen while it is down", "ip link set " + name + " up"})
			continue
		}
		findings = append(findings, l.queues(name))
		if f, ok := m.nearness(name); ok {
			findings = append(findings, f)
		}
		if len(l.NAPI.NAPIs) > 0 {
			findings = append(findings, l.modes(name))
		}
		findings = append(findings, l.xdp(name), l.deviceMemory(name, m.Network.BindMemory))
	}
	for _, r := range m.Network.Left {
		f := Finding{Warn, r.Device, fmt.Sprintf("process %d (%s) was killed and left its settings", r.PID, r.Command), "pollux doctor --restore"}
		if r.Err != nil {
			f.Subject, f.Found = "restore", r.Err.Error()
		}
		findings = append(findings, f)
	}
	return findings
}

func (l Link) queues(name string) Finding {
	f := Finding{Level: OK, Subject: "  " + name + " queues"}
	switch {
	case l.NAPIError != nil:
		f.Level, f.Found, f.Mend = Warn, l.NAPIError.Error(), "run as root, on Linux 6.8 or newer"
		return f
	case len(l.NAPI.NAPIs) == 0:
		f.Level, f.Found = Warn, "no NAPI: the kernel cannot poll it, and of its modes only vanilla works"
		f.Mend = "set it up (ip link set " + name + " up); a veth needs GRO too: ethtool -K " + name + " gro on"
		return f
	}
	var parts []string
	silent := false
	for _, n := range l.NAPI.NAPIs {
		part := "?"
		if n.Queue >= 0 {
			part = strconv.Itoa(n.Queue)
		}
		part += ": NAPI " + strconv.Itoa(int(n.ID))
		switch {
		case n.IRQ > 0:
			part += fmt.Sprintf(", interrupt %d on %s", n.IRQ, napi.FormatCores(l.NAPI.Interrupts[n.IRQ]))
		case n.Thread > 0:
			part += fmt.Sprintf(", thread %d on %s", n.Thread, napi.FormatCores(l.NAPI.Threads[n.ID]))
		default:
			part += ", no interrupt known"
			silent = true
		}
		parts = append(parts, part)
	}
	f.Found = strings.Join(parts, "; ")
	if silent {
		f.Mend = "see /proc/interrupts for what the driver does not tell; a veth has none unless its NAPI has threads (pollux lab up --path kernel)"
	}
	return f
}

// nearness compares a device's NUMA node with the chosen processors; false if
// there is nothing to compare.
func (m Machine) nearness(name string) (Finding, bool) {
	node := m.read("sys/class/net", name, "device/numa_node")
	if node == "" {
		return Finding{}, false
	}
	f := Finding{Level: OK, Subject: "  " + name + " NUMA", Found: "on no node of its own"}
	if node == "-1" {
		return f, true
	}
	near, err := napi.ParseCores(m.read("sys/devices/system/node/node"+node, "cpulist"))
	if err != nil || len(near) == 0 {
		f.Found = "on node " + node + ", whose processors are not known"
		return f, true
	}
	chosen := m.cores()
	far := slices.DeleteFunc(slices.Clone(chosen), func(c int) bool { return slices.Contains(near, c) })
	f.Found = fmt.Sprintf("on node %s, as the processors %s", node, napi.FormatCores(chosen))
	if len(far) > 0 {
		f.Level, f.Found = Warn, fmt.Sprintf("on node %s, but processors %s are not", node, napi.FormatCores(far))
		f.Mend = "choose from " + napi.FormatCores(near)
	}
	return f, true
}

// cores are those that were chosen, or all that this process may use.
func (m Machine) cores() []int {
	if len(m.Cores) > 0 {
		return m.Cores
	}
	cores, err := napi.ParseCores(field(m.read("proc/self/status"), "Cpus_allowed_list"))
	if err != nil {
		return nil
	}
	return cores
}

func (l Link) modes(name string) Finding {
	f := Finding{Level: OK, Subject: "  " + name + " modes"}
	var work []string
	var not, why []string
	for _, mode := range runtime.Modes(runtime.Kernel) {
		err := l.Modes[mode]
		if err == nil {
			work = append(work, string(mode))
			continue
		}
		not = append(not, string(mode))
		if i := slices.Index(why, err.Error()); i < 0 {
			why = append(why, err.Error())
		}
	}
	f.Found = strings.Join(work, ", ")
	if len(not) > 0 {
		f.Level = Warn
		f.Found += "; not " + strings.Join(not, ", ")
		f.Mend = strings.Join(why, "; ")
	}
	return f
}

func (l Link) xdp(name string) Finding {
	f := Finding{Level: OK, Subject: "  " + name + " XDP"}
	switch {
	case l.XDPError != nil:
		f.Level, f.Found, f.Mend = Warn, l.XDPError.Error(), "Linux 6.3 or newer tells"
	case l.XDP&napi.XDPBasic == 0:
		f.Level, f.Found = Warn, "not by its driver: the kernel's generic XDP, and AF_XDP with copies, both slow"
		f.Mend = "use a device whose driver has XDP, or --driver af_packet"
	case l.XDP&napi.XDPZeroCopy == 0:
		f.Found = l.XDP.String() + "; AF_XDP with copies"
	default:
		f.Found = l.XDP.String() + "; AF_XDP without copies"
	}
	return f
}

func (l Link) deviceMemory(name string, kernelCan bool) Finding {
	f := Finding{Level: OK, Subject: "  " + name + " devmem"}
	split := "not by this device"
	if l.RingError == nil {
		switch l.Rings.Split {
		case napi.HeaderSplitOff:
			split = "off"
			f.Mend = "ethtool -G " + name + " tcp-data-split on"
		case napi.HeaderSplitOn:
			split = "on"
		}
	}
	f.Found = "header split " + split
	switch {
	case !kernelCan:
		f.Found += "; the kernel cannot bind device memory"
		f.Mend = strings.TrimPrefix(f.Mend+"; for devmem TCP: Linux 6.12 with CONFIG_NET_DEVMEM", "; ")
	case split == "not by this device":
		f.Found += ", so no memory can be bound to its queues"
		f.Mend = "for devmem TCP: a NIC whose driver splits headers (gve, bnxt_en, mlx5_core)"
	default:
		f.Found += "; memory may be bound to its queues"
	}
	return f
}
