package dpdk

/*
#include <stdlib.h>
#include <rte_errno.h>
#include "burst.h"
#include "device.h"

static int px_errno(void) { return rte_errno; }
*/
import "C"

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/pollux-net/pollux/driver"
)

const (
	etherHeader = 14
	vlanTag     = 4
	// room is what a frame of the pool holds in bytes, headroom aside.
	room = 2048
	// largeRoom is what a frame to be segmented by the device holds: an mbuf's
	// length field ends at 65535 with the headroom.
	largeRoom = 65535 - 128
	// largeFrames is how many of those there are for each queue.
	largeFrames = 64
	// cacheFrames is the size of a thread's cache of free frames.
	cacheFrames = 256
	// pieceSize is the most of a large frame that one descriptor is given.
	pieceSize = 8192
)

// Drivers, by the EAL's name, that differ from the others.
const (
	driverXDP        = "net_af_xdp"
	driverTAP        = "net_tap"
	driverVhost      = "net_vhost"
	driverVirtio     = "net_virtio"
	driverVirtioUser = "net_virtio_user"
)

// setup configures and starts the units and makes the queues.
func (p *Port) setup() error {
	if rc := C.px_info_get(p.units[0].port, &p.info); rc != 0 {
		return fmt.Errorf("asking the device what it is: %w%s", errno(rc), saidSuffix())
	}
	p.driver = C.GoString(&p.info.driver[0])
	p.mtu = int(p.info.mtu)
	if p.netdev != nil {
		p.mtu = p.netdev.mtu
	}
	if p.mtu > int(p.info.max_mtu) {
		return fmt.Errorf("its MTU is %d, and %s carries at most %d", p.mtu, p.driver, p.info.max_mtu)
	}
	each := p.config.Queues / len(p.units)
	if n := int(min(p.info.max_rx_queues, p.info.max_tx_queues)); each > n {
		return fmt.Errorf("it has %d queues, not %d", n*len(p.units), p.config.Queues)
	}
	if least := p.leastFrames(); p.config.PoolFrames < least {
		return fmt.Errorf("%d frames are too few for %d queues: the driver keeps some to receive into; take %d or more", p.config.PoolFrames, p.config.Queues, least)
	}
	segment := p.info.tx_offloads&C.PX_TX_SEGMENT_TCP != 0
	size := max(room, (p.mtu+etherHeader+2*vlanTag+63)/64*64)
	pool, err := p.newPool("frames", p.config.PoolFrames, size, cacheFrames)
	if err != nil {
		return err
	}
	if p.driver == driverXDP && C.px_pool_chunks(pool) > 1 {
		// Its driver tells the kernel of the first piece only.
		return fmt.Errorf("the EAL's memory is too fragmented for %d frames in one piece; give it more (Options.Memory) or take fewer frames", p.config.PoolFrames)
	}
	var large *C.struct_rte_mempool
	if segment || p.driver == driverVhost { // Its peer may send what we would have to cut.
		if large, err = p.newPool("large", largeFrames*p.config.Queues, largeRoom, 0); err != nil {
			return err
		}
	}
	if segment {
		if err := p.planPieces(); err != nil {
			return err
		}
	}
	s := C.struct_px_setup{
		queues: C.uint16_t(each), descriptors: C.uint16_t(p.config.Descriptors), mtu: C.uint16_t(p.mtu),
		rx_offloads: p.info.rx_offloads, tx_offloads: p.info.tx_offloads,
		pool: pool,
	}
	if p.config.Interrupts {
		s.interrupts = 1
	}
	if each > 1 {
		s.rss_types = p.info.rss_types
	}
	for _, u := range p.units {
		if err := p.start(u, s); err != nil {
			return err
		}
		for i := range each {
			q, err := newQueue(u.port, i)
			if err != nil {
				return err
			}
			if p.suspect {
				q.c.suspect = 1
			}
			q.c.pool, q.c.large, q.c.pieces = pool, large, p.pieces
			q.c.room = C.uint32_t(size)
			q.c.max_frame = C.uint32_t(p.mtu + etherHeader + vlanTag)
			if large != nil {
				q.c.large_room = largeRoom
			}
			if segment {
				q.c.max_segmented, q.c.max_segments = C.uint32_t(p.maxSegmented()), C.uint32_t(p.maxSegments())
				q.c.piece = C.uint16_t(p.piece)
				q.c.max_cut = q.c.max_frame
				if p.driver == driverTAP {
					// It holds the Ethernet header against the MTU, too, and never
					// sends a frame whose segments would be longer.
					q.c.max_cut = C.uint32_t(p.mtu)
				}
			}
			if s.tx_offloads != 0 {
				q.c.prepare = 1
			}
			p.queues = append(p.queues, q)
		}
		var fds []int
		if p.domain != 0 {
			if fds, err = p.newSockets(); err != nil {
				return err
			}
		}
		if p.config.Interrupts {
			if err := p.addInterrupts(p.queues[len(p.queues)-each:], fds); err != nil {
				return err
			}
		}
	}
	if p.netdev != nil {
		// The drivers clear this flag when they start.
		flags := p.netdev.found
		if p.config.Promiscuous {
			flags |= syscall.IFF_PROMISC
		}
		if err := p.netdev.setFlags(flags, syscall.IFF_PROMISC); err != nil {
			return err
		}
		if err := p.netdev.setFlags(syscall.IFF_ALLMULTI, syscall.IFF_ALLMULTI); err != nil {
			return err
		}
	}
	p.describe(segment, size)
	return nil
}

