package endtoend

import (
	"bufio"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// single sends requests a millisecond apart on one connection: each finds the
// server asleep, if its mode has it sleep, and each must wake it.
func single(t *testing.T, l *lab.Lab, requests int) {
	t.Helper()
	conn := connect(t, l, memcached4)
	defer conn.Close()
	in := bufio.NewReader(conn)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range requests {
		<-tick.C
		conn.SetDeadline(time.Now().Add(patience))
		if got := exchange(t, conn, in, "get absent\r\n"); got != "END\r\n" {
			t.Fatalf("reply %d is %q", i, got)
		}
	}
}

const (
	sleepsMetric  = `pollux_sleeps_total{shard="0"}`
	wokenByFrames = `pollux_woken_total{cause="frame",shard="0"}`
)

func TestAnIdleServerSleepsAndEveryFrameWakesIt(t *testing.T) {
	l := newLab(t, 1)
	for _, mode := range []runtime.Mode{runtime.Interrupt, runtime.Adaptive} {
		t.Run(string(mode), func(t *testing.T) {
			s := serveMemcached(t, l, plainPollux, memcachedArgs(mode, 1)...)
			const requests = 1000
			before := scrape(t, l)
			single(t, l, requests)
			after := scrape(t, l)
			woken := after.get(t, wokenByFrames) - before.get(t, wokenByFrames)
			t.Logf("%d requests, %.0f sleeps, %.0f ended by a frame", requests, after.get(t, sleepsMetric)-before.get(t, sleepsMetric), woken)
			// Not every one: two may come together when the client is late, and
			// the adaptive mode may wait for some without sleep.
			if woken < requests/4 {
				t.Errorf("the server was woken %.0f times only", woken)
			}

			time.Sleep(time.Second) // without traffic
			share := s.share(t, time.Second)
			t.Logf("idle: %.2f %% of a core", 100*share)
			if share >= 0.02 {
				t.Errorf("an idle server takes %.2f %% of a core, want less than 2", 100*share)
			}
			s.terminate(t)
		})
	}
}

func TestAPollingServerNeverSleeps(t *testing.T) {
	l := newLab(t, 1)
	s := serveMemcached(t, l, plainPollux, memcachedArgs(runtime.Poll, 1)...)
	single(t, l, 200)
	if share := s.share(t, 500*time.Millisecond); share < 0.05 {
		t.Errorf("a polling server takes %.1f %% of a core", 100*share)
	}
	m := scrape(t, l)
	if n := m.get(t, sleepsMetric); n != 0 {
		t.Errorf("%v sleeps", n)
	}
	if n := m.get(t, `pollux_slept_seconds_total{shard="0"}`); n != 0 {
		t.Errorf("slept %v s", n)
	}
	if n := m.get(t, `pollux_empty_polls_total{shard="0"}`); n < 1000 {
		t.Errorf("%v empty polls", n)
	}
	s.terminate(t)
}

func TestSwitchingModesUnderTrafficLosesNothing(t *testing.T) {
	l := newLab(t, 1)
	s := serveStation(t, l, station)
	const clients = 8
	var replies [clients]atomic.Int64
	stop := make(chan struct{})
	results := make(chan error)
	for i := range clients {
		go func() { results <- talk(l, &replies[i], stop) }()
	}
	// On a machine with no time for it the client is late to acknowledge, and
	// segments are sent again that were not lost. Were it the switches that lose
	// them, they would each time.
	const attempts, rounds = 5, 25
	var again uint64
	for attempt := range attempts {
		before := s.report(t).Shards[0].Stack.TCP.Retransmits
		for round := range rounds {
			for _, mode := range runtime.Modes(runtime.User) {
				s.ask(t, "mode "+string(mode), new(string))
				// Everybody is served in each mode.
				for i := range replies {
					from := replies[i].Load()
					eventually(t, fmt.Sprintf("client %d is served in mode %s, round %d", i, mode, round), func() bool {
						return replies[i].Load() > from+1
					})
				}
				if got := s.report(t).Shards[0].Mode; got != mode {
					t.Fatalf("the mode is %s, want %s", got, mode)
				}
			}
		}
		again = s.report(t).Shards[0].Stack.TCP.Retransmits - before
		t.Logf("attempt %d: %d switches, %d segments sent again", attempt, rounds*len(runtime.Modes(runtime.User)), again)
		if again == 0 {
			break
		}
	}
	close(stop)
	for range clients {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if again != 0 {
		t.Errorf("%d segments were sent again, and some at each attempt: something is lost", again)
	}
	s.stop(t)
}

// talk has lines echoed, one at a time, until it is told to stop.
func talk(l *lab.Lab, replies *atomic.Int64, stop <-chan struct{}) error {
	conn, err := dial(l, lab.Client, portOf(lab.ServerIPv4, stream.EchoPort), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		conn.SetDeadline(time.Now().Add(patience))
		line := fmt.Sprintf("line %d\n", i)
		if _, err := conn.Write([]byte(line)); err != nil {
			return err
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("line %d: %w", i, err)
		}
		if !strings.HasSuffix(got, " "+line) {
			return fmt.Errorf("the reply to %q is %q", line, got)
		}
		replies.Add(1)
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // so that the server also sleeps
		}
	}
}
