package doctor

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// A driver is what is known of a kind of device, by its name in the kernel or,
// for DPDK's own virtual devices, in DPDK. Receive interrupts are by DPDK's own
// matrix of NIC features; sockets were tried.
type driver struct {
	kernel string
	// user is DPDK's driver for it, and how it gets the device.
	user, attach string
	// interrupt says what a loop can sleep on.
	interrupt string
	// xdp says where an XDP program runs (and so how well af_xdp does).
	xdp string
}

const (
	viaVFIO    = "bound to vfio-pci"
	bifurcated = "stays with the kernel too"
	viaKernel  = "stays with the kernel"
	byItself   = "needs no device"

	nicInterrupt    = "yes, the NIC's"
	socketInterrupt = "yes, the socket's"
	eventInterrupt  = "yes, an eventfd"
	fileInterrupt   = "yes, the device file's"
	noInterrupt     = "no: short sleeps"

	nativeXDP  = "native"
	genericXDP = "generic (slow)"
	noXDP      = "-"
)

var drivers = []driver{
	{"mlx5_core", "mlx5", bifurcated, nicInterrupt, nativeXDP},
	{"ice", "ice", viaVFIO, nicInterrupt, nativeXDP},
	{"iavf", "iavf", viaVFIO, nicInterrupt, genericXDP},
	{"i40e", "i40e", viaVFIO, nicInterrupt, nativeXDP},
	{"ixgbe", "ixgbe", viaVFIO, nicInterrupt, nativeXDP},
	{"igb", "igb", viaVFIO, nicInterrupt, nativeXDP},
	{"igc", "igc", viaVFIO, nicInterrupt, nativeXDP},
	{"ena", "ena", viaVFIO, nicInterrupt, nativeXDP},
	{"bnxt_en", "bnxt", viaVFIO, nicInterrupt, nativeXDP},
	{"vmxnet3", "vmxnet3", viaVFIO, nicInterrupt, nativeXDP},
	{"virtio_net", "virtio", viaVFIO, nicInterrupt, nativeXDP},
	{"veth", "af_xdp", viaKernel, socketInterrupt, nativeXDP},
	{"tun", "af_xdp", viaKernel, socketInterrupt, nativeXDP},
	{"any other", "af_xdp or af_packet", viaKernel, socketInterrupt, genericXDP},
	{"net_tap", "tap", byItself, fileInterrupt, noXDP},
	{"net_virtio_user", "virtio_user", byItself, eventInterrupt, noXDP},
	{"net_vhost", "vhost", byItself, eventInterrupt, noXDP},
	{"net_memif", "memif", byItself, noInterrupt, noXDP},
	{"net_ring", "ring", byItself, noInterrupt, noXDP},
}

func driverOf(kernel string) driver {
	i := slices.IndexFunc(drivers, func(d driver) bool { return d.kernel == kernel })
	if i < 0 {
		i = slices.IndexFunc(drivers, func(d driver) bool { return d.kernel == "any other" })
	}
	return drivers[i]
}

// PrintDrivers writes the table of devices: what drives each, and whether a loop
// can sleep until a frame arrives. Those that this machine has are marked.
func (m Machine) PrintDrivers(w io.Writer) {
	present := make(map[string]bool)
	for _, name := range m.list("sys/class/net") {
		present[m.driverOfInterface(name)] = true
	}
	for _, d := range m.networkPCIDevices() {
		present[d.driver] = true
	}
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "here\tdriver\tin user space\tthe device\treceive interrupt\tXDP")
	for _, d := range drivers {
		mark := ""
		if present[d.kernel] {
			mark = "*"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, d.kernel, d.user, d.attach, d.interrupt, d.xdp)
	}
	table.Flush()
}