// planPieces makes what it takes to hand a large frame to a device whose
// descriptors carry at most 16 KiB, as those of most NICs do: mbufs without
// memory, that point into the frame. Drivers that copy take it whole.
func (p *Port) planPieces() (err error) {
	p.piece = p.config.piece
	if p.piece == 0 {
		switch p.driver {
		case driverTAP, driverVhost, driverVirtioUser, driverVirtio:
			return nil
		}
		p.piece = pieceSize
	}
	if p.info.tx_offloads&C.PX_TX_SEGMENTS == 0 {
		p.piece = 0 // It takes no chains.
		return nil
	}
	p.pieces, err = p.makePool("pieces", largeFrames*p.config.Queues*(largeRoom/p.piece+1), 0, 0)
	return err
}

// leastFrames is how many frames the pool must have: what the driver fills its
// rings with, and two bursts for the application and the threads' caches.
func (p *Port) leastFrames() int {
	ring := p.config.Descriptors
	if ring == 0 {
		ring = 1024
	}
	if p.domain == domainXDP {
		ring = max(ring, 2048) // What its driver fills, whatever the rings' size.
	}
	return p.config.Queues * (ring + 2*burst)
}

func (p *Port) start(u unit, s C.struct_px_setup) error {
	if rc := C.px_configure(u.port, &s); rc != 0 {
		err := fmt.Errorf("configuring %s: %w%s", u.name, errno(rc), saidSuffix())
		if p.domain != 0 {
			p.newSockets() // For release to close.
		}
		if p.domain == domainXDP && p.program != 0 {
			err = fmt.Errorf("%w; it has an XDP program already (id %d), remove it: ip link set dev %s xdp off", err, p.program, p.name)
		}
		return err
	}
	if rc := C.px_start(u.port); rc != 0 {
		return fmt.Errorf("starting %s: %w%s", u.name, errno(rc), saidSuffix())
	}
	if p.netdev == nil {
		// Devices that filter need to be told; those that do not refuse.
		if p.config.Promiscuous {
			C.px_promiscuous(u.port)
		}
		C.px_all_multicast(u.port)
	}
	return nil
}

// newPool makes a pool of frames.
func (p *Port) newPool(kind string, frames, size, cache int) (*C.struct_rte_mempool, error) {
	pool, err := p.makePool(kind, frames, size, cache)
	if err == nil {
		p.pools = append(p.pools, pool)
	}
	return pool, err
}

func (p *Port) makePool(kind string, frames, size, cache int) (*C.struct_rte_mempool, error) {
	if needs, free := int(C.px_pool_bytes(C.uint(frames), C.uint(size))), freeMemory(); needs > free {
		return nil, fmt.Errorf("too little memory: %d frames of %d bytes need %d MiB, and of the EAL's %d MiB %d are free; give it more (Options.Memory) or take fewer frames",
			frames, size, needs>>20+1, eal.options.Memory, free>>20)
	}
	eal.serial++
	name := C.CString(fmt.Sprintf("px_%s_%d", kind, eal.serial))
	defer C.free(unsafe.Pointer(name))
	pool := C.px_pool_new(name, C.uint(frames), C.uint(size), C.uint(min(cache, frames/4)), p.info.socket)
	if pool == nil {
		err := error(syscall.Errno(C.px_errno()))
		if errors.Is(err, syscall.ENOMEM) {
			err = fmt.Errorf("%w: give the EAL more than %d MiB (Options.Memory)", err, eal.options.Memory)
		}
		return nil, fmt.Errorf("making a pool of %d frames of %d bytes: %w%s", frames, size, err, saidSuffix())
	}
	return pool, nil
}

