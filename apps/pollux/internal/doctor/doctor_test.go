package doctor

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine makes one of files; a value "-> x" is a symbolic link to x.
func machine(t *testing.T, files map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Machine{Root: root}
}

const (
	online = "sys/devices/system/cpu/online"
	status = "proc/self/status"
)

func TestEachCheckSeesWhatThereIsAndSaysHowToMendIt(t *testing.T) {
	type files = map[string]string
	for _, c := range []struct {
		name        string
		files       files
		check       func(Machine) []Finding
		level       Level
		found, mend string
	}{
		{"two processors", files{online: "0-1\n", status: "Cpus_allowed_list:\t0-1\n"},
			Machine.processors, OK, "2, of which this process may use 2", ""},
		{"one of eight processors", files{online: "0-7\n", status: "Cpus_allowed_list:\t3\n"},
			Machine.processors, Warn, "8, of which this process may use 1", "interrupt"},
		{"half a processor by control group 2, set above the own group",
			files{online: "0-7\n", status: "Cpus_allowed_list:\t0-3,7\n",
				"proc/self/cgroup":               "0::/a/b\n",
				"proc/self/mountinfo":            "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
				"sys/fs/cgroup/a/b/cpu.max":      "max 100000\n",
				"sys/fs/cgroup/a/cpu.max":        "50000 100000\n",
				"sys/fs/cgroup/unrelated/whatso": ""},
			Machine.processors, Warn, "may use 5, limited by its control group to 0.5", "at least 1"},
		{"three processors by control group 1 in a container",
			files{online: "0-7\n", status: "Cpus_allowed_list:\t0-7\n",
				"proc/self/cgroup":                        "8:cpu,cpuacct:/docker/x/y\n3:memory:/docker/x\n",
				"proc/self/mountinfo":                     "32 31 0:29 /docker/x /sys/fs/cgroup/cpu ro master:1 - cgroup cgroup rw,cpu,cpuacct\n",
				"sys/fs/cgroup/cpu/y/cpu.cfs_quota_us":    "300000\n",
				"sys/fs/cgroup/cpu/y/cpu.cfs_period_us":   "100000\n",
				"sys/fs/cgroup/cpu/cpu.cfs_quota_us":      "-1\n",
				"sys/fs/cgroup/cpu/cpu.cfs_period_us":     "100000\n",
				"sys/fs/cgroup/cpu/x/y/cpu.cfs_quota_us":  "1\n",
				"sys/fs/cgroup/cpu/x/y/cpu.cfs_period_us": "100000\n"},
			Machine.processors, OK, "limited by its control group to 3", ""},
		{"no proc", files{}, Machine.processors, Warn, "cannot be read", "mount"},

		{"enough memory", files{"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1048576 kB\n"}, Machine.memory, OK, "1024 MiB", ""},
		{"little memory", files{"proc/meminfo": "MemAvailable:  65536 kB\n"}, Machine.memory, Fail, "64 MiB", "384 MiB"},

		{"no hugepages", files{"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n"}, Machine.hugepages, Warn, "none", "nr_hugepages"},
		{"hugepages", files{"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512\n", "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "500\n"},
			Machine.hugepages, OK, "512 of 2 MiB (500 free)", ""},
		{"hugepages in use", files{"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "4\n", "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0\n"},
			Machine.hugepages, Warn, "4 of 1024 MiB (0 free)", "in use"},

		{"root", files{status: "CapEff:\t000001ffffffffff\n"}, Machine.capabilities, OK, "CAP_NET_ADMIN", ""},
		{"nobody", files{status: "CapEff:\t0000000000000000\n"}, Machine.capabilities, Fail, "missing: CAP_NET_ADMIN, CAP_NET_RAW", "root"},
		// Bits 12, 13, 21 and 23.
		{"a container with much", files{status: "CapEff:\t0000000000a03000\n"}, Machine.capabilities, Warn, "missing: CAP_BPF, CAP_PERFMON", "CAP_BPF to load"},

		{"little locked memory", files{status: "CapEff:\t0\n", "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         8388608              8388608              bytes\n"},
			Machine.lockedMemory, Warn, "8 MiB", "ulimit -l"},
		{"little locked memory, but the capability", files{status: "CapEff:\t000001ffffffffff\n", "proc/self/limits": "Max locked memory         8388608              8388608              bytes\n"},
			Machine.lockedMemory, OK, "8 MiB", ""},
		{"unlimited locked memory", files{"proc/self/limits": "Max locked memory         unlimited            unlimited            bytes\n"},
			Machine.lockedMemory, OK, "unlimited", ""},

		{"a new kernel", files{"proc/sys/kernel/osrelease": "6.18.44-x\n"}, Machine.kernel, OK, "6.18.44-x", ""},
		{"Debian 12's kernel", files{"proc/sys/kernel/osrelease": "6.1.0-30-amd64\n"}, Machine.kernel, Warn, "6.1.0", "6.8"},
		{"a kernel without suspension", files{"proc/sys/kernel/osrelease": "6.12.1\n"}, Machine.kernel, Warn, "6.12.1", "6.13"},
		{"an old kernel", files{"proc/sys/kernel/osrelease": "4.19.0\n"}, Machine.kernel, Fail, "4.19.0", "5.9"},

		{"no interfaces", files{"sys/class/net/lo/operstate": "up\n"}, Machine.interfaces, OK, "none but lo", "lab up"},
		{"the machine's own NIC", files{
			"sys/class/net/eth0/device/driver":    "-> ../../bus/virtio/drivers/virtio_net",
			"sys/class/net/eth0/operstate":        "up\n",
			"sys/class/net/eth0/queues/rx-0/rps":  "",
			"sys/class/net/eth0/queues/rx-1/rps":  "",
			"sys/class/net/eth0/queues/tx-0/xps":  "",
			"proc/net/route":                      "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\n",
			"sys/class/net/eth0/device/something": ""},
			Machine.interfaces, OK, "virtio_net, up, 2 receive and 1 transmit queues, XDP native, carries the default route", "leave it to the kernel"},
		{"a veth", files{"sys/class/net/pollux0/ifindex": "2\n", "sys/class/net/pollux0/iflink": "3\n"}, Machine.interfaces, OK, "veth", ""},
		{"a bridge", files{"sys/class/net/br0/uevent": "DEVTYPE=bridge\nINTERFACE=br0\n"}, Machine.interfaces, OK, "bridge", ""},

		{"no NIC", files{"sys/bus/pci/devices/0000:00:00.0/class": "0x060000\n"}, Machine.pciDevices, OK, "none on PCI", ""},
		{"a NIC for us", files{"sys/bus/pci/devices/0000:3b:00.0/class": "0x020000\n", "sys/bus/pci/devices/0000:3b:00.0/driver": "-> ../drivers/vfio-pci"},
			Machine.pciDevices, OK, "ready for -a 0000:3b:00.0", ""},
		{"a NIC bound to uio", files{"sys/bus/pci/devices/0000:3b:00.0/class": "0x020000\n", "sys/bus/pci/devices/0000:3b:00.0/driver": "-> ../drivers/uio_pci_generic"},
			Machine.pciDevices, Warn, "uio_pci_generic", "vfio-pci"},
		{"a NIC for nobody", files{"sys/bus/pci/devices/0000:3b:00.0/class": "0x020000\n"}, Machine.pciDevices, Warn, "no driver", "dpdk-devbind.py"},
		{"the kernel's NIC", files{"sys/bus/pci/devices/0000:3b:00.0/class": "0x020000\n", "sys/bus/pci/devices/0000:3b:00.0/driver": "-> ../drivers/ice",
			"sys/bus/pci/devices/0000:3b:00.0/net/ens1/mtu": "1500"},
			Machine.pciDevices, OK, "driver ice as ens1", ""},

		{"no IOMMU", files{}, Machine.iommu, Warn, "neither", "intel_iommu=on"},
		{"IOMMU without vfio", files{"sys/kernel/iommu_groups/0/type": ""}, Machine.iommu, Warn, "1 IOMMU groups", "modprobe vfio-pci"},
		{"vfio without IOMMU", files{"sys/bus/pci/drivers/vfio-pci/new_id": ""}, Machine.iommu, Warn, "no IOMMU", "enable_unsafe_noiommu_mode"},
		{"IOMMU and vfio", files{"sys/kernel/iommu_groups/0/type": "", "sys/bus/pci/drivers/vfio-pci/new_id": ""}, Machine.iommu, OK, "vfio-pci is loaded", ""},

		{"no DPDK", files{}, Machine.dpdk, Fail, "not installed", "libdpdk-dev"},
		{"DPDK to run only", files{"usr/lib/x86_64-linux-gnu/librte_eal.so.23": ""}, Machine.dpdk, Warn, "development files are not", "libdpdk-dev"},
		{"DPDK without drivers", files{"usr/lib/x86_64-linux-gnu/pkgconfig/libdpdk.pc": "Name: DPDK\nVersion: 23.11.1\n",
			"usr/lib/x86_64-linux-gnu/librte_net_af_xdp.so": ""},
			Machine.dpdk, Warn, "version 23.11.1, without drivers af_packet, tap", "install"},
		{"an old DPDK", files{"usr/local/lib64/pkgconfig/libdpdk.pc": "Version: 19.11.0\n"}, Machine.dpdk, Warn, "19.11.0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			findings := c.check(machine(t, c.files))
			if len(findings) != 1 {
				t.Fatalf("%+v", findings)
			}
			f := findings[0]
			if f.Level != c.level || !strings.Contains(f.Found, c.found) || !strings.Contains(f.Mend, c.mend) {
				t.Errorf("got %+v\nwant %s, %q, %q", f, c.level, c.found, c.mend)
			}
			if f.Level != OK && f.Mend == "" {
				t.Error("nothing is said on how to mend it")
			}
		})
	}
}

func TestThisMachineIsDescribed(t *testing.T) {
	findings := Machine{Root: "/"}.Examine()
	var b bytes.Buffer
	Print(&b, findings)
	subjects := make(map[string]Finding)
	for _, f := range findings {
		subjects[f.Subject] = f
	}
	for _, want := range []string{"processors", "memory", "hugepages", "capabilities", "locked memory", "kernel", "vfio and IOMMU", "dpdk"} {
		f, ok := subjects[want]
		if !ok || strings.Contains(f.Found, "cannot be read") {
			t.Errorf("%s: %+v", want, f)
		}
	}
	interfaces, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if !strings.HasPrefix(i.Name(), "eth") {
			continue // others may come and go
		}
		if _, ok := subjects["device "+i.Name()]; !ok {
			t.Errorf("%s is not in\n%s", i.Name(), b.String())
		}
	}
}

