package stack

import (
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Counters count what the stack itself did since it was built; the queue counts
// frames and bytes.
type Counters struct {
	// FlowHits are frames that went past IP receive by the flow cache.
	FlowHits uint64
	// Strays are segments handed to a sibling.
	Strays uint64
	// Misdirected are valid SYNs to this stack that OwnsFlow places elsewhere.
	Misdirected uint64
	// Frames dropped on receive: shorter than an Ethernet header, with a wrong
	// checksum, for another host, or for a connection whose receive buffer is
	// full.
	DroppedShort, DroppedChecksum, DroppedOtherHost, DroppedReceiveBuffer uint64
	// DroppedTransmit are packets for which the device had no room.
	DroppedTransmit uint64
}

// Statistics is a snapshot of everything a stack counts.
type Statistics struct {
	Counters
	// From netstack, frames of the flow cache not included: IP packets received,
	// and those dropped as malformed, with a wrong address, or on a disabled interface.
	IPReceived, IPMalformed, IPInvalidAddress, IPDisabled uint64
	TCP                                                   TCPStatistics
	// Sockets are the TCP endpoints by state.
	Sockets map[string]int
	// Flows is the number of connections in the flow cache.
	Flows int
}

// TCPStatistics are TCP's counters (RFC 4022 has most).
type TCPStatistics struct {
	ActiveOpens, PassiveOpens, Established                       uint64
	SegmentsReceived, SegmentsSent                               uint64
	Retransmits, FastRetransmits, Timeouts, SlowStartRetransmits uint64
	ResetsSent, ResetsReceived                                   uint64
	InvalidSegments, ChecksumErrors                              uint64
	SYNCookiesSent, SYNCookiesReceived, ListenOverflows          uint64
	FailedConnections                                            uint64
}

// Statistics takes a snapshot. Counting sockets by state visits each of them.
func (s *Stack) Statistics() Statistics {
	n, t := s.net.Stats(), s.net.Stats().TCP
	st := Statistics{
		Counters:         s.counters,
		IPReceived:       n.IP.PacketsReceived.Value(),
		IPMalformed:      n.IP.MalformedPacketsReceived.Value(),
		IPInvalidAddress: n.IP.InvalidDestinationAddressesReceived.Value() + n.IP.InvalidSourceAddressesReceived.Value(),
		IPDisabled:       n.IP.DisabledPacketsReceived.Value(),
		TCP: TCPStatistics{
			ActiveOpens: t.ActiveConnectionOpenings.Value(), PassiveOpens: t.PassiveConnectionOpenings.Value(),
			Established:      t.CurrentEstablished.Value(),
			SegmentsReceived: t.ValidSegmentsReceived.Value() + s.counters.FlowHits, SegmentsSent: t.SegmentsSent.Value(),
			Retransmits: t.Retransmits.Value(), FastRetransmits: t.FastRetransmit.Value(), Timeouts: t.Timeouts.Value(),
			SlowStartRetransmits: t.SlowStartRetransmits.Value(),
			ResetsSent:           t.ResetsSent.Value(), ResetsReceived: t.ResetsReceived.Value(),
			InvalidSegments: t.InvalidSegmentsReceived.Value(), ChecksumErrors: t.ChecksumErrors.Value(),
			SYNCookiesSent: t.ListenOverflowSynCookieSent.Value(), SYNCookiesReceived: t.ListenOverflowSynCookieRcvd.Value(),
			ListenOverflows:   t.ListenOverflowSynDrop.Value(),
			FailedConnections: t.FailedConnectionAttempts.Value(),
		},
		Sockets: map[string]int{},
	}
	s.link.guard.lock()
	st.DroppedTransmit = s.link.dropped
	s.link.guard.unlock()
	if s.flows != nil {
		st.Flows = s.flows.n
	}
	for _, e := range s.net.RegisteredEndpoints() {
		if e, ok := e.(*tcp.Endpoint); ok {
			st.Sockets[e.EndpointState().String()]++
		}
	}
	return st
}

// Endpoints is the number of transport endpoints that exist, whether or not
// their owner has closed them: a leak shows here.
func (s *Stack) Endpoints() int { return len(s.net.RegisteredEndpoints()) }

// Misdirected is the number of valid SYNs that reached this stack although
// Config.OwnsFlow places their connections elsewhere.
func (s *Stack) Misdirected() uint64 { return s.counters.Misdirected }

// Closing reports whether a connection still has data or a FIN that the peer has
// not acknowledged, although its owner has closed it.
func (s *Stack) Closing() bool {
	for _, e := range s.net.RegisteredEndpoints() {
		if e, ok := e.(*tcp.Endpoint); ok {
			switch e.EndpointState() {
			case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
				return true
			}
		}
	}
	return false
}
