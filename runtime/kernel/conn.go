package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
)

// readSize is the most that is read at once, and turns how often a connection
// with more is read before it is the others' turn.
const (
	readSize = 64 << 10
	turns    = 16
)

// A connection is registered once, for everything, edge-triggered: it costs no
// further epoll_ctl however often reading and writing pause.
const interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// conn is one connection between its socket and the handler.
type conn struct {
	loop    *loop
	fd      int
	handler polluxruntime.Handler
	context any
	local   netip.AddrPort // zero until somebody asks
	remote  netip.AddrPort

	in  buffer // received, not yet consumed
	out buffer // written by the handler, not yet taken by the socket

	readable bool // there may be something to read
	finished bool // the peer's end, or an error, is behind what can be read
	full     bool // the socket takes no more for now
	held     bool // the output is over the limit: nothing is read
	dirty    bool // in loop.dirty
	waiting  bool // in loop.again
	eof      bool // the peer has closed its side
	closing  bool // Close was called: to be closed once out is empty
	aborted  bool
	ended    bool // the handler was told of the end
}

// buffer is a queue of bytes.
type buffer struct {
	bytes []byte
	from  int // bytes before it have gone
}

func (b *buffer) len() int        { return len(b.bytes) - b.from }
func (b *buffer) unread() []byte  { return b.bytes[b.from:] }
func (b *buffer) append(p []byte) { b.bytes = append(b.bytes, p...) }
func (b *buffer) empty() bool     { return len(b.bytes) == b.from }

// drop removes the first n bytes. What is left is moved to the front only when
// that is less than what has gone, so that no byte is moved often.
func (b *buffer) drop(n int) {
	b.from += n
	switch {
	case b.from == len(b.bytes):
		b.bytes, b.from = b.bytes[:0], 0
	case b.from > b.len():
		b.bytes, b.from = b.bytes[:copy(b.bytes, b.bytes[b.from:])], 0
	}
}

// ready implements source.
func (c *conn) ready(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.finished = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.full = false
	}
	c.serve()
}

// serve reads, has the handler run and writes, until there is nothing to read,
// the output is over the limit, or it is the turn of others.
func (c *conn) serve() {
	l := c.loop
	l.current = c
	c.held = false
	for turn := 0; ; turn++ {
		c.flush()
		c.redeliver()
		if !c.readable || !c.reading() {
			break
		}
		if turn == turns {
			c.later()
			break
		}
		c.read()
	}
	if c.eof && c.reading() {
		// Nothing more can come and the handler has had all it wants of what
		// did; replies may still have to go.
		c.closing = true
	}
	c.held = c.out.len() >= polluxruntime.OutputLimit
	l.current = nil
	c.settle()
}

// read takes what has arrived, up to readSize, to the handler.
func (c *conn) read() {
	l := c.loop
	l.counters.Reads++
	n, errno := receive(c.fd, l.input)
	switch {
	case errno == unix.EINTR:
	case errno == unix.EAGAIN:
		l.counters.ReadsRefused++
		c.readable = false
	case errno != 0:
		c.readable = false
		c.flush() // what the peer is still to have; it will hardly be taken
		c.end(os.NewSyscallError("read", errno))
	case n == 0:
		c.readable, c.eof = false, true
	default:
		l.counters.ReadBytes += uint64(n)
		if n < len(l.input) && !c.finished {
			// The socket is empty, and what comes now is a new event. The end
			// is none if it came before this event was reported.
			c.readable = false
		}
		c.deliver(l.input[:n])
	}
}

// reading reports whether more input may be given to the handler.
func (c *conn) reading() bool {
	return !c.closing && !c.aborted && !c.ended && c.out.len() < polluxruntime.OutputLimit
}

// deliver gives the handler new bytes, behind those that it left.
func (c *conn) deliver(p []byte) {
	if !c.in.empty() {
		c.in.append(p)
		c.deliverBuffered()
		return
	}
	for len(p) > 0 && c.reading() {
		c.loop.counters.Deliveries++
		n := c.handler.Data(c, p)
		if n == 0 {
			break
		}
		p = p[n:]
	}
	if len(p) > 0 && !c.closing && !c.aborted {
		c.in.append(p)
	}
}

// deliverBuffered gives the handler what it left, until it takes no more.
func (c *conn) deliverBuffered() {
	for !c.in.empty() && c.reading() {
		c.loop.counters.Deliveries++
		n := c.handler.Data(c, c.in.unread())
		if n == 0 {
			return
		}
		c.in.drop(n)
	}
	if c.in.empty() {
		c.in = buffer{}
	}
}

