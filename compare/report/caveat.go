package report

import (
	"fmt"
	"strings"

	"github.com/pollux-net/pollux/compare/result"
)

const (
	// noisy is the spread of rounds from which figures are not to be trusted.
	noisy = 0.10
	// foreign is the share of the server's core that others may have.
	foreign = 0.05
	// served is the share of the offered load from which it counts as served.
	served = 0.95
	// atLimit is how busy one side of a closed loop must be to be its limit.
	atLimit = 0.80
	// elsewhere is the share of another core that receive work may take.
	elsewhere = 0.01
)

// kind of a caveat.
type kind int

const (
	nothingCounts kind = iota
	wrong
	notProven
	clientBound
	noLimit
	upperBound
	missed
	noisyRounds
	shared
	overloaded
	roundsLost
	otherCore
	kinds
)

// titles head the notice on all rows with a caveat of the kind; a kind without
// one is told beside its rows only.
var titles = [kinds]struct{ title, why string }{
	nothingCounts: {"No figures", "no round of these counts"},
	wrong:         {"Wrong or missing replies", "the server did not answer every request rightly"},
	notProven:     {"Mode not proven active", "do not read these as figures of their mode"},
	clientBound:   {"Client-bound", "requests per second are no limit of these servers'; compare the CPU time per request"},
	noLimit:       {"Nobody was at the limit", "neither the server nor the client was busy, so this is not saturation"},
	upperBound:    {"CPU time is an upper bound", "these poll busily inside epoll_wait, where polls in vain cannot be told from work, and subjects are compared by CPU time; what they cost, and so what another gains on them, is at most this"},
	missed:        {"Misses", "requests found no value although every key was stored, and to say so costs less; compare only rows with as few"},
	noisyRounds:   {"Noisy", "the rounds' throughput differs by more than 10 %"},
	shared:        {"Not alone", "other programs ran on the server's core"},
	roundsLost:    {"Rounds that do not count", "the medians are over fewer rounds"},
}

// caveat is why a row is not to be taken at face value.
type caveat struct {
	Kind  kind
	Short string // beside the row
	Long  string // the evidence
}

// hollow says that a throughput is drawn as a bound, not as a figure.
func hollow(list []caveat) bool {
	for _, c := range list {
		switch c.Kind {
		case nothingCounts, notProven, clientBound, wrong, noLimit, overloaded:
			return true
		}
	}
	return false
}

// bounded says that a row's throughput is the client's.
func bounded(list []caveat) bool {
	for _, c := range list {
		if c.Kind == clientBound {
			return true
		}
	}
	return false
}

// caveats of a row, the worst first.
func caveats(row *result.Row) (list []caveat) {
	add := func(k kind, short, long string, args ...any) {
		list = append(list, caveat{k, short, fmt.Sprintf(long, args...)})
	}
	if row == nil {
		return []caveat{{nothingCounts, "not run", "not run"}}
	}
	lost, why, total := 0, "", len(row.Rounds)
	for _, r := range row.Rounds {
		if r.Invalid != "" {
			lost++
			if why == "" {
				why = fmt.Sprintf("round %d: %s", r.Number, r.Invalid)
			}
		}
	}
	if !usable(row) {
		if why == "" {
			why = "no round was finished"
		}
		add(nothingCounts, "invalid", "%s", why)
		return list
	}
	m := row.Median
	// Medians can hide the one round in which it happened.
	bound, bad, errors := m.ClientBound, uint64(0), uint64(0)
	misses, requests := uint64(0), uint64(0)
	active, proof := m.Proof.Active, m.Proof.Why
	for _, r := range row.Rounds {
		if r.Invalid != "" {
			continue
		}
		bound = bound || r.ClientBound
		bad, errors = bad+r.Wrong, errors+r.Errors
		misses, requests = misses+r.Misses, requests+r.Requests
		if !r.Proof.Active && active {
			active, proof = false, r.Proof.Why
		}
	}
	if bad > 0 || errors > 0 {
		add(wrong, "wrong replies", "%d wrong and %d failed requests in rounds that count", bad, errors)
	}
	if !active {
		if proof == "" {
			proof = "there is no evidence"
		}
		add(notProven, "mode not proven", "%s", proof)
	}
	if bound {
		add(clientBound, "client-bound", "the client was %s busy, the server %s", percent(m.ClientBusy), percent(m.ServerBusy))
	} else if row.Rate == 0 && m.ServerBusy > 0 && m.CoreUsed() < atLimit && m.ClientBusy < atLimit {
		add(noLimit, "not saturated", "server %s busy, client %s", percent(m.ServerBusy), percent(m.ClientBusy))
	}
	if misses > 0 {
		share := float64(misses) / float64(max(requests, 1))
		add(missed, "misses: "+percent(share), "%d of %d requests found no value", misses, requests)
	}
	if row.Spread > noisy {
		add(noisyRounds, "noisy: "+percent(row.Spread), "rounds differ by %s", percent(row.Spread))
	}
	if m.Foreign > foreign {
		add(shared, "others: "+percent(m.Foreign)+" of the core", "other programs took %s of the server's core", percent(m.Foreign))
	}
	if row.Rate > 0 && m.Throughput < served*row.Rate {
		add(overloaded, "load not served", "%s/s of %s/s were served", rate(m.Throughput), rate(row.Rate))
	}
	if lost > 0 {
		add(roundsLost, fmt.Sprintf("%d of %d rounds invalid", lost, total), "%d of %d do not count; %s", lost, total, why)
	}
	if m.Elsewhere > elsewhere {
		add(otherCore, percent(m.Elsewhere)+" of a second core", "receive work took %s of a second core, which is in the CPU time", percent(m.Elsewhere))
	}
	return list
}

