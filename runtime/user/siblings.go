package user

import (
	"bytes"

	"github.com/pollux-net/pollux/driver"
)

// siblings connects a loop's stack to those of the other shards, through their
// mailboxes. A full mailbox drops the frame and counts it: these frames are
// either repeated by their sender or strays of a device that has no RSS.
type siblings struct {
	shards []*loop
	self   int
}

func (s *siblings) post(to int, f *driver.Frame, visited int) bool {
	l := s.shards[to]
	copied := &driver.Frame{Data: bytes.Clone(f.Data), Flags: f.Flags}
	if l.stack.Post(func() { l.stack.Inject(copied, visited) }) {
		return true
	}
	s.shards[s.self].counters.SharedDropped++
	return false
}

// Share implements stack.Siblings.
func (s *siblings) Share(f *driver.Frame) {
	for i := range s.shards {
		if i != s.self {
			s.post(i, f, 1)
		}
	}
}

// Pass implements stack.Siblings.
func (s *siblings) Pass(f *driver.Frame, visited int) bool {
	if visited > len(s.shards) {
		return false // the ring has come round: the first stack answers
	}
	s.post((s.self+1)%len(s.shards), f, visited)
	return true
}
