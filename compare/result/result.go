// Package result is what a comparison writes down: results.json, from which the
// reports are made and against which a later run is compared. Everything that a
// reader needs to judge a figure stands beside it: the machine, every setting,
// which side was the bottleneck, and the proof that the mode was in force.
package result

import "time"

// Schema is the version of the format; it changes when a field changes meaning.
const Schema = 2

// Results is a whole comparison.
type Results struct {
	Schema   int       `json:"schema"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// Complete is false if the run was interrupted: Rows has what was done.
	Complete bool    `json:"complete"`
	Seed     uint64  `json:"seed"`
	Plan     Plan    `json:"plan"`
	Machine  Machine `json:"machine"`
	Rows     []Row   `json:"rows"`
	// Verdict is one sentence, with its ratio and spread.
	Verdict string `json:"verdict"`
	// Comparisons are of every subject with the baseline, at saturation.
	Comparisons []Comparison `json:"comparisons,omitempty"`
	// Warnings say why a comparison is not fair or a figure not to be trusted.
	Warnings []string `json:"warnings"`
}

// Comparison is how much better a subject is than the baseline.
type Comparison struct {
	Subject  string `json:"subject"`
	Baseline string `json:"baseline"`
	// Metric is "throughput" (requests per second of one core) or, where the
	// client was the limit of any subject, "cpu" (the server's CPU time per
	// request).
	Metric string `json:"metric"`
	// Ratio is above 1 if the subject is better; Low and High are of single
	// rounds, each against the same round of the baseline.
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	// Invalid says why there is no ratio.
	Invalid string `json:"invalid,omitempty"`
}

// Plan is what was to be run.
type Plan struct {
	Name     string    `json:"name"` // quick, full, or a file's name
	Subjects []Subject `json:"subjects"`
	Workload Workload  `json:"workload"`
	Rates    []float64 `json:"offered_rates"` // requests per second; 0 is closed loop (saturation)
	// Fractions of the highest throughput of any subject, of its closed loop or
	// as it was searched for, that are offered too; the rates that they came to are added to Rates.
	Fractions []float64 `json:"load_fractions,omitempty"`
	// Search has the highest load searched for that each subject follows.
	Search      bool          `json:"search,omitempty"`
	Repetitions int           `json:"repetitions"`
	Warmup      time.Duration `json:"warmup_ns"`
	Duration    time.Duration `json:"duration_ns"`
	// Device is a real device's name, or empty for the lab.
	Device    string `json:"device,omitempty"`
	Placement string `json:"placement"`
}

// Subject is a server in a configuration: one row of the comparison.
type Subject struct {
	Name     string   `json:"name"` // unique, as shown: user/poll, kernel/vanilla, memcached, memcached+attach
	Path     string   `json:"path,omitempty"`
	Mode     string   `json:"mode,omitempty"`
	Dispatch string   `json:"dispatch,omitempty"`
	Command  []string `json:"command,omitempty"` // an external server's
	Attach   bool     `json:"attach,omitempty"`
}

// Workload is what the client asks for.
type Workload struct {
	Kind        string  `json:"kind"` // etc, get, set, mixed
	Engine      string  `json:"engine"`
	Connections int     `json:"connections"`
	Depth       int     `json:"depth"`
	Keys        int     `json:"keys"`
	ValueSize   int     `json:"value_size,omitempty"` // 0: distributed
	SetRatio    float64 `json:"set_ratio"`
}

// Machine is where it ran.
type Machine struct {
	Kernel     string            `json:"kernel"`
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	Memory     uint64            `json:"memory_bytes"`
	Virtual    string            `json:"virtual,omitempty"` // kvm, firecracker, none
	Versions   map[string]string `json:"versions"`          // pollux, go, dpdk, gvisor, memcached
	Settings   []Setting         `json:"settings"`          // of the lab or the device, as verified
	PMU        bool              `json:"pmu"`
	PMUMissing string            `json:"pmu_missing,omitempty"` // why there are no hardware counters
}

// Setting is a setting as it was read back.
type Setting struct {
	Where string `json:"where"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Row is all rounds of one subject at one load.
type Row struct {
	Subject string  `json:"subject"`
	Rate    float64 `json:"offered_rate"` // 0 is closed loop
	Rounds  []Round `json:"rounds"`
	Median  Round   `json:"median"`
	// Spread is (max - min) / median of the rounds' throughput.
	Spread float64 `json:"spread"`
	// Saturation is searched for once for each subject, with Rate 0.
	Saturation *Saturation `json:"saturation,omitempty"`
	// Idle is measured once for each subject, with Rate 0.
	Idle *Idle `json:"idle,omitempty"`
}

// Most is the highest throughput that is known of the row's subject.
func (r *Row) Most() float64 {
	if r.Saturation != nil && r.Saturation.Rate > 0 {
		return r.Saturation.Rate
	}
	return r.Median.Throughput
}

// beyond is how far over a subject's own saturation a load is still offered:
// further up there is only a queue that grows.
const beyond = 1.1

// TooMuch says that a load is more than a subject can be asked for, so that the
// plan leaves it out: it is a fraction of what another can do.
func (r *Results) TooMuch(subject string, rate float64) bool {
	if rate == 0 || len(r.Plan.Fractions) == 0 {
		return false
	}
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Subject == subject && row.Rate == 0 {
			return row.Most() > 0 && rate > beyond*row.Most()
		}
	}
	return false
}

