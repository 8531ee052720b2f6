package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

// synthetic is a whole comparison that nobody measured, with a case of all that
// can be wrong with one, after which each is named:
//
//	user/poll          client-bound
//	user/interrupt     its mode is not proven in one round
//	user/poll/handoff  not run
//	kernel/irq-packing one round does not count
//	kernel/busy-poll   noisy, and its polls in vain are not known
//	memcached          system calls not known
//	memcached+attach   no round counts
func synthetic(seed uint64) *result.Results {
	random := rand.New(rand.NewPCG(seed, 1))
	names := []string{"user/poll", "user/interrupt", "user/adaptive", "user/poll/handoff", "kernel/vanilla", "kernel/irq-packing",
		"kernel/irq-suppression", "kernel/busy-poll", "kernel/kernel-polling", "memcached", "memcached+attach"}
	ability := []float64{180e3, 120e3, 176e3, 0, 48.5e3, 55e3, 62e3, 79.8e3, 90e3, 46e3, 85e3}
	modes := []string{"poll", "interrupt", "adaptive", "poll", "vanilla", "irq-packing", "irq-suppression", "busy-poll", "kernel-polling", "vanilla", "kernel-polling"}
	r := &result.Results{
		Schema: result.Schema, Seed: seed,
		Started:  time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC),
		Finished: time.Date(2026, 11, 21, 9, 58, 12, 0, time.UTC),
		Verdict:  "For mixed in the lab, use user/poll: it answers 3.71 times the requests per second of the server's CPU time that kernel/vanilla does (rounds 3.60 to 3.82, spread 6 %).",
		Warnings: []string{"row kernel/busy-poll, closed loop: noisy: the rounds differ by 24 %", "the lab's congestion control was not cubic at first"},
		Plan: result.Plan{
			Name: "full", Repetitions: 3, Warmup: 2 * time.Second, Duration: 5 * time.Second,
			Rates: []float64{0, 10e3, 30e3, 60e3, 90e3}, Placement: "Server on core 0, client on core 1.",
			Workload: result.Workload{Kind: "mixed", Engine: "kernel", Connections: 64, Depth: 1, Keys: 10000, ValueSize: 100, SetRatio: 0.03},
		},
		Machine: result.Machine{
			Kernel: "6.18.0", CPU: "A processor", Cores: 2, Memory: 8 << 30, Virtual: "kvm", PMUMissing: "the hypervisor offers none",
			Versions: map[string]string{"go": "go1.26", "pollux": "v1", "dpdk": "22.11"},
			Settings: []result.Setting{{Where: "kernel path, server", Name: "pollux0 gro", Value: "on"}, {Where: "kernel path, server", Name: "pollux0 addresses", Value: ""}},
		},
	}
	for i, name := range names {
		s := result.Subject{Name: name, Path: "kernel", Mode: modes[i]}
		if i < 4 {
			s.Path, s.Dispatch = "user", "inline"
		}
		if name == "user/poll/handoff" {
			s.Dispatch = "handoff"
		}
		if i >= 9 {
			s.Command = []string{"memcached", "-l", "{host}"}
			s.Attach = i == 10
		}
		r.Plan.Subjects = append(r.Plan.Subjects, s)
		if ability[i] == 0 {
			continue
		}
		for _, offer := range r.Plan.Rates {
			row := result.Row{Subject: name, Rate: offer}
			for n := range r.Plan.Repetitions {
				row.Rounds = append(row.Rounds, syntheticRound(random, s, n+1, ability[i], offer))
			}
			summarize(&row)
			if offer == 0 {
				row.Idle = &result.Idle{CPU: []float64{1, 0.002, 0.013}[i%3], FirstRequest: time.Duration(20+13*i) * time.Microsecond}
			}
			r.Rows = append(r.Rows, row)
		}
	}
	base := find(r, "kernel/vanilla", 0)
	for _, s := range r.Plan.Subjects {
		c := result.Comparison{Subject: s.Name, Baseline: "kernel/vanilla", Metric: "cpu"}
		if row := find(r, s.Name, 0); row == nil || row.Median.Server.CPU == 0 {
			c.Invalid = "no round counts"
		} else {
			c.Ratio = base.Median.Server.CPU / row.Median.Server.CPU
			c.Low, c.High = c.Ratio*0.97, c.Ratio*1.03
		}
		if s.Name != c.Baseline {
			r.Comparisons = append(r.Comparisons, c)
		}
	}
	return r
}

