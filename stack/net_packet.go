package stack

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// packetQueue bounds the datagrams that wait between a PacketConn and the loop,
// each way.
const packetQueue = 256

// packet is a datagram on its way between a caller and the loop.
type packet struct {
	data []byte
	peer netip.AddrPort
}

// Most datagrams fit into an Ethernet frame; only those are recycled.
const commonPacket = 2048

var packetPool = sync.Pool{New: func() any { return new([commonPacket]byte) }}

func newPacket(data []byte, peer netip.AddrPort) packet {
	if len(data) > commonPacket {
		return packet{append([]byte(nil), data...), peer}
	}
	b := packetPool.Get().(*[commonPacket]byte)
	return packet{b[:copy(b[:], data)], peer}
}

func (p *packet) free() {
	if cap(p.data) == commonPacket {
		packetPool.Put((*[commonPacket]byte)(p.data[:commonPacket]))
	}
	*p = packet{}
}

// packets is a bounded queue of packets, guarded by its owner's lock.
type packets struct {
	slots    []packet
	start, n int
}

func (q *packets) full() bool { return q.n == packetQueue }

func (q *packets) put(p packet) {
	if q.slots == nil {
		q.slots = make([]packet, packetQueue)
	}
	q.slots[(q.start+q.n)%packetQueue] = p
	q.n++
}

func (q *packets) take() packet {
	p := q.slots[q.start]
	q.slots[q.start] = packet{}
	q.start = (q.start + 1) % packetQueue
	q.n--
	return p
}

func (q *packets) drop() {
	for q.n > 0 {
		p := q.take()
		p.free()
	}
}

// packetConn is a net.PacketConn and, if it was dialled, a net.Conn over a packet
// event socket, for use from any goroutine. The loop stops reading the socket
// when the queue of received datagrams is full; the socket's own buffer follows,
// and beyond that datagrams are dropped.
type packetConn struct {
	stack         *Stack
	name          endpointName
	local, remote net.Addr // remote is nil unless it was dialled

	mu                 sync.Mutex
	readable, writable sync.Cond
	read, write        deadline
	in, out            packets
	// failed is an error of the socket that the next call returns.
	failed    error
	closed    bool // Close was called
	gone      bool // it was, or the stack closed
	stalled   bool // the loop stopped reading because in was full
	submitted bool

	// The loop's own.
	socket  *PacketSocket
	held    packet // taken from out, but the socket had no room
	holding bool
}

func newPacketConn(s *Stack, name endpointName) *packetConn {
	c := &packetConn{stack: s, name: name}
	c.readable.L, c.writable.L = &c.mu, &c.mu
	return c
}

// open binds or connects the socket, on the loop.
func (c *packetConn) open(connect bool) (err error) {
	if connect {
		c.socket, err = c.stack.ConnectPacketEvents(c.name.address, c)
	} else {
		c.socket, err = c.stack.listenPacket(c.name.address, c.name.family, c)
	}
	if err != nil {
		return err
	}
	c.local = c.name.addr(c.socket.LocalAddr())
	if connect {
		c.remote = c.name.addr(c.name.address)
	}
	c.stack.gate.inside[c] = struct{}{}
	return nil
}

// The loop's side.

// serve implements visitor.
func (c *packetConn) serve() {
	c.mu.Lock()
	c.submitted = false
	c.mu.Unlock()
	c.work()
}

// expel implements visitor.
func (c *packetConn) expel() { c.end() }

// Ready implements PacketOwner.
func (c *packetConn) Ready(*PacketSocket) { c.work() }

// work moves what can be moved.
func (c *packetConn) work() {
	if c.socket == nil {
		return
	}
	c.receive()
	if c.send() {
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if closed {
			c.end()
		}
	}
}

// receive fills the queue of received datagrams.
func (c *packetConn) receive() {
	scratch := c.stack.gate.scratch()
	for {
		c.mu.Lock()
		c.stalled = c.in.full()
		stop := c.stalled || c.gone
		c.mu.Unlock()
		if stop {
			return
		}
		n, from, err := c.socket.ReadFrom(scratch)
		if err == ErrWouldBlock || err == io.EOF {
			return
		}
		c.mu.Lock()
		if err != nil {
			c.failLocked(err)
		} else {
			c.in.put(newPacket(scratch[:n], from))
			c.readable.Broadcast()
		}
		c.mu.Unlock()
	}
}

