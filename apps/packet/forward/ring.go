package forward

import (
	"sync/atomic"

	"github.com/pollux-net/pollux/driver"
)

// ring passes values from one goroutine to another without a lock.
type ring[T any] struct {
	slots []T
	_     [64]byte // the two ends' counters on cache lines of their own
	read  atomic.Uint32
	_     [60]byte
	wrote atomic.Uint32
}

// newRing has room for n, a power of two.
func newRing[T any](n int) *ring[T] { return &ring[T]{slots: make([]T, n)} }

func (r *ring[T]) put(v T) bool {
	w := r.wrote.Load()
	if w-r.read.Load() == uint32(len(r.slots)) {
		return false
	}
	r.slots[w&uint32(len(r.slots)-1)] = v
	r.wrote.Store(w + 1)
	return true
}

func (r *ring[T]) get() (v T, ok bool) {
	at := r.read.Load()
	if at == r.wrote.Load() {
		return v, false
	}
	slot := &r.slots[at&uint32(len(r.slots)-1)]
	v = *slot
	var zero T
	*slot = zero
	r.read.Store(at + 1)
	return v, true
}

func (r *ring[T]) empty() bool { return r.read.Load() == r.wrote.Load() }

// handed is a frame for the shard that owns its binding; passed counts those that
// were asked for it and have it not.
type handed struct {
	frame      driver.Frame
	in, passed int
}

// learned is what a frame told of a neighbour.
type learned struct {
	port    int
	address address
	mac     [6]byte // zero: the one that is known
	// onlyKnown: it was not said to us; believe it only of a neighbour in use.
	onlyKnown bool
}
