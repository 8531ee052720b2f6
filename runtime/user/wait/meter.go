package wait

import "time"

// Meter keeps the account of a polling loop's time without a look at the clock for
// every poll, which would cost as much as an empty poll of a fast driver. In a loop
// that has work the clock is looked at once a turn; where work begins after polls
// in vain is worked out from how many there were and how long such a poll takes.
// Times are on a scale of the loop's choosing.
type Meter struct {
	busy  bool          // the last turn found something to do
	since time.Duration // when the present spell, busy or not, began
	total time.Duration // of busy spells that have ended

	now   time.Duration // the last look
	polls int           // in vain since then
	look  int           // how many may be, until the next
	poll  time.Duration // what one takes, see learn
}

// Polls between two looks at the clock while there is no work. The first look comes
// sooner, so that what a poll takes is known of a loop, too, that is never idle for
// long.
const pollsPerLook, pollsToFirstLook = 32, 2

// NewMeter begins an account, with a turn that has work.
func NewMeter(now time.Duration) Meter { return Meter{busy: true, since: now, now: now} }

// Due says that it is time to look at the clock, and to tell Look.
func (m *Meter) Due() bool { return m.busy || m.polls >= m.look }

// Look takes the time at which a turn begins.
func (m *Meter) Look(now time.Duration) {
	if !m.busy && m.polls > 0 {
		m.learn((now - m.now) / time.Duration(m.polls))
		m.look = pollsPerLook
	}
	m.now, m.polls = now, 0
}

// learn notes what a poll in vain took. What an interruption made long counts for
// little: too short a time only makes the loop look busier than it is.
func (m *Meter) learn(took time.Duration) {
	if m.poll == 0 {
		m.poll = took
	}
	m.poll = min(took, m.poll+m.poll/8+1)
}

// Worked ends a turn that found something to do, and reports whether it was the
// first after ones that did not.
func (m *Meter) Worked() (first bool) {
	if m.busy {
		return false
	}
	m.busy, m.since = true, m.now+time.Duration(m.polls)*m.poll
	return true
}

// Vain ends a turn that found nothing.
func (m *Meter) Vain() {
	m.polls++
	if m.busy {
		m.total = m.Busy(m.now)
		m.busy, m.since, m.look = false, m.now, pollsToFirstLook
		if m.poll == 0 {
			m.look = 1
		}
	}
}

// Slept says that a sleep, begun after a turn in vain, ended at a time.
func (m *Meter) Slept(now time.Duration) { m.now, m.since, m.polls, m.look = now, now, 0, 0 }

// Idle is for how long there has been nothing to do, as of the last look.
func (m *Meter) Idle() time.Duration { return m.now - m.since }

// Busy is how much time there was something to do, until now.
func (m *Meter) Busy(now time.Duration) time.Duration {
	if !m.busy {
		return m.total
	}
	return m.total + max(0, now-m.since)
}
