package stack

import (
	"io"
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
// A *segment, a *segmentList or a *receiver is an unsafe.Pointer in these
// declarations: its type has no name outside its package.

//go:linkname newSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.newSegment
func newSegment() unsafe.Pointer

//go:linkname segmentReadTo gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).ReadTo
func segmentReadTo(s unsafe.Pointer, dst io.Writer, peek bool) (int, error)

//go:linkname segmentPayloadSize gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).payloadSize
func segmentPayloadSize(s unsafe.Pointer) int

//go:linkname segmentMemSize gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).segMemSize
func segmentMemSize(s unsafe.Pointer) int

//go:linkname segmentSetOwner gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).setOwner
func segmentSetOwner(s unsafe.Pointer, e *tcp.Endpoint, flags uint8)

//go:linkname receiveMemUsed gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).receiveMemUsed
func receiveMemUsed(e *tcp.Endpoint) int

//go:linkname pushSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segmentList).PushBack
func pushSegment(list, s unsafe.Pointer)

//go:linkname removeSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segmentList).Remove
func removeSegment(list, s unsafe.Pointer)

//go:linkname windowCrossed gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).windowCrossedACKThresholdLocked
func windowCrossed(e *tcp.Endpoint, deltaBefore int, rcvBufSize int) (crossed bool, above bool)

//go:linkname nonZeroWindow gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*receiver).nonZeroWindow
func nonZeroWindow(receiver unsafe.Pointer)

//go:linkname segmentDecRef gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).DecRef
func segmentDecRef(s unsafe.Pointer)

//go:linkname enqueueSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).enqueueSegment
func enqueueSegment(e *tcp.Endpoint, s unsafe.Pointer) bool

//go:linkname dequeueEndpoint gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*epQueue).dequeue
func dequeueEndpoint(q unsafe.Pointer) *tcp.Endpoint

//go:linkname handleSegmentLocked gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).handleSegmentLocked
func handleSegmentLocked(e *tcp.Endpoint, s unsafe.Pointer) (more bool, err tcpip.Error)

//go:linkname handleSegmentsLocked gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).handleSegmentsLocked
func handleSegmentsLocked(e *tcp.Endpoint) tcpip.Error

//go:linkname queueSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).queueSegment
func queueSegment(e *tcp.Endpoint, p tcpip.Payloader, opts tcpip.WriteOptions) (s unsafe.Pointer, n int, err tcpip.Error)

//go:linkname sendData gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).sendData
func sendData(e *tcp.Endpoint, next unsafe.Pointer)

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

// The fields of TCP's types, and of a route and its neighbour, that are reached by
// offset.
var (
	endpointType      = reflect.TypeFor[tcp.Endpoint]()
	segmentQueueField = field(endpointType, "segmentQueue")
	segmentsField     = field(segmentQueueField.Type, "list")
	frozenField       = field(segmentQueueField.Type, "frozen")
	firstField        = field(segmentsField.Type, "head")
	rcvQueueField     = field(endpointType, "rcvQueue")
	rcvBufUsedField   = field(endpointType, "RcvBufUsed")
	rcvClosedField    = field(endpointType, "RcvClosed")
	waiterQueueField  = field(endpointType, "waiterQueue")
	routeField        = field(endpointType, "route")
	senderField       = field(endpointType, "snd")
	sndUnaField       = field(senderField.Type.Elem(), "SndUna")
	sndNxtField       = field(senderField.Type.Elem(), "SndNxt")
	maxSentAckField   = field(senderField.Type.Elem(), "MaxSentAck")
	receiverField     = field(endpointType, "rcv")
	rcvNxtField       = field(receiverField.Type.Elem(), "RcvNxt")
	rcvWndField       = field(receiverField.Type.Elem(), "rcvWnd")
	rcvScaleField     = field(receiverField.Type.Elem(), "RcvWndScale")
	protocolField     = field(endpointType, "protocol")
	dispatcherField   = field(protocolField.Type.Elem(), "dispatcher")
	processorsField   = field(dispatcherField.Type, "processors")
	closedField       = field(dispatcherField.Type, "closed")
	processorQueue    = field(processorsField.Type.Elem(), "epQ")

	segmentType         = firstField.Type.Elem()
	segmentIDField      = field(segmentType, "id")
	segmentPacketField  = field(segmentType, "pkt")
	segmentNumberField  = field(segmentType, "sequenceNumber")
	segmentAckField     = field(segmentType, "ackNumber")
	segmentFlagsField   = field(segmentType, "flags")
	segmentWindowField  = field(segmentType, "window")
	segmentValidField   = field(segmentType, "csumValid")
	segmentOptionsField = field(segmentType, "options")
	segmentParsedField  = field(segmentType, "parsedOptions")
	segmentTimeField    = field(segmentType, "rcvdTime")
	segmentSizeField    = field(segmentType, "dataMemSize")

	neighborField = field(reflect.TypeFor[netstack.Route](), "neighborEntry")
	lockedField   = field(neighborField.Type.Elem(), "mu")
	entryField    = field(lockedField.Type, "neigh")
)

// field finds a field, also one of an embedded struct; its Offset is that in t.
func field(t reflect.Type, name string) reflect.StructField {
	f, ok := t.FieldByName(name)
	if !ok {
		panic("gVisor's " + t.String() + " has no field " + name + ": the pinned version moved; see linkname_test.go")
	}
	for i := range len(f.Index) - 1 {
		f.Offset += t.FieldByIndex(f.Index[:i+1]).Offset
	}
	return f
}

// at is a field of what p points to.
func at[T any](p unsafe.Pointer, f *reflect.StructField) *T { return (*T)(unsafe.Add(p, f.Offset)) }

// first is the first segment of a list, nil if it is empty.
func first(list unsafe.Pointer) unsafe.Pointer { return *at[unsafe.Pointer](list, &firstField) }

// segmentQueue is the queue of segments that e has not processed.
func segmentQueue(e *tcp.Endpoint) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(e), segmentQueueField.Offset)
}