func syntheticRound(random *rand.Rand, s result.Subject, number int, ability, offer float64) result.Round {
	jitter := 1 + 0.02*(random.Float64()-0.5)
	if s.Name == "kernel/busy-poll" && offer == 0 {
		jitter = []float64{0.9, 1, 1.14}[number-1]
	}
	can := ability * jitter
	got, busy := can, 1.0
	wait := 64 / can
	if offer > 0 {
		got = min(offer, can)
		busy = got / can
		wait = (1 + 0.3*busy/(1.02-min(busy, 1))) / can * 8
	}
	x := result.Round{
		Number: number, Throughput: got, Requests: uint64(5 * got), ServerBusy: busy, ClientBusy: 0.5,
		Server: result.Cost{CPU: 1e9 / can * 0.93, Interrupts: 0.2, Softirqs: 0.4, NAPIPolls: 0.3, PacketsPerPoll: 3.4, ContextSwitches: 0.02, Interruptions: 0.31, Interrupted: 912, Syscalls: 2.03},
		Proof:  result.Proof{SoftirqPolls: 36181, Active: true, Why: "36181 polls a second by softirq"},
	}
	x.Latency.P50 = time.Duration(wait * 1e9)
	x.Latency.Average = x.Latency.P50 * 11 / 10
	x.Latency.P95, x.Latency.P99, x.Latency.P999, x.Latency.Max = x.Latency.P50*2, x.Latency.P50*3, x.Latency.P50*6, x.Latency.P50*20
	if s.Path == "user" {
		empty := x.Server.CPU * 0.4
		x.Server.EmptyPolls = &empty
		x.Server.NAPIPolls, x.Server.PacketsPerPoll = 0, 0
		x.Proof = result.Proof{Polls: 241119, Active: true, Why: "the loop polled 241119 and slept 0 times a second"}
	}
	switch s.Name {
	case "user/poll":
		x.ClientBound = offer == 0
		if x.ClientBound {
			x.ClientBusy = 0.995
		}
	case "user/interrupt":
		if number == 2 {
			x.Proof.Active, x.Proof.Why = false, "looked in vain more often than it slept"
		}
	case "kernel/irq-packing":
		if number == 2 && offer == 0 {
			x.Invalid = "2 replies were wrong"
			x.Wrong = 2
		}
	case "kernel/busy-poll":
		x.Proof.BusyPolls, x.Proof.EmptyBusyPolls = 800_000, 0.9
	case "memcached":
		x.Server.SyscallsMissing = "the tracepoints are not there"
	case "memcached+attach":
		x.Invalid = "the server died"
	}
	return x
}

// summarize is what the runner does, in short.
func summarize(row *result.Row) {
	var valid []result.Round
	for _, x := range row.Rounds {
		if x.Invalid == "" {
			valid = append(valid, x)
		}
	}
	row.Median, row.Spread = result.Round{}, 0
	if len(valid) == 0 {
		return
	}
	slices.SortFunc(valid, func(a, b result.Round) int { return int(math.Copysign(1, a.Throughput-b.Throughput)) })
	row.Median = valid[len(valid)/2]
	row.Spread = (valid[len(valid)-1].Throughput - valid[0].Throughput) / row.Median.Throughput
}

func find(r *result.Results, subject string, offer float64) *result.Row {
	for i := range r.Rows {
		if r.Rows[i].Subject == subject && r.Rows[i].Rate == offer {
			return &r.Rows[i]
		}
	}
	return nil
}

// mustFind is for rows that a test put there.
func mustFind(r *result.Results, subject string, offer float64) *result.Row {
	row := find(r, subject, offer)
	if row == nil {
		panic(fmt.Sprintf("synthetic results without %s at %v", subject, offer))
	}
	return row
}