func TestAnEmptyMachineIsNotTakenForAGoodOne(t *testing.T) {
	if findings := (Machine{Root: t.TempDir()}).Examine(); Failures(findings) == 0 {
		t.Errorf("nothing is wrong with %+v", findings)
	}
}

func TestDriversOfThisMachineAreMarked(t *testing.T) {
	m := machine(t, map[string]string{
		"sys/class/net/eth0/device/driver":               "-> ../../bus/virtio/drivers/virtio_net",
		"sys/bus/pci/devices/0000:3b:00.0/class":         "0x020000\n",
		"sys/bus/pci/devices/0000:3b:00.0/driver":        "-> ../drivers/mlx5_core",
		"sys/bus/pci/devices/0000:3b:00.0/net/ens1/mtu":  "1500",
		"sys/bus/pci/devices/0000:3b:00.1/class":         "0x010000\n",
		"sys/bus/pci/devices/0000:3b:00.1/driver":        "-> ../drivers/ice",
		"sys/bus/pci/devices/0000:3b:00.1/net/none/addr": "",
	})
	var b bytes.Buffer
	m.PrintDrivers(&b)
	for line := range strings.Lines(b.String()) {
		marked := strings.HasPrefix(line, "*")
		want := strings.Contains(line, "virtio_net") || strings.Contains(line, "mlx5_core")
		if marked != want {
			t.Errorf("marked %v: %s", marked, line)
		}
	}
}
