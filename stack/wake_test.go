package stack

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// sleepless is a stack whose loop is about to sleep, and a count of how often it
// was woken.
func sleepless(t *testing.T, dispatch Dispatch) (s *Stack, woken *int) {
	t.Helper()
	link, err := wire.New(wire.Config{})
	if err != nil {
		t.Fatal(err)
	}
	port := link.Port(wire.A)
	s, err = New(port, port.Queue(0), Config{Dispatch: dispatch, Addresses: []netip.Prefix{netip.PrefixFrom(stacktest.ServerAddress, 24)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	woken = new(int)
	s.SetWake(func() { *woken++ })
	return s, woken
}

// With the Handoff dispatch sockets become ready beside the loop.
func TestAnEventWakesASleepingLoopOnce(t *testing.T) {
	s, woken := sleepless(t, Handoff)
	address := netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort)
	l, err := s.ListenEvents(address, func(*Socket) Owner { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for round := 1; round <= 2; round++ {
		l.event.raise()
		l.event.raise()
		if *woken != round || s.Idle() {
			t.Errorf("woken %d times by %d events, idle %v", *woken, round, s.Idle())
		}
		s.Deliver()
	}
}

// failures is an owner that counts the connections that fail.
type failures struct{ n int }

func (f *failures) Ready(k *Socket) {
	if k.Err() != nil {
		f.n++
		k.Close()
	}
}

// With too many neighbours to look for at once netstack gives up on the first, on a
// goroutine of its own. The loop, which takes no locks, hears of it by post.
func TestWhatNetstackGivesUpBesideTheLoopComesByPost(t *testing.T) {
	s, _ := sleepless(t, Inline)
	posted := make(chan struct{}, 1000)
	s.SetWake(func() { posted <- struct{}{} })
	const neighbours, most = 70, 64
	var failed failures
	prefix := stacktest.ServerAddress.As4()
	for i := range neighbours {
		prefix[3] = byte(100 + i)
		if _, err := s.Connect(netip.AddrPort{}, netip.AddrPortFrom(netip.AddrFrom4(prefix), 1), &failed); err != nil {
			t.Fatal(err)
		}
	}
	for i := range neighbours - most {
		select {
		case <-posted:
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d neighbours too many were given up", i, neighbours-most)
		}
	}
	if s.Idle() || failed.n != 0 {
		t.Errorf("before the loop's turn: idle %v, %d connections failed", s.Idle(), failed.n)
	}
	s.Deliver()
	if failed.n != neighbours-most {
		t.Errorf("%d connections failed, want %d", failed.n, neighbours-most)
	}
}

// With the Handoff dispatch timers are set beside the loop: one that is due before
// the loop means to wake up ends the sleep, or forbids it.
func TestATimerSetMeanwhileEndsTheSleep(t *testing.T) {
	s, woken := sleepless(t, Handoff)
	s.clock.AfterFunc(time.Hour, func() {})
	s.Deadline()
	*woken = 0
	if !s.Idle() {
		t.Fatal("not idle with nothing to do")
	}
	later := s.clock.AfterFunc(2*time.Hour, func() {})
	if *woken > 0 || !s.Idle() {
		t.Errorf("a timer behind the first woke the loop %d times", *woken)
	}
	later.Reset(time.Minute)
	if *woken != 1 || s.Idle() {
		t.Errorf("a timer before the first woke the loop %d times, and it may sleep: %v", *woken, s.Idle())
	}
	if d := s.Deadline(); d != time.Minute || !s.Idle() {
		t.Errorf("the first deadline is %v, idle %v", d, s.Idle())
	}
	later.Reset(time.Second)
	s.Advance(0) // as the loop does when it is not idle
	if !s.Idle() || s.Deadline() != time.Second {
		t.Errorf("the first deadline is %v, idle %v", s.Deadline(), s.Idle())
	}
}
