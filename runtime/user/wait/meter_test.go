package wait

import (
	"fmt"
	"testing"
	"time"
)

// metered is a loop in virtual time whose polls in vain and whose work take fixed
// times.
type metered struct {
	Meter
	now, worked time.Duration
	looks       int
}

const vainTook, workTook = 90 * time.Nanosecond, 700 * time.Nanosecond

func (m *metered) turn(work bool) {
	if m.Due() {
		m.looks++
		m.Look(m.now)
	}
	if work {
		m.now += workTook
		m.worked += workTook
		m.Worked()
		return
	}
	m.now += vainTook
	m.Vain()
}

// within says whether the account is right to a hundredth.
func (m *metered) check(t *testing.T, what string) {
	t.Helper()
	got := m.Busy(m.now)
	if d := got - m.worked; d < -m.worked/100-vainTook || d > m.worked/100+vainTook {
		t.Errorf("%s: %v of %v were busy by the account, %v in truth", what, got, m.now, m.worked)
	}
}

func TestPollsBetweenLooksAreNotTakenForWork(t *testing.T) {
	for _, gap := range []int{1, 2, 3, 7, 31, 32, 33, 100} {
		m := &metered{Meter: NewMeter(0)}
		for range 10_000 {
			m.turn(true)
			for range gap {
				m.turn(false)
			}
		}
		m.check(t, fmt.Sprintf("work after every %d polls in vain", gap))
	}
}

func TestALoopThatNeverRunsDryIsBusyAllTheTime(t *testing.T) {
	m := &metered{Meter: NewMeter(0)}
	for range 1000 {
		m.turn(true)
	}
	m.check(t, "without a poll in vain")
	m.turn(false)
	m.turn(false)
	m.check(t, "after its first ones")
}

func TestAnIdleLoopHardlyLooksAtTheClock(t *testing.T) {
	m := &metered{Meter: NewMeter(0)}
	for range 32_000 {
		m.turn(false)
	}
	if m.looks > 1010 {
		t.Errorf("%d looks at the clock in 32,000 polls", m.looks)
	}
	if d := m.Idle(); d < m.now-33*vainTook {
		t.Errorf("idle for %v by the account, %v in truth", d, m.now)
	}
}

func TestAnInterruptedPollDoesNotHideWork(t *testing.T) {
	m := &metered{Meter: NewMeter(0)}
	for i := range 10_000 {
		m.turn(true)
		for k := range 5 {
			m.turn(false)
			if i%100 == 0 && k == 1 {
				m.now += 50 * time.Microsecond // another program ran
			}
		}
	}
	m.check(t, "with interruptions")
}

func TestASleepIsNeitherWorkNorPolls(t *testing.T) {
	m := &metered{Meter: NewMeter(0)}
	for range 1000 {
		m.turn(true)
		m.turn(false)
		m.now += time.Millisecond
		m.Slept(m.now)
	}
	m.check(t, "with a sleep after each turn")
}
