package stack

import (
	"math"
	"sync"
	"sync/atomic"
)

// mailbox carries functions from other goroutines to the loop.
type mailbox struct {
	waiting atomic.Int32 // read by the loop without the lock

	mu     sync.Mutex
	posted []func()
	spare  []func()
	limit  int
	closed bool
	wake   func()
}

// post adds f; false if the mailbox is full or closed.
func (m *mailbox) post(f func()) bool { return m.add(f, m.limit) }

// postReserved adds f even to a full mailbox; false if it is closed. It is for a
// poster that has at most one function waiting, or few altogether.
func (m *mailbox) postReserved(f func()) bool { return m.add(f, math.MaxInt) }

func (m *mailbox) add(f func(), limit int) bool {
	m.mu.Lock()
	if m.closed || len(m.posted) >= limit {
		m.mu.Unlock()
		return false
	}
	m.posted = append(m.posted, f)
	m.waiting.Store(int32(len(m.posted)))
	wake := m.wake
	m.mu.Unlock()
	if wake != nil {
		wake()
	}
	return true
}

// run calls what was posted, in order, and returns how many there were.
func (m *mailbox) run() int {
	if m.waiting.Load() == 0 {
		return 0
	}
	m.mu.Lock()
	posted := m.posted
	m.posted = m.spare[:0]
	m.waiting.Store(0)
	m.mu.Unlock()
	for _, f := range posted {
		f()
	}
	clear(posted)
	m.spare = posted[:0]
	return len(posted)
}

// close refuses further posts; what is waiting can still be run.
func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
}
