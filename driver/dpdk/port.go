package dpdk

/*
#include <stdlib.h>
#include "burst.h"
#include "device.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/pollux-net/pollux/driver"
)

// Name implements driver.Port.
func (p *Port) Name() string { return p.name }

// Address implements driver.Port.
func (p *Port) Address() (a [6]byte) {
	for i := range a {
		a[i] = byte(p.info.address[i])
	}
	return a
}

// MTU implements driver.Port.
func (p *Port) MTU() int { return p.mtu }

// Link implements driver.Port.
func (p *Port) Link() (driver.Link, error) {
	if p.netdev != nil {
		flags, err := p.netdev.flags()
		if err != nil {
			return driver.Link{}, fmt.Errorf("dpdk: %w", err)
		}
		return driver.Link{Up: flags&syscall.IFF_UP != 0 && flags&syscall.IFF_RUNNING != 0}, nil
	}
	var up C.int
	var speed C.uint32_t
	if rc := C.px_link_get(p.units[0].port, &up, &speed); rc != 0 {
		return driver.Link{}, fmt.Errorf("dpdk: link of %s: %w", p.name, errno(rc))
	}
	return driver.Link{Up: up != 0, Speed: int(speed)}, nil
}

// Capabilities implements driver.Port.
func (p *Port) Capabilities() driver.Capabilities { return p.capabilities }

// Queues implements driver.Port.
func (p *Port) Queues() int { return len(p.queues) }

// Queue implements driver.Port.
func (p *Port) Queue(i int) driver.Queue { return p.queues[i] }

// RSS implements driver.Port.
func (p *Port) RSS() (driver.RSS, bool) { return p.rss, p.hasRSS }

// Statistics implements driver.Port. Beside the device's own counters
// there are pool_available, the frames that are neither with the application nor
// anywhere in the device; transmit_unsendable, the frames that Transmit took and
// dropped because the device could never have sent them; and receive_unfinished,
// the frames from a veth's peer out of reach whose checksum was left for a device
// to compute and was completed on receipt: turn off the peer's offloads, larger
// frames cannot be mended.
func (p *Port) Statistics() ([]driver.Statistic, error) {
	var all []driver.Statistic
	for i, u := range p.units {
		prefix := ""
		if len(p.units) > 1 {
			prefix = fmt.Sprintf("unit%d_", i)
		}
		list, err := u.statistics()
		if err != nil {
			return nil, fmt.Errorf("dpdk: statistics of %s: %w", u.name, err)
		}
		for _, s := range list {
			all = append(all, driver.Statistic{Name: prefix + s.Name, Value: s.Value})
		}
	}
	var unsendable, unfinished uint64
	for _, q := range p.queues {
		unfinished += atomic.LoadUint64((*uint64)(&q.c.receive_unfinished))
		unsendable += atomic.LoadUint64((*uint64)(&q.c.transmit_unsendable))
	}
	return append(all,
		driver.Statistic{Name: "transmit_unsendable", Value: unsendable},
		driver.Statistic{Name: "receive_unfinished", Value: unfinished},
		driver.Statistic{Name: "pool_available", Value: uint64(p.available())}), nil
}

// available is the number of frames in the port's pools and their caches.
func (p *Port) available() int {
	n := 0
	for _, pool := range p.pools {
		n += int(C.px_pool_available(pool))
	}
	return n
}

func (u unit) statistics() ([]driver.Statistic, error) {
	n := C.px_statistics(u.port, nil, 0)
	if n <= 0 {
		return nil, errnoOrNil(n)
	}
	list := make([]C.struct_px_statistic, n)
	if n = C.px_statistics(u.port, &list[0], C.uint(n)); n < 0 {
		return nil, errno(n)
	}
	all := make([]driver.Statistic, min(int(n), len(list)))
	for i := range all {
		all[i] = driver.Statistic{Name: C.GoString(&list[i].name[0]), Value: uint64(list[i].value)}
	}
	return all, nil
}

func errnoOrNil(rc C.int) error {
	if rc == 0 {
		return nil
	}
	return errno(rc)
}

// FreeFrames implements driver.Port: the frames of the pools, less those that
// the device keeps to receive into, less those that the application holds.
// Frames that were transmitted count as free even while the driver has not
// collected them from its ring.
func (p *Port) FreeFrames() int {
	free := p.frames
	for _, pool := range p.pools {
		free -= int(C.px_pool_held(pool))
	}
	return free
}

// Close implements driver.Port.
func (p *Port) Close() error {
	eal.Lock()
	defer eal.Unlock()
	if p.closed {
		return fmt.Errorf("dpdk: %s is closed already", p.name)
	}
	said()
	if err := p.release(); err != nil {
		return fmt.Errorf("dpdk: closing %s: %w", p.name, err)
	}
	return nil
}

// release undoes what open did, as far as it came.
func (p *Port) release() error {
	p.closed = true
	for _, q := range p.queues {
		driver.Free(q.stash)
	}
	var all []error
	all = append(all, p.inNamespace(func() (err error) {
		for _, u := range p.units {
			if rc := C.px_remove(u.port); rc != 0 {
				err = errors.Join(err, fmt.Errorf("removing %s: %w%s", u.name, errno(rc), saidSuffix()))
			}
		}
		p.closeSockets()
		if p.domain == domainXDP && len(p.units) > 0 {
			err = errors.Join(err, p.netdev.awaitQueues(len(p.units)))
		}
		return err
	}))
	if p.netdev != nil {
		all = append(all, p.netdev.restore())
		p.netdev.close()
	}
	for _, q := range p.queues {
		if q.interrupt != nil {
			q.interrupt.close()
		}
		C.px_queue_free(q.c)
	}
	for _, pool := range p.pools {
		C.px_pool_free(pool)
	}
	C.px_pool_free(p.pieces)
	if p.namespace != nil {
		p.namespace.Close()
	}
	if p.key != "" {
		delete(eal.devices, p.key)
	}
	return errors.Join(all...)
}

// inNamespace calls f on a thread in the port's network namespace.
func (p *Port) inNamespace(f func() error) error {
	if len(p.units) == 0 {
		return nil
	}
	return inNamespace(p.namespace.Fd(), f)
}

// inNamespace calls f on a thread in a network namespace.
func inNamespace(namespace uintptr, f func() error) error {
	result := make(chan error)
	go func() {
		// Not unlocked: the thread ends here, and with it the change.
		runtime.LockOSThread()
		if sameNamespace(namespace) {
			result <- f() // Without the privilege that a change takes.
			return
		}
		if _, _, e := syscall.RawSyscall(sysSetns, namespace, syscall.CLONE_NEWNET, 0); e != 0 {
			result <- fmt.Errorf("entering the network namespace: %w", e)
			return
		}
		result <- f()
	}()
	return <-result
}

// sameNamespace says whether the calling thread is in a network namespace.
func sameNamespace(fd uintptr) bool {
	var here, there syscall.Stat_t
	return syscall.Stat("/proc/thread-self/ns/net", &here) == nil &&
		syscall.Fstat(int(fd), &there) == nil && here.Ino == there.Ino
}

// sysSetns is the number of setns(2), which package syscall lacks.
const sysSetns = 308
