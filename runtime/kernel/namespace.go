package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"golang.org/x/sys/unix"
)

// errNoNamespace: no process and no name leads to the network namespace.
var errNoNamespace = errors.New("the network namespace is gone")

// withinNamespace runs f on a thread of its own in the network namespace with
// that inode.
func withinNamespace(inode uint64, f func() error) error {
	fd, err := findNamespace(inode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	result := make(chan error, 1)
	go func() {
		// A thread that is not unlocked ends with its goroutine. The main thread
		// cannot end: what is done to it is undone.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			result <- withinNamespace(inode, f) // on another one while this is locked
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// findNamespace opens a network namespace by the inode of its file: through a
// process or a thread in it, a mount that keeps it (as ip netns and containers
// have), or a file that a process has open. It is gone (errNoNamespace) only if
// no process in an unknown one is kept from sight.
func findNamespace(inode uint64) (fd int, err error) {
	link := fmt.Sprintf("net:[%d]", inode)
	for _, pattern := range []string{"/proc/thread-self/ns/net", "/proc/[0-9]*/ns/net", "", "/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if pattern == "" {
			paths, err = mountsOf(link)
		}
		if err != nil {
			return -1, err
		}
		for _, path := range paths {
			// A mount is no link; following other links would open anything.
			if target, err := os.Readlink(path); err == nil && target != link {
				continue
			}
			if fd, err := openIfInode(path, inode); err == nil {
				return fd, nil
			}
		}
	}
	if path := hidden(); path != "" {
		return -1, fmt.Errorf("find the network namespace of what is to be put back: %w: %s cannot be looked at; run as the machine's root, or with CAP_SYS_PTRACE", napi.ErrPrivilege, path)
	}
	return -1, errNoNamespace
}

// hidden names the namespace of a process that may not be looked at, unless it is
// that of another one that may: each namespace has a /proc/PID/net of its own,
// which everybody may see.
func hidden() string {
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is sound
	threads, _ := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	seen, unseen := map[uint64]bool{}, map[uint64]string{}
	for _, path := range append(processes, threads...) {
		var stat unix.Stat_t
		err := unix.Stat(strings.TrimSuffix(path, "ns/net")+"net/dev", &stat)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // it has ended
		}
		_, err = os.Readlink(path)
		switch {
		case err == nil:
			seen[stat.Ino] = true
		case errors.Is(err, fs.ErrPermission):
			unseen[stat.Ino] = path
		}
	}
	for inode, path := range unseen {
		if !seen[inode] {
			return path
		}
	}
	return ""
}

// mountsOf lists where a namespace is mounted: /proc/self/mountinfo has its link
// as the root of the mount (field 4), and the place after it.
func mountsOf(link string) ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	var paths []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[3] == link {
			paths = append(paths, f[4])
		}
	}
	return paths, nil
}

func openIfInode(path string, inode uint64) (int, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return -1, err
	}
	if stat.Ino != inode {
		return -1, unix.ENOENT
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// The path may lead elsewhere by now.
	if err := unix.Fstat(fd, &stat); err != nil || stat.Ino != inode || !isNamespace(fd) {
		unix.Close(fd)
		return -1, unix.ENOENT
	}
	return fd, nil
}

func isNamespace(fd int) bool {
	var stat unix.Statfs_t
	return unix.Fstatfs(fd, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}
