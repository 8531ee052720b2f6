package user

import (
	"errors"
	"io"
	"net"
	"net/netip"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

// conn is one connection between the stack's event socket and the handler.
type conn struct {
	loop    *loop
	socket  *stack.Socket
	handler polluxruntime.Handler
	context any
	local   netip.AddrPort
	remote  netip.AddrPort

	in  []byte // received, not yet consumed
	out []byte // written by the handler, not yet taken by the stack

	dirty   bool // in loop.dirty
	eof     bool // the peer has closed its side
	closing bool // Close was called: to be closed once out is empty
	aborted bool
	ended   bool // the handler was told of the end
}

func (l *loop) accept(h polluxruntime.Handler) func(*stack.Socket) stack.Owner {
	return func(k *stack.Socket) stack.Owner {
		if l.draining {
			return nil
		}
		c := &conn{loop: l, socket: k, handler: h, local: k.LocalAddr(), remote: k.RemoteAddr()}
		l.conns++
		l.counters.Accepted++
		l.all[c] = struct{}{}
		h.Open(c)
		// Ready follows, and finds whatever Open has written.
		return c
	}
}

// Ready implements stack.Owner. It reads until nothing is left or output is in the
// way; in that case the stack's buffer is full, and an event follows when it
// has room again. What was not read is bounded by the window that the peer sees.
func (c *conn) Ready(*stack.Socket) {
	for !c.ended {
		c.flush()
		c.redeliver()
		if c.eof || !c.reading() || c.socket.Drained() {
			break
		}
		n, err := c.socket.ReadTo((*connReader)(c))
		if errors.Is(err, io.EOF) {
			c.eof = true
		} else if err != nil && !errors.Is(err, stack.ErrWouldBlock) {
			c.end(err)
		}
		if n == 0 && !c.eof {
			break
		}
	}
	if c.eof && c.reading() {
		// Nothing more can come and the handler has had all it wants of what
		// did; replies may still have to go.
		c.closing = true
	}
	c.settle()
}

// reading reports whether more input may be given to the handler.
func (c *conn) reading() bool {
	return !c.closing && !c.aborted && !c.ended && len(c.out) < polluxruntime.OutputLimit
}

// connReader is a conn as an io.Writer that takes what the socket has received.
type connReader conn

// errOutputFull stops a read: what the handler has no room to answer stays in the
// stack's buffer, so that the window closes. Ready reads on once there is room.
var errOutputFull = errors.New("output at its limit")

// Write takes a segment, or as much of one as lies in one piece.
func (r *connReader) Write(p []byte) (int, error) {
	c := (*conn)(r)
	switch {
	case c.closing || c.aborted || c.ended:
	case !c.reading():
		return 0, errOutputFull
	case len(c.in) > 0:
		c.in = append(c.in, p...)
		c.deliverBuffered()
	default:
		c.loop.counters.Deliveries++
		if n := c.handler.Data(c, p); n < len(p) {
			c.in = append(c.in, p[n:]...)
		}
	}
	return len(p), nil
}

// deliverBuffered gives the handler what it left, until it takes no more.
func (c *conn) deliverBuffered() {
	for len(c.in) > 0 && c.reading() {
		c.loop.counters.Deliveries++
		n := c.handler.Data(c, c.in)
		if n == 0 {
			return
		}
		c.in = c.in[:copy(c.in, c.in[n:])]
	}
	if len(c.in) == 0 {
		c.in = nil
	}
}

// redeliver goes on with input that waited for room in the output. If the stack
// takes all of that there will be no event to go on with, so it goes on here.
func (c *conn) redeliver() {
	for len(c.in) > 0 && c.reading() {
		before := len(c.in)
		c.deliverBuffered()
		waitsForRoom := len(c.out) >= polluxruntime.OutputLimit
		c.flush()
		if len(c.in) == before && !waitsForRoom {
			return
		}
	}
}

// flush hands the output to the stack as far as it takes it.
func (c *conn) flush() {
	if len(c.out) == 0 || c.aborted || c.ended {
		return
	}
	n, err := c.socket.Write(c.out)
	if err != nil && !errors.Is(err, stack.ErrWouldBlock) {
		c.end(err)
		return
	}
	if n == len(c.out) {
		// An idle connection keeps no buffer; the next handler uses this one.
		if cap(c.out) > cap(c.loop.scratch) && cap(c.out) <= 2*polluxruntime.OutputLimit {
			c.loop.scratch = c.out[:0]
		}
		c.out = nil
		return
	}
	c.out = c.out[:copy(c.out, c.out[n:])]
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
	if c.closing && !c.ended && len(c.out) == 0 {
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
	c.loop.conns--
	delete(c.loop.all, c)
	c.handler.Close(c, err)
	if c.aborted {
		c.socket.Abort()
	} else {
		if err == nil && !c.eof {
			// To close with unread bytes is to reset the connection, and the
			// peer would lose what the stack has still to send.
			c.socket.ReadTo(io.Discard)
		}
		c.socket.Close()
	}
	c.in, c.out, c.context = nil, nil, nil
}

// flushDirty sends what handlers wrote to connections other than their own.
func (l *loop) flushDirty() {
	for i := 0; i < len(l.dirty); i++ {
		c := l.dirty[i]
		c.dirty = false
		c.settle()
	}
	clear(l.dirty)
	l.dirty = l.dirty[:0]
}

// touch has the loop look at c after the handlers have run.
func (c *conn) touch() {
	if !c.dirty {
		c.dirty = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
}

// Write implements runtime.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.closing || c.aborted || c.ended {
		return 0, net.ErrClosed
	}
	if c.out == nil {
		c.out, c.loop.scratch = c.loop.scratch[:0], nil
	}
	c.out = append(c.out, p...)
	c.touch()
	return len(p), nil
}

// Buffered implements runtime.Conn.
func (c *conn) Buffered() int { return len(c.out) }

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

func (c *conn) LocalAddr() netip.AddrPort  { return c.local }
func (c *conn) RemoteAddr() netip.AddrPort { return c.remote }
func (c *conn) Shard() int                 { return c.loop.shard }
func (c *conn) Context() any               { return c.context }
func (c *conn) SetContext(v any)           { c.context = v }
