package stack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// conn is a net.Conn over an event socket, for use from any goroutine. Bytes
// pass between the callers and the loop through two rings: the loop fills one
// from the socket while it has room, so that TCP's window closes on a reader
// that does not read, and empties the other into the socket.
type conn struct {
	stack *Stack
	name  endpointName

	reading, writing sync.Mutex // one caller at a time in Read, and in Write

	mu                 sync.Mutex
	local, remote      net.Addr
	readable, writable sync.Cond
	read, write        deadline
	in, out            ring
	// inEnd is what Read returns behind the last byte: io.EOF or failed.
	inEnd error
	// failed is why the connection broke; writers learn it at once, readers
	// once they have read what came before.
	failed error
	// shut asks for a FIN behind the output, closed for the end behind it,
	// abort for the end at once.
	shut, closed, abort bool
	// gone says that nothing can be read or written any more: Close was
	// called, or the stack closed.
	gone bool
	// stalled says that the loop stopped reading because in was full.
	stalled bool
	// submitted says that the gate has the conn.
	submitted bool

	// opened is closed when dialling has ended; nil for accepted connections.
	opened chan struct{}

	// The loop's own.
	socket   *Socket
	dialling bool
	finSent  bool
	ended    bool
}

func newConn(s *Stack, name endpointName) *conn {
	c := &conn{stack: s, name: name}
	c.readable.L, c.writable.L = &c.mu, &c.mu
	return c
}

// due reports whether c has to be handed in at the gate, or is there already.
// The caller holds c.mu, and hands it in once it does not.
func (c *conn) due() bool {
	if c.submitted {
		return false
	}
	c.submitted = true
	return true
}

// The loop's side.

// serve implements visitor.
func (c *conn) serve() {
	c.mu.Lock()
	c.submitted = false
	c.mu.Unlock()
	if c.opened != nil && c.socket == nil && !c.ended {
		c.connect()
		return
	}
	c.work()
}

// expel implements visitor.
func (c *conn) expel() {
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.fail(errClosed)
	c.end(true)
}

// Ready implements Owner.
func (c *conn) Ready(*Socket) { c.work() }

// connect starts dialling.
func (c *conn) connect() {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		c.ended = true // given up before it began
		return
	}
	k, err := c.stack.Connect(netip.AddrPort{}, c.name.address, c)
	if err != nil {
		c.fail(errors.Unwrap(err))
		c.ended = true
		close(c.opened)
		return
	}
	c.socket, c.dialling = k, true
	c.stack.gate.inside[c] = struct{}{}
}

// adopt takes over a socket that a listener accepted.
func (c *conn) adopt(k *Socket) {
	c.socket = k
	c.local, c.remote = c.name.addr(k.LocalAddr()), c.name.addr(k.RemoteAddr())
	c.stack.gate.inside[c] = struct{}{}
}

// work moves what can be moved.
func (c *conn) work() {
	if c.ended || c.socket == nil {
		return
	}
	if c.dialling && !c.established() {
		return
	}
	c.receive()
	c.send()
}

// established sees how far dialling has come, and reports whether it has ended
// well.
func (c *conn) established() bool {
	c.mu.Lock()
	abort := c.abort
	c.mu.Unlock()
	err := c.socket.Err()
	switch {
	case err != nil:
		c.fail(err)
		c.end(false)
		return false
	case abort:
		c.end(true)
		return false
	case !c.socket.Established():
		return false
	}
	c.mu.Lock()
	c.local, c.remote = c.name.addr(c.socket.LocalAddr()), c.name.addr(c.socket.RemoteAddr())
	c.mu.Unlock()
	c.dialling = false
	close(c.opened)
	return true
}

