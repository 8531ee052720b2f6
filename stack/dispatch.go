package stack

import (
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// inline is the Inline dispatch: the loop is netstack's segment processor.
// Segments wait in their endpoint's queue until the burst they came with has
// been taken in; then each endpoint processes all of its own at once.
type inline struct {
	// queue is netstack's own queue of endpoints with work, see takeOverDispatcher.
	queue unsafe.Pointer
	// touched are sockets that the flow cache gave segments to in this burst.
	touched []*Socket
	// owing are established endpoints that processed segments but held back
	// the ACK, so that the application's reply can carry it.
	owing []*tcp.Endpoint
}

// process runs TCP for every endpoint with segments waiting.
func (d *inline) process() {
	for _, k := range d.touched {
		k.touched = false
		before := acknowledged(k.ep)
		d.run(k.ep)
		if acknowledged(k.ep) != before {
			k.confirm()
		}
	}
	clear(d.touched)
	d.touched = d.touched[:0]
	for e := dequeueEndpoint(d.queue); e != nil; e = dequeueEndpoint(d.queue) {
		d.run(e)
	}
}

// run processes the segments of one endpoint until none is left: netstack's
// handlers stop after 100 so that others get a turn, but a burst is bounded.
func (d *inline) run(e *tcp.Endpoint) {
	for range maxRounds {
		d.once(e)
		if !segmentWaits(e) {
			return
		}
	}
}

// maxRounds guards against an endpoint that cannot make progress.
const maxRounds = 64

// once is what netstack's processor goroutine does for an endpoint, whatever
// its state (tcp/dispatcher.go, start).
func (d *inline) once(e *tcp.Endpoint) {
	switch state := e.EndpointState(); state {
	case tcp.StateEstablished:
		d.established(e)
	case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		handleConnecting(e)
	case tcp.StateTimeWait:
		handleTimeWait(e)
	case tcp.StateListen:
		handleListen(e)
	case tcp.StateError, tcp.StateClose:
		drainClosingSegmentQueue(e)
	case tcp.StateInitial, tcp.StateBound:
		// Nothing reaches an endpoint that has no peer and does not listen.
	default:
		handleConnected(e)
	}
}

// established processes segments and leaves the ACK owing.
func (d *inline) established(e *tcp.Endpoint) {
	if !e.TryLock() {
		// Every call on an endpoint is made by the loop, so nobody holds the lock.
		return
	}
	for connected(e.EndpointState()) {
		s := nextSegment(e)
		if s == nil {
			break
		}
		more, err := handleSegmentLocked(e, s)
		segmentDecRef(s)
		if err != nil {
			resetConnectionLocked(e, err)
			d.closed(e)
			return
		}
		if !more {
			break
		}
	}
	switch e.EndpointState() {
	case tcp.StateClose:
		d.closed(e)
		return
	case tcp.StateTimeWait:
		startTimeWait(e)
	default:
		d.owing = append(d.owing, e)
	}
	e.ResumeWork() // unlocks
}

// connected reports whether segments can still be processed as a connection's.
func connected(s tcp.EndpointState) bool {
	switch s {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return true
	}
	return false
}

// closed unlocks an endpoint whose connection has ended and tells its owner.
func (d *inline) closed(e *tcp.Endpoint) {
	e.ResumeWork() // unlocks
	drainClosingSegmentQueue(e)
	waiterQueue(e).Notify(waiter.EventHUp | waiter.EventErr | waiter.ReadableEvents | waiter.WritableEvents)
}

// acknowledge sends the ACKs that no reply has carried in the meantime.
func (d *inline) acknowledge() {
	for _, e := range d.owing {
		// Mostly a reply has gone. What is left would be the keepalive timer, which
		// does not run while something is to be acknowledged.
		if e.EndpointState() == tcp.StateEstablished && allAnswered(e) {
			continue
		}
		if !e.TryLock() {
			continue
		}
		if s := e.EndpointState(); connected(s) {
			// With nothing queued this only sends the ACK, if it is still
			// owed, and restarts the keepalive timer.
			if err := handleSegmentsLocked(e); err != nil {
				resetConnectionLocked(e, err)
				d.closed(e)
				continue
			}
		}
		e.ResumeWork() // unlocks
	}
	clear(d.owing)
	d.owing = d.owing[:0]
}
