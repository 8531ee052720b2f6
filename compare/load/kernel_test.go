package load

import (
	"bytes"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// liars are the servers that a run must not believe. Each is tried by every
// engine that the test knows a way for; wants is in the reason that is given.
var liars = map[string]struct {
	liar func() *liar
	want string
}{
	"drops one reply in a thousand": {func() *liar {
		n := 0
		return &liar{drop: func() bool { n++; return n > 100 && n%1000 == 0 }}
	}, "no reply"},
	"swaps two values": {func() *liar {
		return &liar{lie: func(l *liar, k string, v []byte) (string, []byte) {
			switch key := strings.TrimLeft(strings.TrimPrefix(k, "pollux-"), "0"); key {
			case "1":
				return k, l.items[strings.Replace(k, "1", "2", 1)]
			case "2":
				return k, l.items[strings.Replace(k, "2", "1", 1)]
			}
			return k, v
		}}
	}, "differs from what was stored"},
	"changes a byte": {func() *liar {
		return &liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { v[len(v)-1] ^= 0x20; return k, v }}
	}, "byte 39 of 40"},
	"loses a byte": {func() *liar {
		return &liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { return k, v[:len(v)-1] }}
	}, "39 bytes, not 40"},
	"answers for another key": {func() *liar {
		return &liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { return "x" + k, v }}
	}, `is for "xpollux-`},
	"sets flags": {func() *liar { return &liar{flags: 5} }, "flags 5"},
	"answers something else": {func() *liar {
		return &liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { return k + " a b c", v }}
	}, "not memcached's"},
}

