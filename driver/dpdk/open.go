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
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/pollux-net/pollux/driver"
)

// The drivers that Config.Driver can name. af_xdp takes every frame that arrives
// on its queues away from the kernel's stack; af_packet gets a copy, so that the
// kernel, if it has the address, answers as well; tap makes a device whose other
// side is the kernel.
const (
	AFXDP    = "af_xdp"
	AFPacket = "af_packet"
	TAP      = "tap"
)

// Config says which device to open, and how.
type Config struct {
	// Device is a network device of the kernel (pollux0), the address of a PCI
	// device that Options.PCI named (0000:3b:00.0), or a virtual device with
	// its arguments (net_memif0,role=server). With driver tap it is the name
	// of the network device to make.
	Device string
	// Driver is af_xdp, af_packet or tap; empty means af_xdp for a network
	// device of the kernel, and nothing for the others.
	Driver string
	// Queues is the number of queues; 0 means 1. With af_xdp it must be the
	// number of queues that the device receives on.
	Queues int
	// Descriptors is the size of each queue's rings; 0 leaves it to the driver.
	Descriptors int
	// PoolFrames is the number of frames in the port's pool; 0 means 8192 for
	// each queue.
	PoolFrames int
	// Interrupts asks for receive interrupts where there are any; without it
	// Queue.Interrupt returns nil.
	Interrupts bool
	// Promiscuous also receives frames for other stations.
	Promiscuous bool

	piece int // instead of pieceSize, for tests
}

// Port is a device driven by a poll-mode driver. It implements driver.Port.
type Port struct {
	name         string
	key          string // in eal.devices
	config       Config
	driver       string
	units        []unit
	queues       []*queue
	info         C.struct_px_info // of the first unit
	rss          driver.RSS
	hasRSS       bool
	capabilities driver.Capabilities
	mtu          int
	pools        []*C.struct_rte_mempool // the frames that FreeFrames counts
	piece        int                     // bytes that one descriptor carries; 0: any number
	pieces       *C.struct_rte_mempool   // to describe them
	frames       int                     // in the pools, less what the device keeps to receive into
	netdev       *netdev
	suspect      bool   // its sender may leave checksums to be computed
	program      uint32 // XDP program that the device was found with
	namespace    *os.File
	domain       int            // of the drivers' sockets, 0 if they have none
	sockets      map[int]uint64 // sockets of that domain, ours or not, by inode
	opened       map[int]uint64 // those that the drivers opened for us
	closed       bool
}

// unit is one device as DPDK sees it: a Port is several where a driver serves
// one queue each.
type unit struct {
	name string
	port C.uint16_t
}

// Open opens a device. It and the returned port work in the network namespace
// of the calling thread.
func Open(c Config) (*Port, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	eal.Lock()
	defer eal.Unlock()
	if !eal.started {
		return nil, fmt.Errorf("dpdk: opening %s: the EAL is not started; call Init first", c.Device)
	}
	p, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("dpdk: opening %s: %w", c.Device, err)
	}
	return p, nil
}

func open(c Config) (_ *Port, err error) {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 0 || c.Queues > 256 || c.Descriptors < 0 || c.Descriptors > 32768 || c.PoolFrames < 0 {
		return nil, fmt.Errorf("%d queues, %d descriptors, %d frames: out of range", c.Queues, c.Descriptors, c.PoolFrames)
	}
	if c.PoolFrames == 0 {
		c.PoolFrames = 8192 * c.Queues
	}
	said() // What was said before is no part of this.
	p := &Port{name: c.Device, config: c}
	defer func() {
		if err != nil {
			if e := p.release(); e != nil {
				err = fmt.Errorf("%w (and undoing it: %w)", err, e)
			}
		}
	}()
	if p.namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("finding the network namespace: %w", err)
	}
	plan, err := p.plan()
	if err != nil {
		return nil, err
	}
	if p.domain != 0 {
		if p.sockets, err = sockets(p.domain); err != nil {
			return nil, err
		}
		p.opened = map[int]uint64{}
	}
	for _, devargs := range plan {
		if err := p.plug(devargs); err != nil {
			return nil, err
		}
	}
	if err := p.setup(); err != nil {
		return nil, err
	}
	return p, nil
}

