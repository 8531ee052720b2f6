package kernel

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mailbox carries functions from other goroutines to a loop, which an eventfd in
// its epoll instance wakes. The eventfd is edge-triggered: every post is an
// event, and nobody has to read it.
type mailbox struct {
	event   int
	waiting atomic.Bool // read by the loop without the lock

	mu     sync.Mutex
	posted []func()
	closed bool
}

func newMailbox() (*mailbox, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create an eventfd: %w", err)
	}
	return &mailbox{event: fd}, nil
}

// post adds f; false if the mailbox is closed.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.posted = append(m.posted, f)
	if len(m.posted) == 1 {
		m.waiting.Store(true)
		one := [8]byte{1}
		unix.Write(m.event, one[:])
	}
	return true
}

// run calls what was posted, in order, and returns how many there were.
func (m *mailbox) run() int {
	if !m.waiting.Load() {
		return 0
	}
	m.mu.Lock()
	posted := m.posted
	m.posted = nil
	m.waiting.Store(false)
	m.mu.Unlock()
	for _, f := range posted {
		f()
	}
	return len(posted)
}

// close refuses further posts and runs what is waiting.
func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.run()
	unix.Close(m.event)
}

// ready implements source: run, which the loop calls anyway, does the work.
func (m *mailbox) ready(uint32) {}