func TestALyingServerIsCaughtAndTheRunInvalid(t *testing.T) {
	for name, c := range liars {
		for _, depth := range []int{1, 8} {
			t.Run(name+"/"+strconv.Itoa(depth), func(t *testing.T) {
				requests := uint64(400)
				if c.want == "no reply" {
					requests = 2500 // two of them
				}
				r, err := Run(t.Context(), Config{Address: c.liar().serve(t), Connections: 3, Depth: depth, Requests: requests, SetRatio: 0.3,
					Keys: 100, ValueSize: "40", Timeout: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				want := c.want
				if depth == 1 && want == "no reply" {
					want = "timeout: no reply"
				}
				if r.Valid || r.Wrong+r.Errors == 0 || !strings.Contains(r.Invalid, want) || !strings.Contains(r.String(), "INVALID") || r.Err() == nil {
					t.Errorf("want %q, got\n%v", want, r)
				}
			})
		}
	}
}

func TestPipelinesChurnAndThreadsCountRight(t *testing.T) {
	address := memcached(t)
	for _, c := range []Config{
		{Depth: 1},
		{Depth: 16},
		{Depth: 7, Threads: 2},
		{Churn: 10},
		{Depth: 4, Churn: 13, Threads: 2},
		{Spin: true, Depth: 2},
		{Workload: ETC, Depth: 4},
		{Workload: Set, ValueSize: "uniform:0,2000"},
		{Workload: Get, Zipf: 0.99, ValueSize: "200000", Keys: 20, Depth: 3},
		{KeySize: "uniform:1,250", ValueSize: "0", Keys: 5000},
		{Rate: 20000, Depth: 2},
		{Workload: ETC, Rate: 20000, Churn: 50},
	} {
		const requests, connections = 6007, 7
		c.Address, c.Requests, c.Connections = address, requests, connections
		if c.Workload == "" {
			c.SetRatio = 0.3
		}
		before := stats(t, address)
		r, err := Run(t.Context(), c)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		if !r.Valid || r.Requests != requests || r.Misses != 0 || r.Unsent != 0 {
			t.Errorf("%+v:\n%v", c, r)
		}
		if want := map[Workload]float64{Get: 0, Set: 1, ETC: 0.03, Mixed: 0.3}[r.Workload]; math.Abs(float64(r.Sets)/requests-want) > 0.03 {
			t.Errorf("%+v: %d sets of %d", c, r.Sets, requests)
		}
		after := stats(t, address)
		if n := after["cmd_get"] - before["cmd_get"]; n != r.Gets {
			t.Errorf("%+v: the server counts %d gets, the client %d", c, n, r.Gets)
		}
		if n := after["cmd_set"] - before["cmd_set"]; n != r.Sets+uint64(r.Keys) {
			t.Errorf("%+v: the server counts %d sets, the client %d and %d at first", c, n, r.Sets, r.Keys)
		}
		want := uint64(connections)
		if c.Churn > 0 {
			want = 0
			for i := range connections {
				mine := requests / connections
				if i < requests%connections {
					mine++
				}
				want += uint64((mine + c.Churn - 1) / c.Churn)
			}
		}
		// One more is the connection that asks for the statistics.
		if n := after["total_connections"] - before["total_connections"] - 1; n != want || r.Reconnects != want-connections {
			t.Errorf("%+v: %d connections, %d reconnects; want %d connections", c, n, r.Reconnects, want)
		}
		if h, err := r.Latencies(); err != nil || h.TotalCount() != requests {
			t.Errorf("%+v: %v; %d latencies", c, err, h.TotalCount())
		}
	}
}

// requestsSent runs against a server that writes down what it is sent, and
// returns that for each connection, in an order that does not depend on time.
func requestsSent(t *testing.T, c Config) []string {
	t.Helper()
	var mu sync.Mutex
	logs := make(map[net.Conn]*strings.Builder)
	server := &liar{log: func(conn net.Conn, line string) {
		mu.Lock()
		defer mu.Unlock()
		if logs[conn] == nil {
			logs[conn] = &strings.Builder{}
		}
		logs[conn].WriteString(line)
	}}
	c.Address = server.serve(t)
	r, err := Run(t.Context(), c)
	if err != nil || !r.Valid {
		t.Fatal(err, r)
	}
	mu.Lock()
	defer mu.Unlock()
	var all []string
	for _, b := range logs {
		all = append(all, b.String())
	}
	slices.Sort(all)
	return all
}

func TestSameSeedSameRequests(t *testing.T) {
	for _, c := range []Config{
		{Workload: ETC, Zipf: 0.9},
		{SetRatio: 0.5, Depth: 5},
		{SetRatio: 0.5, Depth: 5, Rate: 50000},
	} {
		c.Connections, c.Requests, c.Keys, c.Seed = 6, 3001, 300, 11
		first := requestsSent(t, c)
		if len(first) != c.Connections {
			t.Fatalf("%d connections", len(first))
		}
		c.Threads = 3
		if !slices.Equal(requestsSent(t, c), first) {
			t.Errorf("%+v: other requests with the same seed and three threads", c)
		}
		c.Seed = 12
		if slices.Equal(requestsSent(t, c), first) {
			t.Errorf("%+v: the same requests with another seed", c)
		}
	}
}

func TestOpenLoopOffersWhatTheSeedSays(t *testing.T) {
	address := memcached(t)
	for _, arrivals := range []string{"poisson", "etc", "fixed", "uniform:1,3"} {
		var first uint64
		for i := range 2 {
			// An overloaded client leaves requests unsent, and they count.
			r, err := Run(t.Context(), Config{Address: address, Connections: 8, Rate: 10000, Arrivals: arrivals, Duration: 400 * time.Millisecond})
			if err != nil || !r.Valid {
				t.Fatal(err, r)
			}
			due := r.Requests + r.Unsent
			if i == 0 {
				first = due
				// Five standard deviations of the widest.
				if math.Abs(float64(due)-4000) > 5*1.3*math.Sqrt(4000) {
					t.Errorf("%s: %d requests were due, not about 4000", arrivals, due)
				}
			} else if due != first {
				t.Errorf("%s: %d requests were due, and %d with the same seed again", arrivals, first, due)
			}
			if h, err := r.Latencies(); err != nil || uint64(h.TotalCount()) != due {
				t.Errorf("%s: %d latencies of %d requests, %v", arrivals, h.TotalCount(), due, err)
			}
		}
	}
}

// A server that stands still for 200 ms keeps a closed loop from asking, which
// then sees one slow request a connection. The open loop's requests were due all
// the same.
func TestOpenLoopShowsAStallThatTheClosedLoopHides(t *testing.T) {
	const stall = 200 * time.Millisecond
	address, process := startMemcached(t)
	run := func(c Config) Result {
		t.Helper()
		c.Address, c.Connections, c.NoStore = address, 4, true
		begun := make(chan struct{})
		frozen := make(chan error, 1)
		go func() {
			<-begun
			time.Sleep(300 * time.Millisecond)
			err := process.Signal(syscall.SIGSTOP)
			time.Sleep(stall)
			if e := process.Signal(syscall.SIGCONT); err == nil {
				err = e
			}
			frozen <- err
		}()
		close(begun)
		r, err := Run(t.Context(), c)
		if e := <-frozen; e != nil {
			t.Fatal(e)
		}
		if err != nil || !r.Valid {
			t.Fatal(err, r)
		}
		return r
	}
	if _, err := Run(t.Context(), Config{Address: address, Connections: 4, Requests: 1}); err != nil {
		t.Fatal(err)
	}
	slow := func(r Result) (n int64) {
		h, err := r.Latencies()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range h.Distribution() {
			if b.From >= int64(stall*3/4) {
				n += b.Count
			}
		}
		return n
	}

	const rate = 2000
	open := run(Config{Rate: rate, Duration: 1500 * time.Millisecond})
	if open.Latency.P999 < stall*3/4 || open.Latency.P999 < open.Latency.P50 {
		t.Errorf("open loop: the stall is not in p99.9\n%v", open)
	}
	// A quarter of the stall's requests waited for at least three quarters of it.
	if n := slow(open); n < rate*int64(stall)/int64(time.Second)/5 {
		t.Errorf("open loop: %d slow requests\n%v", n, open)
	}
	closed := run(Config{Duration: 1500 * time.Millisecond})
	// Other work on the machine may cause stalls of its own: each costs a
	// closed loop at most one request a connection, too.
	if n := slow(closed); n < 1 || n > 4*4 {
		t.Errorf("closed loop: %d slow requests\n%v", n, closed)
	}
	if closed.Requests > 16000 && closed.Latency.P999 >= stall*3/4 {
		t.Errorf("closed loop: the stall is in p99.9\n%v", closed)
	}
}

func TestAnOverloadedServerIsNotFlattered(t *testing.T) {
	// One request a millisecond on each of two connections is offered five times.
	server := &liar{delay: time.Millisecond}
	r, err := Run(t.Context(), Config{Address: server.serve(t), Connections: 2, Keys: 4, Rate: 10000, Duration: 300 * time.Millisecond})
	if err != nil || !r.Valid {
		t.Fatal(err, r)
	}
	if r.Unsent < 1000 || r.Requests+r.Unsent < 2500 || r.Latency.P50 < 30*time.Millisecond || r.Bottleneck == ByNobody {
		t.Errorf("%d sent, %d unsent, p50 %v, bottleneck %s", r.Requests, r.Unsent, r.Latency.P50, r.Bottleneck)
	}
}

func TestTheClientSaysHowBusyItWas(t *testing.T) {
	idle, err := Run(t.Context(), Config{Address: (&liar{delay: 5 * time.Millisecond}).serve(t), Connections: 2, Keys: 2, Duration: 300 * time.Millisecond})
	if err != nil || !idle.Valid {
		t.Fatal(err, idle)
	}
	if c := idle.Client; c.Busy > 0.3 || c.CPU <= 0 || c.Threads != 1 || len(c.Cores) != 1 {
		t.Errorf("waiting for a slow server: %+v", c)
	}
	for _, c := range []struct {
		client Client
		rate   float64
		served bool // as offered
		want   Bottleneck
	}{
		{Client{Busy: 0.9}, 0, false, ByClient},
		{Client{Busy: 0.5}, 0, false, ByServer},
		{Client{Busy: 0.5, CoresBusy: 0.95}, 0, false, ByClient},
		{Client{Busy: 0.9, Stolen: 0.4}, 0, false, ByClient},
		{Client{Busy: 0.5, Stolen: 0.5}, 0, false, ByServer},
		{Client{Busy: 0.9}, 1000, true, ByNobody},
		{Client{Busy: 0.9}, 1000, false, ByClient},
		{Client{Busy: 0.4}, 1000, false, ByServer},
	} {
		r := Result{Engine: Kernel, Client: c.client, Offered: c.rate, OnSchedule: c.served, Gets: 1, Elapsed: time.Second}
		r.Client.judge()
		r.conclude()
		if r.Bottleneck != c.want {
			t.Errorf("%+v, %v offered, served %v: bottleneck %s, not %s", c.client, c.rate, c.served, r.Bottleneck, c.want)
		}
	}
	for _, c := range []struct {
		answered, unsent uint64
		took             time.Duration // for a second's requests
		want             bool
	}{
		{1000, 0, time.Second, true},
		{1000, 40, time.Second, true},
		{1000, 60, time.Second, false},
		{1000, 0, 1090 * time.Millisecond, true},
		{1000, 0, 1200 * time.Millisecond, false},
	} {
		if got := onSchedule(c.answered, c.unsent, time.Second, c.took); got != c.want {
			t.Errorf("%+v: on schedule %v", c, got)
		}
	}
}

func TestNothingIsAllocatedPerRequest(t *testing.T) {
	address := memcached(t)
	allocations := func(requests uint64) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, err := Run(t.Context(), Config{Address: address, SetRatio: 0.1, Depth: 4, Requests: requests, Zipf: 0.9})
		if err != nil || !r.Valid {
			t.Fatal(err, r)
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	few, many := allocations(10_000), allocations(60_000)
	// The histogram has more to encode in the end, and buffers may grow.
	if more := int64(many) - int64(few); more > 5000 {
		t.Errorf("50,000 more requests made %d more allocations", more)
	}
}

func TestWarmUpIsNotCounted(t *testing.T) {
	address := memcached(t)
	before := stats(t, address)
	r, err := Run(t.Context(), Config{Address: address, Keys: 100, Warmup: 100 * time.Millisecond, Requests: 500, Duration: time.Minute})
	if err != nil || !r.Valid || r.Requests != 500 {
		t.Fatal(err, r)
	}
	if n := stats(t, address)["cmd_get"] - before["cmd_get"]; n <= 500 {
		t.Errorf("the server saw %d requests, warm-up included", n)
	}
}

// A server that is overloaded answers what was due in the warm-up while it is
// measured, and does not answer less for that.
func TestABacklogOfTheWarmUpIsThroughputAndNotLatency(t *testing.T) {
	const delay, connections = 2 * time.Millisecond, 4
	slow := &liar{delay: delay}
	address := slow.serve(t)
	// Four connections get 2,000 replies a second at most, and 8,000 are offered.
	r, err := Run(t.Context(), Config{Address: address, Workload: Get, Connections: connections, Keys: 4, Rate: 8000,
		Warmup: 600 * time.Millisecond, Duration: 500 * time.Millisecond})
	if err != nil || !r.Valid {
		t.Fatal(err, r)
	}
	// Each connection waits for at least the delay between two replies.
	most := connections * float64(time.Second/delay)
	if r.PerSecond > 1.05*most || r.PerSecond < most/4 {
		t.Errorf("%.0f replies a second of a server that gives at most %.0f", r.PerSecond, most)
	}
	if r.Measured != 500*time.Millisecond {
		t.Errorf("measured for %v", r.Measured)
	}
	if r.Requests >= r.Replies || r.Unsent == 0 || r.OnSchedule {
		t.Errorf("%d of %d replies were to what was due in the measured time, %d of which was not sent", r.Requests, r.Replies, r.Unsent)
	}
}

func TestResultsMerge(t *testing.T) {
	address := memcached(t)
	var results []Result
	for seed := range uint64(3) {
		r, err := Run(t.Context(), Config{Address: address, Requests: 1000 * (seed + 1), Seed: seed + 1})
		if err != nil || !r.Valid {
			t.Fatal(err, r)
		}
		results = append(results, r)
	}
	sum, err := Merge(results...)
	if err != nil {
		t.Fatal(err)
	}
	h, err := sum.Latencies()
	if err != nil || sum.Requests != 6000 || h.TotalCount() != 6000 || sum.Connections != 48 || sum.Client.Threads != 3 || !sum.Valid {
		t.Errorf("%v\n%v", err, sum)
	}
	if sum.Replies != results[0].Replies+results[1].Replies+results[2].Replies || sum.PerSecond <= 0 {
		t.Errorf("%d replies, %.0f/s", sum.Replies, sum.PerSecond)
	}
	longest := max(results[0].Latency.Max, results[1].Latency.Max, results[2].Latency.Max)
	if sum.Latency.Max != longest {
		t.Errorf("longest %v of %v", sum.Latency.Max, longest)
	}
	results[1].Wrong = 1
	if sum, err = Merge(results...); err != nil || sum.Valid {
		t.Errorf("%v: valid with a wrong reply in it", err)
	}
	var text bytes.Buffer
	if err := sum.WriteHistogram(&text); err != nil || !strings.Contains(text.String(), "Percentile") {
		t.Errorf("%v\n%s", err, text.String())
	}
	if _, err := Merge(); err == nil {
		t.Error("nothing was merged")
	}
	if _, err := Merge(Result{Histogram: "nonsense"}); err == nil {
		t.Error("nonsense was merged")
	}
}

func TestKeysDifferAndValuesTellTheirKey(t *testing.T) {
	const seed, keys = 3, 20_000
	c, w, err := Config{Address: "127.0.0.1:1", Workload: ETC, Keys: keys, Seed: seed}.complete()
	if err != nil {
		t.Fatal(err)
	}
	content := newContent(c, w)
	seen := make(map[string]bool, keys)
	keyBytes, valueBytes := 0, 0
	for k := range keys {
		key := string(content.appendKey(nil, k))
		if seen[key] || len(key) > maxKeySize || !strings.HasPrefix(key, defaultPrefix) {
			t.Fatalf("seed %d: key %d is %q", seed, k, key)
		}
		seen[key] = true
		keyBytes += len(key)
		valueBytes += len(content.value(k))
	}
	if mean := float64(keyBytes) / keys; math.Abs(mean-36.2) > 0.4 {
		t.Errorf("seed %d: keys have %.2f bytes on average", seed, mean)
	}
	if mean := float64(valueBytes) / keys; math.Abs(mean-194.4) > 10 {
		t.Errorf("seed %d: values have %.1f bytes on average", seed, mean)
	}
	// Values of one size: only the bytes tell them apart.
	c.ValueSize = "100"
	if c, w, err = c.complete(); err != nil {
		t.Fatal(err)
	}
	content = newContent(c, w)
	random := rand.New(rand.NewPCG(seed, 0))
	same := 0
	for range 10_000 {
		a, b := random.IntN(keys), random.IntN(keys)
		if a != b && bytes.Equal(content.value(a), content.value(b)) {
			same++
		}
	}
	if same > 3 {
		t.Errorf("seed %d: %d of 10,000 pairs of values are the same", seed, same)
	}
}
