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
	active, proof := m.Proof.Active, m.Proof.Why
	for _, r := range row.Rounds {
		if r.Invalid != "" {
			continue
		}
		bound = bound || r.ClientBound
		bad, errors = bad+r.Wrong, errors+r.Errors
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
	} else if row.Rate == 0 && m.ServerBusy > 0 && m.ServerBusy+m.Foreign < atLimit && m.ClientBusy < atLimit {
		add(noLimit, "not saturated", "server %s busy, client %s", percent(m.ServerBusy), percent(m.ClientBusy))
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

// notices gather what to doubt: the run's own warnings, and the rows' by kind.
func notices(v view) (list []notice) {
	if !v.Complete {
		list = append(list, notice{"Incomplete", "the run was interrupted; what had been measured by then is here" + missing(v)})
	} else if m := missing(v); m != "" {
		list = append(list, notice{"Incomplete", strings.TrimPrefix(m, "; ")})
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
				for _, c := range caveats(row) {
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

// missing says which of the planned rows, or of their rounds, are not there.
func missing(v view) string {
	absent, short := 0, 0
	for _, s := range v.Plan.Subjects {
		for _, r := range v.Plan.Rates {
			switch row := v.row(s.Name, r); {
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
