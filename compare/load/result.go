package load

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Result is what a run came to. Times are in nanoseconds in JSON.
type Result struct {
	Address     string   `json:"address"`
	Engine      Engine   `json:"engine"`
	Workload    Workload `json:"workload"`
	SetRatio    float64  `json:"set_ratio"`
	KeySize     string   `json:"key_size,omitempty"`
	ValueSize   string   `json:"value_size"`
	Keys        int      `json:"keys"`
	Zipf        float64  `json:"zipf,omitempty"`
	Connections int      `json:"connections"`
	Depth       int      `json:"depth"`
	Churn       int      `json:"churn,omitempty"`
	Seed        uint64   `json:"seed"`
	// Offered is the rate of the open loop and Arrivals its distribution; 0
	// and empty with a closed loop.
	Offered  float64 `json:"offered_per_second,omitempty"`
	Arrivals string  `json:"arrivals,omitempty"`
	// Elapsed is how long it took, without storing the keys and warming up.
	Elapsed time.Duration `json:"elapsed_ns"`
	// Replies came within the measured time, whenever their requests were due;
	// Measured is how long that was: without what came after its end.
	Replies  uint64        `json:"replies"`
	Measured time.Duration `json:"measured_ns"`
	// Requests, due in the measured time, were answered: Gets and Sets; Misses and
	// Wrong are among Gets.
	Requests uint64 `json:"requests"`
	Gets     uint64 `json:"gets"`
	Sets     uint64 `json:"sets"`
	Misses   uint64 `json:"misses"`
	// Wrong replies: another key, another length, other bytes, and from the
	// reference engine also a version that is too old or was never stored.
	// FirstWrong says what was wrong with the first.
	Wrong      uint64 `json:"wrong"`
	FirstWrong string `json:"first_wrong,omitempty"`
	// Errors are requests without a usable answer: refused, reset, timed out,
	// malformed, left out. They are not among Requests, and have no latency.
	Errors     uint64 `json:"errors"`
	FirstError string `json:"first_error,omitempty"`
	// Unsent are requests of the open loop that were due before the end and
	// that the end came before: the server, or the client, fell behind. They
	// are in the latencies with the time that they had waited by then.
	Unsent uint64 `json:"unsent,omitempty"`
	// OnSchedule says that the open loop's load was served as it was offered.
	OnSchedule bool `json:"on_schedule,omitempty"`
	// Reconnects counts connections beyond the first of each session.
	Reconnects uint64 `json:"reconnects"`
	// PerSecond is Replies by Measured.
	PerSecond float64 `json:"requests_per_second"`
	// Latency counts from when a request was due, Connect from the begin of a
	// connection to its being established (not for the reference engine).
	Latency Latency `json:"latency"`
	Connect Latency `json:"connect"`
	// Histogram is Latency in full: an HdrHistogram of nanoseconds, in its
	// compressed encoding (V2) and base64.
	Histogram string `json:"histogram,omitempty"`
	Client    Client `json:"client"`
	// Bottleneck says whose limit the throughput is.
	Bottleneck Bottleneck `json:"bottleneck"`
	// Valid: every request was answered, and rightly. If not, Invalid says why
	// the figures must not be used.
	Valid   bool   `json:"valid"`
	Invalid string `json:"invalid,omitempty"`
}

// Bottleneck is who could not do more.
type Bottleneck string

const (
	// ByClient: the client was busy all the time. Not a limit of the server's.
	ByClient Bottleneck = "client"
	// ByServer: the client waited, so it was the server, or the network.
	ByServer Bottleneck = "server"
	// ByNobody: all that was offered was served.
	ByNobody Bottleneck = "none"
	// Unknown: the reference engine cannot tell.
	Unknown Bottleneck = "unknown"
)

