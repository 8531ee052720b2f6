package wire

import (
	"fmt"
	"syscall"
)

// An interrupt is a pipe that becomes readable once a frame has arrived after
// Arm. All but the descriptors is guarded by the direction's lock.
type interrupt struct {
	direction *direction
	ring      *ring
	fds       [2]int
	signalled bool
	closed    bool
}

func newInterrupt(d *direction, queue int) (*interrupt, error) {
	i := &interrupt{direction: d, ring: &d.rings[queue]}
	if err := syscall.Pipe2(i.fds[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	d.mu.Lock()
	i.ring.wake = i
	d.mu.Unlock()
	return i, nil
}

// FD implements driver.Interrupt.
func (i *interrupt) FD() int { return i.fds[0] }

// Arm implements driver.Interrupt.
func (i *interrupt) Arm() (bool, error) {
	d := i.direction
	d.mu.Lock()
	defer d.mu.Unlock()
	if i.ring.ready(d.now) {
		return false, nil
	}
	i.ring.armed = true
	return true, nil
}

// Disarm implements driver.Interrupt.
func (i *interrupt) Disarm() error {
	i.direction.mu.Lock()
	defer i.direction.mu.Unlock()
	i.ring.armed = false
	if !i.signalled || i.closed {
		return nil
	}
	i.signalled = false
	var b [1]byte
	if _, err := syscall.Read(i.fds[0], b[:]); err != nil {
		return fmt.Errorf("read interrupt's pipe: %w", err)
	}
	return nil
}

// signal makes FD readable. The direction's lock is held. The pipe holds at most
// one byte, so the write can neither block nor fall short.
func (i *interrupt) signal() {
	if i.closed || i.signalled {
		return
	}
	i.signalled = true
	b := [1]byte{1}
	if _, err := syscall.Write(i.fds[1], b[:]); err != nil {
		panic("wire: write interrupt's pipe: " + err.Error())
	}
}

func (i *interrupt) close() error {
	i.direction.mu.Lock()
	defer i.direction.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	i.ring.armed = false
	err := syscall.Close(i.fds[1])
	if e := syscall.Close(i.fds[0]); err == nil {
		err = e
	}
	return err
}