// Saturation is the highest load that a subject was found to follow.
type Saturation struct {
	// Rate was offered and answered in time, with Latency; Beyond was not, 0 if
	// the search ended before there was such a load. In requests per second.
	Rate    float64 `json:"offered_rate"`
	Beyond  float64 `json:"not_followed_rate"`
	Latency Latency `json:"latency"`
	// ClientBound says that at Beyond the client was the limit, so that the
	// server's is higher.
	ClientBound bool `json:"client_bound"`
	// ServerBound says that it was the server, which had no time left.
	ServerBound bool `json:"server_bound"`
	// Why says what failed, if something did.
	Why string `json:"why,omitempty"`
}

// Whose says whose limit was met.
func (s Saturation) Whose() string {
	switch {
	case s.ServerBound:
		return "the server's limit"
	case s.ClientBound:
		return "the client's limit, the server's is higher"
	}
	return "no limit of the server's, which had time left: a busy machine's, or the search's"
}

// Round is one measured interval.
type Round struct {
	Number     int     `json:"number"`
	Throughput float64 `json:"requests_per_second"`
	Requests   uint64  `json:"requests"`
	Errors     uint64  `json:"errors"`
	Wrong      uint64  `json:"wrong"`
	// Misses are requests that found no value, although all keys were stored: to
	// answer them costs less.
	Misses uint64 `json:"misses"`
	// Invalid says why the round does not count.
	Invalid string  `json:"invalid,omitempty"`
	Latency Latency `json:"latency"`

	// ClientBusy and ServerBusy are shares of one core each. ClientFull says that
	// the client had no more to give, ServerFull that the server's core had not,
	// polls in vain taken for time that was left.
	ClientBusy float64 `json:"client_busy"`
	ServerBusy float64 `json:"server_busy"`
	ClientFull bool    `json:"client_at_limit"`
	ServerFull bool    `json:"server_at_limit"`
	// ClientBound says that the client was the bottleneck and the server was not,
	// so that Throughput is no limit of the server's. An offered load that was
	// served has no bottleneck.
	ClientBound bool `json:"client_bound"`

	// Server is what the server's side cost, all of it: threads, softirqs and
	// interrupts on its core, polling included and told apart.
	Server Cost `json:"server"`
	// Observed is how many requests per second the server answered while its
	// cost was measured, which is not the time that Throughput is of.
	Observed float64 `json:"observed_requests_per_second"`
	// Foreign is the share of the server's core that other programs took.
	Foreign float64 `json:"foreign_share"`
	// Elsewhere is the share of a core that the server's receive work took
	// beside the server's own; it is in Server.CPU.
	Elsewhere float64 `json:"elsewhere_share"`
	// Proof shows whether the mode was in force.
	Proof Proof `json:"proof"`
}