// onSchedule says whether so many requests that were due in a time, but for
// those unsent, were answered in time: 95 % of the load, and 50 ms for the last.
func onSchedule(answered, unsent uint64, due, took time.Duration) bool {
	const share = 0.95
	return float64(answered) >= share*float64(answered+unsent) && share*float64(took-50*time.Millisecond) <= float64(due)
}

// Latency of a request, as the client sees it, to three digits.
type Latency struct {
	Average time.Duration `json:"average_ns"`
	P50     time.Duration `json:"p50_ns"`
	P95     time.Duration `json:"p95_ns"`
	P99     time.Duration `json:"p99_ns"`
	P999    time.Duration `json:"p99_9_ns"`
	Max     time.Duration `json:"max_ns"`
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	at := func(quantile float64) time.Duration { return time.Duration(h.ValueAtQuantile(quantile)) }
	return Latency{Average: time.Duration(h.Mean()), P50: at(50), P95: at(95), P99: at(99), P999: at(99.9), Max: time.Duration(h.Max())}
}

// Err is nil if every request was answered, and rightly.
func (r Result) Err() error {
	switch {
	case r.Wrong > 0:
		return fmt.Errorf("%d of %d replies of %s were wrong, the first: %s", r.Wrong, r.Requests, r.Address, r.FirstWrong)
	case r.Errors > 0:
		return fmt.Errorf("%d requests to %s failed, the first: %s", r.Errors, r.Address, r.FirstError)
	case r.Requests == 0 && r.Replies == 0:
		return fmt.Errorf("%s answered no request", r.Address)
	}
	return nil
}

// conclude fills in what follows from the rest.
func (r *Result) conclude() {
	r.Requests = r.Gets + r.Sets
	if r.Measured > 0 {
		r.PerSecond = float64(r.Replies) / r.Measured.Seconds()
	}
	r.Valid, r.Invalid = true, ""
	if err := r.Err(); err != nil {
		r.Valid, r.Invalid = false, err.Error()
	}
	switch {
	case r.Engine == Reference:
		r.Bottleneck = Unknown
	case r.Offered > 0 && r.OnSchedule:
		r.Bottleneck = ByNobody
	case r.Client.Bound:
		r.Bottleneck = ByClient
	default:
		r.Bottleneck = ByServer
	}
}

// Latencies is the histogram in full, of nanoseconds.
func (r Result) Latencies() (*hdrhistogram.Histogram, error) {
	h, err := hdrhistogram.Decode([]byte(r.Histogram))
	if err != nil {
		return nil, fmt.Errorf("read the histogram of latencies: %w", err)
	}
	return h, nil
}

// WriteHistogram writes the latencies in microseconds by percentile, as
// HdrHistogram's plotter reads them.
func (r Result) WriteHistogram(w io.Writer) error {
	h, err := r.Latencies()
	if err != nil {
		return err
	}
	_, err = h.PercentilesPrint(w, 5, float64(time.Microsecond))
	return err
}

func (r *Result) setLatencies(h *hdrhistogram.Histogram) {
	r.Latency = latencyOf(h)
	// It fails only on a version that the library does not know.
	if b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
		r.Histogram = string(b)
	}
}