// send empties the queue of datagrams to send, and reports whether it has.
func (c *packetConn) send() bool {
	for {
		if !c.holding {
			c.mu.Lock()
			if c.out.n == 0 {
				c.mu.Unlock()
				return true
			}
			c.held, c.holding = c.out.take(), true
			if c.out.n <= packetQueue/2 {
				c.writable.Broadcast()
			}
			c.mu.Unlock()
		}
		_, err := c.socket.WriteTo(c.held.data, c.held.peer)
		if err == ErrWouldBlock {
			return false
		}
		c.held.free()
		c.holding = false
		// Without room in the device the datagram is lost like any other.
		if err != nil && err != syscall.ENOBUFS {
			c.mu.Lock()
			c.failLocked(err)
			c.mu.Unlock()
		}
	}
}

func (c *packetConn) failLocked(err error) {
	c.failed = err
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// end gives the socket up.
func (c *packetConn) end() {
	c.socket.Close()
	c.socket = nil
	if c.holding {
		c.held.free()
		c.holding = false
	}
	delete(c.stack.gate.inside, c)
	c.mu.Lock()
	c.gone = true
	c.in.drop()
	c.out.drop()
	c.read.stop()
	c.write.stop()
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.mu.Unlock()
}

// The callers' side.

// due reports whether c has to be handed in at the gate; c.mu is held.
func (c *packetConn) due() bool {
	if c.submitted {
		return false
	}
	c.submitted = true
	return true
}

// stop is why a call must not go on, or nil; c.mu is held.
func (c *packetConn) stop(d *deadline) (err error) {
	switch {
	case c.gone:
		return errClosed
	case d.past:
		return os.ErrDeadlineExceeded
	case c.failed != nil:
		err, c.failed = c.failed, nil
	}
	return err
}

// ReadFrom implements net.PacketConn. What does not fit into p is lost.
func (c *packetConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := c.readFrom(p)
	if err != nil {
		return 0, nil, err
	}
	return n, c.name.addr(from), nil
}

// Read implements net.Conn.
func (c *packetConn) Read(p []byte) (int, error) {
	n, _, err := c.readFrom(p)
	return n, err
}

func (c *packetConn) readFrom(p []byte) (int, netip.AddrPort, error) {
	c.mu.Lock()
	for {
		if err := c.stop(&c.read); err != nil {
			c.mu.Unlock()
			return 0, netip.AddrPort{}, c.error("read", c.remote, err)
		}
		if c.in.n > 0 {
			break
		}
		c.readable.Wait()
	}
	d := c.in.take()
	submit := c.stalled && c.in.n <= packetQueue/2 && c.due()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	n, from := copy(p, d.data), d.peer
	d.free()
	return n, from, nil
}

// WriteTo implements net.PacketConn.
func (c *packetConn) WriteTo(p []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || a == nil {
		return 0, c.error("write", to, syscall.EINVAL)
	}
	if c.remote != nil {
		return 0, c.error("write", to, net.ErrWriteToConnected)
	}
	peer := a.AddrPort()
	peer = netip.AddrPortFrom(peer.Addr().WithZone("").Unmap(), peer.Port())
	switch f := familyOf(peer); {
	case f == both, peer.Port() == 0, c.name.family != both && c.name.family != f:
		return 0, c.error("write", to, syscall.EINVAL)
	}
	return c.writeTo(p, peer, to)
}

// Write implements net.Conn.
func (c *packetConn) Write(p []byte) (int, error) {
	if c.remote == nil {
		return 0, c.error("write", nil, syscall.EDESTADDRREQ)
	}
	return c.writeTo(p, netip.AddrPort{}, c.remote)
}

func (c *packetConn) writeTo(p []byte, peer netip.AddrPort, to net.Addr) (int, error) {
	if len(p) > MaxDatagram {
		return 0, c.error("write", to, syscall.EMSGSIZE)
	}
	d := newPacket(p, peer)
	c.mu.Lock()
	for {
		if err := c.stop(&c.write); err != nil {
			c.mu.Unlock()
			d.free()
			return 0, c.error("write", to, err)
		}
		if !c.out.full() {
			break
		}
		c.writable.Wait()
	}
	c.out.put(d)
	submit := c.due()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	return len(p), nil
}

// Close implements net.PacketConn. What was written is still sent.
func (c *packetConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.error("close", c.remote, errClosed)
	}
	c.closed, c.gone = true, true
	submit := c.due()
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.mu.Unlock()
	if submit {
		c.stack.gate.submit(c)
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *packetConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *packetConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.PacketConn.
func (c *packetConn) SetDeadline(t time.Time) error { return c.setDeadlines(t, true, true) }

// SetReadDeadline implements net.PacketConn.
func (c *packetConn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, true, false) }

// SetWriteDeadline implements net.PacketConn.
func (c *packetConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *packetConn) setDeadlines(t time.Time, read, write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return c.error("set", c.remote, errClosed)
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
func (c *packetConn) error(op string, remote net.Addr, err error) error {
	return &net.OpError{Op: op, Net: c.name.network, Source: c.local, Addr: remote, Err: err}
}
