package stack

import (
	"sync"
	"time"
)

// deadline wakes up those who wait on a condition when a point in time has come.
// This is the one place in the package where a clock is read: package net's
// deadlines are times of day. The condition's lock guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer
	past  bool
}

// set replaces the deadline; the zero time means none.
func (d *deadline) set(at time.Time, cond *sync.Cond) {
	d.past = false
	if d.timer != nil {
		d.timer.Stop()
	}
	if d.at = at; at.IsZero() {
		return
	}
	left := time.Until(at)
	if left <= 0 {
		d.past = true
		cond.Broadcast()
		return
	}
	// From here on the clock that only runs forwards counts, as for any timer.
	d.at = time.Now().Add(left)
	if d.timer != nil {
		d.timer.Reset(left)
		return
	}
	d.timer = time.AfterFunc(left, func() {
		cond.L.Lock()
		defer cond.L.Unlock()
		// A timer that was stopped too late finds its deadline moved.
		if !d.at.IsZero() && !time.Now().Before(d.at) {
			d.past = true
			cond.Broadcast()
		}
	})
}

// stop releases the timer.
func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
