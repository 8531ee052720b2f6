package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sysfs opens the sysfs of the calling thread's network namespace, without
// mounting it anywhere: /sys shows the interfaces of the namespace in which it
// was mounted. The caller closes it.
func sysfs() (fd int, err error) {
	context, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open the namespace's sysfs: %w", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("configure the namespace's sysfs: %w", err)
	}
	fd, err = unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount the namespace's sysfs: %w", err)
	}
	return fd, nil
}

// openSysfs opens a file below the namespace's sysfs.
func openSysfs(path string, flags int) (*os.File, error) {
	root, err := sysfs()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join("/sys", path), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join("/sys", path)), nil
}
