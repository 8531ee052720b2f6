package stack

import (
	"fmt"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// MaxDatagram is the largest payload in bytes of a UDP datagram over IPv4.
const MaxDatagram = 65507

// PacketOwner is told when something may have changed on a packet socket: a
// datagram or an error to read, room to write. It is called from Deliver, once
// for any number of changes. It must read until ErrWouldBlock, or come back for
// the rest by itself: datagrams behind one that was left are not announced.
type PacketOwner interface {
	Ready(k *PacketSocket)
}

// PacketSocket is a UDP socket that never blocks. It belongs to the stack's
// goroutine.
type PacketSocket struct {
	stack  *Stack
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	event  event
	owner  PacketOwner
	to     tcpip.FullAddress // of the WriteTo in progress
	closed bool
}

// ListenPacketEvents binds a UDP socket to address: an unspecified address
// stands for all of the stack's, of both families, and port 0 for a free one.
// Datagrams beyond the receive buffer are dropped. Call it on the stack's
// goroutine.
func (s *Stack) ListenPacketEvents(address netip.AddrPort, owner PacketOwner) (*PacketSocket, error) {
	return s.listenPacket(address, familyOf(address), owner)
}

func (s *Stack) listenPacket(address netip.AddrPort, f family, owner PacketOwner) (*PacketSocket, error) {
	k, err := s.newPacketSocket(f, owner)
	if err == nil {
		if err = translate(k.ep.Bind(toBound(address))); err != nil {
			k.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bind UDP to %v: %w", address, err)
	}
	return k, nil
}

// ConnectPacketEvents makes a UDP socket that talks to remote only: what others
// send does not reach it, and it learns that nobody listens there
// (ECONNREFUSED). Call it on the stack's goroutine.
func (s *Stack) ConnectPacketEvents(remote netip.AddrPort, owner PacketOwner) (*PacketSocket, error) {
	k, err := s.newPacketSocket(familyOf(remote), owner)
	if err == nil {
		if s.config.OwnsFlow != nil {
			err = s.bindOwned(k.ep, remote)
		}
		if err == nil {
			err = translate(k.ep.Connect(toFull(remote)))
		}
		if err != nil {
			k.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connect UDP to %v: %w", remote, err)
	}
	return k, nil
}

func (s *Stack) newPacketSocket(f family, owner PacketOwner) (*PacketSocket, error) {
	k := &PacketSocket{stack: s, wq: &waiter.Queue{}, owner: owner}
	ep, err := s.net.NewEndpoint(udp.ProtocolNumber, f.protocol(), k.wq)
	if err != nil {
		return nil, translate(err)
	}
	ep.SocketOptions().SetV6Only(f == only6)
	ep.SocketOptions().SetBroadcast(true) // as package net does
	k.ep = ep
	k.event.init(s, k, k.wq, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	return k, nil
}

func (k *PacketSocket) ready() {
	if !k.closed && k.owner != nil {
		k.owner.Ready(k)
	}
}

// ReadFrom copies the next datagram into p and says who sent it. What does not
// fit into p is lost. It returns ErrWouldBlock if there is none.
func (k *PacketSocket) ReadFrom(p []byte) (int, netip.AddrPort, error) {
	if k.closed {
		return 0, netip.AddrPort{}, errClosed
	}
	w := tcpip.SliceWriter(p)
	r, err := k.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
	if _, bad := err.(*tcpip.ErrBadBuffer); bad && len(p) == 0 {
		err = nil // netstack's word for a datagram of which nothing fits
	}
	if err != nil {
		return 0, netip.AddrPort{}, translate(err)
	}
	return r.Count, fromFull(r.RemoteAddr), nil
}

// WriteTo sends p as one datagram, in fragments if it is larger than the MTU.
// The zero AddrPort stands for the peer that the socket is connected to. It
// returns ErrWouldBlock while too much waits for the peer's link address;
// ENOBUFS means that the device had no room and the datagram is lost.
func (k *PacketSocket) WriteTo(p []byte, to netip.AddrPort) (int, error) {
	if k.closed {
		return 0, errClosed
	}
	options := tcpip.WriteOptions{Atomic: true}
	if to.IsValid() {
		k.to = toFull(to)
		options.To = &k.to
	}
	r := &k.stack.reader
	r.Reset(p)
	n, err := k.ep.Write(r, options)
	r.Reset(nil)
	return int(n), translate(err)
}

// Close ends the socket. The owner hears no more of it.
func (k *PacketSocket) Close() {
	if k.closed {
		return
	}
	k.closed = true
	k.owner = nil
	k.event.stop(k.wq)
	k.ep.Close()
}

// LocalAddr is the address that the socket is bound to.
func (k *PacketSocket) LocalAddr() netip.AddrPort {
	a, _ := k.ep.GetLocalAddress()
	return fromFull(a)
}
