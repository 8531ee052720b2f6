package runtime

import "net/netip"

// PacketHandler is an application over datagrams. One value may serve several
// shards, like a Handler; which shard gets a peer's datagrams is the device's
// choice, so that what a peer's datagrams share must not depend on it.
type PacketHandler interface {
	// Packet hands over one datagram, which may be empty. In is valid only
	// during the call.
	Packet(c PacketConn, from netip.AddrPort, in []byte)
}

// PacketConn is a socket for datagrams. It belongs to one core, and may be used
// only from inside Packet.
type PacketConn interface {
	// WriteTo sends p as one datagram. While Packet runs it is sent from the
	// address that the datagram being handled was sent to. It never blocks; an
	// error says that this datagram is lost, as any datagram may be.
	WriteTo(p []byte, to netip.AddrPort) (int, error)
	// LocalAddr is the address that the datagram being handled was sent to.
	LocalAddr() netip.AddrPort
	// Shard is the index of the shard that owns the socket.
	Shard() int
}
