package dpdk

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// Requests of ioctl and their commands (linux/sockios.h, linux/ethtool.h).
const (
	siocgifname  = 0x8910
	siocgifflags = 0x8913
	siocsifflags = 0x8914
	siocethtool  = 0x8946

	ethtoolGetChannels   = 0x3c
	ethtoolGetTxChecksum = 0x16
	ethtoolGetTSO        = 0x1e
)

// netdev is a network device of the kernel. It is reached through a socket
// that stays in the device's network namespace, whichever thread uses it.
type netdev struct {
	name   string
	index  int
	mtu    int
	socket int
	found  uint16 // flags before we touched the device
}

// openNetdev finds a device in the calling thread's network namespace.
func openNetdev(name string) (*netdev, error) {
	i, err := net.InterfaceByName(name)
	if err != nil || len(name) >= syscall.IFNAMSIZ {
		return nil, fmt.Errorf("no such device: %q; %s", name, existing())
	}
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket to control %s: %w", name, err)
	}
	d := &netdev{name: name, index: i.Index, mtu: i.MTU, socket: s}
	if d.found, err = d.flags(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// existing lists the devices that there are, for an error message.
func existing() string {
	list, err := net.Interfaces()
	if err != nil || len(list) == 0 {
		return "this network namespace has none"
	}
	names := make([]string, len(list))
	for i, d := range list {
		names[i] = d.Name
	}
	return "this network namespace has " + strings.Join(names, ", ")
}

func (d *netdev) close() { syscall.Close(d.socket) }

// ifreq is struct ifreq: a name and a union of 24 bytes.
type ifreq struct {
	name [syscall.IFNAMSIZ]byte
	data [24]byte
}

func ioctl(socket int, request uintptr, r *ifreq) error {
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), request, uintptr(unsafe.Pointer(r)))
	if e != 0 {
		return e
	}
	return nil
}

func (d *netdev) flags() (uint16, error) {
	var r ifreq
	copy(r.name[:], d.name)
	if err := ioctl(d.socket, siocgifflags, &r); err != nil {
		return 0, fmt.Errorf("reading the flags of %s: %w", d.name, err)
	}
	return *(*uint16)(unsafe.Pointer(&r.data)), nil
}

// setFlags sets the flags of mask to those of value, if they differ.
func (d *netdev) setFlags(value, mask uint16) error {
	now, err := d.flags()
	if err != nil {
		return err
	}
	want := now&^mask | value&mask
	if want == now {
		return nil
	}
	var r ifreq
	copy(r.name[:], d.name)
	*(*uint16)(unsafe.Pointer(&r.data)) = want
	if err := ioctl(d.socket, siocsifflags, &r); err != nil {
		return fmt.Errorf("setting the flags of %s: %w", d.name, err)
	}
	return nil
}

// restore gives the device the flags that it was found with.
func (d *netdev) restore() error {
	err := d.setFlags(d.found, syscall.IFF_UP|syscall.IFF_PROMISC|syscall.IFF_ALLMULTI)
	if errors.Is(err, syscall.ENODEV) {
		return nil // The device is gone, and its flags with it.
	}
	return err
}

// ethtool performs a command of ethtool; p points to its structure.
func ethtool(socket int, name string, p unsafe.Pointer) error {
	// The kernel's structure holds the address of another, so Go must see a pointer.
	r := struct {
		name [syscall.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: p}
	copy(r.name[:], name)
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), siocethtool, uintptr(unsafe.Pointer(&r)))
	if e != 0 {
		return e
	}
	return nil
}

// channels are the queues that a device uses and could use (ethtool -l).
type channels struct {
	rx, tx   int
	combined bool // they come in pairs, which is how ethtool -L wants to be asked
}

func (d *netdev) channels() (channels, error) {
	c := struct {
		command                                    uint32
		maxRx, maxTx, maxOther, maxCombined        uint32
		rxCount, txCount, otherCount, combinedRxTx uint32
	}{command: ethtoolGetChannels}
	err := ethtool(d.socket, d.name, unsafe.Pointer(&c))
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return channels{rx: 1, tx: 1}, nil // A device that cannot tell has one.
	}
	if err != nil {
		return channels{}, fmt.Errorf("reading the number of queues of %s: %w", d.name, err)
	}
	return channels{
		rx:       int(c.rxCount + c.combinedRxTx),
		tx:       int(c.txCount + c.combinedRxTx),
		combined: c.maxCombined > 0,
	}, nil
}

// command is what sets a device to n queues.
func (c channels) command(name string, n int) string {
	if c.combined {
		return fmt.Sprintf("ethtool -L %s combined %d", name, n)
	}
	return fmt.Sprintf("ethtool -L %s rx %d tx %d", name, n, n)
}

// covered fails unless n queues are exactly those that the device receives on:
// frames of a queue that nobody polls would be lost without a trace.
func (d *netdev) covered(n int) error {
	c, err := d.channels()
	if err != nil {
		return err
	}
	if c.rx == n && c.tx >= n {
		return nil
	}
	if c.rx > n {
		return fmt.Errorf("%s receives on %d queues, of which %d would not be covered and their frames lost; take all, or: %s", d.name, c.rx, c.rx-n, c.command(d.name, n))
	}
	return fmt.Errorf("%s has %d receive and %d transmit queues, not %d; take fewer, or: %s", d.name, c.rx, c.tx, n, c.command(d.name, n))
}

// Capabilities of a process (linux/capability.h).
const (
	capNetAdmin = 12
	capNetRaw   = 13
	capIPCLock  = 14
	capSysAdmin = 21
	capBPF      = 39
)

var capabilityNames = map[int]string{
	capNetAdmin: "CAP_NET_ADMIN", capNetRaw: "CAP_NET_RAW", capIPCLock: "CAP_IPC_LOCK", capBPF: "CAP_BPF",
}

// need fails if the calling thread lacks one of the capabilities.
func need(what string, list ...int) error {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return nil // Not to be found out here: what follows will tell.
	}
	var have uint64
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "CapEff:"); ok {
			fmt.Sscanf(strings.TrimSpace(v), "%x", &have)
		}
	}
	var missing []string
	for _, c := range list {
		if have&(1<<c) == 0 && !(c == capBPF && have&(1<<capSysAdmin) != 0) {
			missing = append(missing, capabilityNames[c])
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s needs %s; run as root, or: setcap %s+ep on the binary", what, strings.Join(missing, " and "), strings.ToLower(strings.Join(missing, ",")))
	}
	return nil
}

// lockable fails if the kernel would not let this thread pin so many bytes for
// the device to write into.
func lockable(n int) error {
	var limit syscall.Rlimit
	if syscall.Getrlimit(rlimitMemlock, &limit) != nil || limit.Cur >= uint64(n) {
		return nil
	}
	if err := need("pinning memory", capIPCLock); err != nil {
		return fmt.Errorf("%d MiB are to be pinned for the device and the limit is %d KiB; raise it (ulimit -l), or: %w", n>>20, limit.Cur>>10, err)
	}
	return nil
}

const rlimitMemlock = 8