// redeliver goes on with input that waited for room in the output. If the socket
// takes all of that there will be no event to go on with, so it goes on here.
func (c *conn) redeliver() {
	for !c.in.empty() && c.reading() {
		before := c.in.len()
		c.deliverBuffered()
		waitsForRoom := c.out.len() >= polluxruntime.OutputLimit
		c.flush()
		if c.in.len() == before && !waitsForRoom {
			return
		}
	}
}

// flush hands the output to the socket as far as it takes it.
func (c *conn) flush() {
	l := c.loop
	for !c.out.empty() && !c.full && !c.aborted && !c.ended {
		p := c.out.unread()
		l.counters.Writes++
		n, errno := send(c.fd, p)
		switch errno {
		case 0:
			l.counters.WrittenBytes += uint64(n)
			c.out.drop(n)
			// Less than all is a refusal of the rest: there is an event once
			// there is room (epoll(7)).
			c.full = n < len(p)
		case unix.EINTR:
		case unix.EAGAIN:
			l.counters.WritesRefused++
			c.full = true
		case unix.ENOBUFS, unix.ENOMEM:
			// The kernel is short of memory, for which there is no event.
			l.counters.WritesRefused++
			c.later()
			return
		default:
			c.end(os.NewSyscallError("write", errno))
			return
		}
	}
	if c.out.empty() && c.out.bytes != nil {
		// An idle connection keeps no buffer; the next handler uses this one.
		if b := c.out.bytes; cap(b) > cap(l.scratch) && cap(b) <= 2*polluxruntime.OutputLimit {
			l.scratch = b[:0]
		}
		c.out = buffer{}
	}
}

// later has the loop go on with c without an event.
func (c *conn) later() {
	if !c.waiting && !c.ended {
		c.waiting = true
		c.loop.again = append(c.loop.again, c)
	}
}

// settle carries out Close and Abort once it is time.
func (c *conn) settle() {
	if c.ended {
		return
	}
	if c.aborted {
		c.end(errAborted)
		return
	}
	c.flush()
	if c.closing && !c.ended && c.out.empty() {
		c.end(nil)
	}
}

var errAborted = errors.New("connection aborted by the application")

// end tells the handler and lets the socket go.
func (c *conn) end(err error) {
	if c.ended {
		return
	}
	c.ended = true
	l := c.loop
	l.conns--
	delete(l.all, c)
	c.handler.Close(c, err)
	l.forget(c.fd)
	switch {
	case c.aborted:
		resetSocket(c.fd)
	default:
		if err == nil && !c.eof {
			c.discard()
		}
		closeSocket(c.fd)
	}
	l.freed()
	c.in, c.out, c.context = buffer{}, buffer{}, nil
}

// discard reads what the handler does not want: to close a socket with unread
// bytes is to reset the connection, and the peer might lose the last reply.
func (c *conn) discard() {
	for range turns {
		if n, errno := receive(c.fd, c.loop.input); errno != 0 && errno != unix.EINTR || n == 0 {
			return
		}
	}
}

// touch has the loop look at c after the handlers have run.
func (c *conn) touch() {
	if !c.dirty && c.loop.current != c {
		c.dirty = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
}

// Write implements runtime.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.closing || c.aborted || c.ended {
		return 0, net.ErrClosed
	}
	if c.out.bytes == nil {
		c.out.bytes, c.loop.scratch = c.loop.scratch[:0], nil
	}
	c.out.append(p)
	c.touch()
	return len(p), nil
}

// Buffered implements runtime.Conn.
func (c *conn) Buffered() int { return c.out.len() }

// Close implements runtime.Conn.
func (c *conn) Close() error {
	if c.closing || c.aborted || c.ended {
		return net.ErrClosed
	}
	c.closing = true
	c.touch()
	return nil
}

// Abort implements runtime.Conn.
func (c *conn) Abort() {
	c.aborted = true
	c.touch()
}

// LocalAddr implements runtime.Conn.
func (c *conn) LocalAddr() netip.AddrPort {
	if !c.local.IsValid() && !c.ended {
		// An error leaves it invalid: the connection is gone.
		c.local, _ = boundTo(c.fd)
	}
	return c.local
}

func (c *conn) RemoteAddr() netip.AddrPort { return c.remote }
func (c *conn) Shard() int                 { return c.loop.shard }
func (c *conn) Context() any               { return c.context }
func (c *conn) SetContext(v any)           { c.context = v }
