package wait_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime/user/wait"
)

func link(t *testing.T) (peer, own driver.Queue) {
	t.Helper()
	l, err := wire.New(wire.Config{Interrupts: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Port(wire.A).Close(); l.Port(wire.B).Close() })
	return l.Port(wire.A).Queue(0), l.Port(wire.B).Queue(0)
}

func sleeper(t *testing.T, interrupts ...driver.Interrupt) *wait.Sleeper {
	t.Helper()
	s, err := wait.New(interrupts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func send(t *testing.T, q driver.Queue) {
	t.Helper()
	var f [1]driver.Frame
	if q.Allocate(f[:], 64) != 1 {
		t.Fatal("no frame")
	}
	f[0].Data = f[0].Data[:64]
	if q.Transmit(f[:]) != 1 {
		t.Fatal("the wire refused a frame")
	}
}

func idle() bool { return true }

func TestAFrameOnAnyQueueEndsASleep(t *testing.T) {
	peerA, a := link(t)
	peerB, b := link(t)
	s := sleeper(t, a.Interrupt(), b.Interrupt())
	var f [1]driver.Frame
	for i, c := range []struct{ peer, own driver.Queue }{{peerA, a}, {peerB, b}, {peerA, a}} {
		result := make(chan wait.Cause)
		go func() {
			cause, err := s.Sleep(time.Minute, idle)
			if err != nil {
				t.Error(err)
			}
			result <- cause
		}()
		send(t, c.peer)
		// The frame may have come before the sleep: then there is none.
		if cause := <-result; cause != wait.ByFrame && cause != wait.NotSlept {
			t.Fatalf("frame %d: sleep ended by %v", i, cause)
		}
		if c.own.Receive(f[:]) != 1 {
			t.Fatalf("frame %d: nothing to receive after the sleep", i)
		}
		driver.Free(f[:])
	}
}

func TestAFrameThatWaitsForbidsSleepOnAllQueues(t *testing.T) {
	_, a := link(t)
	peerB, b := link(t)
	s := sleeper(t, a.Interrupt(), b.Interrupt())
	send(t, peerB)
	if cause, err := s.Sleep(time.Minute, idle); cause != wait.NotSlept || err != nil {
		t.Fatalf("slept with a frame waiting: %v, %v", cause, err)
	}
	var f [1]driver.Frame
	b.Receive(f[:])
	driver.Free(f[:])
	if cause, err := s.Sleep(time.Millisecond, idle); cause != wait.ByTime || err != nil {
		t.Fatalf("the next sleep: %v, %v; the first queue was left armed?", cause, err)
	}
}

func TestAWakeEndsASleepAndIsNotRemembered(t *testing.T) {
	_, a := link(t)
	s := sleeper(t, a.Interrupt())
	s.Wake() // nobody sleeps: nothing to end
	if cause, _ := s.Sleep(time.Millisecond, idle); cause != wait.ByTime {
		t.Fatalf("a wake before the sleep ended it: %v", cause)
	}
	asleep := func() bool { go s.Wake(); return true } // sleeping is set by now
	if cause, _ := s.Sleep(time.Minute, asleep); cause != wait.ByWake {
		t.Fatalf("the sleep ended by %v", cause)
	}
}

func TestWorkForbidsSleep(t *testing.T) {
	s := sleeper(t)
	if cause, _ := s.Sleep(time.Minute, func() bool { return false }); cause != wait.NotSlept {
		t.Fatalf("slept with work to do: %v", cause)
	}
	if cause, _ := s.Sleep(0, idle); cause != wait.NotSlept {
		t.Fatalf("slept when a timer was due: %v", cause)
	}
}

func TestALoopWithAQueueWithoutInterruptNaps(t *testing.T) {
	_, a := link(t)
	s := sleeper(t, a.Interrupt(), nil)
	begin := time.Now()
	if cause, err := s.Sleep(time.Hour, idle); cause != wait.ByTime || err != nil {
		t.Fatalf("the nap ended by %v, %v", cause, err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("a nap took %v", took)
	}
}

type broken struct{ driver.Interrupt }

func (broken) FD() int            { return -1 }
func (broken) Arm() (bool, error) { return false, errBroken }
func (broken) Disarm() error      { return errors.New("disarmed without having been armed") }

var errBroken = errors.New("broken")

func TestAnInterruptThatFailsIsReportedAndTheOthersAreDisarmed(t *testing.T) {
	peer, a := link(t)
	s := sleeper(t, a.Interrupt(), broken{})
	if _, err := s.Sleep(time.Minute, idle); err != errBroken && !errors.Is(err, errBroken) {
		t.Fatalf("error %v, want %v", err, errBroken)
	}
	send(t, peer)
	var f [1]driver.Frame
	if a.Receive(f[:]) != 1 {
		t.Fatal("the first queue does not receive any more")
	}
	driver.Free(f[:])
}

func TestTheBudgetFollowsTheTraffic(t *testing.T) {
	s := sleeper(t)
	start := s.Budget()
	s.Learn(wait.ByFrame, time.Microsecond)
	if s.Budget() <= start {
		t.Errorf("a frame that came soon left the budget at %v", s.Budget())
	}
	for range 20 {
		s.Learn(wait.ByTime, time.Second)
	}
	if s.Budget() >= start || s.Budget() == 0 {
		t.Errorf("long sleeps left the budget at %v of %v", s.Budget(), start)
	}
}
