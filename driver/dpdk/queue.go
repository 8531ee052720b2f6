package dpdk

/*
#include "burst.h"
#cgo noescape px_receive
#cgo nocallback px_receive
#cgo noescape px_transmit
#cgo nocallback px_transmit
#cgo noescape px_allocate
#cgo nocallback px_allocate
*/
import "C"

import (
	"unsafe"

	"github.com/pollux-net/pollux/driver"
)

// burst is the most frames that one call into C carries.
const burst = C.PX_BURST

// queue is one receive and one transmit queue of a port. What it shares with C
// lies in C memory and is reached by address, so that a burst costs one call
// and no pointer check.
type queue struct {
	c         *C.struct_px_queue
	slots     []C.struct_px_slot
	stash     []driver.Frame // received by Arm, not handed out yet
	refused   uint64
	interrupt *interrupt
}

func (q *queue) address() C.uintptr_t { return C.uintptr_t(uintptr(unsafe.Pointer(q.c))) }

// Receive implements driver.Queue. It hands out up to 256 frames a call.
func (q *queue) Receive(frames []driver.Frame) int {
	if len(q.stash) > 0 {
		return q.receiveStashed(frames)
	}
	if len(frames) == 0 {
		return 0
	}
	n := int(C.px_receive(q.address(), C.uint(min(len(frames), burst))))
	if n > 0 {
		take(frames, q.slots[:n])
	}
	return n
}

// receiveStashed hands out what Arm found.
func (q *queue) receiveStashed(frames []driver.Frame) int {
	n := copy(frames, q.stash)
	clear(q.stash[:n])
	q.stash = q.stash[n:]
	return n
}

// take makes frames of slots.
func take(frames []driver.Frame, slots []C.struct_px_slot) {
	frames = frames[:len(slots)]
	for i := range slots {
		s, f := &slots[i], &frames[i]
		f.Data = unsafe.Slice((*byte)(s.data), s.capacity)[:s.length]
		f.Pool = memory
		f.Handle = uintptr(s.mbuf)
		f.Hash = uint32(s.hash)
		f.Flags = driver.Flags(s.flags)
		f.SegmentSize = 0
		f.L2, f.L3, f.L4 = 0, 0, 0
	}
}

// Transmit implements driver.Queue. It takes up to 256 frames a call.
func (q *queue) Transmit(frames []driver.Frame) int {
	n := min(len(frames), burst)
	if n == 0 {
		return 0
	}
	for i := range n {
		f, s := &frames[i], &q.slots[i]
		if _, ours := f.Pool.(*mbufs); !ours {
			return q.transmitForeign(frames, i)
		}
		give(s, f)
	}
	sent := int(C.px_transmit(q.address(), C.uint(n)))
	clear(frames[:sent])
	q.refused += uint64(len(frames) - sent)
	return sent
}

// give describes a frame in a slot.
func give(s *C.struct_px_slot, f *driver.Frame) {
	s.mbuf = C.uintptr_t(f.Handle)
	s.length = C.uint32_t(len(f.Data))
	s.flags = C.uint16_t(f.Flags)
	if f.Flags&asks != 0 { // else nobody looks at the rest
		s.segment = C.uint16_t(f.SegmentSize)
		s.l2, s.l3, s.l4 = C.uint8_t(f.L2), C.uint16_t(f.L3), C.uint8_t(f.L4)
	}
}

// asks are the flags by which a frame asks something of the device.
const asks = driver.ComputeIPChecksum | driver.ComputeTCPChecksum | driver.ComputeUDPChecksum | driver.SegmentTCP

// transmitForeign sends the frames before the first one whose memory is not
// ours, then a copy of each that follows in a row.
func (q *queue) transmitForeign(frames []driver.Frame, first int) int {
	if first > 0 {
		sent := q.Transmit(frames[:first])
		if sent == first {
			sent += q.Transmit(frames[first:])
		} else {
			q.refused += uint64(len(frames) - first)
		}
		return sent
	}
	var copies [burst]driver.Frame
	n := 0
	for n < min(len(frames), burst) {
		if _, ours := frames[n].Pool.(*mbufs); ours {
			break
		}
		f, c := &frames[n], &copies[n]
		if q.Allocate(copies[n:n+1], len(f.Data)) == 0 {
			break
		}
		data := c.Data[:len(f.Data)]
		copy(data, f.Data)
		c.Data = data
		c.Flags, c.SegmentSize, c.L2, c.L3, c.L4 = f.Flags, f.SegmentSize, f.L2, f.L3, f.L4
		n++
	}
	sent := q.Transmit(copies[:n])
	driver.Free(copies[sent:n])
	driver.Free(frames[:sent])
	if sent == n && n > 0 && n < len(frames) {
		return sent + q.Transmit(frames[n:])
	}
	q.refused += uint64(len(frames) - n)
	return sent
}

// Allocate implements driver.Queue. It gives up to 256 frames a call.
func (q *queue) Allocate(frames []driver.Frame, size int) int {
	n := min(len(frames), burst)
	if n == 0 || size < 0 {
		return 0
	}
	n = int(C.px_allocate(q.address(), C.uint(n), C.uint(size)))
	take(frames, q.slots[:n])
	return n
}

// Interrupt implements driver.Queue.
func (q *queue) Interrupt() driver.Interrupt {
	if q.interrupt == nil {
		return nil
	}
	return q.interrupt
}

// Statistics implements driver.Queue.
func (q *queue) Statistics() driver.QueueStatistics {
	return driver.QueueStatistics{
		ReceivedFrames:     uint64(q.c.received),
		ReceivedBytes:      uint64(q.c.received_bytes),
		TransmittedFrames:  uint64(q.c.transmitted),
		TransmittedBytes:   uint64(q.c.transmitted_bytes),
		EmptyPolls:         uint64(q.c.empty_polls),
		ReceiveDropped:     uint64(q.c.receive_dropped),
		TransmitRefused:    q.refused,
		AllocationFailures: uint64(q.c.allocation_failures),
	}
}