// Merge adds up results of several clients that loaded one server at the same
// time, with histograms merged. Settings are the first's; Connections, Offered
// and the counts are sums, Elapsed the longest, Client the worst.
func Merge(results ...Result) (Result, error) {
	if len(results) == 0 {
		return Result{}, fmt.Errorf("merge results: there are none")
	}
	all := newHistogram()
	sum := results[0]
	var cpu float64
	var served uint64
	for i, r := range results {
		h, err := r.Latencies()
		if err != nil {
			return Result{}, fmt.Errorf("merge results of %s: %w", r.Address, err)
		}
		if dropped := all.Merge(h); dropped > 0 {
			return Result{}, fmt.Errorf("merge results of %s: %d latencies do not fit", r.Address, dropped)
		}
		cpu += r.Client.CPU * float64(r.Replies)
		served += r.Replies
		if i == 0 {
			continue
		}
		sum.Connections += r.Connections
		sum.Offered += r.Offered
		sum.OnSchedule = sum.OnSchedule && r.OnSchedule
		sum.Elapsed = max(sum.Elapsed, r.Elapsed)
		sum.Replies += r.Replies
		sum.Measured = max(sum.Measured, r.Measured)
		sum.Gets += r.Gets
		sum.Sets += r.Sets
		sum.Misses += r.Misses
		sum.Wrong += r.Wrong
		sum.Errors += r.Errors
		sum.Unsent += r.Unsent
		sum.Reconnects += r.Reconnects
		if sum.FirstWrong == "" {
			sum.FirstWrong = r.FirstWrong
		}
		if sum.FirstError == "" {
			sum.FirstError = r.FirstError
		}
		c := &sum.Client
		c.Threads += r.Client.Threads
		c.Cores = append(c.Cores[:len(c.Cores):len(c.Cores)], r.Client.Cores...)
		c.Busy = max(c.Busy, r.Client.Busy)
		c.Stolen = max(c.Stolen, r.Client.Stolen)
		c.CoresBusy = max(c.CoresBusy, r.Client.CoresBusy)
		c.Bound = c.Bound || r.Client.Bound
	}
	sum.Connect = Latency{} // its histograms are not kept
	sum.setLatencies(all)
	if served > 0 {
		sum.Client.CPU = cpu / float64(served)
	}
	sum.conclude()
	return sum, nil
}

// String is a few lines for people.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s engine, %d connections, %d at a time each, %d keys, values %s, %v\n",
		r.Address, r.Engine, r.Connections, r.Depth, r.Keys, r.ValueSize, r.Elapsed.Round(time.Millisecond))
	loop := "closed loop"
	if r.Offered > 0 {
		loop = fmt.Sprintf("open loop, %.0f/s offered (%s)", r.Offered, r.Arrivals)
	}
	fmt.Fprintf(&b, "  load      %s, %s\n", r.Workload, loop)
	fmt.Fprintf(&b, "  requests  %d (%.0f/s), %d gets with %d misses, %d sets", r.Requests, r.PerSecond, r.Gets, r.Misses, r.Sets)
	if r.Unsent > 0 {
		fmt.Fprintf(&b, ", %d not sent in time", r.Unsent)
	}
	fmt.Fprintf(&b, "\n  latency   %s\n", r.Latency)
	if r.Connect.Max > 0 {
		fmt.Fprintf(&b, "  connect   %s\n", r.Connect)
	}
	fmt.Fprintf(&b, "  client    %.0f %% busy, %.0f ns of CPU per request", 100*r.Client.Busy, r.Client.CPU)
	if r.Client.CoresBusy > 0 {
		fmt.Fprintf(&b, ", its cores %.0f %%", 100*r.Client.CoresBusy)
	}
	if r.Client.Stolen > 0.01 {
		fmt.Fprintf(&b, ", %.0f %% taken by others", 100*r.Client.Stolen)
	}
	fmt.Fprintf(&b, "; bottleneck: %s\n", r.Bottleneck)
	fmt.Fprintf(&b, "  wrong     %d", r.Wrong)
	if r.FirstWrong != "" {
		fmt.Fprintf(&b, ", the first: %s", r.FirstWrong)
	}
	fmt.Fprintf(&b, "\n  errors    %d, %d reconnects", r.Errors, r.Reconnects)
	if r.FirstError != "" {
		fmt.Fprintf(&b, ", the first: %s", r.FirstError)
	}
	if r.Invalid != "" {
		fmt.Fprintf(&b, "\n  INVALID   %s", r.Invalid)
	}
	return b.String()
}

