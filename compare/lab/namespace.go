package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where ip netns keeps names, so that its commands see ours.
const namespaceDir = "/run/netns"

// Do runs f on the calling goroutine, whose thread is in the side's network
// namespace meanwhile and is back in its own afterwards, also if f panics.
// Sockets that f opens stay in the namespace; goroutines that it starts are not
// in it. The file system is the caller's (so /sys/class/net is not the side's;
// Start is for programs that look there).
func (l *Lab) Do(side Side, f func() error) error {
	return within(l.Namespace(side), f)
}

func within(namespace string, f func() error) (err error) {
	target, err := netns.GetFromName(namespace)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w; is the lab up?", namespace, err)
	}
	defer target.Close()

	runtime.LockOSThread()
	origin, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer origin.Close()
	if err := netns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", namespace, err)
	}
	defer func() {
		if back := netns.Set(origin); back != nil {
			// The thread stays locked, so that no other goroutine ever runs in
			// the wrong namespace: it ends with this goroutine.
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", namespace, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// onSpareThread runs f on a thread that ends afterwards, so that f may change
// what cannot be changed back.
func onSpareThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread does not end, it would only be parked, holding
			// whatever f did to it. While it is locked here, another is used.
			result <- onSpareThread(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}

func namespaceExists(namespace string) (bool, error) {
	var stat unix.Statfs_t
	err := unix.Statfs(filepath.Join(namespaceDir, namespace), &stat)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at network namespace %s: %w", namespace, err)
	}
	return stat.Type == unix.NSFS_MAGIC, nil
}

// ensureNamespace makes the namespace unless it exists.
func ensureNamespace(namespace string) (created bool, err error) {
	exists, err := namespaceExists(namespace)
	if err != nil || exists {
		return false, err
	}
	// A name without a namespace is what an interrupted attempt leaves.
	if err := removeNamespace(namespace); err != nil {
		return false, err
	}
	err = onSpareThread(func() error {
		handle, err := netns.NewNamed(namespace)
		if err != nil {
			return err
		}
		return handle.Close()
	})
	if err != nil {
		err = errors.Join(fmt.Errorf("make network namespace %s: %w", namespace, err), removeNamespace(namespace))
		return false, err
	}
	return true, nil
}

// removeNamespace takes the name away; the kernel ends the namespace with its
// last process. It is no error if there is none.
func removeNamespace(namespace string) error {
	path := filepath.Join(namespaceDir, namespace)
	// EINVAL: the name exists, but nothing is mounted there.
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", namespace, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", namespace, err)
	}
	return nil
}

// lock keeps others, in this process and in others, from making or removing
// labs meanwhile. It is the directory that is locked, as ip netns does: there is
// no file to be left behind.
func lock() (unlock func(), err error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of network namespaces: %w", err)
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of network namespaces: %w", err)
	}
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", namespaceDir, err)
	}
	return func() { dir.Close() }, nil
}
