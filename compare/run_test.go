package compare

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

// fake is a stage whose servers answer what a function says.
type fake struct {
	visits []string
	idles  []string
	answer func(subject string, rate float64, visit int) (result.Round, error)
	fail   map[string]error
}

type fakeServer struct {
	fake    *fake
	subject string
	visit   int
}

func (f *fake) serve(ctx context.Context, s result.Subject, visit func(server) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.fail[s.Name]; err != nil {
		return err
	}
	n := 0
	for _, v := range f.visits {
		if strings.HasPrefix(v, s.Name+"@") {
			n++
		}
	}
	return visit(&fakeServer{f, s.Name, n})
}

func (s *fakeServer) idle(context.Context) (result.Idle, error) {
	s.fake.idles = append(s.fake.idles, s.subject)
	return result.Idle{CPU: 0.5, FirstRequest: time.Millisecond}, nil
}

func (s *fakeServer) round(_ context.Context, rate float64) (result.Round, error) {
	s.fake.visits = append(s.fake.visits, fmt.Sprintf("%s@%v", s.subject, rate))
	return s.fake.answer(s.subject, rate, s.visit)
}

// steady is a round of a server that does so much, at so much CPU per request.
func steady(throughput, cpu float64) result.Round {
	return result.Round{Throughput: throughput, Requests: uint64(throughput), ServerBusy: 1, ClientBusy: 0.5,
		Server: result.Cost{CPU: cpu}, Proof: result.Proof{Active: true}}
}

func planOf(repetitions int, names ...string) result.Plan {
	return result.Plan{Name: "test", Subjects: mustParse(names...), Workload: workload(), Rates: []float64{0},
		Repetitions: repetitions, Warmup: time.Second, Duration: time.Second}
}

func runFake(t *testing.T, f *fake, r *result.Results) error {
	t.Helper()
	saved := 0
	err := (&run{results: r, stage: f, save: func() error { saved++; return nil }, step: func(string, time.Duration) {}}).all(t.Context())
	if err == nil && saved == 0 && len(f.visits) > 0 {
		t.Error("nothing was saved")
	}
	conclude(r)
	return err
}

func TestRoundsAreInterleaved(t *testing.T) {
	f := &fake{answer: func(string, float64, int) (result.Round, error) { return steady(100, 1e7), nil }}
	r := &result.Results{Plan: planOf(2, "user/poll", "kernel/vanilla", "memcached")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	want := []string{"user/poll@0", "kernel/vanilla@0", "memcached@0", "user/poll@0", "kernel/vanilla@0", "memcached@0"}
	if !slices.Equal(f.visits, want) {
		t.Errorf("visited %v, want %v", f.visits, want)
	}
	if want := []string{"user/poll", "kernel/vanilla", "memcached"}; !slices.Equal(f.idles, want) {
		t.Errorf("idle was measured of %v, want once of each of %v", f.idles, want)
	}
	if !r.Complete {
		t.Error("the run is not complete")
	}
}

func TestMediansAndSpreadAreOfTheRoundsThatCount(t *testing.T) {
	throughputs := []float64{100, 130, 110, 9999}
	f := &fake{answer: func(_ string, _ float64, visit int) (result.Round, error) {
		r := steady(throughputs[visit], 1000/throughputs[visit])
		r.Latency.P99 = time.Duration(throughputs[visit])
		cycles := throughputs[visit]
		r.Server.Cycles = &cycles
		if visit == 3 {
			r.Invalid = "a reply was wrong"
		}
		return r, nil
	}}
	r := &result.Results{Plan: planOf(4, "kernel/vanilla")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	row := find(r, "kernel/vanilla", 0)
	if row.Median.Throughput != 110 || row.Median.Latency.P99 != 110 || *row.Median.Server.Cycles != 110 {
		t.Errorf("medians are %v/s, p99 %v, %v cycles; want 110 each", row.Median.Throughput, row.Median.Latency.P99, *row.Median.Server.Cycles)
	}
	if want := 30.0 / 110; row.Spread != want {
		t.Errorf("spread %v, want %v", row.Spread, want)
	}
	text := strings.Join(r.Warnings, "\n")
	for _, want := range []string{"a reply was wrong", "noisy"} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning says %q: %s", want, text)
		}
	}
}

