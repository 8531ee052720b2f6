package stack

import (
	"net"
	"sync"

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
	l.mu.Lock()
	added := !e.queued && !e.off
	if added {
		e.queued = true
		l.events = append(l.events, e)
	}
	l.mu.Unlock()
	if added && l.wake != nil {
		l.wake()
	}
}

func (e *event) stop(wq *waiter.Queue) {
	wq.EventUnregister(&e.Entry)
	e.list.mu.Lock()
	e.off = true
	e.list.mu.Unlock()
}

// readyList holds the events that Deliver has to act on. The mutex is for the
// Handoff dispatch and netstack's one stray goroutine, see clock.
type readyList struct {
	mu     sync.Mutex
	events []*event
	spare  []*event
	wake   func()
}

func (l *readyList) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events) == 0
}

// run acts on what is ready now; what becomes ready meanwhile waits for the next
// call, so that one connection cannot keep the loop.
func (l *readyList) run() int {
	l.mu.Lock()
	if len(l.events) == 0 {
		l.mu.Unlock()
		return 0
	}
	events := l.events
	l.events = l.spare[:0]
	for _, e := range events {
		e.queued = false
	}
	l.mu.Unlock()
	for _, e := range events {
		if !e.off {
			e.target.ready()
		}
	}
	clear(events)
	l.spare = events[:0]
	return len(events)
}
