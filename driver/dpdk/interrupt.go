package dpdk

/*
#include "interrupt.h"
#cgo noescape px_arm
#cgo nocallback px_arm
#cgo noescape px_disarm
#cgo nocallback px_disarm
*/
import "C"

import (
	"fmt"
	"syscall"

	"github.com/pollux-net/pollux/driver"
)

// What Capabilities.Interrupt says.
const (
	interruptDevice = "device interrupt"
	interruptSocket = "socket"
)

// stashSize is how many frames the last look of Arm may find.
const stashSize = 32

// interrupt implements driver.Interrupt with an epoll instance of our own,
// which the owner of the queue nests in another.
type interrupt struct {
	queue *queue
	epoll int
	// device: it holds the device's interrupt, which is enabled and disabled.
	// Else it holds the socket that the driver receives from, which is readable
	// exactly while frames wait.
	device bool
	found  [stashSize]driver.Frame
}

// newInterrupt makes an epoll instance for a queue.
func newInterrupt(q *queue) (*interrupt, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll instance: %w", err)
	}
	return &interrupt{queue: q, epoll: fd}, nil
}

func (i *interrupt) close() { syscall.Close(i.epoll) }

// addSocket makes the instance report a socket.
func (i *interrupt) addSocket(fd int) error {
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	if err := syscall.EpollCtl(i.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watching the driver's socket: %w", err)
	}
	return nil
}

// addDevice makes the instance report the device's interrupt. That the device
// lets itself be configured for interrupts means nothing; this is the proof.
func (i *interrupt) addDevice() bool {
	i.device = true
	return C.px_interrupt_add(i.queue.c.port, i.queue.c.queue, C.int(i.epoll)) == 0
}

// FD implements driver.Interrupt.
func (i *interrupt) FD() int { return i.epoll }

// Arm implements driver.Interrupt.
func (i *interrupt) Arm() (bool, error) {
	q := i.queue
	if len(q.stash) > 0 {
		return false, nil
	}
	if !i.device {
		n := q.Receive(i.found[:])
		q.stash = i.found[:n]
		return n == 0, nil
	}
	n := C.px_arm(q.address(), C.int(i.epoll), stashSize)
	if n < 0 {
		return false, fmt.Errorf("dpdk: enabling the receive interrupt: %w", errno(n))
	}
	if n > 0 {
		take(i.found[:n], q.slots[:n])
		q.stash = i.found[:n]
	}
	return n == 0, nil
}

// Disarm implements driver.Interrupt.
func (i *interrupt) Disarm() error {
	if !i.device {
		return nil
	}
	if rc := C.px_disarm(i.queue.address(), C.int(i.epoll)); rc != 0 {
		return fmt.Errorf("dpdk: disabling the receive interrupt: %w", errno(rc))
	}
	return nil
}
