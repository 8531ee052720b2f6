package compare

import (
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

func TestAModeIsProvenByWhatItDoesNotByItsName(t *testing.T) {
	timers := napi.Settings{DeferHardIRQs: 100, GROFlushTimeout: 20 * time.Microsecond}
	suspending := timers
	suspending.IRQSuspendTimeout = 20 * time.Millisecond
	sample := func(set napi.Settings, byThread, byBusyPoll uint64, cores ...int) measure.Sample {
		return measure.Sample{Elapsed: time.Second, NAPI: []napi.NAPI{{ID: 1, Settings: set}}, Receivers: [][]int{cores},
			Polls: observe.Polls{Count: byThread, Packets: byThread}, BusyPolls: observe.Polls{Count: byBusyPoll, Packets: byBusyPoll}, BusyPollPackets: byBusyPoll}
	}
	loop := func(mode string, iterations, empty, sleeps float64) measure.Sample {
		return measure.Sample{Elapsed: time.Second, Loops: &measure.Loops{Mode: mode, Iterations: iterations, EmptyPolls: empty, Sleeps: sleeps}}
	}
	device := func(delay time.Duration, adaptive bool) measure.Sample {
		s := sample(napi.Settings{}, 1000, 0, 0)
		s.Coalescing = &napi.Coalescing{RxDelay: &delay, AdaptiveRx: &adaptive}
		return s
	}
	const core = 0
	for _, c := range []struct {
		subject string
		sample  measure.Sample
		want    bool
	}{
		// Of a device that can wait with its interrupt by itself.
		{"kernel/irq-suppression", device(suppressed.Coalescing, false), true},
		{"kernel/irq-suppression", device(suppressed.Coalescing, true), false},
		{"kernel/irq-suppression", device(8*time.Microsecond, false), false},
		{"kernel/vanilla", sample(napi.Settings{}, 1000, 0, core), true},
		{"kernel/vanilla", sample(napi.Settings{}, 1000, 1, core), false},
		{"kernel/vanilla", sample(timers, 1000, 0, core), false},
		{"kernel/vanilla", sample(napi.Settings{}, 0, 0, core), false},
		{"kernel/irq-packing", sample(napi.Settings{}, 1000, 0, 1), true},
		{"kernel/irq-packing", sample(napi.Settings{}, 1000, 0, core), false},
		{"kernel/irq-packing", sample(napi.Settings{}, 1000, 0), false},
		{"kernel/irq-suppression", sample(timers, 1000, 0, core), true},
		{"kernel/irq-suppression", sample(napi.Settings{}, 1000, 0, core), false},
		{"kernel/busy-poll", sample(timers, 100, 900, core), true},
		{"kernel/busy-poll", sample(timers, 900, 100, core), true},
		{"kernel/busy-poll", sample(timers, 900, 0, core), false},
		{"kernel/busy-poll", sample(napi.Settings{}, 100, 900, core), false},
		{"kernel/kernel-polling", sample(suspending, 600, 400, core), true},
		{"kernel/kernel-polling", sample(timers, 600, 400, core), false},
		{"kernel/kernel-polling", sample(suspending, 1000, 10, core), false},
		{"memcached", sample(napi.Settings{}, 1000, 0, core), true},
		{"memcached+attach", sample(suspending, 100, 900, core), true},
		{"memcached+attach", sample(napi.Settings{}, 1000, 0, core), false},
		{"user/poll", loop("poll", 1e6, 9e5, 0), true},
		{"user/poll", loop("poll", 1e6, 9e5, 1), false},
		{"user/poll", loop("adaptive", 1e6, 9e5, 0), false},
		{"user/interrupt", loop("interrupt", 1e5, 5e4, 4e4), true},
		{"user/interrupt", loop("interrupt", 1e6, 9e5, 3), false},
		{"user/adaptive", loop("adaptive", 1e6, 9e5, 3), true},
		{"user/adaptive", loop("adaptive", 1e6, 9e5, 0), false},
	} {
		s, err := ParseSubject(c.subject)
		if err != nil {
			t.Fatal(err)
		}
		if p := prove(s, c.sample, core, nil); p.Active != c.want || p.Why == "" {
			t.Errorf("%s: active %v, want %v: %q", c.subject, p.Active, c.want, p.Why)
		}
	}
}

// Under a load that leaves nothing to wait for, no loop sleeps; without any, one that
// polls all the same is in no mode that sleeps.
func TestAModeThatSleepsIsProvenByWhatItCostsWhenIdle(t *testing.T) {
	for _, c := range []struct {
		mode   string
		sleeps float64
		idle   float64
		want   bool
	}{
		{"adaptive", 0, 0.013, true},
		{"adaptive", 0, 1, false},
		{"adaptive", 500, 0.4, false},
		{"interrupt", 0, 0.002, true},
		{"interrupt", 0, 1, false},
		{"poll", 0, 1, true},
	} {
		s, err := ParseSubject("user/" + c.mode)
		if err != nil {
			t.Fatal(err)
		}
		sample := measure.Sample{Elapsed: time.Second, Loops: &measure.Loops{Mode: c.mode, Iterations: 1e6, Sleeps: c.sleeps}}
		if p := prove(s, sample, 0, &result.Idle{CPU: c.idle}); p.Active != c.want {
			t.Errorf("%s, %v sleeps, idle %v: active %v, want %v: %s", c.mode, c.sleeps, c.idle, p.Active, c.want, p.Why)
		}
	}
}
