package compare

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
)

const (
	serverPort = "11211"
	// metricsAddress is in the server's network namespace.
	metricsAddress = "127.0.0.1:9100"
	// A request that finds the server idle comes after a second of nothing.
	idlePause    = time.Second
	idleRequests = 3
)

// bench is the stage on which servers are measured: a place, and processors.
type bench struct {
	place    place
	pollux   string // this program's file
	server   int    // core
	helper   int    // core, of what is neither server nor client
	plan     result.Plan
	seed     uint64
	dir      string // for what children print
	settings map[string][]result.Setting
	agent    []result.Setting // what the client says of itself
	// idleOf is what a subject was measured to cost while nobody asked, or nil.
	idleOf func(subject string) *result.Idle
}

// command is what serves a subject.
func (b *bench) command(s result.Subject) []string {
	device, address := b.place.server()
	if len(s.Command) > 0 {
		fill := strings.NewReplacer("{host}", address.Addr().String(), "{port}", serverPort, "{device}", device)
		argv := make([]string, len(s.Command))
		for i, word := range s.Command {
			argv[i] = fill.Replace(word)
		}
		return argv
	}
	argv := []string{b.pollux, "memcached", "--path", s.Path, "--mode", s.Mode, "--device", device,
		"--address", address.String(), "--port", serverPort, "--cores", "1", "--metrics", metricsAddress}
	if s.Path == string(runtime.User) && s.Dispatch != "" {
		argv = append(argv, "--dispatch", s.Dispatch)
	}
	return argv
}

// serving is a server that is up, and its client.
type serving struct {
	bench   *bench
	subject result.Subject
	process *child
	client  *load.Remote
}

func (b *bench) serve(ctx context.Context, s result.Subject, visit func(server) error) (err error) {
	settings, err := b.place.ready(runtime.Path(s.Path))
	if err != nil {
		return err
	}
	v := &serving{bench: b, subject: s}
	keep := func(e error) {
		if err == nil {
			err = e
		}
	}
	if v.process, err = start(b.place.start, b.dir, "server", b.server, b.command(s), false); err != nil {
		return err
	}
	defer func() { keep(v.process.stop()) }()
	client, leave, err := b.place.client(ctx)
	if err != nil {
		return err
	}
	defer func() { keep(leave()) }()
	v.client, b.agent = client, describeAgent(client.Hello)
	if err := v.await(ctx); err != nil {
		return err
	}
	b.settings[s.Path] = append(settings, v.process.priority(s.Path))
	if s.Attach {
		device, _ := b.place.server()
		attached, err := start(b.place.start, b.dir, "attach", b.helper, []string{b.pollux, "attach",
			"--pid", strconv.Itoa(v.process.pid()), "--device", device, "--mode", s.Mode}, false)
		if err != nil {
			return err
		}
		defer func() { keep(attached.stop()) }()
		if err := attached.awaitOutput(ctx, "epoll"); err != nil {
			return err
		}
	}
	// The keys are stored once for all rounds of a visit.
	store := v.job()
	store.Requests = uint64(store.Connections)
	if err := v.do(ctx, store); err != nil {
		return fmt.Errorf("store the keys: %w", err)
	}
	if err := visit(v); err != nil {
		return err
	}
	if v.process.ended() {
		return v.process.explain(errors.Join(errors.New("the server ended under load"), v.process.err))
	}
	return nil
}

func describeAgent(h load.Hello) []result.Setting {
	return []result.Setting{
		{Where: "client", Name: "engine", Value: string(h.Engine)},
		{Where: "client", Name: "threads", Value: strconv.Itoa(h.Threads)},
		{Where: "client", Name: "processors", Value: lab.FormatCores(h.Cores)},
		{Where: "client", Name: "nice", Value: strconv.Itoa(h.Nice)},
	}
}

// job is the plan's load, without its end.
func (v *serving) job() load.Job {
	w := v.bench.plan.Workload
	j := load.Job{Workload: load.Workload(w.Kind), SetRatio: w.SetRatio, Connections: w.Connections, Depth: w.Depth, Keys: w.Keys, Seed: v.bench.seed}
	if w.ValueSize > 0 {
		j.ValueSize = strconv.Itoa(w.ValueSize)
	}
	return j
}

// do has the client do a job to its end, with every reply right.
func (v *serving) do(ctx context.Context, j load.Job) error {
	if err := v.client.Run(j); err != nil {
		return err
	}
	r, err := v.client.Wait(ctx)
	if err != nil {
		return err
	}
	return r.Err()
}

