package doctor

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

func (m Machine) interfaces() []Finding {
	var findings []Finding
	routes := m.defaultRoutes()
	for _, name := range m.list("sys/class/net") {
		if name == "lo" {
			continue
		}
		kernel := m.driverOfInterface(name)
		shown := kernel
		if shown == "" {
			shown = "virtual"
		}
		receive, transmit := 0, 0
		for _, queue := range m.list("sys/class/net", name, "queues") {
			switch {
			case strings.HasPrefix(queue, "rx-"):
				receive++
			case strings.HasPrefix(queue, "tx-"):
				transmit++
			}
		}
		f := Finding{Level: OK, Subject: "device " + name, Found: fmt.Sprintf(
			"%s, %s, %d receive and %d transmit queues, XDP %s", shown, m.read("sys/class/net", name, "operstate"), receive, transmit, m.xdpOf(name, kernel))}
		if routes[name] {
			f.Found += ", carries the default route"
			f.Mend = "leave it to the kernel: a device that Pollux takes is lost to everything else"
		}
		findings = append(findings, f)
	}
	if len(findings) == 0 {
		findings = append(findings, Finding{OK, "devices", "none but lo", "pollux lab up makes a pair to work with"})
	}
	return findings
}

// xdpOf says where XDP programs run: as the kernel tells, else as is known of
// the driver.
func (m Machine) xdpOf(name, kernel string) string {
	if m.Network != nil {
		if l, told := m.Network.Devices[name]; told && l.XDPError == nil {
			if l.XDP&napi.XDPBasic != 0 {
				return nativeXDP
			}
			return genericXDP
		}
	}
	return driverOf(kernel).xdp
}

// driverOfInterface is the name of the driver, or "" if the kernel does not
// tell in sysfs, as for most virtual devices; a few of those can be told by
// their files.
func (m Machine) driverOfInterface(name string) string {
	if driver := m.link("sys/class/net", name, "device/driver"); driver != "" {
		return driver
	}
	uevent := m.read("sys/class/net", name, "uevent")
	for line := range strings.Lines(uevent) {
		if kind, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVTYPE="); ok {
			return kind
		}
	}
	if m.read("sys/class/net", name, "tun_flags") != "" {
		return "tun"
	}
	// A peer is another interface: veth, or something stacked like a VLAN,
	// which has a link from below.
	index, peer := m.read("sys/class/net", name, "ifindex"), m.read("sys/class/net", name, "iflink")
	if index != "" && peer != "" && index != peer {
		if lower, _ := filepath.Glob(m.path("sys/class/net", name, "lower_*")); len(lower) == 0 {
			return "veth"
		}
	}
	return ""
}

// defaultRoutes names the interfaces that carry IPv4's or IPv6's.
func (m Machine) defaultRoutes() map[string]bool {
	found := make(map[string]bool)
	for line := range strings.Lines(m.read("proc/net/route")) {
		// Interface, destination, …, mask at 7.
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			found[f[0]] = true
		}
	}
	for line := range strings.Lines(m.read("proc/net/ipv6_route")) {
		// Destination, its length, …, interface at 9; lo has one that rejects.
		if f := strings.Fields(line); len(f) > 9 && f[0] == strings.Repeat("0", 32) && f[1] == "00" && f[9] != "lo" {
			found[f[9]] = true
		}
	}
	return found
}

type pciDevice struct {
	address, driver, names string
}

// networkPCIDevices lists the PCI functions of class 02, network controllers.
func (m Machine) networkPCIDevices() []pciDevice {
	const dir = "sys/bus/pci/devices"
	var found []pciDevice
	for _, address := range m.list(dir) {
		if !strings.HasPrefix(m.read(dir, address, "class"), "0x02") {
			continue
		}
		names := m.list(dir, address, "net")
		if virtual, _ := filepath.Glob(m.path(dir, address, "virtio*/net/*")); len(names) == 0 {
			for _, v := range virtual {
				names = append(names, filepath.Base(v))
			}
		}
		found = append(found, pciDevice{address, m.link(dir, address, "driver"), strings.Join(names, " ")})
	}
	return found
}

func (m Machine) pciDevices() []Finding {
	var findings []Finding
	for _, d := range m.networkPCIDevices() {
		f := Finding{Level: OK, Subject: "NIC " + d.address}
		switch d.driver {
		case "vfio-pci":
			f.Found = "bound to vfio-pci: ready for -a " + d.address
		case "uio_pci_generic", "igb_uio":
			f.Level, f.Found = Warn, "bound to "+d.driver+": ready for -a "+d.address+", without memory protection or receive interrupts for several queues"
			f.Mend = "bind it to vfio-pci if the machine has an IOMMU: dpdk-devbind.py -b vfio-pci " + d.address
		case "":
			f.Level, f.Found = Warn, "no driver has it"
			f.Mend = "bind it: dpdk-devbind.py -b vfio-pci " + d.address
		default:
			f.Found = "the kernel's, driver " + d.driver
			if d.names != "" {
				f.Found += " as " + d.names
			}
		}
		findings = append(findings, f)
	}
	if len(findings) == 0 {
		findings = append(findings, Finding{OK, "NICs", "none on PCI; veth, tap and other kernel devices work", ""})
	}
	return findings
}

func (m Machine) iommu() []Finding {
	groups := len(m.list("sys/kernel/iommu_groups"))
	loaded := m.read("sys/module/vfio_pci/refcnt") != "" || len(m.list("sys/bus/pci/drivers/vfio-pci")) > 0
	f := Finding{Level: OK, Subject: "vfio and IOMMU"}
	switch {
	case loaded && groups > 0:
		f.Found = fmt.Sprintf("vfio-pci is loaded, %d IOMMU groups", groups)
	case loaded:
		f.Level, f.Found = Warn, "vfio-pci is loaded, but there is no IOMMU"
		f.Mend = "turn it on in the firmware and boot with intel_iommu=on or amd_iommu=on; or, unprotected: echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
	case groups > 0:
		f.Level, f.Found = Warn, fmt.Sprintf("%d IOMMU groups, but vfio-pci is not loaded", groups)
		f.Mend = "for a NIC of its own: modprobe vfio-pci"
	default:
		f.Level, f.Found = Warn, "neither; only devices that stay with the kernel can be used (af_xdp, af_packet, tap, mlx5)"
		f.Mend = "for a NIC of its own: intel_iommu=on or amd_iommu=on at boot, then modprobe vfio-pci"
	}
	return []Finding{f}
}
