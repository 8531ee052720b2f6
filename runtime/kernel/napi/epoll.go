package napi

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EpollParams is how an epoll instance polls the NAPI of its sockets, which
// should all be of the same one.
type EpollParams struct {
	// BusyPoll is how long epoll_wait polls when nothing is ready, in whole
	// microseconds; 0 is once.
	BusyPoll time.Duration `json:"busy_poll"`
	// Budget is how many packets a poll takes at most; above 64 needs
	// CAP_NET_ADMIN. 0 is the kernel's choice (8).
	Budget int `json:"budget"`
	// Prefer keeps the interrupt off as long as the program polls, for which
	// the NAPI needs timers.
	Prefer bool `json:"prefer"`
}

// epollParams is struct epoll_params (linux/eventpoll.h, Linux 6.9).
type epollParams struct {
	busyPollUsecs uint32
	budget        uint16
	prefer        uint8
	_             uint8
}

// Epoll reads an epoll instance's; the error is ErrUnsupported before Linux 6.9.
func Epoll(fd int) (EpollParams, error) {
	var p epollParams
	if err := epollControl(fd, unix.EPIOCGPARAMS, &p); err != nil {
		return EpollParams{}, fmt.Errorf("read how an epoll instance polls: %w", err)
	}
	return EpollParams{
		BusyPoll: time.Duration(p.busyPollUsecs) * time.Microsecond,
		Budget:   int(p.budget),
		Prefer:   p.prefer != 0,
	}, nil
}

// SetEpoll changes an epoll instance's, also while others wait on it.
func SetEpoll(fd int, params EpollParams) error {
	p := epollParams{busyPollUsecs: uint32(params.BusyPoll.Microseconds()), budget: uint16(params.Budget)}
	if params.Prefer {
		p.prefer = 1
	}
	if err := epollControl(fd, unix.EPIOCSPARAMS, &p); err != nil {
		return fmt.Errorf("set how an epoll instance polls: %w", err)
	}
	return nil
}

func epollControl(fd int, request uintptr, p *epollParams) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(p)))
	switch errno {
	case 0:
		return nil
	case unix.ENOTTY, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: it needs Linux 6.9 with CONFIG_NET_RX_BUSY_POLL, this is %s: %w", ErrUnsupported, release(), errno)
	case unix.EPERM:
		return fmt.Errorf("%w: a budget above 64 needs CAP_NET_ADMIN: %w", ErrPrivilege, errno)
	}
	return errno
}

// EpollSupported says whether the kernel has such parameters at all.
func EpollSupported() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an epoll instance: %w", err)
	}
	defer unix.Close(fd)
	_, err = Epoll(fd)
	return err
}

// IncomingNAPI is the NAPI that a socket last received through, 0 if it has
// not yet, or through a device without (loopback).
func IncomingNAPI(fd int) (uint32, error) {
	id, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
	if err != nil {
		return 0, fmt.Errorf("ask for a socket's NAPI: %w", err)
	}
	return uint32(id), nil
}

// Process is another process, whose file descriptors can be borrowed.
type Process struct {
	PID int
	fd  int
}

// OpenProcess finds a process; the error is ErrGone if there is none. The
// caller closes it.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("find process %d: %w: %w", pid, ErrGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	return &Process{PID: pid, fd: fd}, nil
}

// Close forgets the process, which goes on.
func (p *Process) Close() error { return unix.Close(p.fd) }

// FD becomes readable when the process ends.
func (p *Process) FD() int { return p.fd }

// Borrow returns a copy of one of the process's file descriptors, which the
// caller closes soon: what the process closes stays open as long.
func (p *Process) Borrow(fd int) (int, error) {
	borrowed, err := unix.PidfdGetfd(p.fd, fd, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: CAP_SYS_PTRACE is needed: %w", ErrPrivilege, err)
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH):
		err = fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.ENOSYS):
		err = fmt.Errorf("%w: it needs Linux 5.6: %w", ErrUnsupported, err)
	}
	if err != nil {
		return -1, fmt.Errorf("borrow file descriptor %d of process %d: %w", fd, p.PID, err)
	}
	return borrowed, nil
}
