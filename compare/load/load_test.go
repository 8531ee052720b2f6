package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// eachEngine runs a test on every engine that needs no device.
func eachEngine(t *testing.T, f func(t *testing.T, engine Engine)) {
	for _, engine := range []Engine{Kernel, Reference} {
		t.Run(string(engine), func(t *testing.T) { f(t, engine) })
	}
}

func TestEveryRequestIsAnsweredVerifiedAndCounted(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		address := memcached(t)
		for _, ratio := range []float64{0, 0.3, 1} {
			for _, size := range []int{versionSize, 100, 100_000} {
				t.Run(fmt.Sprintf("sets %v size %d", ratio, size), func(t *testing.T) {
					const requests, connections, keys = 1000, 7, 50
					before := stats(t, address)
					r, err := Run(t.Context(), Config{Engine: engine, Address: address, Connections: connections, Requests: requests,
						ValueSize: strconv.Itoa(size), SetRatio: ratio, Keys: keys, Prefix: strings.NewReplacer(" ", "-", "/", "-").Replace(t.Name()) + "-"})
					if err != nil {
						t.Fatal(err)
					}
					if err := r.Err(); err != nil {
						t.Fatal(err)
					}
					if r.Requests != requests || r.Gets+r.Sets != requests || r.Misses != 0 || r.Reconnects != 0 {
						t.Errorf("%+v", r)
					}
					if ratio == 0 && r.Sets != 0 || ratio == 1 && r.Gets != 0 || ratio == 0.3 && (r.Sets < 200 || r.Sets > 400) {
						t.Errorf("%d sets and %d gets for a share of %v", r.Sets, r.Gets, ratio)
					}
					after := stats(t, address)
					if gets := after["cmd_get"] - before["cmd_get"]; gets != r.Gets {
						t.Errorf("the server counts %d gets, the client %d", gets, r.Gets)
					}
					if sets := after["cmd_set"] - before["cmd_set"]; sets != r.Sets+keys {
						t.Errorf("the server counts %d sets, the client %d and %d at first", sets, r.Sets, keys)
					}
					// One more is the connection that asks for the statistics.
					if n := after["total_connections"] - before["total_connections"]; n != connections+1 {
						t.Errorf("%d connections were made", n-1)
					}
					l := r.Latency
					if l.P50 <= 0 || l.P50 > l.P95 || l.P95 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max || l.Average <= 0 || l.Average > l.Max || r.PerSecond <= 0 {
						t.Errorf("latencies %+v, %v/s", l, r.PerSecond)
					}
				})
			}
		}
	})
}

func TestDurationEndsARun(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		const duration = 100 * time.Millisecond
		r, err := Run(t.Context(), Config{Engine: engine, Address: memcached(t), Connections: 2, Duration: duration, SetRatio: 0.5})
		if err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		if r.Elapsed < duration {
			t.Errorf("it lasted %v", r.Elapsed)
		}
	})
}

func TestConnectionsAreClosedAfterwards(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		address := memcached(t)
		if _, err := Run(t.Context(), Config{Engine: engine, Address: address, Connections: 50, Requests: 100}); err != nil {
			t.Fatal(err)
		}
		idle := stats(t, address)
		for attempt := 0; idle["curr_connections"] > 2; attempt++ { // one listens, one asks
			if attempt == 1000 {
				t.Fatalf("%d connections are still open", idle["curr_connections"])
			}
			time.Sleep(5 * time.Millisecond)
			idle = stats(t, address)
		}
	})
}

func TestMissesAreCountedAndNotWrong(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		n := 0
		forgetful := &liar{lie: func(_ *liar, k string, v []byte) (string, []byte) {
			if n++; n%4 == 0 {
				return k, nil
			}
			return k, v
		}}
		r, err := Run(t.Context(), Config{Engine: engine, Address: forgetful.serve(t), Connections: 3, Requests: 400})
		if err != nil || r.Err() != nil || r.Misses != 100 {
			t.Errorf("%v, %v, %d misses", err, r.Err(), r.Misses)
		}
	})
}

