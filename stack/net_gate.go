package stack

import "sync"

// gate is how the adapters for ordinary Go code get work done on the loop. A
// visitor hands itself in from any goroutine and is served inside Deliver. The
// gate takes one place in the mailbox, and that one is always free, so that a
// flush is neither lost nor has to wait for room.
type gate struct {
	mail  *mailbox
	enter func() // run, as a value made once

	mu      sync.Mutex
	waiting []visitor
	spare   []visitor
	posted  bool

	// inside are those that hold something of the loop's; only the loop looks.
	inside map[visitor]struct{}
	// datagram is where the loop puts a datagram of unknown size.
	datagram []byte // see scratch
}

// visitor is something of the adapters that needs the loop now and then. Both
// methods are called on the loop.
type visitor interface {
	// serve does what is due. A visitor hands itself in again only after serve
	// has begun.
	serve()
	// expel is called when the stack closes: everybody who waits gets
	// net.ErrClosed.
	expel()
}

func (g *gate) init(m *mailbox) {
	g.mail, g.enter, g.inside = m, g.run, make(map[visitor]struct{})
}

// submit has v served soon. False means that the stack is closed.
func (g *gate) submit(v visitor) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, v)
	if !g.posted {
		if !g.mail.postReserved(g.enter) {
			clear(g.waiting)
			g.waiting = nil
			return false
		}
		g.posted = true
	}
	return true
}

// run serves who is waiting.
func (g *gate) run() {
	g.mu.Lock()
	waiting := g.waiting
	g.waiting = g.spare[:0]
	g.posted = false
	g.mu.Unlock()
	for _, v := range waiting {
		v.serve()
	}
	clear(waiting)
	g.spare = waiting[:0]
}

// close expels everybody. The mailbox is closed and has been run.
func (g *gate) close() {
	for v := range g.inside {
		v.expel()
	}
	clear(g.inside)
}

// scratch is the loop's memory for one datagram.
func (g *gate) scratch() []byte {
	if g.datagram == nil {
		g.datagram = make([]byte, 1<<16)
	}
	return g.datagram
}

// errand is a function that a goroutine has the loop run.
type errand struct {
	run  func()
	done chan struct{}
}

func (e *errand) serve() { e.run(); close(e.done) }
func (e *errand) expel() {}

// do has the loop run f and waits until it has.
func (g *gate) do(f func()) error {
	e := &errand{run: f, done: make(chan struct{})}
	if !g.submit(e) {
		return errClosed
	}
	<-e.done
	return nil
}
