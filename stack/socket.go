package stack

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	netstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Owner is told when something may have changed on a socket: data or the end of
// it, room to write, an established or failed connection. It is called from
// Deliver, once for any number of changes, and finds out which by trying.
type Owner interface {
	Ready(k *Socket)
}

// Socket is a TCP connection that never blocks. It belongs to the stack's
// goroutine.
type Socket struct {
	stack *Stack
	ep    *tcp.Endpoint
	wq    *waiter.Queue
	event event
	owner Owner

	id      netstack.TransportEndpointID
	network tcpip.NetworkProtocolNumber
	key     flowKey
	cached  bool // in the flow table
	touched bool // in inline.touched
	closed  bool
	failure error // why the connection failed, once somebody has asked
	// confirmed is when confirm last did something, on the clock's scale.
	confirmed int64
}

func newSocket(s *Stack, ep tcpip.Endpoint, wq *waiter.Queue, owner Owner) *Socket {
	k := &Socket{stack: s, ep: ep.(*tcp.Endpoint), wq: wq, owner: owner}
	k.event.init(s, k, wq, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	options := ep.SocketOptions()
	options.SetDelayOption(s.config.Nagle)
	// Path MTU discovery (RFC 1191), on as in Linux; it also spares each packet
	// an identification.
	ep.SetSockOptInt(tcpip.MTUDiscoverOption, int(tcpip.PMTUDiscoveryWant))
	if s.config.Keepalive > 0 {
		options.SetKeepAlive(true)
		idle, interval := tcpip.KeepaliveIdleOption(s.config.Keepalive), tcpip.KeepaliveIntervalOption(s.config.KeepaliveInterval)
		ep.SetSockOpt(&idle)
		ep.SetSockOpt(&interval)
		ep.SetSockOptInt(tcpip.KeepaliveCountOption, s.config.KeepaliveCount)
	}
	return k
}

// Listener accepts TCP connections as event sockets.
type Listener struct {
	stack  *Stack
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	event  event
	accept func(*Socket) Owner
	// full, if not nil, says whether to leave connections in netstack's queue
	// for now; whoever set it calls ready once it no longer does.
	full func() bool
}

// ListenEvents listens on address (an unspecified address stands for all of the
// stack's, of both families) and calls accept for every connection; the Owner
// that it returns is told of what happens on it. A nil Owner refuses: the
// connection is reset. Call it on the stack's goroutine.
func (s *Stack) ListenEvents(address netip.AddrPort, accept func(*Socket) Owner) (*Listener, error) {
	return s.listen(address, familyOf(address), accept)
}

func (s *Stack) listen(address netip.AddrPort, f family, accept func(*Socket) Owner) (*Listener, error) {
	l := &Listener{stack: s, wq: &waiter.Queue{}, accept: accept}
	ep, terr := s.net.NewEndpoint(tcp.ProtocolNumber, f.protocol(), l.wq)
	if terr != nil {
		return nil, fmt.Errorf("listen on %v: %w", address, translate(terr))
	}
	ep.SocketOptions().SetV6Only(f == only6)
	if terr = ep.Bind(toBound(address)); terr == nil {
		terr = ep.Listen(s.config.Backlog)
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("listen on %v: %w", address, translate(terr))
	}
	l.ep = ep
	l.event.init(s, l, l.wq, waiter.ReadableEvents)
	s.listeners++
	return l, nil
}

// Addr is the address that the listener is bound to.
func (l *Listener) Addr() netip.AddrPort {
	a, _ := l.ep.GetLocalAddress()
	return fromFull(a)
}

func (l *Listener) ready() {
	for l.ep != nil && (l.full == nil || !l.full()) {
		ep, wq, err := l.ep.Accept(nil)
		if err != nil {
			return
		}
		k := newSocket(l.stack, ep, wq, nil)
		k.cache()
		if k.owner = l.accept(k); k.owner == nil {
			k.Abort()
			continue
		}
		// What arrived with the handshake was notified before anyone listened.
		k.event.raise()
	}
}

// Close stops listening; connections that were accepted stay.
func (l *Listener) Close() {
	if l.ep == nil {
		return
	}
	l.event.stop(l.wq)
	l.ep.Close()
	l.ep = nil
	l.stack.listeners--
}

// Connect starts a connection to remote, from local (either part of which may be
// unset). The owner is told when it is established or has failed: State says
// which. Call it on the stack's goroutine.
func (s *Stack) Connect(local, remote netip.AddrPort, owner Owner) (*Socket, error) {
	network := protocolOf(remote.Addr())
	fail := func(err error) (*Socket, error) { return nil, fmt.Errorf("connect to %v: %w", remote, err) }
	var k *Socket
	open := func() tcpip.Error {
		wq := &waiter.Queue{}
		ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, network, wq)
		if err == nil {
			k = newSocket(s, ep, wq, owner)
		}
		return err
	}
	if err := open(); err != nil {
		return fail(translate(err))
	}
	if local.Addr().IsValid() || local.Port() != 0 {
		if err := k.ep.Bind(toBound(local)); err != nil {
			k.Close()
			return fail(translate(err))
		}
	} else if s.config.OwnsFlow != nil {
		if err := s.bindOwned(k.ep, remote); err != nil {
			k.Close()
			return fail(err)
		}
	}
	if err := k.ep.Connect(toFull(remote)); err != nil {
		if _, started := err.(*tcpip.ErrConnectStarted); !started {
			k.Close()
			return fail(translate(err))
		}
	}
	return k, nil
}

