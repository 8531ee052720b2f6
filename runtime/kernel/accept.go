package kernel

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// acceptBatch is how many connections are accepted before others are served.
const acceptBatch = 64

// When descriptors or memory have run out, accepting pauses for retryAccept, or
// until a connection ends; and it is logged at most every logInterval.
const (
	retryAccept = 100 * time.Millisecond
	logInterval = 10 * time.Second
)

// listener is a listening socket of one loop. It is level-triggered: what one
// batch leaves is reported again.
type listener struct {
	loop    *loop
	fd      int
	handler polluxruntime.Handler
	address netip.AddrPort
}

// ready implements source.
func (s *listener) ready(uint32) {
	l := s.loop
	for range acceptBatch {
		if l.draining {
			return
		}
		fd, errno := accept(s.fd, &l.name)
		switch errno {
		case 0:
			s.open(fd)
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			l.pauseAccepting(errno)
			return
		case unix.EBADF, unix.EFAULT, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP:
			l.fail(fmt.Errorf("shard %d: accept on %v: %w", l.shard, s.address, os.NewSyscallError("accept4", errno)))
			return
		default:
			// The connection's own misfortune (ECONNABORTED, EPROTO and the
			// network errors of accept(2)): the next one may be better.
		}
	}
}

// open makes a connection of a socket, whose peer is in l.name.
func (s *listener) open(fd int) {
	l := s.loop
	c := &conn{loop: l, fd: fd, handler: s.handler, remote: fromRaw(&l.name)}
	if !s.address.Addr().IsUnspecified() {
		c.local = s.address
	}
	if errno := l.watch(c, fd, interest); errno != 0 {
		closeSocket(fd)
		l.pauseAccepting(errno)
		return
	}
	l.checkNAPI(fd)
	l.conns++
	l.counters.Accepted++
	l.all[c] = struct{}{}
	l.current = c
	s.handler.Open(c)
	l.current = nil
	c.settle()
}

// pauseAccepting stops looking at the listening sockets: they would be reported
// without end.
func (l *loop) pauseAccepting(why unix.Errno) {
	l.counters.AcceptsRefused++
	now := l.now()
	l.resume = now + retryAccept
	if !l.paused {
		l.paused = true
		for _, s := range l.listeners {
			control(l.epoll, unix.EPOLL_CTL_MOD, s.fd, 0, l.sources[s.fd].generation)
		}
	}
	if l.logged == 0 || now-l.logged >= logInterval {
		l.logged = now
		slog.Warn("connections wait: none can be accepted until others end", "shard", l.shard, "error", why,
			"connections", l.conns, "refusals", l.counters.AcceptsRefused, "to do", "raise the limit of open files (ulimit -n), or lower --max-connections")
	}
}

// resumeAccepting looks at the listening sockets again.
func (l *loop) resumeAccepting() {
	l.paused = false
	for _, s := range l.listeners {
		control(l.epoll, unix.EPOLL_CTL_MOD, s.fd, unix.EPOLLIN, l.sources[s.fd].generation)
	}
}

// freed notes that there is a descriptor more.
func (l *loop) freed() {
	if l.paused {
		l.resume = 0
	}
}

// checkNAPI notes whether the loop's own queue receives what a new connection
// gets: an epoll instance polls one NAPI instance, that of its last event.
func (l *loop) checkNAPI(fd int) {
	id := incomingNAPI(fd)
	if id == 0 {
		l.counters.NAPIUnknown++
		if l.polls && !l.complainedUnknown {
			l.complainedUnknown = true
			slog.Error("a connection came from a device without NAPI, which cannot be polled: only interrupts serve it", "shard", l.shard,
				"peer", fromRaw(&l.name), "mode", l.config.Mode, "to do", "reach the server through its device; on veth, turn gro on at its end and tso off at the other")
		}
		return
	}
	if l.napi == 0 {
		l.napi = id
	}
	own := id == l.napi
	if l.owners != nil {
		shard, known := l.owners[id]
		own = known && shard == l.shard
	}
	if own {
		return
	}
	l.counters.NAPIForeign++
	if l.polls && !l.complainedForeign {
		l.complainedForeign = true
		slog.Warn("a connection is received by another queue than its loop polls", "shard", l.shard, "peer", fromRaw(&l.name),
			"NAPI", id, "polled", l.napi, "to do", "have connections steered (--steer), reach the server through its device, or use one core")
	}
}