// await waits until the server answers.
func (v *serving) await(ctx context.Context) error {
	deadline := time.Now().Add(startTimeout)
	first := v.job()
	first.Connections, first.Depth, first.Requests, first.NoStore, first.Timeout = 1, 1, 1, true, time.Second
	for {
		err := v.do(ctx, first)
		if err == nil {
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case v.process.ended():
			return v.process.explain(errors.Join(errors.New("the server ended at its start"), v.process.err))
		case time.Now().After(deadline):
			return v.process.explain(fmt.Errorf("the server does not answer within %v: %w", startTimeout, err))
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// target is the server, for measure.
func (v *serving) target() measure.Target {
	device, _ := v.bench.place.server()
	t := measure.Target{PID: v.process.pid(), Core: v.bench.server, Device: device, In: v.bench.place.in, Requests: v.requests}
	if len(v.subject.Command) == 0 {
		t.Metrics = metricsAddress
	}
	return t
}

// requests is how many the server has answered so far, as the client counts.
func (v *serving) requests() (n uint64, at time.Duration, err error) {
	p, err := v.client.Progress()
	return p.Replies, p.At, err
}

// idle has one request a second sent, and nothing else.
func (v *serving) idle(ctx context.Context) (result.Idle, error) {
	if err := sleep(ctx, 200*time.Millisecond); err != nil { // what the keys left to do
		return result.Idle{}, err
	}
	j := v.job()
	j.Connections, j.Depth, j.NoStore = 1, 1, true
	j.Rate, j.Arrivals, j.Requests = 1/idlePause.Seconds(), "fixed", idleRequests
	o, err := measure.Start(v.target())
	if err != nil {
		return result.Idle{}, err
	}
	err = v.client.Run(j)
	var l load.Result
	if err == nil {
		if l, err = v.client.Wait(ctx); err == nil {
			err = l.Err()
		}
	}
	s, e := o.End()
	if err = errors.Join(err, e, ctx.Err()); err != nil {
		return result.Idle{}, err
	}
	return result.Idle{CPU: float64(s.CPU) / float64(s.Elapsed), FirstRequest: l.Latency.P50}, nil
}

// When, in a warm-up, the server is observed, so that nothing is attached in the
// time that throughput and latency are of.
const (
	settling  = 250 * time.Millisecond // from the first reply on
	quiet     = 500 * time.Millisecond // from the last observation to the measured time
	callsSpan = 150 * time.Millisecond // of counting system calls
	shortest  = 200 * time.Millisecond // of an observation that counts
	lookEvery = 5 * time.Millisecond
)

// attempts is how often a round is tried whose cost turned out to be of another
// load than its throughput.
const attempts = 3

func (v *serving) round(ctx context.Context, rate float64) (r result.Round, err error) {
	for range attempts {
		if r, err = v.once(ctx, rate); err != nil || !r.Unlike() {
			return r, err
		}
	}
	return r, nil
}

func (v *serving) once(ctx context.Context, rate float64) (result.Round, error) {
	j := v.job()
	j.NoStore, j.Hold, j.Duration, j.Rate = true, true, v.bench.plan.Duration, rate
	if err := v.client.Run(j); err != nil {
		return result.Round{}, err
	}
	sample, calls, err := v.observe(ctx)
	if err == nil {
		err = sleep(ctx, quiet)
	}
	if err == nil {
		err = v.client.Begin()
	}
	if err != nil {
		return result.Round{}, err
	}
	l, err := v.client.Wait(ctx)
	if err != nil {
		return result.Round{}, err
	}
	return v.assemble(l, sample, calls), nil
}

// calls is how many system calls the server made for each request, or why that is
// not known.
type calls struct {
	perRequest float64
	err        error
}

// countCalls counts for a while. Nothing else is measured then: counting slows
// every system call down. It fails if the client does not answer: what it says
// later would be taken for the answer to another question.
func (v *serving) countCalls() (calls, error) {
	before, began, err := v.requests()
	if err != nil {
		return calls{}, err
	}
	count, span, missing := measure.Syscalls(v.process.pid(), callsSpan)
	if missing != nil {
		return calls{err: missing}, nil
	}
	after, ended, err := v.requests()
	if err != nil {
		return calls{}, err
	}
	if after == before {
		return calls{err: errors.New("no request was answered meanwhile")}, nil
	}
	perSecond := float64(after-before) / (ended - began).Seconds()
	return calls{perRequest: float64(count) / span.Seconds() / perSecond}, nil
}

// observe measures the server's side while the load warms up, which it does until
// it is told to be measured: on a busy machine, to attach can take seconds.
func (v *serving) observe(ctx context.Context) (s measure.Sample, n calls, err error) {
	deadline := time.Now().Add(startTimeout)
	for {
		now, _, err := v.requests()
		if err != nil {
			return s, n, err
		}
		if now > 0 {
			break
		}
		if v.client.Ended() {
			_, err := v.client.Wait(ctx)
			return s, n, errors.Join(errors.New("the load ended in its warm-up"), err)
		}
		if time.Now().After(deadline) {
			return s, n, fmt.Errorf("no request was answered within %v of the load's begin", startTimeout)
		}
		if err := sleep(ctx, lookEvery); err != nil {
			return s, n, err
		}
	}
	if err := sleep(ctx, settling); err != nil {
		return s, n, err
	}
	o, err := measure.Start(v.target())
	if err != nil {
		return s, n, err
	}
	interrupted := sleep(ctx, max(shortest, v.bench.plan.Warmup-settling-callsSpan-quiet))
	if s, err = o.End(); err != nil || interrupted != nil {
		return s, n, errors.Join(interrupted, err)
	}
	n, err = v.countCalls()
	return s, n, err
}

// tooManyMisses is the share of requests from which a round is of another work: that
// of saying that there is nothing.
const tooManyMisses = 0.01

// assemble puts the two ends of a round together.
func (v *serving) assemble(l load.Result, s measure.Sample, n calls) result.Round {
	r := result.Round{
		Throughput: l.PerSecond, Requests: l.Requests, Errors: l.Errors, Wrong: l.Wrong, Invalid: l.Invalid,
		Latency:    result.Latency{Average: l.Latency.Average, P50: l.Latency.P50, P95: l.Latency.P95, P99: l.Latency.P99, P999: l.Latency.P999, Max: l.Latency.Max},
		Misses:     l.Misses,
		ClientBusy: max(l.Client.Busy, l.Client.CoresBusy), ClientFull: l.Client.Bound,
		ServerBusy: s.Busy(), Foreign: s.ForeignShare(),
	}
	if r.Invalid == "" && !l.Valid {
		r.Invalid = "the load says that it is not valid"
	}
	if s.Elapsed > 0 {
		r.Elsewhere = float64(s.Elsewhere) / float64(s.Elapsed)
	}
	if misses := float64(r.Misses); r.Invalid == "" && misses > tooManyMisses*float64(r.Requests) {
		r.Invalid = fmt.Sprintf("%.0f of %d requests found no value: the server did not keep the keys that were stored, and to answer a miss costs less; use fewer keys, smaller values, or a server with more memory", misses, r.Requests)
	}
	r.Observed = s.PerSecond
	r.Server = s.Cost(s.Requests())
	if r.Invalid == "" && r.Unlike() {
		r.Invalid = fmt.Sprintf("the server answered %.0f/s while its cost was measured, and %.0f/s after that: the one is not the cost of the other", r.Observed, r.Throughput)
	}
	switch {
	case n.err == nil:
		r.Server.Syscalls = n.perRequest
	case s.Loops != nil && s.Loops.Kernel && s.PerSecond > 0:
		r.Server.Syscalls = s.Loops.Calls / s.Requests()
	default:
		r.Server.SyscallsMissing = n.err.Error()
	}
	r.Proof = prove(v.subject, s, v.bench.server, v.bench.idleOf(v.subject.Name))
	r.ServerFull = r.CoreUsed() >= full
	r.ClientBound = l.Bottleneck == load.ByClient && !r.ServerFull
	return r
}

// know takes what a resumed run has already: of a path that is not visited again its
// settings, of subjects what they were when idle.
func (b *bench) know(r *result.Results) {
	b.settings = make(map[string][]result.Setting)
	for _, s := range r.Machine.Settings {
		if path, _, ok := strings.Cut(s.Where, " path, "); ok {
			b.settings[path] = append(b.settings[path], s)
		} else {
			b.agent = append(b.agent, s)
		}
	}
	b.idleOf = func(subject string) *result.Idle {
		for _, row := range r.Rows {
			if row.Subject == subject && row.Idle != nil {
				return row.Idle
			}
		}
		return nil
	}
}

// settingsList is what was read back for both paths.
func (b *bench) settingsList() (list []result.Setting) {
	for _, path := range runtime.Paths {
		list = append(list, b.settings[string(path)]...)
	}
	return append(list, b.agent...)
}
