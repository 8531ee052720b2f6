package memcached

import (
	"encoding/binary"
	"net/netip"

	"github.com/pollux-net/pollux/runtime"
)

// A datagram begins with a frame: the request's identity, which the reply
// repeats, the datagram's number, the number of datagrams, and zero; 16 bits each.
const (
	frameSize = 8
	// A datagram of a reply fits into one frame of Ethernet, as memcached's do.
	datagramSize = 1400
	// What a reply may have at most: its datagrams are numbered with 16 bits.
	maxMessage = (1<<16 - 1) * (datagramSize - frameSize)
)

const messageTooLarge = "SERVER_ERROR reply too large for UDP"

// Packet is runtime.PacketHandler's. A datagram holds whole commands, of either
// protocol; what is incomplete is dropped. Requests of several datagrams are
// ignored, as by memcached. The reply to each command is a message of its own,
// of one or more datagrams (memcached 1.6 sends one for each key, all numbered
// alike, which nobody can put together); it is at most as long as the output
// that a connection may have waiting, and one value.
//
// Serve UDP only to networks that are trusted: a small datagram with a forged
// sender fetches a large reply for somebody else.
func (s *Server) Packet(c runtime.PacketConn, from netip.AddrPort, in []byte) {
	sh := s.shard(c.Shard())
	sh.enter()
	defer sh.leave()
	if port := uint32(c.LocalAddr().Port()); s.udpPort.Load() != port {
		s.udpPort.Store(port)
	}
	cn := &sh.datagram
	*cn = conn{shard: sh, metaReply: cn.metaReply}
	sh.tally.add(datagramsRead, 1)
	sh.tally.add(bytesRead, uint64(len(in)))
	defer sh.tally.flush(&sh.counters)
	if len(in) <= frameSize || binary.BigEndian.Uint16(in[4:]) != 1 {
		sh.tally.add(datagramsIgnored, 1)
		return
	}
	id, in := [2]byte(in), in[frameSize:]
	r := request{server: s, shard: sh, conn: cn, now: s.clock.Load(), out: sh.out[:0], limit: runtime.OutputLimit}
	for more := false; len(in) > 0 && !more && !cn.closing; {
		var n int
		n, more = r.step(in)
		in = in[n:]
		switch {
		case cn.state == inCommand:
			r.sendMessage(c, from, id)
		case cn.state == inKeys && len(r.out) >= runtime.OutputLimit:
			r.out = r.out[:0]
			r.reply(messageTooLarge)
			r.sendMessage(c, from, id)
			more = true
		}
	}
	if cn.closing || cn.protocol == protocolBinary && cn.state == inSwallow {
		r.sendMessage(c, from, id) // why the rest is not looked at
	}
	if cn.pending.Active() {
		s.store.Abort(&cn.pending)
	}
	sh.keep(r.out)
}

// sendMessage sends the reply to one command, if it has one.
func (r *request) sendMessage(c runtime.PacketConn, to netip.AddrPort, id [2]byte) {
	if len(r.out) > maxMessage {
		r.out = r.out[:0]
		if r.conn.protocol == protocolBinary {
			r.failWith(statusTooLarge, messageTooLarge)
		} else {
			r.reply(messageTooLarge)
		}
	}
	const room = datagramSize - frameSize
	total := (len(r.out) + room - 1) / room
	datagram := &r.shard.frame
	for i := range total {
		header := append(datagram[:0], id[:]...)
		header = binary.BigEndian.AppendUint16(header, uint16(i))
		header = binary.BigEndian.AppendUint16(header, uint16(total))
		p := append(append(header, 0, 0), r.out[i*room:min(len(r.out), (i+1)*room)]...)
		if _, err := c.WriteTo(p, to); err != nil {
			break // without this one the others are of no use
		}
		r.shard.tally.add(bytesWritten, uint64(len(p)))
	}
	r.out = r.out[:0]
}

var _ runtime.PacketHandler = (*Server)(nil)
