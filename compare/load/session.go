package load

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/pollux-net/pollux/compare/load/distribution"
)

// A request was sent, or is about to be, and is not answered yet. Times are in
// nanoseconds since the run's origin.
type request struct {
	key  int
	set  bool
	due  int64 // when it was meant to be sent: latency counts from here
	sent int64
}

type state uint8

const (
	closed     state = iota // to be connected once it is time
	connecting              //
	open                    //
	quitting                // asked the server to close, see Config.Churn
)

// A session is one connection, and those that follow it when it is lost or given
// up. What it sends is drawn from a generator of its own. It belongs to its
// thread; bytes are carried by the thread's transport.
type session struct {
	thread *thread
	index  int // among all of the run
	slot   int // among the thread's
	// What is asked for and when are drawn apart, so that neither depends on
	// how far the other got.
	random, times rand.PCG

	state  state
	waits  int64 // when connecting or quitting takes too long, or closed is over
	served int   // requests sent on this connection in this phase
	opened uint64

	in  []byte // a reply that has not arrived whole
	out []byte // requests that the transport has not taken yet

	// pending is a ring of what is not answered yet, oldest first.
	pending     []request
	first, size int

	// left is how many requests the phase still has for this session.
	left  uint64
	next  float64 // when the next is due in the open loop; or the next key to store
	dirty bool    // in thread.dirty
	due   bool    // in thread.due
}

// unlimited is left without a bound.
const unlimited = math.MaxUint64

// storeDepth is how many keys are stored at a time on a connection.
const storeDepth = 16

// outLimit is where a session stops adding to what the transport has not taken.
const outLimit = 256 << 10

// begin gets the session ready for a phase, at its begin.
func (s *session) begin(p *phase) {
	c := &s.thread.plan.config
	switch p.kind {
	case connectPhase:
		s.left = 0
	case storePhase:
		s.next = float64(s.index)
		s.left = uint64((c.Keys - s.index + c.Connections - 1) / c.Connections)
	case loadPhase:
		s.served = 0
		s.left = unlimited
		if c.Requests > 0 {
			s.left = c.Requests / uint64(c.Connections)
			if uint64(s.index) < c.Requests%uint64(c.Connections) {
				s.left++
			}
		}
		if c.Rate > 0 {
			// Arrivals at regular times begin anywhere in their interval.
			first := s.interval()
			if _, fixed := s.thread.plan.workload.arrivals.(distribution.Fixed); fixed {
				first *= distribution.Uniform(s.times.Uint64())
			}
			s.next = float64(p.begin) + first
		}
	}
	switch s.state {
	case closed:
		s.connect(p.begin)
	case open:
		s.issue(p.begin)
	}
}

// interval draws the time to the session's next request.
func (s *session) interval() float64 {
	p := s.thread.plan
	return p.scale * p.workload.arrivals.Quantile(distribution.Uniform(s.times.Uint64()))
}

// choose draws what is asked for.
func (s *session) choose() (key int, set bool) {
	p := s.thread.plan
	if p.config.SetRatio > 0 {
		set = distribution.Uniform(s.random.Uint64()) < p.config.SetRatio
	}
	if p.config.Zipf > 0 {
		return p.zipf.Draw(s.random.Uint64), set
	}
	return int(distribution.Uniform(s.random.Uint64()) * float64(p.config.Keys)), set
}

// issue sends what may be sent now.
func (s *session) issue(now int64) {
	if s.state != open {
		return
	}
	p, c := s.thread.phase, &s.thread.plan.config
	switch p.kind {
	case storePhase:
		for s.left > 0 && s.size < storeDepth && len(s.out) < outLimit {
			key := int(s.next)
			s.next += float64(c.Connections)
			s.left--
			s.send(request{key: key, set: true, due: now, sent: now})
		}
	case loadPhase:
		for s.left > 0 && s.size < c.Depth && len(s.out) < outLimit {
			if c.Churn > 0 && s.served >= c.Churn {
				if s.size == 0 {
					s.quit(now)
				}
				return
			}
			due := now
			if c.Rate > 0 {
				if s.due {
					return // the thread will come to it in its turn
				}
				due = int64(s.next)
				if due >= p.end.Load() {
					s.left = 0
					return
				}
				if due > now {
					s.thread.schedule(s)
					return
				}
				if now >= p.end.Load() {
					return // what is due now is left unsent, and counted
				}
				s.next += s.interval()
			} else if now >= p.end.Load() {
				s.left = 0
				return
			}
			if s.left != unlimited && due >= p.measured.Load() {
				s.left--
			}
			s.thread.lastDue = max(s.thread.lastDue, due)
			key, set := s.choose()
			s.send(request{key: key, set: set, due: due, sent: now})
		}
	}
}

