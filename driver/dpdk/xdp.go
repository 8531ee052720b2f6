package dpdk

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// Options of AF_XDP sockets (linux/if_xdp.h).
const (
	solXDP             = 283
	xdpRxRing          = 2
	xdpUmemReg         = 4
	xdpUmemFillRing    = 5
	xdpUmemCompletions = 6
	xdpZeroCopy        = 1 << 2
)

// awaitQueues waits until the kernel has given up the receive queues that a
// closed socket held. It does so some time after close, and until then whoever
// opens the device next, this process or another, would find them busy.
func (d *netdev) awaitQueues(n int) error {
	for i := range n {
		for deadline := time.Now().Add(2 * time.Second); d.queueBusy(i); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				return fmt.Errorf("queue %d of %s stays in use: is another AF_XDP socket bound to it?", i, d.name)
			}
		}
	}
	return nil
}

// queueBusy says whether an AF_XDP socket holds a receive queue of the device.
func (d *netdev) queueBusy(queue int) bool {
	err := d.tryQueue(queue)
	if err == nil {
		// It was ours, and is for a moment longer than the socket lived.
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Is(err, syscall.EBUSY)
}

// tryQueue binds an AF_XDP socket to a receive queue, and closes it. It asks for
// zero-copy: of a queue that is held the kernel says EBUSY, of one that is free
// that the driver knows no zero-copy, unless it does.
func (d *netdev) tryQueue(queue int) error {
	s, err := syscall.Socket(domainXDP, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(s)
	page := os.Getpagesize()
	memory, err := syscall.Mmap(-1, 0, page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	defer syscall.Munmap(memory)
	region := struct {
		address, length               uint64
		chunk, headroom, flags, extra uint32
	}{address: uint64(uintptr(unsafe.Pointer(&memory[0]))), length: uint64(page), chunk: uint32(page)}
	if err := setsockopt(s, solXDP, xdpUmemReg, unsafe.Pointer(&region), unsafe.Sizeof(region)); err != nil {
		return err
	}
	for _, ring := range []int{xdpUmemFillRing, xdpUmemCompletions, xdpRxRing} {
		if err := syscall.SetsockoptInt(s, solXDP, ring, 1); err != nil {
			return err
		}
	}
	address := struct {
		family, flags            uint16
		index, queue, sharedUmem uint32
	}{family: domainXDP, flags: xdpZeroCopy, index: uint32(d.index), queue: uint32(queue)}
	if _, _, e := syscall.Syscall(syscall.SYS_BIND, uintptr(s), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address)); e != 0 {
		return e
	}
	return nil
}
