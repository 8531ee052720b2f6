package stack

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

// looper runs a stack on a goroutine of its own, as a shard does.
type looper struct {
	*Stack
	wake, stop, done chan struct{}
	once             sync.Once
}

// loopOn starts a loop over a new stack on one end of a link. The test's end
// stops it.
func loopOn(t testing.TB, port *wire.Port, c Config) *looper {
	t.Helper()
	return loopOnQueue(t, port, port.Queue(0), c)
}

// loopOnQueue is loopOn with something before the port's queue.
func loopOnQueue(t testing.TB, port *wire.Port, queue driver.Queue, c Config) *looper {
	t.Helper()
	s, err := New(port, queue, c)
	if err != nil {
		t.Fatal(err)
	}
	l := &looper{Stack: s, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	s.SetWake(func() {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	})
	go l.run()
	t.Cleanup(l.Stop)
	return l
}

func (l *looper) run() {
	defer close(l.done)
	start := time.Now()
	idle := time.NewTimer(time.Hour)
	defer idle.Stop()
	for {
		l.Advance(time.Since(start))
		work := l.Receive()
		work += l.Deliver()
		l.Acknowledge()
		work += l.Transmit()
		if work > 0 {
			select {
			case <-l.stop:
				l.Close()
				return
			default:
			}
			continue
		}
		idle.Reset(50 * time.Microsecond)
		select {
		case <-l.stop:
			l.Close()
			return
		case <-l.wake:
		case <-idle.C:
		}
	}
}

// Stop closes the stack on its own goroutine and waits for it.
func (l *looper) Stop() {
	l.once.Do(func() { close(l.stop) })
	<-l.done
}

// endpoints asks the loop for the number of endpoints.
func (l *looper) endpoints(t testing.TB) (n int) {
	t.Helper()
	if err := l.gate.do(func() { n = l.Endpoints() }); err != nil {
		t.Fatal(err)
	}
	return n
}

// The two ends' addresses in the tests over a pair.
const (
	leftHost, rightHost   = "10.7.0.1", "10.7.0.2"
	leftHost6, rightHost6 = "fd07::1", "fd07::2"
)

// newPair joins two looped stacks by a perfect link; change may adapt their
// configuration.
func newPair(t testing.TB, dispatch Dispatch, change func(*Config)) (left, right *looper) {
	t.Helper()
	return newPairOn(t, wire.Config{Ring: 4096}, dispatch, change, nil)
}

// newPairOn is newPair on a link of the caller's choice; wrap, if not nil, may put
// something before each end's queue.
func newPairOn(t testing.TB, w wire.Config, dispatch Dispatch, change func(*Config), wrap func(driver.Queue) driver.Queue) (left, right *looper) {
	t.Helper()
	link, err := wire.New(w)
	if err != nil {
		t.Fatal(err)
	}
	free := link.FreeFrames()
	t.Cleanup(func() {
		link.Port(wire.A).Close()
		if n := link.FreeFrames(); n != free {
			t.Errorf("%d of %d frames came back", n, free)
		}
	})
	for side, hosts := range [][2]string{{leftHost, leftHost6}, {rightHost, rightHost6}} {
		c := Config{
			Dispatch:  dispatch,
			Addresses: []netip.Prefix{netip.MustParsePrefix(hosts[0] + "/24"), netip.MustParsePrefix(hosts[1] + "/64")},
			TimeWait:  20 * time.Millisecond,
		}
		if change != nil {
			change(&c)
		}
		port := link.Port(wire.Side(side))
		queue := port.Queue(0)
		if wrap != nil {
			queue = wrap(queue)
		}
		l := loopOnQueue(t, port, queue, c)
		if side == 0 {
			left = l
		} else {
			right = l
		}
	}
	return left, right
}

// eachDispatch runs a test over a pair with each dispatch.
func eachDispatch(t *testing.T, test func(t *testing.T, left, right *looper)) {
	for _, d := range []Dispatch{Inline, Handoff} {
		t.Run(string(d), func(t *testing.T) {
			left, right := newPair(t, d, nil)
			test(t, left, right)
		})
	}
}

// eventually waits until check returns an empty string.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	var complaint string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if complaint = check(); complaint == "" {
			return
		}
	}
	t.Fatal("still: ", complaint)
}