// addInterrupts gives queues, all of one unit that was just started, something
// to sleep on, if there is anything: the sockets that the driver opened, or the
// device's interrupts.
func (p *Port) addInterrupts(queues []*queue, sockets []int) error {
	if p.domain != 0 && len(sockets) != len(queues) {
		return fmt.Errorf("%s opened %d sockets for %d queues: cannot tell what to sleep on; open it without interrupts", p.driver, len(sockets), len(queues))
	}
	for i, q := range queues {
		interrupt, err := newInterrupt(q)
		if err != nil {
			return err
		}
		switch {
		case p.domain != 0:
			if err := interrupt.addSocket(sockets[i]); err != nil {
				interrupt.close()
				return err
			}
			p.capabilities.Interrupt = interruptSocket
		case interrupt.addDevice():
			p.capabilities.Interrupt = interruptDevice
		default:
			interrupt.close() // Poll only.
			continue
		}
		q.interrupt = interrupt
	}
	return nil
}

func newQueue(port C.uint16_t, index int) (*queue, error) {
	c := C.px_queue_new()
	if c == nil {
		return nil, errors.New("no memory for a queue")
	}
	c.port, c.queue = port, C.uint16_t(index)
	return &queue{c: c, slots: c.slots[:]}, nil
}

// describe fills in what the port says of itself.
func (p *Port) describe(segment bool, size int) {
	p.frames = p.available()
	p.readRSS()
	tx := p.info.tx_offloads
	p.capabilities = driver.Capabilities{
		Driver:             p.driver,
		Interrupt:          p.capabilities.Interrupt,
		ReceiveChecksum:    p.info.rx_offloads&C.PX_RX_CHECKSUM != 0,
		TransmitIPChecksum: tx&C.PX_TX_IP != 0, TransmitTCPChecksum: tx&C.PX_TX_TCP != 0, TransmitUDPChecksum: tx&C.PX_TX_UDP != 0,
		SegmentTCP: segment,
		MaxFrame:   p.mtu + etherHeader,
	}
	if segment {
		p.capabilities.MaxFrame = p.maxSegmented()
	}
}

// maxSegments is the most segments that the driver cuts a frame into, 0 if any
// number. That of a tap refuses more than 64, for ever, and takes two small
// buffers for each from a pool of 128.
func (p *Port) maxSegments() int {
	if p.driver == driverTAP {
		return 48
	}
	return 0
}

// maxSegmented is the largest frame that the device segments: it must not
// depend on the peer whether it does, so the smallest usual segment counts.
func (p *Port) maxSegmented() int {
	const smallest = 536 // RFC 9293, 3.7.1
	if n := p.maxSegments(); n > 0 {
		return min(largeRoom, n*smallest)
	}
	return largeRoom
}

// readRSS asks the device how it spreads flows over its queues.
func (p *Port) readRSS() {
	if len(p.units) != 1 || len(p.queues) < 2 || p.info.table_size == 0 || p.info.rss_types == 0 {
		return
	}
	key := make([]byte, 256)
	r := driver.RSS{Table: make([]uint16, p.info.table_size)}
	size := C.uint(p.info.key_size)
	if size == 0 {
		size = 40 // What nearly every device uses.
	}
	var types C.uint64_t
	// A table that leaves queues out would be the device's default, nobody's choice.
	C.px_rss_spread(p.units[0].port, C.uint(len(r.Table)), C.uint(len(p.queues)))
	if C.px_rss_get(p.units[0].port, (*C.uint8_t)(&key[0]), size, (*C.uint16_t)(&r.Table[0]), C.uint(len(r.Table)), &types) != 0 {
		return
	}
	r.Key = key[:size]
	r.TCP4, r.TCP6 = types&C.PX_RSS_TCP4 != 0, types&C.PX_RSS_TCP6 != 0
	r.UDP4, r.UDP6 = types&C.PX_RSS_UDP4 != 0, types&C.PX_RSS_UDP6 != 0
	p.rss, p.hasRSS = r, true
}
