package compare

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/load/distribution"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
)

// handoff is the dispatch of stock netstack; inline is ours and the default. The
// words are those of package stack.
const handoff = "handoff"

// memcached is Debian's, as a subject. {host} and {port} are filled in.
var memcached = []string{"memcached", "-u", "root", "-t", "1", "-m", "64", "-c", "4096", "-U", "0", "-l", "{host}", "-p", "{port}"}

// ParseSubject reads what names a subject: PATH/MODE, on the user path also
// user/MODE/handoff for netstack's stock dispatch, memcached, and memcached+attach
// or memcached+attach/MODE for one whose device and epoll instances are set from
// outside.
func ParseSubject(s string) (result.Subject, error) {
	fail := func(err error) (result.Subject, error) { return result.Subject{}, fmt.Errorf("subject %q: %w", s, err) }
	if s == "memcached" {
		return result.Subject{Name: s, Path: string(runtime.Kernel), Mode: string(runtime.Vanilla), Command: memcached}, nil
	}
	if rest, ok := strings.CutPrefix(s, "memcached+attach"); ok {
		mode := strings.TrimPrefix(rest, "/")
		if mode == "" {
			mode = string(runtime.KernelPolling)
		}
		m, err := runtime.ParseMode(runtime.Kernel, mode)
		if err != nil {
			return fail(err)
		}
		return result.Subject{Name: s, Path: string(runtime.Kernel), Mode: string(m), Command: memcached, Attach: true}, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return fail(errors.New("write PATH/MODE, like user/poll or kernel/kernel-polling; or memcached, memcached+attach"))
	}
	path, err := runtime.ParsePath(parts[0])
	if err != nil {
		return fail(err)
	}
	mode, err := runtime.ParseMode(path, parts[1])
	if err != nil {
		return fail(err)
	}
	subject := result.Subject{Name: s, Path: string(path), Mode: string(mode)}
	if path == runtime.User {
		subject.Dispatch = "inline"
	}
	if len(parts) == 3 {
		if path != runtime.User || parts[2] != handoff {
			return fail(fmt.Errorf("%q is no dispatch; the %s path knows %s", parts[2], runtime.User, handoff))
		}
		subject.Dispatch = handoff
	}
	return subject, nil
}

