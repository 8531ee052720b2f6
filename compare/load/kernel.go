package load

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelTransport carries a thread's bytes over the kernel's sockets: one epoll
// instance, non-blocking sockets, one receive and one send for all that a
// connection has at the time. System calls that cannot block skip Go's
// preparations for one that does.
type kernelTransport struct {
	thread  *thread
	epoll   int
	spin    bool
	network int
	remote  unix.Sockaddr
	sockets []int32 // by slot; -1 is none
	blocked []bool  // by slot: output waits for room
	events  [256]unix.EpollEvent
	buffer  []byte
}

// receiveBuffer is how much is received at a time.
const receiveBuffer = 256 << 10

func newKernelTransport(t *thread) (*kernelTransport, error) {
	remote := t.plan.remote
	k := &kernelTransport{thread: t, spin: t.plan.config.Spin, buffer: make([]byte, receiveBuffer),
		sockets: make([]int32, len(t.sessions)), blocked: make([]bool, len(t.sessions))}
	for i := range k.sockets {
		k.sockets[i] = -1
	}
	if remote.Addr().Is4() {
		k.network, k.remote = unix.AF_INET, &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}
	} else {
		zone := uint32(0)
		if name := remote.Addr().Zone(); name != "" {
			device, err := net.InterfaceByName(name)
			if err != nil {
				return nil, fmt.Errorf("find interface %s: %w", name, err)
			}
			zone = uint32(device.Index)
		}
		k.network, k.remote = unix.AF_INET6, &unix.SockaddrInet6{Port: int(remote.Port()), Addr: remote.Addr().As16(), ZoneId: zone}
	}
	// Sleeps end when they should, not up to 50 µs later.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set the timer slack: %w", err)
	}
	var err error
	if k.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	return k, nil
}

func (k *kernelTransport) connect(s *session) error {
	fd, err := unix.Socket(k.network, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	k.sockets[s.slot], k.blocked[s.slot] = int32(fd), false
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if err := unix.Connect(fd, k.remote); err != nil && err != unix.EINPROGRESS {
		return err
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: int32(s.slot)}
	return unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &event)
}

func (k *kernelTransport) close(s *session) {
	if fd := k.sockets[s.slot]; fd >= 0 {
		unix.Close(int(fd)) // which also takes it out of the epoll instance
		k.sockets[s.slot] = -1
	}
}

// interest sets whether the socket waits for room to write.
func (k *kernelTransport) interest(s *session, write bool) error {
	k.blocked[s.slot] = write
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.slot)}
	if write {
		event.Events |= unix.EPOLLOUT
	}
	return unix.EpollCtl(k.epoll, unix.EPOLL_CTL_MOD, int(k.sockets[s.slot]), &event)
}

func (k *kernelTransport) send(s *session) {
	if k.blocked[s.slot] {
		return
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(k.sockets[s.slot]), uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		n = 0
	case errno != 0:
		s.fail(fmt.Errorf("send: %w", errno), k.thread.now())
		return
	}
	s.out = s.out[:copy(s.out, s.out[n:])]
	if len(s.out) > 0 {
		if err := k.interest(s, true); err != nil {
			s.fail(fmt.Errorf("wait for room to send: %w", err), k.thread.now())
		}
	}
}

func (k *kernelTransport) polls() bool { return k.spin }

func (k *kernelTransport) flush() {}

func (k *kernelTransport) leave() { unix.Close(k.epoll) }

func (k *kernelTransport) move(now, wait int64) (happened int, waited int64) {
	n := 0
	if wait > 0 && !k.spin {
		n = k.sleep(wait)
		waited = k.thread.now() - now
	} else {
		r, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(k.epoll), uintptr(unsafe.Pointer(&k.events[0])), uintptr(len(k.events)), 0, 0, 0)
		if errno == 0 {
			n = int(r)
		}
	}
	for i := range k.events[:n] {
		e := &k.events[i]
		s := k.thread.sessions[e.Fd]
		if k.sockets[s.slot] >= 0 {
			k.event(s, e.Events)
		}
	}
	return n, waited
}

// sleep waits for events.
func (k *kernelTransport) sleep(wait int64) int {
	timeout := unix.NsecToTimespec(wait)
	r, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(k.epoll), uintptr(unsafe.Pointer(&k.events[0])), uintptr(len(k.events)), uintptr(unsafe.Pointer(&timeout)), 0, 0)
	if errno == unix.ENOSYS { // before Linux 5.11
		n, err := unix.EpollWait(k.epoll, k.events[:], int(wait/1e6))
		if err != nil {
			return 0
		}
		return n
	}
	if errno != 0 {
		return 0
	}
	return int(r)
}

func (k *kernelTransport) event(s *session, what uint32) {
	if s.state == connecting {
		code, err := unix.GetsockoptInt(int(k.sockets[s.slot]), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if err == nil {
			err = k.interest(s, false)
		}
		if err != nil {
			s.fail(err, k.thread.now())
			return
		}
		s.established(k.thread.now())
		return
	}
	if what&unix.EPOLLOUT != 0 {
		if err := k.interest(s, false); err != nil {
			s.fail(fmt.Errorf("stop waiting for room to send: %w", err), k.thread.now())
			return
		}
		k.thread.touch(s)
	}
	if what&^unix.EPOLLOUT == 0 {
		return
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(k.sockets[s.slot]), uintptr(unsafe.Pointer(&k.buffer[0])), uintptr(len(k.buffer)), unix.MSG_DONTWAIT, 0, 0)
	now := k.thread.now()
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
	case errno != 0:
		s.fail(errors.Join(errHungUp, errno), now)
	case n == 0:
		s.over(now)
	default:
		if err := s.input(k.buffer[:n], now); err != nil {
			s.fail(err, now)
		}
	}
}
