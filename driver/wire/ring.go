package wire

import (
	"time"

	"github.com/pollux-net/pollux/driver"
)

// An entry is a frame that is under way or waits to be received.
type entry struct {
	due         time.Duration
	handle      uint32
	length      uint32
	hash        uint32
	flags       driver.Flags
	segmentSize uint16
}

// A ring holds the frames of one receive queue in the order of arrival.
type ring struct {
	entries []entry
	head, n int
	// wake, if set, is told once when a frame is there and armed is true.
	wake  *interrupt
	armed bool
}

func (r *ring) at(i int) *entry {
	i += r.head
	if i >= len(r.entries) {
		i -= len(r.entries)
	}
	return &r.entries[i]
}

func (r *ring) room() int { return len(r.entries) - r.n }

// insert puts e behind all that are due no later. There must be room. Frames
// mostly arrive in order, so the search starts at the end.
func (r *ring) insert(e entry) {
	i := r.n
	for r.n++; i > 0 && r.at(i-1).due > e.due; i-- {
		*r.at(i) = *r.at(i - 1)
	}
	*r.at(i) = e
}

// ready says whether a frame is receivable at a time.
func (r *ring) ready(now time.Duration) bool { return r.n > 0 && r.entries[r.head].due <= now }

// pop removes the first frame.
func (r *ring) pop() entry {
	e := r.entries[r.head]
	r.head++
	if r.head == len(r.entries) {
		r.head = 0
	}
	r.n--
	return e
}

// notify wakes whoever sleeps until a frame is there.
func (r *ring) notify(now time.Duration) {
	if r.armed && r.ready(now) {
		r.armed = false
		r.wake.signal()
	}
}
