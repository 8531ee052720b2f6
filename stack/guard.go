package stack

import "sync"

// guard is a mutex for what only the Handoff dispatch lets others touch beside the
// loop: its goroutines write packets, set timers and find sockets ready. With the
// Inline dispatch all of that happens on the loop, and a lock that nobody else ever
// takes is left out: even so it would cost some 20 cycles, and as much again to give
// back, several times a request.
type guard struct {
	beside bool // set before the stack is used
	mu     sync.Mutex
}

func (g *guard) lock() {
	if g.beside {
		g.mu.Lock()
	}
}

func (g *guard) unlock() {
	if g.beside {
		g.mu.Unlock()
	}
}
