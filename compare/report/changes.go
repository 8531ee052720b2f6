package report

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/pollux-net/pollux/compare/result"
)

const (
	// same is by how much two runs of the same may differ.
	same = 0.10
	// near are two offered rates that are compared: a rate that is a fraction
	// of saturation is never quite that of another run.
	near = 0.05
)

// changes is what became of an earlier run's figures.
func changes(before, after *result.Results) section {
	old, now := newView(before), newView(after)
	s := section{ID: "changes", Title: "Against the earlier run"}
	differ, alike := differences(before, after)
	if !before.Started.IsZero() {
		s.Text = append(s.Text, "The earlier run is of "+before.Started.UTC().Format("2 January 2006 15:04 MST")+".")
	}
	if len(differ) == 0 {
		s.Text = append(s.Text, "Both runs have the same plan, seed, machine, versions and settings.")
	} else {
		s.Text = append(s.Text, "The runs differ in "+strings.Join(differ, "; ")+".")
	}
	t := table{Columns: append(append(text("subject"), figures("load", "requests/s before", "after", "change", "CPU ns/request before", "after", "change", "p99 before", "after", "change")...), text("is")...)}
	loads := table{Folded: true, Caption: "At offered loads", Columns: t.Columns}
	matched, within, lost := 0, 0, []string(nil)
	seen := make(map[*result.Row]bool)
	for _, subject := range now.subjects {
		for _, row := range now.allRows(subject.Name) {
			was := nearest(old, subject.Name, row.Rate)
			if was == nil {
				lost = append(lost, fmt.Sprintf("%s (%s) is new", subject.Name, offered(row.Rate)))
				continue
			}
			seen[was] = true
			to := &t
			if row.Rate > 0 {
				to = &loads
			}
			f, doubts := now.family(subject.Name), caveats(row)
			if !usable(was) || !usable(row) {
				to.add(f, doubts, subject.Name, offered(row.Rate), figureOf(was), figureOf(row), notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, "not comparable")
				continue
			}
			a, b := was.Median, row.Median
			matched++
			by := math.Abs(b.Throughput/a.Throughput - 1)
			if by <= same {
				within++
			}
			is := "changed"
			switch {
			case bounded(doubts) || bounded(caveats(was)):
				is = "client-bound"
			case by <= max(same, was.Spread, row.Spread):
				is = "as before"
			}
			to.add(f, doubts, subject.Name, offered(row.Rate), rate(a.Throughput), rate(b.Throughput), change(a.Throughput, b.Throughput),
				nanoseconds(a.Server.CPU), nanoseconds(b.Server.CPU), change(a.Server.CPU, b.Server.CPU),
				duration(a.Latency.P99), duration(b.Latency.P99), change(float64(a.Latency.P99), float64(b.Latency.P99)), is)
		}
	}
	for _, subject := range old.subjects {
		for _, row := range old.allRows(subject.Name) {
			if !seen[row] {
				lost = append(lost, fmt.Sprintf("%s (%s) is no longer there", subject.Name, offered(row.Rate)))
			}
		}
	}
	switch {
	case matched == 0:
		s.Text = append(s.Text, "The two runs have no figures in common.")
	case within == matched:
		s.Text = append(s.Text, fmt.Sprintf("The medians of throughput are within 10 %% of the earlier ones in all of %s.", plural(matched, "row")))
	case alike:
		s.Text = append(s.Text, fmt.Sprintf("The machine was too noisy: the same plan, seed and versions gave medians of throughput more than 10 %% apart in %d of %s.", matched-within, plural(matched, "row")))
	default:
		s.Text = append(s.Text, fmt.Sprintf("The medians of throughput are more than 10 %% apart in %d of %s.", matched-within, plural(matched, "row")))
	}
	if len(lost) > 0 {
		s.Text = append(s.Text, "Not compared: "+strings.Join(lost, "; ")+".")
	}
	for _, x := range []table{t, loads} {
		if len(x.Rows) > 0 {
			s.Tables = append(s.Tables, x)
		}
	}
	return s
}