// byCPU is the metric of a comparison by the server's CPU time.
const byCPU = "cpu"

// caveats of a row, with those that depend on what the rows are compared by.
func (v view) caveats(row *result.Row) []caveat {
	list := caveats(row)
	if len(v.Comparisons) == 0 || v.Comparisons[0].Metric != byCPU || !usable(row) || !row.Median.UpperBound() {
		return list
	}
	return append(list, caveat{upperBound, "CPU: upper bound", fmt.Sprintf("polls in vain took some %s of the core and are in the CPU time", percent(row.Median.InVain()))})
}

// notices gather what to doubt: the run's own warnings, and the rows' by kind.
func notices(v view) (list []notice) {
	if !v.Complete {
		list = append(list, notice{"Incomplete", "the run was interrupted; what had been measured by then is here" + missing(v)})
	} else if m := missing(v); m != "" {
		list = append(list, notice{"Incomplete", strings.TrimPrefix(m, "; ")})
	}
	if names := debianDeep(v); len(names) > 0 {
		list = append(list, notice{"A weak baseline", fmt.Sprintf("Debian's memcached answers a pipeline with one sendmsg for each command, which newer ones do not, so at depth %d it is slower than it need be: %s. Compare our server on both paths", v.Plan.Workload.Depth, strings.Join(names, ", "))})
	}
	for _, w := range v.Warnings {
		if !strings.HasPrefix(w, "row ") { // those follow from the rows, see below
			list = append(list, notice{"Warning", w})
		}
	}
	for k := range kinds {
		if titles[k].title == "" {
			continue
		}
		var where []string
		for _, s := range v.subjects {
			var loads []string
			rows := v.allRows(s.Name)
			for _, row := range rows {
				for _, c := range v.caveats(row) {
					if c.Kind == k {
						loads = append(loads, offered(row.Rate))
					}
				}
			}
			if len(loads) == len(rows) && len(rows) > 1 {
				loads = []string{"every load"}
			}
			if len(loads) > 0 {
				where = append(where, fmt.Sprintf("%s (%s)", s.Name, strings.Join(loads, ", ")))
			}
		}
		if len(where) > 0 {
			list = append(list, notice{titles[k].title, titles[k].why + ": " + strings.Join(where, "; ")})
		}
	}
	return list
}

// debianDeep names the subjects that are Debian's memcached, if requests are sent
// before earlier ones are answered.
func debianDeep(v view) (names []string) {
	for _, s := range v.subjects {
		if v.Plan.Workload.Depth > 1 && len(s.Command) > 0 && s.Command[0] == "memcached" {
			names = append(names, s.Name)
		}
	}
	return names
}

// missing says which of the planned rows, or of their rounds, are not there.
func missing(v view) string {
	absent, short := 0, 0
	for _, s := range v.Plan.Subjects {
		for _, r := range v.Plan.Rates {
			switch row := v.row(s.Name, r); {
			case row == nil && v.TooMuch(s.Name, r): // the plan leaves it out
			case row == nil:
				absent++
			case len(row.Rounds) < v.Plan.Repetitions:
				short++
			}
		}
	}
	var b strings.Builder
	if absent > 0 {
		fmt.Fprintf(&b, "; %s of the plan not measured", plural(absent, "row"))
	}
	if short > 0 {
		fmt.Fprintf(&b, "; %s with fewer rounds than planned", plural(short, "row"))
	}
	return b.String()
}