// segmentWaits reports whether e has segments that it has not processed.
func segmentWaits(e *tcp.Endpoint) bool {
	return first(unsafe.Add(segmentQueue(e), segmentsField.Offset)) != nil
}

// somethingToRead reports that there is data to be read from an established
// connection.
func somethingToRead(e *tcp.Endpoint) bool {
	return e.EndpointState() == tcp.StateEstablished && *at[int](unsafe.Pointer(e), &rcvBufUsedField) > 0
}

// nothingToRead reports that there is neither data nor its end to be read from an
// established connection.
func nothingToRead(e *tcp.Endpoint) bool {
	return e.EndpointState() == tcp.StateEstablished &&
		*at[int](unsafe.Pointer(e), &rcvBufUsedField) == 0 && !*at[bool](unsafe.Pointer(e), &rcvClosedField)
}

// waiterQueue is the queue that e notifies.
func waiterQueue(e *tcp.Endpoint) *waiter.Queue {
	return *at[*waiter.Queue](unsafe.Pointer(e), &waiterQueueField)
}

// routeOf is the route of a connection, nil once it has none.
func routeOf(e *tcp.Endpoint) *netstack.Route {
	return *at[*netstack.Route](unsafe.Pointer(e), &routeField)
}

// acknowledged is the first sequence number that an established connection's peer
// has not acknowledged.
func acknowledged(e *tcp.Endpoint) uint32 {
	return *at[uint32](*at[unsafe.Pointer](unsafe.Pointer(e), &senderField), &sndUnaField)
}

// allAnswered reports that there is nothing for an established connection's next ACK
// to say, and that its peer owes one: the last segment that was sent said it.
func allAnswered(e *tcp.Endpoint) bool {
	sender := *at[unsafe.Pointer](unsafe.Pointer(e), &senderField)
	receiver := *at[unsafe.Pointer](unsafe.Pointer(e), &receiverField)
	return *at[uint32](receiver, &rcvNxtField) == *at[uint32](sender, &maxSentAckField) &&
		*at[uint32](sender, &sndUnaField) != *at[uint32](sender, &sndNxtField)
}

// receiveWindow is the sequence number that an established connection expects next,
// and how many from there on it has last said that it takes.
func receiveWindow(e *tcp.Endpoint) (next, size uint32) {
	receiver := *at[unsafe.Pointer](unsafe.Pointer(e), &receiverField)
	scale := *at[uint8](receiver, &rcvScaleField)
	// What goes into a header's field.
	said := min(*at[uint32](receiver, &rcvWndField)>>scale, math.MaxUint16)
	return *at[uint32](receiver, &rcvNxtField), said << scale
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