// ParseSubjects reads several.
func ParseSubjects(names []string) ([]result.Subject, error) {
	var list []result.Subject
	for _, n := range names {
		s, err := ParseSubject(strings.TrimSpace(n))
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// External is a subject from a command line: any server that speaks memcached's
// protocol. {host}, {port} and {device} are filled in.
func External(name, command string) (result.Subject, error) {
	words := strings.Fields(command)
	if len(words) == 0 {
		return result.Subject{}, fmt.Errorf("server %q: no command", name)
	}
	return result.Subject{Name: name, Path: string(runtime.Kernel), Mode: string(runtime.Vanilla), Command: words}, nil
}

// workload loads by our own stack: a client of the kernel's costs more for each request
// than the servers that it loads, so that no row would show a server's limit.
func workload() result.Workload {
	return result.Workload{Kind: string(load.Mixed), Engine: string(load.User), Connections: 64, Depth: 1, Keys: 10_000, ValueSize: 100, SetRatio: 0.03}
}

func mustParse(names ...string) []result.Subject {
	list, err := ParseSubjects(names)
	if err != nil {
		panic(err) // the names are below
	}
	return list
}

// Quick is the plan for a first answer: under 4 minutes.
func Quick() result.Plan {
	return result.Plan{
		Name: "quick",
		Subjects: mustParse("user/poll", "user/interrupt", "user/adaptive", "user/poll/handoff",
			"kernel/vanilla", "kernel/busy-poll", "kernel/kernel-polling", "memcached", "memcached+attach"),
		Workload: workload(), Rates: []float64{0}, Repetitions: 3, Warmup: 2 * time.Second, Duration: 2 * time.Second,
	}
}

// Full is the whole matrix, with latency against offered load: about an hour.
func Full() result.Plan {
	return result.Plan{
		Name: "full",
		Subjects: mustParse("user/poll", "user/interrupt", "user/adaptive", "user/poll/handoff",
			"kernel/vanilla", "kernel/irq-packing", "kernel/irq-suppression", "kernel/busy-poll", "kernel/kernel-polling",
			"memcached", "memcached+attach"),
		Workload: workload(), Rates: []float64{0}, Fractions: []float64{0.1, 0.25, 0.5, 0.75, 0.9},
		Search: true, Repetitions: 5, Warmup: 2 * time.Second, Duration: 5 * time.Second,
	}
}

// file is how a plan is written down.
type file struct {
	Base     string   `toml:"base"` // quick or full
	Subjects []string `toml:"subjects"`
	Servers  []struct {
		Name    string `toml:"name"`
		Command string `toml:"command"`
	} `toml:"servers"`
	Workload struct {
		Kind        string   `toml:"kind"`
		Engine      string   `toml:"engine"`
		Connections int      `toml:"connections"`
		Depth       int      `toml:"depth"`
		Keys        int      `toml:"keys"`
		ValueSize   *int     `toml:"value_size"`
		SetRatio    *float64 `toml:"set_ratio"`
	} `toml:"workload"`
	Rates       []float64     `toml:"rates"`
	Fractions   []float64     `toml:"load_fractions"`
	Search      *bool         `toml:"search"`
	Repetitions int           `toml:"repetitions"`
	Warmup      time.Duration `toml:"warmup"`
	Duration    time.Duration `toml:"duration"`
}

// Load reads a plan from a TOML file; what it leaves out is as in its base.
func Load(name string) (result.Plan, error) {
	var f file
	meta, err := toml.DecodeFile(name, &f)
	if err != nil {
		return result.Plan{}, fmt.Errorf("read the plan: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return result.Plan{}, fmt.Errorf("read the plan %s: nothing is called %v", name, unknown[0])
	}
	p := Quick()
	switch f.Base {
	case "", "quick":
	case "full":
		p = Full()
	default:
		return p, fmt.Errorf("read the plan %s: base %q; use quick or full", name, f.Base)
	}
	p.Name = name
	if len(f.Subjects) > 0 || len(f.Servers) > 0 {
		if p.Subjects, err = ParseSubjects(f.Subjects); err != nil {
			return p, fmt.Errorf("read the plan %s: %w", name, err)
		}
	}
	for _, s := range f.Servers {
		e, err := External(s.Name, s.Command)
		if err != nil {
			return p, fmt.Errorf("read the plan %s: %w", name, err)
		}
		p.Subjects = append(p.Subjects, e)
	}
	w := &p.Workload
	if f.Workload.Kind != "" {
		w.Kind = f.Workload.Kind
	}
	override(&w.Engine, f.Workload.Engine)
	override(&w.Connections, f.Workload.Connections)
	override(&w.Depth, f.Workload.Depth)
	override(&w.Keys, f.Workload.Keys)
	if f.Workload.ValueSize != nil {
		w.ValueSize = *f.Workload.ValueSize
	}
	if f.Workload.SetRatio != nil {
		if w.Kind != string(load.Mixed) {
			return p, fmt.Errorf("read the plan %s: set_ratio is for workload %s; %s has its own", name, load.Mixed, w.Kind)
		}
		w.SetRatio = *f.Workload.SetRatio
	}
	if f.Search != nil {
		p.Search = *f.Search
	}
	override(&p.Repetitions, f.Repetitions)
	override(&p.Warmup, f.Warmup)
	override(&p.Duration, f.Duration)
	if f.Rates != nil {
		p.Rates = f.Rates
	}
	if f.Fractions != nil {
		p.Fractions = f.Fractions
	}
	return p, nil
}

// settle writes down what share of sets a workload has by itself.
func settle(w *result.Workload) {
	switch load.Workload(w.Kind) {
	case load.Get:
		w.SetRatio = 0
	case load.Set:
		w.SetRatio = 1
	case load.ETC:
		w.SetRatio = distribution.ETCSets
	}
}

func override[T comparable](to *T, with T) {
	var zero T
	if with != zero {
		*to = with
	}
}

// The least that makes a figure: while the load warms up, the server is
// observed; see round.
const (
	leastWarmup   = time.Second
	leastDuration = time.Second
)

// Validate refuses a plan that cannot be run.
func Validate(p result.Plan) error {
	if len(p.Subjects) == 0 {
		return errors.New("the plan has no subjects")
	}
	names := make(map[string]bool)
	for _, s := range p.Subjects {
		if s.Name == "" || names[s.Name] {
			return fmt.Errorf("the plan's subjects need names of their own, %q is not", s.Name)
		}
		names[s.Name] = true
		if s.Attach && s.Mode == string(runtime.Vanilla) {
			return fmt.Errorf("subject %s: mode %s sets nothing; without attach, that is what there is", s.Name, s.Mode)
		}
	}
	switch {
	case p.Repetitions < 1:
		return fmt.Errorf("a plan of %d repetitions; use at least one", p.Repetitions)
	case p.Warmup < leastWarmup:
		return fmt.Errorf("a warm-up of %v; use at least %v: the server's costs are measured then", p.Warmup, leastWarmup)
	case p.Duration < leastDuration:
		return fmt.Errorf("rounds of %v; use at least %v", p.Duration, leastDuration)
	case len(p.Rates) == 0 && len(p.Fractions) == 0:
		return errors.New("a plan without load: no rates and no fractions of saturation")
	case slices.ContainsFunc(p.Rates, func(r float64) bool { return !(r >= 0) }):
		return fmt.Errorf("offered rates %v; use 0 (closed loop) or more", p.Rates)
	case p.Search && !slices.Contains(p.Rates, 0):
		return errors.New("a search for saturation begins at the closed loop: add rate 0")
	case len(p.Fractions) > 0 && !slices.Contains(p.Rates, 0):
		return errors.New("fractions of saturation need the closed loop: add rate 0")
	case slices.ContainsFunc(p.Fractions, func(f float64) bool { return !(f > 0 && f <= 1.5) }):
		return fmt.Errorf("fractions %v of saturation; use more than 0 to 1.5", p.Fractions)
	}
	w := p.Workload
	switch {
	case !slices.Contains(load.Workloads, load.Workload(w.Kind)):
		return fmt.Errorf("workload %q; use one of %v", w.Kind, load.Workloads)
	case w.Engine != string(load.Kernel) && w.Engine != string(load.User):
		return fmt.Errorf("engine %q of the load; use %s or %s", w.Engine, load.Kernel, load.User)
	case w.Connections < 1 || w.Depth < 1 || w.Keys < w.Connections:
		return fmt.Errorf("%d connections, %d deep, %d keys; use at least one of each, and a key for each connection", w.Connections, w.Depth, w.Keys)
	}
	return nil
}

// What a round takes beside its load: starting and stopping a server, storing
// the keys, starting the client.
const (
	visitOverhead = 2500 * time.Millisecond
	roundOverhead = 500 * time.Millisecond
	idleTime      = idleRequests*idlePause + 300*time.Millisecond
)

// Estimate is how long a plan takes, about.
func Estimate(p result.Plan) time.Duration {
	n := time.Duration(len(p.Subjects))
	perRound := p.Warmup + p.Duration + roundOverhead
	reps := time.Duration(p.Repetitions)
	total := n * idleTime
	if len(p.Rates) > 0 {
		total += n * reps * (visitOverhead + time.Duration(len(p.Rates))*perRound)
	}
	if len(p.Fractions) > 0 {
		total += n * reps * (visitOverhead + time.Duration(len(p.Fractions))*perRound)
	}
	if p.Search {
		total += n * (visitOverhead + searchSteps*perRound)
	}
	return total
}