// The ports that outgoing connections are given, as on Linux.
const firstEphemeral, ephemerals = 32768, 28232

// bindOwned binds ep to a port for which the replies reach this stack's queue.
func (s *Stack) bindOwned(ep tcpip.Endpoint, remote netip.AddrPort) error {
	source, err := s.sourceFor(remote.Addr())
	if err != nil {
		return err
	}
	start := s.random()
	for i := range uint64(ephemerals) {
		local := netip.AddrPortFrom(source, uint16(firstEphemeral+(start+i)%ephemerals))
		if !s.config.OwnsFlow(local, remote) {
			continue
		}
		if ep.Bind(toBound(local)) == nil {
			return nil
		}
	}
	return fmt.Errorf("no free local port leads back to this shard: %w", translate(&tcpip.ErrNoPortAvailable{}))
}

// cache enters an established connection into the flow table.
func (k *Socket) cache() {
	if k.cached || k.closed || k.stack.flows == nil || k.ep.EndpointState() != tcp.StateEstablished {
		return
	}
	k.id = k.ep.Info().(*netstack.TransportEndpointInfo).ID
	var ports [header.IPv6MinimumSize + 4]byte
	if k.id.LocalAddress.Len() == header.IPv4AddressSize {
		k.network = ipv4.ProtocolNumber
		copy(ports[12:], k.id.RemoteAddress.AsSlice())
		copy(ports[16:], k.id.LocalAddress.AsSlice())
		putPorts(ports[20:], k.id)
		k.key = key4(ports[:])
	} else {
		k.network = ipv6.ProtocolNumber
		copy(ports[8:], k.id.RemoteAddress.AsSlice())
		copy(ports[24:], k.id.LocalAddress.AsSlice())
		putPorts(ports[40:], k.id)
		k.key = key6(ports[:])
	}
	k.cached = k.stack.flows.add(k.key, k)
}

func putPorts(b []byte, id netstack.TransportEndpointID) {
	b[0], b[1] = byte(id.RemotePort>>8), byte(id.RemotePort)
	b[2], b[3] = byte(id.LocalPort>>8), byte(id.LocalPort)
}

func (k *Socket) ready() {
	if !k.closed && k.owner != nil {
		k.cache()
		k.owner.Ready(k)
	}
}

// SetOwner changes who is told of events, and tells it at once.
func (k *Socket) SetOwner(o Owner) {
	k.owner = o
	k.event.raise()
}

// confirmInterval is less than the 5 s that netstack gives a neighbour to show
// itself before it asks for it (RFC 4861, DELAY_FIRST_PROBE_TIME).
const confirmInterval = 2 * time.Second

// confirm tells netstack that the next hop is reachable, because something that
// went there was acknowledged; else it would ask for it every half minute, in the
// midst of traffic. Netstack's own way is to do this with each acknowledgement.
func (k *Socket) confirm() {
	now := k.stack.clock.now.Load()
	if now-k.confirmed < int64(confirmInterval) {
		return
	}
	k.confirmed = now
	if r := routeOf(k.ep); r != nil {
		r.ConfirmReachable()
	}
}

// Established reports whether the connection is, or was, established.
func (k *Socket) Established() bool {
	switch k.ep.EndpointState() {
	case tcp.StateInitial, tcp.StateBound, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv, tcp.StateError:
		return false
	}
	return true
}

// Err is why the connection failed, or nil.
func (k *Socket) Err() error {
	if k.ep.EndpointState() != tcp.StateError {
		return nil
	}
	if k.failure == nil {
		if k.failure = translate(k.ep.LastError()); k.failure == nil {
			k.failure = translate(&tcpip.ErrConnectionAborted{})
		}
	}
	return k.failure
}

