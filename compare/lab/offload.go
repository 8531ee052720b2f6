package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An offload is what ethtool -K switches by one short name, with the pair of
// ethtool commands that read and write it (linux/ethtool.h).
type offload struct {
	name     string
	get, set uint32
}

var (
	transmitChecksum = offload{"tx", unix.ETHTOOL_GTXCSUM, unix.ETHTOOL_STXCSUM}
	segmentTCP       = offload{"tso", unix.ETHTOOL_GTSO, unix.ETHTOOL_STSO}
	segmentGeneric   = offload{"gso", unix.ETHTOOL_GGSO, unix.ETHTOOL_SGSO}
	receiveMerge     = offload{"gro", unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO}
)

// read asks, in the calling thread's network namespace, whether the offload is
// on at the interface.
func (o offload) read(ifname string) (bool, error) {
	value, err := ethtool(ifname, o.get, 0)
	if err != nil {
		return false, fmt.Errorf("read offload %s of %s: %w", o.name, ifname, err)
	}
	return value != 0, nil
}

func (o offload) write(ifname string, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	if _, err := ethtool(ifname, o.set, value); err != nil {
		return fmt.Errorf("turn offload %s of %s %s: %w", o.name, ifname, onOff(on), err)
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// ethtool does one command that carries one value (struct ethtool_value).
func ethtool(ifname string, command, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	argument := &struct{ command, data uint32 }{command, value}
	// struct ifreq is a name and a union of 24 bytes.
	request := &struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(argument)}
	if copy(request.name[:unix.IFNAMSIZ-1], ifname) < len(ifname) {
		return 0, unix.ENODEV
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(request))); errno != 0 {
		return 0, errno
	}
	return argument.data, nil
}
