package routes

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// groups are rtnetlink's multicast groups of what is followed.
var groups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
}

const (
	// inboxLimit bounds what waits to be applied, in bytes; beyond it a dump is
	// cheaper anyway.
	inboxLimit = 64 << 20
	// datagramLimit is the largest of the kernel's messages, in bytes: a route
	// with 512 next hops has 14 KiB.
	datagramLimit = 256 << 10
)

// An inbox takes the kernel's notifications out of their socket as fast as they
// come, whatever its owner is doing.
type inbox struct {
	file *os.File
	// ready holds a token when there may be something to take.
	ready chan struct{}
	done  chan struct{}

	mu       sync.Mutex
	messages [][]byte
	bytes    int
	overrun  bool
	err      error
}

func openInbox(buffer int) (*inbox, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	i := &inbox{file: os.NewFile(uintptr(fd), "rtnetlink"), ready: make(chan struct{}, 1), done: make(chan struct{})}
	// Beyond the system's limit as root, else up to it.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, group := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		i.file.Close()
		return nil, fmt.Errorf("subscribe to the kernel's routes: %w", err)
	}
	go i.read()
	return i, nil
}

// read ends when the file is closed.
func (i *inbox) read() {
	defer close(i.done)
	connection, err := i.file.SyscallConn()
	if err != nil {
		i.fail(err)
		return
	}
	buffer := make([]byte, datagramLimit)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := connection.Read(func(fd uintptr) bool {
			// To wait after EINTR would be to wait for the next notification: the
			// poller tells only once of what is there.
			for failed = unix.EINTR; failed == unix.EINTR; {
				n, from, failed = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			}
			if failed == unix.ENOBUFS {
				// What is still in the socket is older than what was lost, and
				// misleads.
				for drained := error(nil); drained != unix.EAGAIN; {
					if _, _, drained = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT); drained != nil &&
						drained != unix.EAGAIN && drained != unix.ENOBUFS && drained != unix.EINTR {
						failed = drained
						break
					}
				}
			}
			return failed != unix.EAGAIN
		})
		switch {
		case err != nil:
			i.fail(err)
			return
		case failed == unix.ENOBUFS || failed == nil && n > len(buffer):
			i.lose()
		case failed != nil:
			i.fail(failed)
			return
		default:
			if kernel, ok := from.(*unix.SockaddrNetlink); ok && kernel.Pid == 0 {
				i.push(buffer[:n])
			}
		}
	}
}

func (i *inbox) push(b []byte) {
	i.mu.Lock()
	if i.bytes+len(b) > inboxLimit {
		i.mu.Unlock()
		i.lose()
		return
	}
	i.messages = append(i.messages, append([]byte(nil), b...))
	i.bytes += len(b)
	i.mu.Unlock()
	i.wake()
}

func (i *inbox) lose() {
	i.mu.Lock()
	i.messages, i.bytes, i.overrun = nil, 0, true
	i.mu.Unlock()
	i.wake()
}

func (i *inbox) fail(err error) {
	i.mu.Lock()
	if !errors.Is(err, os.ErrClosed) {
		i.err = fmt.Errorf("receive the kernel's notifications: %w", err)
	}
	i.mu.Unlock()
	i.wake()
}

func (i *inbox) wake() {
	select {
	case i.ready <- struct{}{}:
	default:
	}
}

// take returns what came since, and whether something before it was lost.
func (i *inbox) take() (messages [][]byte, overrun bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	messages, overrun = i.messages, i.overrun
	i.messages, i.bytes, i.overrun = nil, 0, false
	return messages, overrun, i.err
}

func (i *inbox) close() {
	i.file.Close()
	<-i.done
}
