package load

import (
	"errors"
	"io"
	"net/netip"
	"runtime"
	"time"

	"github.com/pollux-net/pollux/stack"
)

// userTransport carries a thread's bytes over our own stack, on the client's end
// of the wire. It polls: a client that sleeps would add its wake-ups to what it
// measures.
type userTransport struct {
	thread  *thread
	stack   *stack.Stack
	sockets []*userSocket // by slot; nil is none
	buffer  []byte
}

// userSocket is a session's connection, which hears of its events.
type userSocket struct {
	*stack.Socket
	transport *userTransport
	session   *session
}

// timeWait is how long the ports of connections that this end closed first are
// held. A generator that opens many cannot wait for a minute; every segment of
// the old connection is long gone on the short way to a server under test.
const timeWait = 100 * time.Millisecond

func newUserTransport(t *thread) (*userTransport, error) {
	// This thread occupies one processor of Go's for good.
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
	c := t.plan.config.Stack
	if c.TimeWait == 0 {
		c.TimeWait = timeWait
	}
	s, err := stack.New(t.plan.config.Port, t.plan.config.Port.Queue(0), c)
	if err != nil {
		return nil, err
	}
	return &userTransport{thread: t, stack: s, sockets: make([]*userSocket, len(t.sessions)), buffer: make([]byte, receiveBuffer)}, nil
}

func (u *userTransport) polls() bool { return true }

func (u *userTransport) connect(s *session) error {
	k := &userSocket{transport: u, session: s}
	socket, err := u.stack.Connect(netip.AddrPort{}, u.thread.plan.remote, k)
	if err != nil {
		return err
	}
	k.Socket = socket
	u.sockets[s.slot] = k
	return nil
}

func (u *userTransport) close(s *session) {
	if k := u.sockets[s.slot]; k != nil {
		k.Close()
		u.sockets[s.slot] = nil
	}
}

func (u *userTransport) send(s *session) {
	n, err := u.sockets[s.slot].Write(s.out)
	if err != nil && !errors.Is(err, stack.ErrWouldBlock) {
		s.fail(err, u.thread.now())
		return
	}
	// What is left goes when there is room: Ready is called then.
	s.out = s.out[:copy(s.out, s.out[n:])]
}

func (u *userTransport) move(now, _ int64) (happened int, waited int64) {
	u.stack.Advance(time.Duration(now))
	happened = u.stack.Receive()
	return happened + u.stack.Deliver(), 0
}

func (u *userTransport) flush() {
	u.stack.Acknowledge()
	u.stack.Transmit()
}

// leave waits for the ends of the connections to be acknowledged, so that the
// server is left with none, then closes the stack.
func (u *userTransport) leave() {
	for until := u.thread.now() + int64(time.Second); ; {
		now := u.thread.now()
		u.move(now, 0)
		u.flush()
		if now >= until || u.stack.Idle() && !u.stack.Closing() {
			break
		}
	}
	u.stack.Close()
}

// Ready implements stack.Owner.
func (k *userSocket) Ready(*stack.Socket) {
	s, u := k.session, k.transport
	if s.state == connecting {
		switch err := k.Err(); {
		case err != nil:
			s.fail(err, u.thread.now())
			return
		case !k.Established():
			return
		}
		s.established(u.thread.now())
	}
	for u.sockets[s.slot] == k {
		n, err := k.Read(u.buffer)
		now := u.thread.now()
		if n > 0 {
			if e := s.input(u.buffer[:n], now); e != nil {
				s.fail(e, now)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			s.over(now)
			return
		case errors.Is(err, stack.ErrWouldBlock):
			if len(s.out) > 0 {
				u.thread.touch(s)
			}
			return
		case err != nil:
			s.fail(err, now)
			return
		}
	}
}
