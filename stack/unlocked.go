package stack

import (
	"io"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// What netstack does under its locks, done without them by the one goroutine that
// the Inline dispatch leaves with the stack. linkname_test.go watches the functions
// whose place these take.

// newIncomingSegment is netstack's, for a segment whose checksum is known to be right
// and whose header h fits: it takes over the packet, where netstack's takes a copy.
func newIncomingSegment(id netstack.TransportEndpointID, now tcpip.MonotonicTime, p *netstack.PacketBuffer, h header.TCP) unsafe.Pointer {
	s := newSegment()
	*at[netstack.TransportEndpointID](s, &segmentIDField) = id
	*at[*netstack.PacketBuffer](s, &segmentPacketField) = p
	*at[uint32](s, &segmentNumberField) = h.SequenceNumber()
	*at[uint32](s, &segmentAckField) = h.AckNumber()
	*at[header.TCPFlags](s, &segmentFlagsField) = h.Flags()
	*at[uint32](s, &segmentWindowField) = uint32(h.WindowSize())
	*at[bool](s, &segmentValidField) = true
	*at[[]byte](s, &segmentOptionsField) = h[header.TCPMinimumSize:]
	*at[header.TCPOptions](s, &segmentParsedField) = header.ParseTCPOptions(h[header.TCPMinimumSize:])
	*at[tcpip.MonotonicTime](s, &segmentTimeField) = now
	*at[int](s, &segmentSizeField) = p.MemSize()
	return s
}

// takeSegment queues a segment that has a payload of so many bytes for e, without
// the queue's lock. It takes the caller's reference over, or refuses: then netstack's
// enqueueSegment is to judge it, which also counts.
func takeSegment(e *tcp.Endpoint, s unsafe.Pointer, payload int) bool {
	q := segmentQueue(e)
	if *at[bool](q, &frozenField) || payload > 0 && receiveMemUsed(e) > int(e.SocketOptions().GetReceiveBufferSize()) {
		return false
	}
	const received = 1 << 1 // recvQ
	pushSegment(unsafe.Add(q, segmentsField.Offset), s)
	segmentSetOwner(s, e, received)
	return true
}

// nextSegment takes the first segment that waits out of e's queue, without its lock.
func nextSegment(e *tcp.Endpoint) unsafe.Pointer {
	list := unsafe.Add(segmentQueue(e), segmentsField.Offset)
	s := first(list)
	if s != nil {
		removeSegment(list, s)
	}
	return s
}

// read is netstack's Read without its locks, for an established connection with
// something to be read: it gives dst what was received, and tells the peer if the
// window that this opens is worth it.
func read(e *tcp.Endpoint, dst io.Writer) (done int, err error) {
	queue := unsafe.Add(unsafe.Pointer(e), rcvQueueField.Offset)
	for s := first(queue); s != nil && err == nil; s = first(queue) {
		var n int
		n, err = segmentReadTo(s, dst, false)
		done += n
		*at[int](unsafe.Pointer(e), &rcvBufUsedField) -= n
		freed := 0
		for s != nil && segmentPayloadSize(s) == 0 {
			removeSegment(queue, s)
			freed += segmentMemSize(s)
			segmentDecRef(s)
			s = first(queue)
		}
		if freed == 0 {
			continue
		}
		if crossed, above := windowCrossed(e, freed, int(e.SocketOptions().GetReceiveBufferSize())); crossed && above {
			nonZeroWindow(*at[unsafe.Pointer](unsafe.Pointer(e), &receiverField))
		}
	}
	return done, err
}

// neighborAddress is the link address of a route's next hop, if it is known and fresh
// enough to be used without asking netstack.
func neighborAddress(r *netstack.Route) (tcpip.LinkAddress, bool) {
	n := *at[unsafe.Pointer](unsafe.Pointer(r), &neighborField)
	if n == nil {
		return "", false
	}
	entry := at[netstack.NeighborEntry](unsafe.Add(n, lockedField.Offset), &entryField)
	switch entry.State {
	case netstack.Reachable, netstack.Static, netstack.Delay, netstack.Probe:
		return entry.LinkAddr, true
	}
	return "", false
}
