package stack

import (
	"context"
	"errors"
	"net"
)

// Listen is net.Listen on this stack: network is tcp, tcp4 or tcp6, and address
// is host:port with an IP address or nothing as the host. The listener and its
// connections may be used from any goroutine except the stack's own, while that
// one runs the stack. Connections also have CloseWrite() error; the listener has
// SetDeadline. Errors are those of package net: *net.OpError around net.ErrClosed,
// os.ErrDeadlineExceeded or a syscall.Errno. After Stack.Close everything fails
// with net.ErrClosed.
func (s *Stack) Listen(network, address string) (net.Listener, error) {
	name, err := parseName(network, address, true)
	if err == nil && name.udp {
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	l := &listener{stack: s, name: name}
	l.arrived.L = &l.mu
	var refused error
	if err := s.gate.do(func() { refused = cause(l.open()) }); err != nil {
		refused = err
	}
	if refused != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: name.addr(name.address), Err: refused}
	}
	return l, nil
}

// ListenPacket is net.ListenPacket on this stack: network is udp, udp4 or udp6;
// address and the use from other goroutines are as in Listen. WriteTo returns
// once the datagram is queued for the loop; that it cannot be sent is an error of
// the next call. One that finds no room in the device is lost.
func (s *Stack) ListenPacket(network, address string) (net.PacketConn, error) {
	name, err := parseName(network, address, true)
	if err == nil && !name.udp {
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	c := newPacketConn(s, name)
	var refused error
	if err := s.gate.do(func() { refused = cause(c.open(false)) }); err != nil {
		refused = err
	}
	if refused != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: name.addr(name.address), Err: refused}
	}
	return c, nil
}

// Dial is DialContext without a deadline of its own: TCP gives up after a while.
func (s *Stack) Dial(network, address string) (net.Conn, error) {
	return s.DialContext(context.Background(), network, address)
}

// DialContext is net.Dialer's DialContext on this stack, and fits into
// http.Transport: network is tcp, tcp4, tcp6, udp, udp4 or udp6, and address is
// an IP address and a port; names are not resolved. The context bounds the
// dialling only. The use from other goroutines is as in Listen.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	name, err := parseName(network, address, false)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	remote := name.addr(name.address)
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: remote, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if name.udp {
		c := newPacketConn(s, name)
		var refused error
		if err := s.gate.do(func() { refused = cause(c.open(true)) }); err != nil {
			refused = err
		}
		if refused != nil {
			return fail(refused)
		}
		return c, nil
	}
	c := newConn(s, name)
	c.opened = make(chan struct{})
	c.submitted = true
	if !s.gate.submit(c) {
		return fail(errClosed)
	}
	select {
	case <-c.opened:
	case <-ctx.Done():
		c.cancel()
		return fail(ctx.Err())
	}
	c.mu.Lock()
	err = c.failed
	c.mu.Unlock()
	// A connection that was established and then broke tells on first use.
	if c.local == nil {
		return fail(err)
	}
	return c, nil
}

// cause is what went wrong, without what was being done, which net.OpError says.
func cause(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
