package measure

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Syscalls counts the system calls of a process's threads, and of its session's if it
// leads one, for a time, with the
// kernel's tracepoint raw_syscalls:sys_enter. While it counts, every system call
// of the machine takes a slower way, so nothing else should be measured then.
func Syscalls(pid int, span time.Duration) (calls uint64, elapsed time.Duration, err error) {
	id, err := tracepoint("raw_syscalls", "sys_enter")
	if err != nil {
		return 0, 0, fmt.Errorf("count system calls: %w", err)
	}
	threads, err := tasks(pid)
	if err != nil {
		return 0, 0, fmt.Errorf("count system calls: %w", err)
	}
	var events []*os.File
	defer func() {
		for _, f := range events {
			f.Close()
		}
	}()
	for _, t := range threads {
		f, err := openEvent(unix.PERF_TYPE_TRACEPOINT, id, t, -1)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return 0, 0, fmt.Errorf("count system calls: %w", err)
		}
		events = append(events, f)
	}
	read := func() (sum uint64, err error) {
		for _, f := range events {
			n, err := readEvent(f)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	begin := time.Now()
	before, err := read()
	if err != nil {
		return 0, 0, fmt.Errorf("count system calls: %w", err)
	}
	time.Sleep(span)
	after, err := read()
	elapsed = time.Since(begin)
	if err != nil {
		return 0, 0, fmt.Errorf("count system calls: %w", err)
	}
	return after - before, elapsed, nil
}

// tracepoint finds a tracepoint's number, in a tracefs of its own that is
// mounted nowhere.
func tracepoint(group, name string) (uint64, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("open tracefs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(root)
	file := "events/" + group + "/" + name + "/id"
	fd, err := unix.Openat(root, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("find tracepoint %s:%s: %w", group, name, err)
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, fmt.Errorf("read the number of tracepoint %s:%s: %w", group, name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}