// send appends a request to the output.
func (s *session) send(r request) {
	t := s.thread
	if r.set {
		s.out = t.plan.content.appendSet(s.out, r.key)
	} else {
		s.out = t.plan.content.appendGet(s.out, r.key)
	}
	s.pending[(s.first+s.size)%len(s.pending)] = r
	s.size++
	s.served++
	t.touch(s)
}

// quit has the server close the connection, so that it is the server's end and
// not our port that lingers in TIME-WAIT.
func (s *session) quit(now int64) {
	s.state = quitting
	s.waits = now + int64(s.thread.plan.config.Timeout)
	s.out = append(s.out, "quit\r\n"...)
	s.thread.touch(s)
}

// connect begins a connection.
func (s *session) connect(now int64) {
	s.state = connecting
	s.waits = now + int64(s.thread.plan.config.Timeout)
	s.in, s.out, s.served = s.in[:0], s.out[:0], 0
	s.thread.connects++
	s.opened++
	if err := s.thread.transport.connect(s); err != nil {
		s.fail(err, now)
	}
}

// established is called by the transport.
func (s *session) established(now int64) {
	s.state = open
	started := s.waits - int64(s.thread.plan.config.Timeout)
	record(s.thread.connectTimes, now-started)
	s.issue(now)
}

// over is called by the transport at the end of the server's stream.
func (s *session) over(now int64) {
	switch {
	case s.state == quitting:
		s.hangUp()
		s.connect(now)
	case s.state == open && s.size == 0 && s.served > 0:
		// Its right, between requests.
		s.hangUp()
		s.waits = now + pauseAfter
	default:
		s.fail(errHungUp, now)
	}
}

var errHungUp = errors.New("the server closed the connection")

// pauseAfter keeps a session from hammering a server that refuses.
const pauseAfter = int64(pauseAfterError)

// fail gives the connection up: what is pending has failed.
func (s *session) fail(err error, now int64) {
	t := s.thread
	switch {
	case s.state == connecting:
		err = fmt.Errorf("connect to %s: %w", t.plan.config.Address, err)
		// Or a run that is bound by requests would try for ever.
		if s.left > 0 && s.left != unlimited {
			s.left--
		}
		t.failed(1, err)
	case s.size > 0:
		t.failed(s.size, err)
	default:
		t.failed(1, err)
	}
	s.hangUp()
	s.waits = now + pauseAfter
}

// hangUp closes the connection and forgets what was under way on it.
func (s *session) hangUp() {
	s.thread.transport.close(s)
	s.state = closed
	s.first, s.size = 0, 0
	s.in, s.out = s.in[:0], s.out[:0]
}

// check does what time alone brings about, and says whether the session still
// has something to do in this phase.
func (s *session) check(now int64) (active bool) {
	p, c := s.thread.phase, &s.thread.plan.config
	sending := s.left > 0 && now < p.end.Load()
	switch s.state {
	case closed:
		if !sending && p.kind != connectPhase {
			return false
		}
		if now >= s.waits {
			s.connect(now)
		}
		return true
	case connecting, quitting:
		if now >= s.waits {
			s.fail(fmt.Errorf("timeout: nothing for %v", c.Timeout), now)
		}
		// At the end nobody waits for a connection that has nothing to do.
		return sending || p.kind == connectPhase
	}
	if s.size > 0 && now-s.pending[s.first].sent > int64(c.Timeout) {
		s.fail(fmt.Errorf("timeout: no reply for %v", c.Timeout), now)
		return true
	}
	return s.size > 0 || sending
}

// unsent counts the requests that were due before the phase's end and never
// sent, with the time that they have waited until then: they belong into the
// distribution of latencies, or an overloaded server would look better than it
// is. Most bounds the work; beyond it they are estimated and not recorded.
func (s *session) unsent(most int) (n uint64) {
	p := s.thread.phase
	if s.thread.plan.config.Rate == 0 || s.left == 0 {
		return 0
	}
	for ; int64(s.next) < p.end.Load() && n < s.left; n++ {
		if n == uint64(most) {
			return n + min(uint64((float64(p.end.Load())-s.next)/s.thread.plan.mean), s.left-n)
		}
		due := int64(s.next)
		s.thread.lastDue = max(s.thread.lastDue, due)
		if due >= p.measured.Load() {
			record(s.thread.latencies, p.end.Load()-due)
		}
		s.next += s.interval()
	}
	return n
}
