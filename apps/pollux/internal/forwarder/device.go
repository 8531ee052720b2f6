package forwarder

import (
	"slices"
	"strings"

	"github.com/pollux-net/pollux/driver/dpdk"
)

// device is one of Config.Devices, taken apart: [DRIVER:]DEVICE[@INTERFACE].
type device struct {
	name      string // as dpdk.Config names it
	driver    string // for network devices of the kernel; empty for others
	inter     string // whose addresses and routes are the port's; empty for the device's own
	isPCI     bool
	isVirtual bool
}

// parseDevice takes a device apart. What names no driver gets the default one.
func parseDevice(text, driver string) device {
	d := device{driver: driver}
	d.name, d.inter, _ = strings.Cut(text, "@")
	// A PCI address has colons, too.
	if first, rest, found := strings.Cut(d.name, ":"); found && slices.Contains([]string{dpdk.AFXDP, dpdk.AFPacket, dpdk.TAP}, first) {
		d.driver, d.name = first, rest
	}
	d.isPCI, d.isVirtual = dpdk.IsPCI(d.name), strings.HasPrefix(d.name, "net_")
	if d.isPCI || d.isVirtual {
		d.driver = ""
	}
	return d
}

// plan is what DPDK is asked for. PCI devices are served by the same code as the
// others; the EAL must know beforehand which it may take.
func plan(c Config, devices []device, queues int) (options dpdk.Options, ports []dpdk.Config) {
	options = dpdk.Options{Memory: c.DPDKMemory, HugePages: c.HugePages, Arguments: c.EAL}
	if options.Memory == 0 {
		options.Memory = dpdk.DefaultMemory + 32*(len(devices)*queues-1)
	}
	for _, d := range devices {
		if d.isPCI {
			options.PCI = append(options.PCI, d.name)
		}
		ports = append(ports, dpdk.Config{Device: d.name, Driver: d.driver, Queues: queues, Interrupts: true})
	}
	return options, ports
}
