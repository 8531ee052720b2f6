package kernel

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// packetBatch datagrams are received in one call, at most packetRounds times
// before others are served. A datagram has at most maxDatagram bytes.
const (
	packetBatch  = 32
	packetRounds = 4
	maxDatagram  = 64 << 10
)

// controlSize is room for an in_pktinfo and an in6_pktinfo.
const controlSize = 128

// packetSocket is a UDP socket of one loop, level-triggered.
type packetSocket struct {
	loop    *loop
	fd      int
	family  uint16
	handler polluxruntime.PacketHandler
	bound   netip.AddrPort

	messages [packetBatch]message
	vectors  [packetBatch]unix.Iovec
	names    [packetBatch]unix.RawSockaddrAny
	controls [packetBatch][controlSize]byte
	data     []byte

	// The datagram being handled came to local; info is the address in the
	// form in which a reply is sent from it.
	local netip.AddrPort
	info  [controlSize]byte
	used  int

	to     unix.RawSockaddrAny
	vector unix.Iovec
	header unix.Msghdr
}

func newPacketSocket(l *loop, fd int, bound netip.AddrPort, h polluxruntime.PacketHandler) *packetSocket {
	s := &packetSocket{loop: l, fd: fd, family: unix.AF_INET6, handler: h, bound: bound, data: make([]byte, packetBatch*maxDatagram)}
	if bound.Addr().Is4() {
		s.family = unix.AF_INET
	}
	for i := range s.messages {
		s.vectors[i].Base = &s.data[i*maxDatagram]
		s.vectors[i].SetLen(maxDatagram)
		h := &s.messages[i].header
		h.Iov = &s.vectors[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Control = &s.controls[i][0]
	}
	return s
}

// ready implements source.
func (s *packetSocket) ready(uint32) {
	l := s.loop
	for range packetRounds {
		for i := range s.messages {
			h := &s.messages[i].header
			h.Namelen = unix.SizeofSockaddrAny
			h.SetControllen(controlSize)
		}
		l.counters.Reads++
		n, errno := receiveMessages(s.fd, s.messages[:])
		if errno != 0 {
			// Nothing there, or an error of a datagram that was sent (ICMP):
			// reading it has cleared it.
			if errno == unix.EAGAIN {
				l.counters.ReadsRefused++
			}
			return
		}
		for i := range n {
			m := &s.messages[i]
			l.counters.PacketsReceived++
			l.counters.ReadBytes += uint64(m.length)
			s.arrivedAt(s.controls[i][:m.header.Controllen])
			s.handler.Packet(s, fromRaw(&s.names[i]), s.data[i*maxDatagram:][:m.length])
		}
		if n < packetBatch {
			return
		}
	}
}

// arrivedAt reads from the control messages which address a datagram was sent
// to, and prepares the one that has a reply sent from there.
func (s *packetSocket) arrivedAt(control []byte) {
	s.local, s.used = s.bound, 0
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			return
		}
		data := control[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// ipi_ifindex, ipi_spec_dst, ipi_addr
			s.local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[8:12])), s.bound.Port())
			if s.sendable(s.local.Addr()) {
				s.answerFrom(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
				copy(s.info[unix.CmsgLen(0)+4:], data[4:8]) // a local address, also for a broadcast
			}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			// ipi6_addr, ipi6_ifindex
			a := netip.AddrFrom16([16]byte(data[:16]))
			s.local = netip.AddrPortFrom(a.Unmap(), s.bound.Port())
			if s.sendable(a.Unmap()) {
				s.answerFrom(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
				copy(s.info[unix.CmsgLen(0):], data[:16])
				if a.IsLinkLocalUnicast() { // means nothing without its interface
					copy(s.info[unix.CmsgLen(0)+16:], data[16:20])
				}
			}
		}
		control = control[min(len(control), unix.CmsgSpace(size-unix.CmsgLen(0))):]
	}
}

// sendable reports whether a reply can come from an address: not from one that a
// group was called by.
func (s *packetSocket) sendable(a netip.Addr) bool {
	return s.bound.Addr().IsUnspecified() && !a.IsMulticast()
}

func (s *packetSocket) answerFrom(level, kind int32, size int) {
	clear(s.info[:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&s.info[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	s.used = unix.CmsgSpace(size)
}

// WriteTo implements runtime.PacketConn.
func (s *packetSocket) WriteTo(p []byte, to netip.AddrPort) (int, error) {
	size, err := toRaw(&s.to, s.family, to)
	if err != nil {
		s.loop.counters.PacketsDropped++
		return 0, err
	}
	s.vector.Base = unsafe.SliceData(p)
	s.vector.SetLen(len(p))
	s.header = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.to)), Namelen: size, Iov: &s.vector}
	s.header.SetIovlen(1)
	if s.used > 0 {
		s.header.Control = &s.info[0]
		s.header.SetControllen(s.used)
	}
	s.loop.counters.Writes++
	n, errno := sendMessage(s.fd, &s.header)
	if errno == unix.EINVAL && s.used > 0 {
		// It came to an address that is not for sending, a broadcast say.
		s.header.Control = nil
		s.header.SetControllen(0)
		n, errno = sendMessage(s.fd, &s.header)
	}
	s.vector.Base = nil
	if errno != 0 {
		s.loop.counters.PacketsDropped++
		if errno == unix.EAGAIN {
			s.loop.counters.WritesRefused++
		}
		return 0, os.NewSyscallError("sendmsg", errno)
	}
	s.loop.counters.PacketsSent++
	s.loop.counters.WrittenBytes += uint64(n)
	return n, nil
}

// LocalAddr implements runtime.PacketConn.
func (s *packetSocket) LocalAddr() netip.AddrPort { return s.local }

// Shard implements runtime.PacketConn.
func (s *packetSocket) Shard() int { return s.loop.shard }
