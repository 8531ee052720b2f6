package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"golang.org/x/sys/unix"
)

// epolls lists the file descriptors of a process that are epoll instances.
func epolls(pid int) ([]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the files of process %d: %w", pid, explain(err))
	}
	var fds []int
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || target != "anon_inode:[eventpoll]" {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	return fds, nil
}

// explain adds what an error of /proc means.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w: %w", napi.ErrGone, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root, or grant CAP_SYS_PTRACE and CAP_SYS_ADMIN: %w", napi.ErrPrivilege, err)
	}
	return err
}

// waiting is what an epoll instance waits for.
type waiting struct {
	// connections counts the Internet sockets by the NAPI that they last
	// received through; 0 is none yet, or a device without.
	connections map[uint32]int
	// listening counts the sockets that only accept.
	listening int
	// more says that there are others, at which was not looked.
	more bool
}

// mostSockets bounds how many sockets of an epoll instance are looked at.
const mostSockets = 1024

// waitingFor looks at the sockets of an epoll instance (its "tfd" lines in
// /proc/PID/fdinfo).
func waitingFor(p *napi.Process, epoll int) (waiting, error) {
	w := waiting{connections: make(map[uint32]int)}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, epoll))
	if err != nil {
		return w, fmt.Errorf("look at epoll instance %d of process %d: %w", epoll, p.PID, explain(err))
	}
	seen := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "tfd:" {
			continue
		}
		fd, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		if seen++; seen > mostSockets {
			w.more = true
			break
		}
		if err := w.add(p, fd); err != nil && !errors.Is(err, napi.ErrGone) {
			return w, err
		}
	}
	return w, nil
}

func (w *waiting) add(p *napi.Process, fd int) error {
	socket, err := p.Borrow(fd)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	domain, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return nil // a pipe, an eventfd, a local socket
	}
	if accepts, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && accepts != 0 {
		w.listening++
		return nil
	}
	id, err := napi.IncomingNAPI(socket)
	if err != nil {
		return err
	}
	w.connections[id]++
	return nil
}

// verdict says whether the kernel can poll for it: an epoll instance polls one
// NAPI at a time.
func (w waiting) verdict(ours []napi.NAPI) string {
	ids := slices.Sorted(maps.Keys(w.connections))
	received := slices.DeleteFunc(slices.Clone(ids), func(id uint32) bool { return id == 0 })
	foreign := slices.DeleteFunc(slices.Clone(received), func(id uint32) bool {
		return slices.ContainsFunc(ours, func(n napi.NAPI) bool { return n.ID == id })
	})
	said := ""
	switch {
	case len(ids) == 0 && w.listening > 0 && !w.more:
		said = "only listens"
	case len(ids) == 0:
		said = "no connections yet"
	case len(received) == 0:
		said = "NAPI id 0: its connections have received nothing yet, or come through a device without NAPI (the loopback), which cannot be polled"
	case len(foreign) > 0:
		said = fmt.Sprintf("connections come through NAPI %s of another device, which has not been set", join(foreign))
	case len(received) > 1:
		said = fmt.Sprintf("its connections come through %d NAPIs (%s), of which the kernel polls one at a time: steer each to the thread of its queue (SO_REUSEPORT), or use one queue", len(received), join(received))
	case w.more:
		said = fmt.Sprintf("connections come through NAPI %d, as they should", received[0])
	default:
		said = fmt.Sprintf("all its connections come through NAPI %d, as they should", received[0])
	}
	if w.more {
		said = fmt.Sprintf("of its first %d sockets: %s", mostSockets, said)
	}
	return said
}

func join(ids []uint32) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = strconv.Itoa(int(id))
	}
	return strings.Join(words, ", ")
}