func TestAnEvenNumberOfRoundsHasTheMeanOfTheMiddleTwo(t *testing.T) {
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median %v, want 2.5", m)
	}
	if m := median([]uint64{10, 20}); m != 15 {
		t.Errorf("median %v, want 15", m)
	}
}

func TestASubjectThatFailsDoesNotEndTheRun(t *testing.T) {
	f := &fake{answer: func(string, float64, int) (result.Round, error) { return steady(100, 1e7), nil },
		fail: map[string]error{"user/poll": errors.New("no such device")}}
	r := &result.Results{Plan: planOf(2, "user/poll", "kernel/vanilla", "kernel/busy-poll")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	if n := len(validRounds(find(r, "kernel/busy-poll", 0))); n != 2 {
		t.Errorf("%d rounds of the last subject, want 2", n)
	}
	if c := r.Comparisons[0]; c.Subject != "user/poll" || !strings.Contains(c.Invalid, "no such device") {
		t.Errorf("the failed subject's comparison is %+v, want it invalid and why", c)
	}
	if strings.Contains(r.Verdict, "user/poll") {
		t.Errorf("the verdict recommends what failed: %s", r.Verdict)
	}
}

func TestAnInterruptedRunIsResumedWhereItEnded(t *testing.T) {
	dir := t.TempDir()
	plan := planOf(3, "user/poll", "kernel/vanilla")
	r := &result.Results{Schema: result.Schema, Seed: 7, Plan: plan}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	count := 0
	f := &fake{answer: func(string, float64, int) (result.Round, error) {
		if count++; count == 3 { // in the second round
			cancel()
			return result.Round{}, ctx.Err()
		}
		return steady(100, 1e7), nil
	}}
	save := func() error { return writeResults(dir, r) }
	err := (&run{results: r, stage: f, save: save, step: func(string, time.Duration) {}}).all(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the interrupted run returned %v", err)
	}
	if r.Complete {
		t.Error("an interrupted run calls itself complete")
	}
	if _, err := resume(dir, planOf(3, "user/poll"), 7, result.Machine{}); err == nil {
		t.Error("a run of another plan was resumed")
	}
	if _, err := resume(dir, plan, 8, result.Machine{}); err == nil {
		t.Error("a run of another seed was resumed")
	}
	again, err := resume(dir, plan, 7, result.Machine{})
	if err != nil {
		t.Fatal(err)
	}
	f.visits, f.idles = nil, nil
	if err := runFake(t, f, again); err != nil {
		t.Fatal(err)
	}
	want := []string{"user/poll@0", "kernel/vanilla@0", "user/poll@0", "kernel/vanilla@0"}
	if !slices.Equal(f.visits, want) {
		t.Errorf("resumed with %v, want %v", f.visits, want)
	}
	if len(f.idles) != 0 {
		t.Errorf("idle was measured again: %v", f.idles)
	}
	for _, row := range again.Rows {
		if len(row.Rounds) != 3 {
			t.Errorf("%s has %d rounds, want 3", row.Subject, len(row.Rounds))
		}
	}
}

func TestFractionsAreOfTheHighestSaturationAndStopAtTheSubjectsOwn(t *testing.T) {
	most := map[string]float64{"user/poll": 200_000, "kernel/vanilla": 100_000}
	f := &fake{answer: func(subject string, rate float64, _ int) (result.Round, error) {
		if rate == 0 {
			return steady(most[subject], 1e9/most[subject]), nil
		}
		return steady(rate, 1e9/most[subject]), nil
	}}
	plan := planOf(1, "user/poll", "kernel/vanilla")
	plan.Fractions = []float64{0.25, 0.5, 0.9}
	r := &result.Results{Schema: result.Schema, Plan: plan}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	want := []string{"user/poll@0", "kernel/vanilla@0",
		"user/poll@50000", "user/poll@100000", "user/poll@180000", "kernel/vanilla@50000", "kernel/vanilla@100000"}
	if !slices.Equal(f.visits, want) {
		t.Errorf("visited %v, want %v", f.visits, want)
	}
	// A resumed run has the same rates in its plan and nothing left to do.
	dir := t.TempDir()
	if err := writeResults(dir, r); err != nil {
		t.Fatal(err)
	}
	again, err := resume(dir, plan, 0, result.Machine{})
	if err != nil {
		t.Fatal(err)
	}
	f.visits = nil
	if err := runFake(t, f, again); err != nil {
		t.Fatal(err)
	}
	if len(f.visits) != 0 {
		t.Errorf("a complete run was resumed with %v", f.visits)
	}
}

func TestAClientsLimitIsNeverReportedAsAServers(t *testing.T) {
	// By throughput user/poll would look a little better, but the client could
	// not do more; by CPU time it is three times as good.
	f := &fake{answer: func(subject string, _ float64, _ int) (result.Round, error) {
		if subject == "kernel/vanilla" {
			return steady(100_000, 9_000), nil
		}
		r := steady(120_000, 3_000)
		r.ClientBound, r.ClientBusy, r.ServerBusy = true, 1, 0.36
		return r, nil
	}}
	r := &result.Results{Plan: planOf(3, "user/poll", "kernel/vanilla")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	c := r.Comparisons[0]
	if c.Metric != byCPU || c.Ratio != 3 || c.Low != 3 || c.High != 3 {
		t.Errorf("compared %+v, want CPU time, 3 times", c)
	}
	for _, want := range []string{"user/poll", "3.00", "CPU time", "the client was the limit of user/poll", "spread 0 %"} {
		if !strings.Contains(r.Verdict, want) {
			t.Errorf("the verdict does not say %q: %s", want, r.Verdict)
		}
	}
	if strings.Contains(r.Verdict, "1.20") {
		t.Errorf("the verdict has the client's throughput: %s", r.Verdict)
	}
}

func TestVerdictNamesTheBestOfEachPathWithRatioAndSpread(t *testing.T) {
	base := map[string]float64{"user/poll": 250, "kernel/vanilla": 100, "kernel/kernel-polling": 150, "memcached": 900}
	drift := []float64{1, 1.04, 0.97}
	f := &fake{answer: func(subject string, _ float64, visit int) (result.Round, error) {
		return steady(1000*base[subject]*drift[visit], 1), nil
	}}
	r := &result.Results{Plan: planOf(3, "user/poll", "kernel/vanilla", "kernel/kernel-polling", "memcached")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	// What drifts alike does not change a ratio of rounds.
	for _, want := range []string{"use user/poll", "2.50 times", "2.50 to 2.50", "kernel/kernel-polling is best, 1.50"} {
		if !strings.Contains(r.Verdict, want) {
			t.Errorf("the verdict does not say %q: %s", want, r.Verdict)
		}
	}
	if strings.Contains(r.Verdict, "noisy") {
		t.Errorf("the verdict calls 7 %% noisy: %s", r.Verdict)
	}
}

func TestAKernelModeThatIsWorseThanTheBaselineIsNotPraised(t *testing.T) {
	most := map[string]float64{"user/poll": 250, "kernel/vanilla": 100, "kernel/kernel-polling": 60}
	f := &fake{answer: func(subject string, _ float64, _ int) (result.Round, error) { return steady(most[subject], 1), nil }}
	r := &result.Results{Plan: planOf(1, "user/poll", "kernel/vanilla", "kernel/kernel-polling")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Verdict, "use user/poll") || !strings.Contains(r.Verdict, "nothing was better than kernel/vanilla") || strings.Contains(r.Verdict, "0.60") {
		t.Errorf("verdict: %s", r.Verdict)
	}
}

func TestAModeThatIsNotProvenIsNotRecommended(t *testing.T) {
	f := &fake{answer: func(subject string, _ float64, _ int) (result.Round, error) {
		if subject == "kernel/vanilla" {
			return steady(100, 1), nil
		}
		r := steady(200, 1)
		if subject == "kernel/busy-poll" {
			r.Throughput = 400
			r.Proof = result.Proof{Why: "0 busy polls"}
		}
		return r, nil
	}}
	r := &result.Results{Plan: planOf(1, "kernel/busy-poll", "kernel/kernel-polling", "kernel/vanilla")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Verdict, "use kernel/kernel-polling") {
		t.Errorf("verdict: %s", r.Verdict)
	}
	if text := strings.Join(r.Warnings, "\n"); !strings.Contains(text, "0 busy polls") {
		t.Errorf("no warning of the mode that was not in force: %s", text)
	}
}

func TestACostThatIsOfAnotherThroughputIsDoubted(t *testing.T) {
	f := &fake{answer: func(subject string, _ float64, _ int) (result.Round, error) {
		r := steady(100_000, 9_000)
		if r.Observed = 95_000; subject == "user/poll" {
			r.Observed = 40_000
		}
		return r, nil
	}}
	r := &result.Results{Plan: planOf(2, "user/poll", "kernel/vanilla")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	conclude(r) // again: a warning is there once
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "user/poll") || !strings.Contains(r.Warnings[0], "40000/s") {
		t.Errorf("warnings: %q", r.Warnings)
	}
}

func TestANoisyMachineIsCalledNoisy(t *testing.T) {
	f := &fake{answer: func(subject string, _ float64, visit int) (result.Round, error) {
		x := 100.0
		if subject == "user/poll" {
			x = []float64{200, 300, 250}[visit]
		}
		return steady(x, 1), nil
	}}
	r := &result.Results{Plan: planOf(3, "user/poll", "kernel/vanilla")}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Verdict, "noisy") || !strings.Contains(r.Verdict, "2.00 to 3.00") {
		t.Errorf("verdict: %s", r.Verdict)
	}
}

func TestSaturationIsSearchedForByOfferingMoreUntilItIsNotFollowed(t *testing.T) {
	// The closed loop finds 80,000 and less than what there is, or more.
	limit := map[string]float64{"user/poll": 121_000, "kernel/vanilla": 61_000, "memcached": 90_000}
	f := &fake{answer: func(subject string, rate float64, _ int) (result.Round, error) {
		if rate == 0 {
			return steady(80_000, 1), nil
		}
		r := steady(min(rate, limit[subject]), 1)
		r.ServerFull = rate > limit[subject]
		if subject == "user/poll" && rate > limit[subject] {
			// As the client has it, a load of which 96 % were answered was served.
			r.ClientFull, r.ServerFull, r.ServerBusy = true, false, 0.9
		}
		return r, nil
	}}
	plan := planOf(1, "user/poll", "kernel/vanilla", "memcached")
	plan.Search, plan.Fractions = true, []float64{0.5}
	r := &result.Results{Schema: result.Schema, Plan: plan}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	for name, most := range limit {
		s := find(r, name, 0).Saturation
		if s == nil || s.Rate > most/follows || s.Beyond*follows <= most || s.Beyond > near*s.Rate {
			t.Errorf("%s, which can do %.0f: %+v", name, most, s)
			continue
		}
		if s.ClientBound != (name == "user/poll") || s.ServerBound == s.ClientBound {
			t.Errorf("%s: the limit is the client's: %v, the server's: %v", name, s.ClientBound, s.ServerBound)
		}
	}
	// Loads are fractions of what the search found, not of the closed loop.
	if want := 0.5 * find(r, "user/poll", 0).Saturation.Rate; math.Abs(r.Plan.Rates[1]-want) > want/50 {
		t.Errorf("half of saturation is %v, want about %.0f", r.Plan.Rates[1], want)
	}
	// A resumed run searches no more.
	dir := t.TempDir()
	if err := writeResults(dir, r); err != nil {
		t.Fatal(err)
	}
	again, err := resume(dir, plan, 0, result.Machine{})
	if err != nil {
		t.Fatal(err)
	}
	f.visits = nil
	if err := runFake(t, f, again); err != nil || len(f.visits) != 0 {
		t.Errorf("a complete run was resumed with %v, %v", f.visits, err)
	}
}

func TestARunIsResumedOnlyWhereItsFiguresCompare(t *testing.T) {
	dir := t.TempDir()
	plan := planOf(3, "user/poll", "kernel/vanilla")
	plan.Placement = "Server on core 0."
	machine := func() result.Machine {
		return result.Machine{Kernel: "6.18", CPU: "one", Versions: map[string]string{"pollux binary": "abc"}}
	}
	settings := []result.Setting{{Where: "user path, server", Name: "gro", Value: "on"}, {Where: "client", Name: "engine", Value: "user"}}
	r := &result.Results{Schema: result.Schema, Seed: 1, Plan: plan, Machine: machine(), Warnings: []string{"row of before", "noted while it ran"}}
	r.Machine.Settings = settings
	if err := writeResults(dir, r); err != nil {
		t.Fatal(err)
	}
	again, err := resume(dir, plan, 1, machine())
	if err != nil {
		t.Fatal(err)
	}
	// What is not visited again keeps the settings that it was measured with.
	var b bench
	b.know(again)
	if list := b.settingsList(); !slices.Equal(list, settings) {
		t.Errorf("settings %v, want %v", list, settings)
	}
	conclude(again)
	if !slices.Contains(again.Warnings, "noted while it ran") || slices.Contains(again.Warnings, "row of before") {
		t.Errorf("warnings %q", again.Warnings)
	}
	for want, change := range map[string]func(*result.Plan, *result.Machine){
		"kernel":        func(_ *result.Plan, m *result.Machine) { m.Kernel = "7.0" },
		"processor":     func(_ *result.Plan, m *result.Machine) { m.CPU = "two" },
		"pollux binary": func(_ *result.Plan, m *result.Machine) { m.Versions["pollux binary"] = "def" },
		"dpdk":          func(_ *result.Plan, m *result.Machine) { m.Versions["dpdk"] = "22.11" },
		"placed":        func(p *result.Plan, _ *result.Machine) { p.Placement = "Server on core 1." },
	} {
		p, m := plan, machine()
		change(&p, &m)
		if _, err := resume(dir, p, 1, m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("another %s: %v", want, err)
		}
	}
}

// A round that does not count is done again, and the closed loop's may come to other
// fractions: until then no load of the run before is the plan's.
func TestAResumedRunOffersFractionsOnlyOnceTheyAreKnown(t *testing.T) {
	dir := t.TempDir()
	plan := planOf(1, "user/poll", "kernel/vanilla")
	plan.Fractions = []float64{0.5}
	most := map[string]float64{"user/poll": 200_000, "kernel/vanilla": 100_000}
	f := &fake{answer: func(subject string, rate float64, _ int) (result.Round, error) {
		if rate == 0 {
			return steady(most[subject], 1), nil
		}
		return steady(rate, 1), nil
	}}
	r := &result.Results{Schema: result.Schema, Plan: plan}
	if err := runFake(t, f, r); err != nil {
		t.Fatal(err)
	}
	find(r, "user/poll", 0).Rounds[0].Invalid = "a reply was wrong"
	if err := writeResults(dir, r); err != nil {
		t.Fatal(err)
	}
	again, err := resume(dir, plan, 0, result.Machine{})
	if err != nil {
		t.Fatal(err)
	}
	most["user/poll"] = 120_000
	f.visits = nil
	if err := runFake(t, f, again); err != nil {
		t.Fatal(err)
	}
	if want := []string{"user/poll@0", "user/poll@60000", "kernel/vanilla@60000"}; !slices.Equal(f.visits, want) {
		t.Errorf("visited %v, want %v", f.visits, want)
	}
	if want := []float64{0, 60_000}; !slices.Equal(again.Plan.Rates, want) {
		t.Errorf("offered %v, want %v", again.Plan.Rates, want)
	}
}

func TestACPUTimeThatContainsPollsInVainIsCalledAnUpperBound(t *testing.T) {
	for _, bound := range []bool{true, false} {
		f := &fake{answer: func(subject string, _ float64, _ int) (result.Round, error) {
			r := steady(100_000, 9_000)
			r.ClientBound = bound
			if subject == "kernel/busy-poll" {
				r.Proof.BusyPolls, r.Proof.EmptyBusyPolls = 1e6, 0.9
			}
			return r, nil
		}}
		r := &result.Results{Plan: planOf(1, "kernel/busy-poll", "kernel/vanilla")}
		if err := runFake(t, f, r); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(r.Warnings, "\n")
		if strings.Contains(text, "kernel/busy-poll, closed loop: its CPU time per request is an upper bound") != bound || strings.Contains(text, "vanilla, closed loop: its CPU") {
			t.Errorf("compared by CPU time %v: %s", bound, text)
		}
	}
}