func figureOf(row *result.Row) string {
	if usable(row) {
		return rate(row.Median.Throughput)
	}
	return "invalid"
}

// nearest is the row of a subject at about a rate, or nil.
func nearest(v view, subject string, rate float64) (found *result.Row) {
	if rate == 0 {
		return v.row(subject, 0)
	}
	least := near
	for _, row := range v.offeredRows(subject) {
		if d := math.Abs(row.Rate/rate - 1); d <= least {
			found, least = row, d
		}
	}
	return found
}

// differences in what was run, and whether two runs ought to give the same.
func differences(a, b *result.Results) (list []string, alike bool) {
	differ := func(what string, x, y any) bool {
		if fmt.Sprint(x) == fmt.Sprint(y) {
			return false
		}
		list = append(list, fmt.Sprintf("%s (%v, now %v)", what, x, y))
		return true
	}
	if a.Schema != b.Schema {
		differ("the schema of results.json, so that a figure may mean something else", a.Schema, b.Schema)
	}
	differ("seed", a.Seed, b.Seed)
	differ("plan", a.Plan.Name, b.Plan.Name)
	if a.Plan.Workload != b.Plan.Workload {
		differ("workload", fmt.Sprintf("%+v", a.Plan.Workload), fmt.Sprintf("%+v", b.Plan.Workload))
	}
	differ("rounds", a.Plan.Repetitions, b.Plan.Repetitions)
	differ("duration", a.Plan.Duration, b.Plan.Duration)
	differ("warm-up", a.Plan.Warmup, b.Plan.Warmup)
	differ("device", cmp.Or(a.Plan.Device, "the lab"), cmp.Or(b.Plan.Device, "the lab"))
	if a.Plan.Placement != b.Plan.Placement {
		list = append(list, "placement of the server and the client")
	}
	for _, x := range a.Plan.Subjects {
		for _, y := range b.Plan.Subjects {
			if x.Name == y.Name && !reflect.DeepEqual(x, y) {
				list = append(list, "what "+x.Name+" is")
			}
		}
	}
	differ("processor", a.Machine.CPU, b.Machine.CPU)
	differ("cores", a.Machine.Cores, b.Machine.Cores)
	differ("kernel", a.Machine.Kernel, b.Machine.Kernel)
	versions := make(map[string]string)
	for k, x := range a.Machine.Versions {
		versions[k] = x
	}
	for k, x := range b.Machine.Versions {
		versions[k] = x
	}
	for _, k := range sortedKeys(versions) {
		differ("version of "+k, cmp.Or(a.Machine.Versions[k], "none"), cmp.Or(b.Machine.Versions[k], "none"))
	}
	if n := settingsApart(a.Machine.Settings, b.Machine.Settings); len(n) > 0 {
		shown := n
		if len(shown) > 5 {
			shown = append(shown[:5:5], fmt.Sprintf("and %d more", len(n)-5))
		}
		list = append(list, "settings ("+strings.Join(shown, ", ")+")")
	}
	return list, len(list) == 0
}

// settingsApart names the settings that have not the same value in both.
func settingsApart(a, b []result.Setting) (names []string) {
	key := func(s result.Setting) string { return s.Where + ": " + s.Name }
	was := make(map[string]string)
	for _, s := range a {
		was[key(s)] += s.Value + "\n"
	}
	now := make(map[string]string)
	var order []string
	for _, s := range b {
		if _, ok := now[key(s)]; !ok {
			order = append(order, key(s))
		}
		now[key(s)] += s.Value + "\n"
	}
	for _, k := range order {
		if was[k] != now[k] {
			names = append(names, k)
		}
		delete(was, k)
	}
	names = append(names, sortedKeys(was)...)
	return names
}
