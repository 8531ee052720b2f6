package user

import (
	"errors"
	"fmt"
	"net/netip"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

// packetConn is a UDP socket of one loop, bound to one address, so that replies
// leave from the address that the datagram was sent to.
type packetConn struct {
	loop    *loop
	socket  *stack.PacketSocket
	handler polluxruntime.PacketHandler
	local   netip.AddrPort
}

// ListenPacket serves the datagrams to address on every shard with h. An
// unspecified address stands for each of the stack's configured addresses, of its
// family if it is IPv4, of both if it is IPv6; what is sent to a broadcast
// address or a group does not arrive. Call it before Start.
func (r *Runtime) ListenPacket(address netip.AddrPort, h polluxruntime.PacketHandler) error {
	if address.Port() == 0 {
		return errors.New("serve datagrams: a port is needed, as the same one is bound on every shard")
	}
	addresses := []netip.Addr{address.Addr()}
	if address.Addr().IsUnspecified() {
		addresses = nil
		for _, p := range r.config.Stack.Addresses {
			if address.Addr().Is6() || p.Addr().Unmap().Is4() {
				addresses = append(addresses, p.Addr())
			}
		}
		if len(addresses) == 0 {
			return fmt.Errorf("serve datagrams to %v: the stack has no address of that family", address)
		}
	}
	for _, l := range r.loops {
		if l.datagram == nil {
			l.datagram = make([]byte, stack.MaxDatagram)
		}
		for _, a := range addresses {
			c := &packetConn{loop: l, handler: h, local: netip.AddrPortFrom(a, address.Port())}
			var err error
			if c.socket, err = l.stack.ListenPacketEvents(c.local, c); err != nil {
				return err
			}
			l.packets = append(l.packets, c)
		}
		l.register(h)
	}
	return nil
}

// Ready implements stack.PacketOwner.
func (c *packetConn) Ready(k *stack.PacketSocket) {
	// An error of a datagram that was sent may have received ones behind it, but
	// none that stays may keep the loop.
	for failures := 0; failures < 16 && !c.loop.draining; {
		n, from, err := k.ReadFrom(c.loop.datagram)
		if errors.Is(err, stack.ErrWouldBlock) {
			return
		}
		if err != nil {
			c.loop.counters.PacketErrors++
			failures++
			continue
		}
		c.loop.counters.PacketsReceived++
		c.handler.Packet(c, from, c.loop.datagram[:n])
	}
}

// WriteTo implements runtime.PacketConn.
func (c *packetConn) WriteTo(p []byte, to netip.AddrPort) (int, error) {
	n, err := c.socket.WriteTo(p, to)
	if err != nil {
		c.loop.counters.PacketErrors++
		return 0, fmt.Errorf("send a datagram to %v: %w", to, err)
	}
	c.loop.counters.PacketsSent++
	return n, nil
}

// LocalAddr implements runtime.PacketConn.
func (c *packetConn) LocalAddr() netip.AddrPort { return c.local }

// Shard implements runtime.PacketConn.
func (c *packetConn) Shard() int { return c.loop.shard }
