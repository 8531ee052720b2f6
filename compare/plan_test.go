package compare

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

func TestSubjectsAreReadByName(t *testing.T) {
	for name, want := range map[string]result.Subject{
		"user/poll":                  {Name: "user/poll", Path: "user", Mode: "poll", Dispatch: "inline"},
		"user/adaptive/handoff":      {Name: "user/adaptive/handoff", Path: "user", Mode: "adaptive", Dispatch: "handoff"},
		"kernel/kernel-polling":      {Name: "kernel/kernel-polling", Path: "kernel", Mode: "kernel-polling"},
		"memcached":                  {Name: "memcached", Path: "kernel", Mode: "vanilla", Command: memcached},
		"memcached+attach":           {Name: "memcached+attach", Path: "kernel", Mode: "kernel-polling", Command: memcached, Attach: true},
		"memcached+attach/busy-poll": {Name: "memcached+attach/busy-poll", Path: "kernel", Mode: "busy-poll", Command: memcached, Attach: true},
	} {
		got, err := ParseSubject(name)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for _, name := range []string{"", "user", "user/vanilla", "kernel/poll", "kernel/vanilla/handoff", "user/poll/quick", "memcached+attach/poll", "redis"} {
		if s, err := ParseSubject(name); err == nil {
			t.Errorf("%q was read as %+v", name, s)
		}
	}
}

func TestPlansOfTheHouseAreValidAndTheQuickOneIsQuick(t *testing.T) {
	for _, p := range []result.Plan{Quick(), Full()} {
		if err := Validate(p); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	if d := Estimate(Quick()); d > 4*time.Minute {
		t.Errorf("the quick plan takes %v, want under 4 minutes", d)
	}
}

func TestPlanIsReadFromAFileAndTheRestIsItsBases(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mine.toml")
	text := `
base = "full"
subjects = ["user/poll", "kernel/vanilla"]
rates = [0, 50000]
load_fractions = []
repetitions = 2
duration = "3s"

[workload]
kind = "etc"
connections = 8
value_size = 0

[[servers]]
name = "mine"
command = "/opt/mine -l {host} -p {port}"
`
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := Validate(p); err != nil {
		t.Error(err)
	}
	want := Full()
	want.Name = name
	want.Subjects = append(mustParse("user/poll", "kernel/vanilla"), result.Subject{Name: "mine", Path: "kernel", Mode: "vanilla",
		Command: []string{"/opt/mine", "-l", "{host}", "-p", "{port}"}})
	want.Rates, want.Fractions, want.Repetitions, want.Duration = []float64{0, 50000}, []float64{}, 2, 3*time.Second
	want.Workload.Kind, want.Workload.Connections, want.Workload.ValueSize = "etc", 8, 0
	if !reflect.DeepEqual(p, want) {
		t.Errorf("read %+v\nwant %+v", p, want)
	}
	if err := os.WriteFile(name, []byte("repetition = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "repetition") {
		t.Errorf("a misspelt key: %v", err)
	}
}

func TestPlansThatCannotBeRunAreRefused(t *testing.T) {
	for why, change := range map[string]func(*result.Plan){
		"no subjects":                func(p *result.Plan) { p.Subjects = nil },
		"one name twice":             func(p *result.Plan) { p.Subjects = append(p.Subjects, p.Subjects[0]) },
		"no repetitions":             func(p *result.Plan) { p.Repetitions = 0 },
		"a warm-up too short":        func(p *result.Plan) { p.Warmup = time.Millisecond },
		"no load":                    func(p *result.Plan) { p.Rates = nil },
		"a negative rate":            func(p *result.Plan) { p.Rates = []float64{-1} },
		"fractions of nothing":       func(p *result.Plan) { p.Rates, p.Fractions = []float64{1000}, []float64{0.5} },
		"an unknown workload":        func(p *result.Plan) { p.Workload.Kind = "webscale" },
		"more connections than keys": func(p *result.Plan) { p.Workload.Keys = 1 },
	} {
		p := Quick()
		change(&p)
		if err := Validate(p); err == nil {
			t.Errorf("%s: not refused", why)
		}
	}
}

// A client of the kernel's costs more than the servers that it loads.
func TestPlansOfTheHouseLoadByTheStackThatCostsLess(t *testing.T) {
	for _, p := range []result.Plan{Quick(), Full()} {
		if p.Workload.Engine != "user" {
			t.Errorf("%s: engine %s", p.Name, p.Workload.Engine)
		}
	}
}

func TestAWorkloadsOwnShareOfSetsIsWrittenDown(t *testing.T) {
	for kind, want := range map[string]float64{"get": 0, "set": 1, "etc": 0.03, "mixed": 0.2} {
		w := result.Workload{Kind: kind, SetRatio: 0.2}
		if settle(&w); w.SetRatio != want {
			t.Errorf("%s: %v sets, want %v", kind, w.SetRatio, want)
		}
	}
	name := filepath.Join(t.TempDir(), "mine.toml")
	if err := os.WriteFile(name, []byte("[workload]\nkind = \"get\"\nset_ratio = 0.5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "set_ratio is for workload mixed") {
		t.Errorf("gets with a share of sets: %v", err)
	}
}