func TestLostConnectionsAreErrorsAndReplaced(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		n := 0
		moody := &liar{hangUp: func() bool { n++; return n > 100 && n%20 == 0 }}
		r, err := Run(t.Context(), Config{Engine: engine, Address: moody.serve(t), Connections: 3, Requests: 400, Keys: 100, SetRatio: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		if r.Errors != 20 || r.Requests != 380 || r.Wrong != 0 || r.Err() == nil || r.FirstError == "" {
			t.Errorf("%v", r)
		}
		// The last one may have had nothing left to do.
		if r.Reconnects < 17 || r.Reconnects > 20 {
			t.Errorf("%d reconnects", r.Reconnects)
		}
	})
}

// The end of the context ends the run at once, also if the server is silent.
func TestCancelEndsARunAtOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		server := &liar{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		server.hangUp = func() bool {
			if n++; n == 1500 {
				server.silent.Store(true)
				cancel()
			}
			return false
		}
		address := server.serve(t)
		r, err := Run(ctx, Config{Engine: engine, Address: address, Connections: 4, Duration: time.Hour, Timeout: time.Hour})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if r.Requests == 0 || r.Requests > 500 || r.Errors != 0 {
			t.Errorf("%v", r)
		}

		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Run(cancelled, Config{Engine: engine, Address: address, Duration: time.Hour, Timeout: time.Hour}); !errors.Is(err, context.Canceled) {
			t.Errorf("begun although cancelled: %v", err)
		}
	})
}

func TestTimeoutIsAnError(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		server := &liar{}
		n := 0
		server.hangUp = func() bool {
			if n++; n == 10 {
				server.silent.Store(true)
			}
			return false
		}
		r, err := Run(t.Context(), Config{Engine: engine, Address: server.serve(t), Connections: 1, Keys: 5, Requests: 7, Timeout: 500 * time.Millisecond})
		if err != nil || r.Requests != 4 || r.Errors != 3 || !strings.Contains(r.FirstError, "timeout") {
			t.Errorf("%v\n%v", err, r)
		}
	})
}

func TestAbsentServerIsNamed(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		if _, err := Run(t.Context(), Config{Engine: engine, Address: address}); err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("error %v", err)
		}
	})
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	const good = "127.0.0.1:11211"
	for want, c := range map[string]Config{
		"HOST:PORT":          {Address: "127.0.0.1"},
		"-1 connections":     {Address: good, Connections: -1},
		"at least 8 bytes":   {Address: good, Engine: Reference, ValueSize: "7"},
		"knows nothing of":   {Address: good, Engine: Reference, Depth: 4},
		"not an engine":      {Address: good, Engine: "steam"},
		"not a workload":     {Address: good, Workload: "gets"},
		"size of keys":       {Address: good, KeySize: "long"},
		"size of values":     {Address: good, ValueSize: "fixed:1,2"},
		"keys of 300 bytes":  {Address: good, KeySize: "300"},
		"values of -1 bytes": {Address: good, ValueSize: "-1"},
		"-3 requests per":    {Address: good, Rate: -3},
		"without a rate":     {Address: good, Arrivals: "fixed"},
		"must be positive":   {Address: good, Rate: 1, Arrivals: "normal:1,5"},
		"0 to 10":            {Address: good, Zipf: 11},
		"2000 requests at":   {Address: good, Depth: 2000},
		"blanks and control": {Address: good, Prefix: "a b"},
		"device of its own":  {Address: good, Engine: User},
		"1 cores for 2":      {Address: good, Threads: 2, Cores: []int{0}},
		"core 4000":          {Address: good, Cores: []int{4000}},
		"share of sets":      {Address: good, SetRatio: 1.5},
		"3 keys":             {Address: good, Connections: 4, Keys: 3},
		"cannot last -1s":    {Address: good, Duration: -time.Second},
		"prefix of 300":      {Address: good, Prefix: strings.Repeat("x", 300)},
	} {
		if _, err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestResultSurvivesJSON(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine Engine) {
		r, err := Run(t.Context(), Config{Engine: engine, Address: memcached(t), Requests: 100})
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back Result
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%v\n%+v\n%+v", err, r, back)
		}
	})
}