// result is what a call on the endpoint returned, as the caller is to see it.
// Netstack tells why a connection failed once, to whoever asks first, and then
// speaks of its end; here everybody hears it each time.
func (k *Socket) result(terr tcpip.Error) error {
	err := translate(terr)
	if terr == nil || err == ErrWouldBlock || k.ep.EndpointState() != tcp.StateError {
		return err
	}
	if k.failure == nil && err != io.EOF && err != syscall.EPIPE {
		k.failure = err
	}
	return k.Err()
}

// Read copies received bytes into p. It returns ErrWouldBlock if there are none
// yet, io.EOF after the peer's last.
func (k *Socket) Read(p []byte) (int, error) {
	if k.closed {
		return 0, errClosed
	}
	w := &k.stack.writer
	*w = p
	n, err := k.readTo(w)
	*w = nil
	return n, err
}

// readTo is ReadTo for a socket that is not closed.
func (k *Socket) readTo(w io.Writer) (int, error) {
	if k.stack.inline != nil && somethingToRead(k.ep) {
		if n, err := read(k.ep, w); n > 0 || err == nil {
			k.tune(n)
			return n, nil
		}
		return 0, translate(&tcpip.ErrBadBuffer{}) // as netstack has it
	}
	r, err := k.ep.Read(w, tcpip.ReadOptions{})
	k.tune(r.Count)
	return r.Count, k.result(err)
}

// tuneFrom is the size of a read that says that a connection carries bulk data;
// for less, netstack's receive window needs no tuning and its bookkeeping is not
// worth its time.
const tuneFrom = 4 << 10

// tune lets the receive window grow with what the application takes.
func (k *Socket) tune(read int) {
	if read >= tuneFrom {
		k.ep.ModerateRecvBuf(read)
	}
}

// Drained reports that there is nothing to read: Read and ReadTo would return
// ErrWouldBlock. To ask costs less than to try. False says nothing.
func (k *Socket) Drained() bool {
	return !k.closed && k.stack.inline != nil && nothingToRead(k.ep)
}

// ReadTo hands all received bytes to w as they lie in the stack's memory, which
// is valid only during each call of w.Write. Errors are as in Read. Inside
// w.Write no method of the socket may be called.
func (k *Socket) ReadTo(w io.Writer) (int, error) {
	if k.closed {
		return 0, errClosed
	}
	return k.readTo(w)
}

// Write copies as much of p into the send buffer as it has room for, and sends
// what the peer's window allows. It returns ErrWouldBlock if there is no room.
func (k *Socket) Write(p []byte) (int, error) {
	if k.closed {
		return 0, errClosed
	}
	r := &k.stack.reader
	r.Reset(p)
	// Atomic keeps netstack from unlocking the endpoint while it copies; it
	// still takes less than p when the buffer is short of room.
	options := tcpip.WriteOptions{Atomic: true}
	if k.stack.inline == nil {
		n, err := k.ep.Write(r, options)
		r.Reset(nil)
		return int(n), k.result(err)
	}
	// The same without the endpoint's lock, as nobody is there to be locked out.
	next, n, err := queueSegment(k.ep, r, options)
	r.Reset(nil)
	if n > 0 && err == nil {
		sendData(k.ep, next)
		return n, nil
	}
	return 0, k.result(err)
}

var _ tcpip.Payloader = (*bytes.Reader)(nil)

// CloseWrite sends what is buffered, then a FIN; reading goes on.
func (k *Socket) CloseWrite() error { return translate(k.ep.Shutdown(tcpip.ShutdownWrite)) }

// Close sends what is buffered and closes both directions. The owner hears no
// more of the socket.
func (k *Socket) Close() {
	if k.end() {
		k.ep.Close()
	}
}

// Abort resets the connection.
func (k *Socket) Abort() {
	if k.end() {
		k.ep.Abort()
	}
}

func (k *Socket) end() bool {
	if k.closed {
		return false
	}
	k.closed = true
	k.owner = nil
	k.event.stop(k.wq)
	if k.cached {
		k.stack.flows.remove(k.key, k)
		k.cached = false
	}
	return true
}

// LocalAddr is this end's address.
func (k *Socket) LocalAddr() netip.AddrPort {
	a, _ := k.ep.GetLocalAddress()
	return fromFull(a)
}

// RemoteAddr is the peer's address, or the zero AddrPort once it is unknown.
func (k *Socket) RemoteAddr() netip.AddrPort {
	a, err := k.ep.GetRemoteAddress()
	if err != nil {
		return netip.AddrPort{}
	}
	return fromFull(a)
}