// receive fills the input ring.
func (c *conn) receive() {
	for {
		c.mu.Lock()
		if c.inEnd != nil || c.abort {
			c.mu.Unlock()
			return
		}
		room := c.in.room()
		c.stalled = room == nil
		c.mu.Unlock()
		if room == nil {
			if err := c.socket.Err(); err != nil {
				c.fail(err)
			}
			return
		}
		n, err := c.socket.Read(room)
		c.mu.Lock()
		c.in.put(n)
		if err != nil && err != ErrWouldBlock {
			if c.inEnd = err; err != io.EOF {
				c.failLocked(err)
				c.inEnd = c.failed
			}
		}
		if n > 0 || c.inEnd != nil {
			c.readable.Broadcast()
		}
		// Nobody will ever read this: see Close.
		c.abort = c.abort || n > 0 && c.closed
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// send empties the output ring, and does what was to be done behind it.
func (c *conn) send() {
	for {
		c.mu.Lock()
		shut, closed, abort, failed := c.shut, c.closed, c.abort, c.failed
		var data []byte
		if !abort && failed == nil {
			data = c.out.data()
		}
		c.mu.Unlock()
		if data == nil {
			switch {
			case closed:
				c.end(abort)
			case shut && failed == nil && !c.finSent:
				c.finSent = true
				c.socket.CloseWrite()
			}
			return
		}
		n, err := c.socket.Write(data)
		c.mu.Lock()
		c.out.take(n)
		// Wake writers for more than a few bytes.
		if c.out.n <= ringSize/2 {
			c.writable.Broadcast()
		}
		c.mu.Unlock()
		if err == ErrWouldBlock {
			return
		}
		if err != nil {
			if cause := c.socket.Err(); cause != nil {
				err = cause
			}
			c.fail(err)
		}
	}
}

// fail notes why the connection broke.
func (c *conn) fail(err error) {
	c.mu.Lock()
	c.failLocked(err)
	c.mu.Unlock()
}

func (c *conn) failLocked(err error) {
	if c.failed == nil {
		c.failed = err
	}
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// end gives the socket up.
func (c *conn) end(abort bool) {
	if c.ended {
		return
	}
	c.ended = true
	if abort {
		c.socket.Abort()
	} else {
		c.socket.Close()
	}
	c.socket = nil
	delete(c.stack.gate.inside, c)
	c.mu.Lock()
	c.in.drop()
	c.out.drop()
	c.read.stop()
	c.write.stop()
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.mu.Unlock()
	if c.dialling {
		c.dialling = false
		close(c.opened)
	}
}

// The callers' side.

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.mu.Lock()
	for {
		switch {
		case c.gone:
			c.mu.Unlock()
			return 0, c.error("read", errClosed)
		case c.read.past:
			c.mu.Unlock()
			return 0, c.error("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			c.mu.Unlock()
			return 0, nil
		case c.in.n > 0:
			return c.take(p), nil
		case c.inEnd == io.EOF:
			c.mu.Unlock()
			return 0, io.EOF
		case c.inEnd != nil:
			c.mu.Unlock()
			return 0, c.error("read", c.inEnd)
		}
		c.readable.Wait()
	}
}

// take copies input, of which there is some, and unlocks c.mu.
func (c *conn) take(p []byte) (n int) {
	for n < len(p) {
		data := c.in.data()
		if data == nil {
			break
		}
		c.mu.Unlock()
		m := copy(p[n:], data)
		c.mu.Lock()
		c.in.take(m)
		n += m
	}
	submit := c.stalled && c.in.n <= ringSize/2 && c.due()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	return n
}

// Write implements net.Conn. It returns once p is in the output ring.
func (c *conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	for {
		switch {
		case c.gone:
			err = errClosed
		case c.write.past:
			err = os.ErrDeadlineExceeded
		case c.failed != nil:
			err = c.failed
		case c.shut:
			err = syscall.EPIPE
		}
		if err != nil {
			c.mu.Unlock()
			return n, c.error("write", err)
		}
		if n == len(p) {
			c.mu.Unlock()
			return n, nil
		}
		room := c.out.room()
		if room == nil {
			c.writable.Wait()
			continue
		}
		c.mu.Unlock()
		m := copy(room, p[n:])
		c.mu.Lock()
		c.out.put(m)
		n += m
		if c.due() {
			c.mu.Unlock()
			c.stack.gate.submit(c)
			c.mu.Lock()
		}
		if n == len(p) {
			c.mu.Unlock()
			return n, nil
		}
	}
}

// CloseWrite sends what is buffered, then a FIN; reading goes on.
func (c *conn) CloseWrite() error {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return c.error("close", errClosed)
	}
	c.shut = true
	submit := c.due()
	c.writable.Broadcast()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	return nil
}

// Close implements net.Conn. It returns at once; what was written is still sent.
// But if something was received that nobody has read, or is received afterwards,
// the connection is reset, as with package net.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.error("close", errClosed)
	}
	c.closed, c.gone = true, true
	c.abort = c.abort || c.in.n > 0
	c.read.stop()
	c.write.stop()
	submit := c.due()
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	return nil
}

// cancel gives dialling up.
func (c *conn) cancel() {
	c.mu.Lock()
	c.abort = true
	c.mu.Unlock()
	c.Close()
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, true, true) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, true, false) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *conn) setDeadlines(t time.Time, read, write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return c.error("set", errClosed)
	}
	if read {
		c.read.set(t, &c.readable)
	}
	if write {
		c.write.set(t, &c.writable)
	}
	return nil
}

// error says what was being done, as package net does.
func (c *conn) error(op string, err error) error {
	return &net.OpError{Op: op, Net: c.name.network, Source: c.local, Addr: c.remote, Err: err}
}
