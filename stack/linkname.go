package stack

import (
	"math"
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The unexported parts of gVisor's TCP that the Inline dispatch runs on. They
// are reached by linkname and by field offset, all in this file, for the gVisor
// version that go.mod pins; linkname_test.go reads that version's source and
// fails when a signature or a field is no longer what is assumed here.
//
// A *segment or *neighborEntry is an unsafe.Pointer in these declarations: its
// type has no name outside its package.

//go:linkname newIncomingSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.newIncomingSegment
func newIncomingSegment(id netstack.TransportEndpointID, clock tcpip.Clock, pkt *netstack.PacketBuffer) (unsafe.Pointer, error)

//go:linkname segmentDecRef gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).DecRef
func segmentDecRef(s unsafe.Pointer)

//go:linkname enqueueSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).enqueueSegment
func enqueueSegment(e *tcp.Endpoint, s unsafe.Pointer) bool

//go:linkname dequeueSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segmentQueue).dequeue
func dequeueSegment(q unsafe.Pointer) unsafe.Pointer

//go:linkname segmentQueueEmpty gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segmentQueue).empty
func segmentQueueEmpty(q unsafe.Pointer) bool

//go:linkname dequeueEndpoint gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*epQueue).dequeue
func dequeueEndpoint(q unsafe.Pointer) *tcp.Endpoint

//go:linkname handleSegmentLocked gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).handleSegmentLocked
func handleSegmentLocked(e *tcp.Endpoint, s unsafe.Pointer) (more bool, err tcpip.Error)

//go:linkname handleSegmentsLocked gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).handleSegmentsLocked
func handleSegmentsLocked(e *tcp.Endpoint) tcpip.Error

//go:linkname resetConnectionLocked gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).resetConnectionLocked
func resetConnectionLocked(e *tcp.Endpoint, err tcpip.Error)

//go:linkname drainClosingSegmentQueue gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).drainClosingSegmentQueue
func drainClosingSegmentQueue(e *tcp.Endpoint)

//go:linkname handleConnecting gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnecting
func handleConnecting(e *tcp.Endpoint)

//go:linkname handleConnected gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnected
func handleConnected(e *tcp.Endpoint)

//go:linkname handleTimeWait gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleTimeWait
func handleTimeWait(e *tcp.Endpoint)

//go:linkname handleListen gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleListen
func handleListen(e *tcp.Endpoint)

//go:linkname startTimeWait gvisor.dev/gvisor/pkg/tcpip/transport/tcp.startTimeWait
func startTimeWait(e *tcp.Endpoint)

//go:linkname cachedNeighbor gvisor.dev/gvisor/pkg/tcpip/stack.(*Route).getCachedNeighborEntry
func cachedNeighbor(r *netstack.Route) unsafe.Pointer

//go:linkname neighborAddress gvisor.dev/gvisor/pkg/tcpip/stack.(*neighborEntry).getRemoteLinkAddress
func neighborAddress(n unsafe.Pointer) (tcpip.LinkAddress, bool)

// The fields of tcp.Endpoint, tcp.sender, tcp.receiver, tcp.protocol,
// tcp.dispatcher and tcp.processor that are reached by offset.
var (
	endpointType      = reflect.TypeFor[tcp.Endpoint]()
	segmentQueueField = field(endpointType, "segmentQueue")
	waiterQueueField  = field(endpointType, "waiterQueue")
	routeField        = field(endpointType, "route")
	senderField       = field(endpointType, "snd")
	sndUnaField       = field(senderField.Type.Elem(), "SndUna")
	receiverField     = field(endpointType, "rcv")
	rcvNxtField       = field(receiverField.Type.Elem(), "RcvNxt")
	rcvWndField       = field(receiverField.Type.Elem(), "rcvWnd")
	rcvScaleField     = field(receiverField.Type.Elem(), "RcvWndScale")
	protocolField     = field(endpointType, "protocol")
	dispatcherField   = field(protocolField.Type.Elem(), "dispatcher")
	processorsField   = field(dispatcherField.Type, "processors")
	closedField       = field(dispatcherField.Type, "closed")
	processorQueue    = field(processorsField.Type.Elem(), "epQ")
)

func field(t reflect.Type, name string) reflect.StructField {
	f, ok := t.FieldByName(name)
	if !ok {
		panic("gVisor's " + t.String() + " has no field " + name + ": the pinned version moved; see linkname_test.go")
	}
	return f
}

// segmentQueue is the queue of segments that e has not processed.
func segmentQueue(e *tcp.Endpoint) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(e), segmentQueueField.Offset)
}

// waiterQueue is the queue that e notifies.
func waiterQueue(e *tcp.Endpoint) *waiter.Queue {
	return *(**waiter.Queue)(unsafe.Add(unsafe.Pointer(e), waiterQueueField.Offset))
}

// routeOf is the route of a connection, nil once it has none.
func routeOf(e *tcp.Endpoint) *netstack.Route {
	return *(**netstack.Route)(unsafe.Add(unsafe.Pointer(e), routeField.Offset))
}

// acknowledged is the first sequence number that an established connection's peer
// has not acknowledged.
func acknowledged(e *tcp.Endpoint) uint32 {
	sender := *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(e), senderField.Offset))
	return *(*uint32)(unsafe.Add(sender, sndUnaField.Offset))
}

// receiveWindow is the sequence number that an established connection expects next,
// and how many from there on it has last said that it takes.
func receiveWindow(e *tcp.Endpoint) (next, size uint32) {
	receiver := *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(e), receiverField.Offset))
	scale := *(*uint8)(unsafe.Add(receiver, rcvScaleField.Offset))
	// What goes into a header's field.
	said := min(*(*uint32)(unsafe.Add(receiver, rcvWndField.Offset))>>scale, math.MaxUint16)
	return *(*uint32)(unsafe.Add(receiver, rcvNxtField.Offset)), said << scale
}

// takeOverDispatcher ends the processor goroutines of s's TCP and returns the
// queue of endpoints that they drained, for the caller to drain. Everything that
// would have woken a processor (a packet on the ordinary path, a timer, an
// endpoint unlocked with segments waiting) lands in that queue from then on.
func takeOverDispatcher(s *netstack.Stack) unsafe.Pointer {
	protocol := s.TransportProtocolInstance(tcp.ProtocolNumber)
	protocol.Close()
	protocol.Wait()
	d := unsafe.Add(reflect.ValueOf(protocol).UnsafePointer(), dispatcherField.Offset)
	*(*bool)(unsafe.Add(d, closedField.Offset)) = false
	// One processor, so that every endpoint hashes to the same queue. The slice
	// is only re-cut: its element type has no name here.
	processors := (*[]struct{})(unsafe.Add(d, processorsField.Offset))
	*processors = (*processors)[:1:1]
	return unsafe.Add(unsafe.Pointer(unsafe.SliceData(*processors)), processorQueue.Offset)
}
