package stack

import (
	"net"

	"gvisor.dev/gvisor/pkg/waiter"
)

var errClosed = net.ErrClosed

// event connects a netstack wait queue to the stack's ready list. Netstack
// notifies with locks held, so a notification may only note that something
// happened; Deliver acts on it.
type event struct {
	waiter.Entry
	list   *readyList
	target interface{ ready() }
	queued bool
	off    bool
}

func (e *event) init(s *Stack, target interface{ ready() }, wq *waiter.Queue, mask waiter.EventMask) {
	e.list, e.target = &s.ready, target
	e.Entry.Init(e, mask)
	wq.EventRegister(&e.Entry)
}

// NotifyEvent implements waiter.EventListener.
func (e *event) NotifyEvent(waiter.EventMask) { e.raise() }

func (e *event) raise() {
	l := e.list
	l.guard.lock()
	added := !e.queued && !e.off
	if added {
		e.queued = true
		l.events = append(l.events, e)
	}
	l.guard.unlock()
	if added && l.wake != nil {
		l.wake()
	}
}

func (e *event) stop(wq *waiter.Queue) {
	wq.EventUnregister(&e.Entry)
	e.list.guard.lock()
	e.off = true
	e.list.guard.unlock()
}

// readyList holds the events that Deliver has to act on.
type readyList struct {
	guard  guard
	events []*event
	spare  []*event
	wake   func()
}

func (l *readyList) empty() bool {
	l.guard.lock()
	empty := len(l.events) == 0
	l.guard.unlock()
	return empty
}

// run acts on what is ready now; what becomes ready meanwhile waits for the next
// call, so that one connection cannot keep the loop.
func (l *readyList) run() int {
	l.guard.lock()
	if len(l.events) == 0 {
		l.guard.unlock()
		return 0
	}
	events := l.events
	l.events = l.spare[:0]
	for _, e := range events {
		e.queued = false
	}
	l.guard.unlock()
	for _, e := range events {
		if !e.off {
			e.target.ready()
		}
	}
	clear(events)
	l.spare = events[:0]
	return len(events)
}