// plan decides what devices, in the EAL's words, make up the port.
func (p *Port) plan() ([]string, error) {
	c := p.config
	if c.Device == "" {
		return nil, errors.New("no device was named; " + existing())
	}
	if c.Driver == "" && (IsPCI(c.Device) || isVirtual(c.Device)) {
		device := c.Device
		if IsPCI(device) && strings.Count(device, ":") == 1 {
			device = "0000:" + device // The EAL's own name has the domain.
		}
		p.name, _, _ = strings.Cut(device, ",")
		return []string{device}, p.claim(p.name)
	}
	info, err := p.namespace.Stat()
	if err != nil {
		return nil, fmt.Errorf("finding the network namespace: %w", err)
	}
	// Devices of the kernel may have the same name in two namespaces.
	if err := p.claim(fmt.Sprintf("%s@%d", c.Device, info.Sys().(*syscall.Stat_t).Ino)); err != nil {
		return nil, err
	}
	eal.serial++
	switch c.Driver {
	case "", AFXDP:
		if err := p.takeNetdev(need("af_xdp", capNetAdmin, capNetRaw, capBPF)); err != nil {
			return nil, err
		}
		if err := p.netdev.covered(c.Queues); err != nil {
			return nil, err
		}
		if err := lockable(int(C.px_pool_bytes(C.uint(c.PoolFrames), room)) * c.Queues); err != nil {
			return nil, err
		}
		if p.program != 0 {
			// Somebody uses the device, or was killed using it a moment ago.
			if err := p.netdev.awaitQueues(c.Queues); err != nil {
				return nil, err
			}
		}
		p.domain = domainXDP
		list := make([]string, c.Queues)
		for i := range list {
			// The default budget would make a system call of every empty poll.
			list[i] = fmt.Sprintf("net_af_xdp%d_%d,iface=%s,start_queue=%d,queue_count=1,busy_budget=0", eal.serial, i, c.Device, i)
		}
		return list, nil
	case AFPacket:
		if err := p.takeNetdev(need("af_packet", capNetAdmin, capNetRaw)); err != nil {
			return nil, err
		}
		p.domain = domainPacket
		return []string{packetArguments(eal.serial, c, p.netdev.mtu)}, nil
	case TAP:
		if err := need("tap", capNetAdmin); err != nil {
			return nil, err
		}
		if len(c.Device) >= syscall.IFNAMSIZ {
			return nil, fmt.Errorf("the name is longer than %d bytes", syscall.IFNAMSIZ-1)
		}
		return []string{fmt.Sprintf("net_tap%d,iface=%s", eal.serial, c.Device)}, nil
	}
	return nil, fmt.Errorf("no such driver: %q; use %s, %s or %s, or none for a PCI or a virtual device", c.Driver, AFXDP, AFPacket, TAP)
}

// claim makes the device ours in this process, until release.
func (p *Port) claim(key string) error {
	if eal.devices[key] {
		return errors.New("this process has it open already; close it first")
	}
	eal.devices[key] = true
	p.key = key
	return nil
}

// packetArguments describes a port of af_packet: rings of one page-aligned
// block for every 32 frames, and frames that hold the MTU.
func packetArguments(serial int, c Config, mtu int) string {
	size := 2048
	for size < mtu+14+4+128 {
		size *= 2
	}
	count := c.Descriptors
	if count == 0 {
		count = 1024
	}
	count = (count + 31) / 32 * 32
	return fmt.Sprintf("net_af_packet%d,iface=%s,qpairs=%d,framesz=%d,blocksz=%d,framecnt=%d,qdisc_bypass=1", serial, c.Device, c.Queues, size, size*32, count)
}

// takeNetdev opens the kernel's device, checks what would corrupt frames, and
// brings it up: drivers that sit on a socket receive nothing otherwise.
func (p *Port) takeNetdev(missing error) error {
	d, err := openNetdev(p.config.Device)
	if err != nil {
		return err
	}
	p.netdev = d
	if missing != nil {
		return missing
	}
	if p.suspect, err = d.checkPeer(); err != nil {
		return err
	}
	if l, err := linkOf(d.index); err == nil {
		p.program = l.program
	}
	return d.setFlags(syscall.IFF_UP, syscall.IFF_UP)
}

// plug makes the EAL probe a device and finds its port.
func (p *Port) plug(devargs string) error {
	name, _, _ := strings.Cut(devargs, ",")
	u := unit{name: name}
	cname, cargs := C.CString(name), C.CString(devargs)
	defer C.free(unsafe.Pointer(cname))
	defer C.free(unsafe.Pointer(cargs))
	if C.px_port_find(cname, &u.port) != 0 {
		if rc := C.px_probe(cargs); rc != 0 {
			hint := ""
			if IsPCI(name) {
				hint = " (name it in Options.PCI at Init, and bind it to a driver for user space)"
			}
			return fmt.Errorf("probing %s: %w%s%s", devargs, errno(rc), hint, saidSuffix())
		}
		if rc := C.px_port_find(cname, &u.port); rc != 0 {
			return fmt.Errorf("%s was probed, but is no network device%s", devargs, saidSuffix())
		}
	}
	p.units = append(p.units, u)
	return nil
}

// IsPCI says whether s is a PCI address.
func IsPCI(s string) bool {
	var domain, bus, device, function int
	n, err := fmt.Sscanf(s, "%x:%x:%x.%x", &domain, &bus, &device, &function)
	if err == nil && n == 4 {
		return true
	}
	n, err = fmt.Sscanf(s, "%x:%x.%x", &bus, &device, &function)
	return err == nil && n == 3
}

// isVirtual says whether s describes a virtual device of the EAL.
func isVirtual(s string) bool { return strings.HasPrefix(s, "net_") || strings.HasPrefix(s, "eth_") }
