package compare

import (
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
)

// assembled is a round of a client that was so busy and a server whose core was.
func assembled(t *testing.T, client float64, s measure.Sample, change func(*load.Result)) result.Round {
	t.Helper()
	l := load.Result{Requests: 100_000, PerSecond: 100_000, Valid: true, Client: load.Client{Busy: client, Bound: client > 0.85}, Bottleneck: load.ByServer}
	if l.Client.Bound {
		l.Bottleneck = load.ByClient
	}
	if change != nil {
		change(&l)
	}
	s.Elapsed, s.PerSecond = time.Second, 100_000
	v := &serving{bench: &bench{idleOf: func(string) *result.Idle { return nil }}, subject: mustParse("kernel/busy-poll")[0]}
	return v.assemble(l, s, calls{})
}

func TestWhoseLimitItWasIsDecidedByBothSides(t *testing.T) {
	const percent = 10 * time.Millisecond
	spinning := func(empty uint64) measure.Sample {
		return measure.Sample{CPU: 100 * percent, BusyPolls: observe.Polls{Count: 6000 + empty, Empty: empty, Packets: 90_000}}
	}
	for name, c := range map[string]struct {
		client float64
		server measure.Sample
		bound  bool
	}{
		"a server with nothing left before a client that is just over its bound": {0.88, measure.Sample{CPU: 97 * percent}, false},
		"a server with a tenth left":                                {0.88, measure.Sample{CPU: 90 * percent}, true},
		"a client with much left":                                   {0.60, measure.Sample{CPU: 90 * percent}, false},
		"a core that others use up":                                 {0.88, measure.Sample{CPU: 70 * percent, Foreign: 27 * percent}, false},
		"polls in vain are time left":                               {0.99, measure.Sample{CPU: 100 * percent, Empty: 60 * percent}, true},
		"receive work on another core":                              {0.88, measure.Sample{CPU: 110 * percent, Elsewhere: 50 * percent}, true},
		"polls in vain that cannot be told from work are time left": {0.88, spinning(1_300_000), true},
		"one poll in vain for each wait is next to nothing":         {0.88, spinning(20_000), false},
	} {
		r := assembled(t, c.client, c.server, nil)
		if r.ClientBound != c.bound || r.ClientFull != (c.client > 0.85) {
			t.Errorf("%s: client-bound %v, want %v (client full %v, server full %v)", name, r.ClientBound, c.bound, r.ClientFull, r.ServerFull)
		}
	}
}

// The client calls a load served of which 95 % were answered in time; a search that
// wants 97 % must not take what stopped it for the server's limit.
func TestALoadThatWasNearlyServedStillSaysThatTheClientHadNothingLeft(t *testing.T) {
	r := assembled(t, 0.97, measure.Sample{CPU: 850 * time.Millisecond}, func(l *load.Result) {
		l.Offered, l.OnSchedule, l.Bottleneck = 104_000, true, load.ByNobody
	})
	if r.ClientBound {
		t.Error("a load that was served has the client as its limit")
	}
	if client, server := limits(r); !client || server {
		t.Errorf("the limit is the client's: %v, the server's: %v", client, server)
	}
	r.ServerFull = true
	if client, server := limits(r); client || !server {
		t.Errorf("of a server with nothing left, the limit is the client's: %v, the server's: %v", client, server)
	}
	r.ServerFull, r.ClientFull, r.Proof.BusyPolls, r.Proof.EmptyBusyPolls = false, false, 1e6, 0.9
	if client, server := limits(r); client || server {
		t.Errorf("of a server that spins, the limit is the client's: %v, the server's: %v", client, server)
	}
}

func TestMissesAreWrittenDownAndManyMakeARoundInvalid(t *testing.T) {
	for misses, valid := range map[uint64]bool{0: true, 900: true, 2000: false} {
		r := assembled(t, 0.5, measure.Sample{CPU: time.Second}, func(l *load.Result) { l.Misses = misses })
		if r.Misses != misses || (r.Invalid == "") != valid || !valid && !strings.Contains(r.Invalid, "no value") {
			t.Errorf("%d misses: %d, invalid %q", misses, r.Misses, r.Invalid)
		}
	}
}
