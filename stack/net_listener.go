package stack

import (
	"net"
	"os"
	"sync"
	"time"
)

// listener is a net.Listener over an event listener. When nobody accepts, it
// holds Config.Backlog connections and netstack as many behind it; then SYN
// cookies and, in the end, silence hold the peers off.
type listener struct {
	stack   *Stack
	name    endpointName
	address net.Addr

	mu        sync.Mutex
	arrived   sync.Cond
	until     deadline
	queue     []*conn
	closed    bool // Close was called
	gone      bool // it was, or the stack closed
	stalled   bool // connections wait in netstack because the queue is full
	submitted bool

	events *Listener // the loop's own
}

// open listens, on the loop.
func (l *listener) open() error {
	events, err := l.stack.listen(l.name.address, l.name.family, l.accept)
	if err != nil {
		return err
	}
	events.full = l.full
	l.events = events
	l.address = l.name.addr(events.Addr())
	l.stack.gate.inside[l] = struct{}{}
	return nil
}

func (l *listener) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled = len(l.queue) >= l.stack.config.Backlog
	return l.stalled
}

// accept takes a connection in, on the loop.
func (l *listener) accept(k *Socket) Owner {
	c := newConn(l.stack, l.name)
	c.adopt(k)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, c)
	l.arrived.Signal()
	return c
}

// serve implements visitor: the queue has room again, or Close was called.
func (l *listener) serve() {
	l.mu.Lock()
	l.submitted = false
	closed := l.closed
	l.mu.Unlock()
	switch {
	case l.events == nil:
	case closed:
		l.end()
	default:
		l.events.ready()
	}
}

// expel implements visitor.
func (l *listener) expel() { l.end() }

// end stops listening and resets the connections that nobody accepted.
func (l *listener) end() {
	l.events.Close()
	l.events = nil
	delete(l.stack.gate.inside, l)
	l.mu.Lock()
	queue := l.queue
	l.queue, l.gone = nil, true
	l.until.stop()
	l.arrived.Broadcast()
	l.mu.Unlock()
	for _, c := range queue {
		c.end(true)
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	for {
		var err error
		switch {
		case l.gone:
			err = errClosed
		case l.until.past:
			err = os.ErrDeadlineExceeded
		case len(l.queue) > 0:
			c := l.queue[0]
			l.queue[0] = nil
			l.queue = l.queue[1:]
			submit := l.stalled && len(l.queue) <= l.stack.config.Backlog/2 && !l.submitted
			l.submitted = l.submitted || submit
			l.mu.Unlock()
			if submit {
				l.stack.gate.submit(l)
			}
			return c, nil
		default:
			l.arrived.Wait()
			continue
		}
		l.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Net: l.name.network, Addr: l.address, Err: err}
	}
}

// Close implements net.Listener. Connections that were accepted stay; those that
// wait to be are reset.
func (l *listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: l.name.network, Addr: l.address, Err: errClosed}
	}
	l.closed, l.gone = true, true
	submit := !l.submitted
	l.submitted = true
	l.arrived.Broadcast()
	l.mu.Unlock()
	if submit {
		l.stack.gate.submit(l)
	}
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.address }

// SetDeadline bounds Accept, as net.TCPListener's does.
func (l *listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return &net.OpError{Op: "set", Net: l.name.network, Addr: l.address, Err: errClosed}
	}
	l.until.set(t, &l.arrived)
	return nil
}