// inVain is what a busy poll of a NAPI instance takes that finds nothing, at most:
// measured at some 100 to 300 ns.
const inVain = 300 * time.Nanosecond

// InVain is about the share of the core that busy polls inside the kernel took and
// found nothing. Their number is known, not their time.
func (r *Round) InVain() float64 {
	return r.Proof.BusyPolls * r.Proof.EmptyBusyPolls * inVain.Seconds()
}

// UpperBound says that so much of Server.CPU went into polls in vain that it is no
// more than a bound of what requests cost.
func (r *Round) UpperBound() bool { return r.Server.EmptyPolls == nil && r.InVain() > 0.01 }

// CoreUsed is the share of the server's core that was used, by whomever, and was not
// left to polls in vain. What receive work took of another core is not in it.
func (r *Round) CoreUsed() float64 { return r.ServerBusy + r.Foreign - r.Elsewhere - r.InVain() }

// unlike is the factor from which two rates are not of the same load.
const unlike = 2

// Unlike says that the server's cost was measured at so different a rate that it
// is not that of the throughput: a round of which this is true does not count.
func (r *Round) Unlike() bool {
	return r.Throughput > 0 && (r.Observed*unlike < r.Throughput || r.Observed > r.Throughput*unlike)
}

// Latency of requests, from the intended time of sending where a rate is offered.
type Latency struct {
	Average time.Duration `json:"average_ns"`
	P50     time.Duration `json:"p50_ns"`
	P95     time.Duration `json:"p95_ns"`
	P99     time.Duration `json:"p99_ns"`
	P999    time.Duration `json:"p99_9_ns"`
	Max     time.Duration `json:"max_ns"`
}

// Cost is in the server's CPU time and events. Per request, not per second.
type Cost struct {
	// CPU is what was busy: without EmptyPolls, where these are known.
	CPU float64 `json:"cpu_ns"`
	// EmptyPolls was spent on polls that found nothing; nil where nobody can tell
	// it from the rest, so that it is in CPU: on the kernel path.
	EmptyPolls      *float64 `json:"empty_poll_cpu_ns"`
	Interrupts      float64  `json:"interrupts"`
	Softirqs        float64  `json:"softirqs"`
	NAPIPolls       float64  `json:"napi_polls"`
	PacketsPerPoll  float64  `json:"packets_per_napi_poll"`
	ContextSwitches float64  `json:"context_switches"`
	Interruptions   float64  `json:"interruptions"` // of the server's threads while running
	Interrupted     float64  `json:"interrupted_ns"`
	Syscalls        float64  `json:"syscalls"`
	// SyscallsMissing says why Syscalls is not known.
	SyscallsMissing string `json:"syscalls_missing,omitempty"`
	// Of hardware counters; nil where there are none.
	Cycles       *float64 `json:"cycles"`
	Instructions *float64 `json:"instructions"`
}

// Proof is evidence of how packets were received, per second.
type Proof struct {
	SoftirqPolls    float64 `json:"softirq_napi_polls_per_second"`
	BusyPolls       float64 `json:"busy_napi_polls_per_second"`
	BusyPollPackets float64 `json:"busy_poll_rx_packets_per_second"`
	// EmptyBusyPolls is the share of BusyPolls that found nothing.
	EmptyBusyPolls float64 `json:"busy_napi_polls_empty_share"`
	Sleeps         float64 `json:"sleeps_per_second"`
	Polls          float64 `json:"loop_polls_per_second"`
	// Active says whether the evidence fits the mode, Why what it is.
	Active bool   `json:"active"`
	Why    string `json:"why"`
}

// Idle is the price of waiting.
type Idle struct {
	CPU float64 `json:"cpu_share"` // of one core, without traffic
	// FirstRequest is the latency of a request after a second without traffic,
	// the median of several.
	FirstRequest time.Duration `json:"first_request_ns"`
}
