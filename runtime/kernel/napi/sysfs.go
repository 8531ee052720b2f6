package napi

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// openSysfs opens the sysfs of the calling thread's network namespace without
// mounting it anywhere: /sys shows the devices of the namespace in which it was
// mounted.
func openSysfs() (fd int, err error) {
	context, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err == nil {
		defer unix.Close(context)
		if err = unix.FsconfigCreate(context); err == nil {
			fd, err = unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
		}
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: CAP_SYS_ADMIN is needed: %w", ErrPrivilege, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open the namespace's sysfs: %w", err)
	}
	return fd, nil
}

// Defaults are the settings of a device as a whole, which kernels before 6.13
// have instead of those of one NAPI instance. (On newer ones, setting them sets
// every instance.)
type Defaults struct {
	DeferHardIRQs   int           `json:"defer_hard_irqs"`
	GROFlushTimeout time.Duration `json:"gro_flush_timeout"`
}

const (
	deferFile = "napi_defer_hard_irqs"
	flushFile = "gro_flush_timeout"
)

// Defaults reads a device's.
func (c *Conn) Defaults(d Device) (Defaults, error) {
	deferral, err := c.readSysfs(d, deferFile)
	if err != nil {
		return Defaults{}, err
	}
	flush, err := c.readSysfs(d, flushFile)
	return Defaults{DeferHardIRQs: deferral, GROFlushTimeout: time.Duration(flush)}, err
}

// SetDefaults changes a device's. It needs CAP_NET_ADMIN.
func (c *Conn) SetDefaults(d Device, s Defaults) error {
	return errors.Join(
		c.writeSysfs(d, deferFile, s.DeferHardIRQs),
		c.writeSysfs(d, flushFile, int(s.GROFlushTimeout.Nanoseconds())))
}

func (c *Conn) readSysfs(d Device, file string) (int, error) {
	f, err := c.openDevice(d, file, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [64]byte
	n, err := f.Read(b[:])
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", file, d.Name, err)
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", file, d.Name, err)
	}
	return value, nil
}

func (c *Conn) writeSysfs(d Device, file string, value int) error {
	f, err := c.openDevice(d, file, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(strconv.Itoa(value)); err != nil {
		return fmt.Errorf("write %d to %s of %s: %w", value, file, d.Name, err)
	}
	return nil
}

func (c *Conn) openDevice(d Device, file string, flags int) (*os.File, error) {
	if c.sysfsError != nil {
		return nil, c.sysfsError
	}
	name := path.Join("class/net", d.Name, file)
	fd, err := unix.Openat(c.sysfs, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /sys/%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/sys/"+name), nil
}