// String is one line.
func (l Latency) String() string {
	return fmt.Sprintf("avg %s, p50 %s, p95 %s, p99 %s, p99.9 %s, max %s", microseconds(l.Average), microseconds(l.P50),
		microseconds(l.P95), microseconds(l.P99), microseconds(l.P999), microseconds(l.Max))
}

func microseconds(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

// settings is a result that has only them.
func (c Config) settings() Result {
	return Result{
		Address: c.Address, Engine: c.Engine, Workload: c.Workload, SetRatio: c.SetRatio, KeySize: c.KeySize, ValueSize: c.ValueSize,
		Keys: c.Keys, Zipf: c.Zipf, Connections: c.Connections, Depth: c.Depth, Churn: c.Churn, Seed: c.Seed, Offered: c.Rate, Arrivals: c.Arrivals,
	}
}

// result puts together what the threads of a run counted.
func (p *plan) result(threads []*thread, coresBusy float64) Result {
	r := p.config.settings()
	all, connects := newHistogram(), newHistogram()
	var last, due int64
	var cpu time.Duration
	r.Client = Client{Threads: len(threads), Cores: p.config.Cores, CoresBusy: coresBusy}
	connections := uint64(0)
	for _, t := range threads {
		r.Replies += t.inTime
		r.Gets += t.gets
		r.Sets += t.sets
		r.Misses += t.misses
		r.Wrong += t.wrong
		r.Errors += t.errors
		r.Unsent += t.unsent
		connections += t.connects
		all.Merge(t.latencies)
		connects.Merge(t.connectTimes)
		if r.FirstWrong == "" && t.firstWrong != nil {
			r.FirstWrong = t.firstWrong.Error()
		}
		if r.FirstError == "" && t.firstError != nil {
			r.FirstError = t.firstError.Error()
		}
		w := t.window
		last, due = max(last, w.end, t.lastReply), max(due, t.lastDue)
		cpu += w.cpu
		if span := float64(w.end - w.begin); span > 0 {
			r.Client.Busy = max(r.Client.Busy, 1-float64(w.idle)/span)
			if t.transport.polls() {
				r.Client.Stolen = max(r.Client.Stolen, 1-float64(w.cpu)/span)
			}
		}
	}
	measured, end := threads[0].phase.measured.Load(), threads[0].phase.end.Load()
	r.Elapsed = time.Duration(max(0, last-measured)) // nothing, if it was ended in its warm-up
	r.Measured = time.Duration(max(0, min(last, end)-measured))
	if r.Offered > 0 {
		r.OnSchedule = onSchedule(r.Gets+r.Sets, r.Unsent, time.Duration(due-measured), r.Elapsed)
	}
	r.Reconnects = connections - uint64(p.config.Connections)
	r.setLatencies(all)
	r.Connect = latencyOf(connects)
	if r.Replies > 0 {
		r.Client.CPU = float64(cpu) / float64(r.Replies)
	}
	r.Client.judge()
	r.conclude()
	return r
}

// result puts together what the workers of the reference engine counted.
func (r *reference) result(elapsed time.Duration) Result {
	result := r.config.settings()
	result.KeySize = ""
	result.Elapsed = elapsed
	all := newHistogram()
	seen := make(map[*recorder]bool)
	for _, w := range r.workers {
		result.Gets += w.gets
		result.Sets += w.sets
		result.Misses += w.misses
		result.Wrong += w.wrong
		result.Errors += w.errors
		if !seen[w.recorder] {
			seen[w.recorder] = true
			all.Merge(w.recorder.histogram)
		}
	}
	result.Replies, result.Measured = result.Gets+result.Sets, result.Elapsed // it has no warm-up
	result.setLatencies(all)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dials > uint64(r.config.Connections) {
		result.Reconnects = r.dials - uint64(r.config.Connections)
	}
	if r.firstWrong != nil {
		result.FirstWrong = r.firstWrong.Error()
	}
	if r.firstError != nil {
		result.FirstError = r.firstError.Error()
	}
	result.conclude()
	return result
}
