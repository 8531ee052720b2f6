// Package wait lets a loop sleep until a frame arrives on one of its queues,
// another goroutine wakes it, or time is up, and learns how long polling before
// that is worth its while. It is how every loop of the user path waits, in the
// interrupt and the adaptive mode, and how it tells work from waiting.
package wait

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/driver"
)

// Cause is why a sleep ended.
type Cause int

const (
	NotSlept Cause = iota // there was work after all
	ByFrame               // a device's interrupt
	ByWake                // another goroutine called Wake
	ByTime                // a timer is due, or a nap is over
)

// Sleeper is one loop's. Only Wake may be called from other goroutines.
//
// No wake-up is lost: sleeping is set before the last look at the work that
// others hand over, and who hands over calls Wake afterwards, which looks at
// sleeping; the devices are armed, and say themselves whether frames are there,
// before the thread sleeps.
type Sleeper struct {
	interrupts []driver.Interrupt
	fds        []unix.PollFd // the eventfd, then the interrupts'
	napping    bool          // a queue has no interrupt
	event      int           // eventfd
	sleeping   atomic.Bool
	spin       time.Duration // learned, see Learn
	nap        time.Duration // the next nap without an interrupt
}

// The adaptive mode spins at most maxSpin for the next frame: about what a sleep
// and a wake-up cost, so that it never costs more than twice the better choice.
const (
	minSpin = 2 * time.Microsecond
	maxSpin = 200 * time.Microsecond
)

// Where a queue has no interrupt to sleep on, a loop naps: from minNap, longer
// by minNap each time nothing came, to maxNap.
const (
	minNap = 10 * time.Microsecond
	maxNap = time.Millisecond
)

// New makes the sleeper of a loop over queues with these interrupts; nil stands
// for a queue that has none, and with one such queue the loop naps.
func New(interrupts ...driver.Interrupt) (*Sleeper, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create an eventfd: %w", err)
	}
	s := &Sleeper{event: event, spin: maxSpin / 4, nap: minNap}
	s.fds = append(s.fds, unix.PollFd{Fd: int32(event), Events: unix.POLLIN})
	for _, i := range interrupts {
		if i == nil {
			s.napping = true
			continue
		}
		s.interrupts = append(s.interrupts, i)
		s.fds = append(s.fds, unix.PollFd{Fd: int32(i.FD()), Events: unix.POLLIN})
	}
	return s, nil
}

// Close ends the sleeper's use, when nobody calls Wake any more.
func (s *Sleeper) Close() { unix.Close(s.event) }

// Budget is how long the adaptive mode polls before it sleeps.
func (s *Sleeper) Budget() time.Duration { return s.spin }

// Learn adjusts the budget after a sleep: a frame that came soon would have been
// worth spinning for; a long sleep was not.
func (s *Sleeper) Learn(c Cause, slept time.Duration) {
	switch {
	case c == ByFrame && slept < maxSpin:
		s.spin = min(2*s.spin, maxSpin)
	case slept >= 10*maxSpin:
		s.spin = max(s.spin/2, minSpin)
	}
}

// Wake ends a sleep, from any goroutine.
func (s *Sleeper) Wake() {
	if s.sleeping.Load() {
		one := [8]byte{1}
		unix.Write(s.event, one[:])
	}
}

// Sleep sleeps for at most d, unless idle says that there is work.
func (s *Sleeper) Sleep(d time.Duration, idle func() bool) (Cause, error) {
	if d <= 0 {
		return NotSlept, nil
	}
	s.sleeping.Store(true)
	defer s.sleeping.Store(false)
	if !idle() {
		return NotSlept, nil
	}
	for i, in := range s.interrupts {
		if armed, err := in.Arm(); err != nil || !armed {
			return NotSlept, errors.Join(err, s.disarm(i))
		}
	}
	if s.napping {
		d = min(d, s.nap)
		s.nap = min(s.nap+minNap, maxNap)
	}
	timeout := unix.NsecToTimespec(int64(d))
	_, err := unix.Ppoll(s.fds, &timeout, nil)
	if err == unix.EINTR {
		err = nil
	}
	result := ByTime
	if err == nil {
		if s.fds[0].Revents != 0 {
			var count [8]byte
			unix.Read(s.event, count[:])
			result = ByWake
		}
		for i := range s.fds[1:] {
			if s.fds[1+i].Revents != 0 {
				result = ByFrame
			}
		}
	}
	return result, errors.Join(err, s.disarm(len(s.interrupts)))
}

// disarm takes the first n interrupts back to polling.
func (s *Sleeper) disarm(n int) (err error) {
	for _, in := range s.interrupts[:n] {
		err = errors.Join(err, in.Disarm())
	}
	return err
}

// Worked resets the naps: there is traffic.
func (s *Sleeper) Worked() { s.nap = minNap }
