package compare

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
)

// What a ratio is of.
const (
	byThroughput = "throughput"
	byCPU        = "cpu"
)

// noisy is the spread of rounds from which figures are not to be trusted, and
// foreign the share of the server's core that others may have.
const (
	noisy   = 0.10
	foreign = 0.05
)

// conclude fills in what follows from the rows: comparisons, verdict, warnings.
func conclude(r *result.Results) {
	for i := range r.Rows {
		summarize(&r.Rows[i])
	}
	r.Comparisons = nil
	r.Warnings = warnings(r)
	base := baseline(r)
	if base == "" {
		r.Verdict = "No verdict: nothing was measured at saturation that counts."
		return
	}
	metric := metricOf(r)
	for _, s := range r.Plan.Subjects {
		if s.Name != base {
			r.Comparisons = append(r.Comparisons, against(r, s.Name, base, metric))
		}
	}
	r.Verdict = verdict(r, base)
}

// baseline is the kernel as it comes, or, without it, the first that counts.
func baseline(r *result.Results) string {
	vanilla := string(runtime.Kernel) + "/" + string(runtime.Vanilla)
	first := ""
	for _, s := range r.Plan.Subjects {
		if len(validRounds(find(r, s.Name, 0))) == 0 {
			continue
		}
		if s.Name == vanilla {
			return vanilla
		}
		first = cmp.Or(first, s.Name)
	}
	return first
}

// metricOf is what subjects are compared by: requests per second, unless the
// client was the limit of any; then the server's CPU time per request, of all,
// for ratios of different things would not compare with each other.
func metricOf(r *result.Results) string {
	for _, s := range r.Plan.Subjects {
		if row := find(r, s.Name, 0); row != nil && row.Median.ClientBound {
			return byCPU
		}
	}
	return byThroughput
}

// against compares two subjects, the medians and round by round.
func against(r *result.Results, subject, base, metric string) result.Comparison {
	c := result.Comparison{Subject: subject, Baseline: base, Metric: metric}
	row, other := find(r, subject, 0), find(r, base, 0)
	rounds := validRounds(row)
	if len(rounds) == 0 {
		c.Invalid = "no round counts"
		if row != nil && len(row.Rounds) > 0 {
			c.Invalid = row.Rounds[len(row.Rounds)-1].Invalid
		}
		return c
	}
	ratio := func(a, b result.Round) float64 {
		x, y := a.Throughput, b.Throughput
		if c.Metric == byCPU {
			x, y = b.Server.CPU, a.Server.CPU
		}
		if y <= 0 {
			return 0
		}
		return x / y
	}
	c.Ratio = ratio(row.Median, other.Median)
	if c.Ratio <= 0 {
		c.Invalid = "the server's CPU time is not known"
		return c
	}
	c.Low, c.High = c.Ratio, c.Ratio
	for _, a := range rounds {
		for _, b := range validRounds(other) {
			if x := ratio(a, b); a.Number == b.Number && x > 0 {
				c.Low, c.High = min(c.Low, x), max(c.High, x)
			}
		}
	}
	return c
}

// words for a metric.
func words(metric string) string {
	if metric == byCPU {
		return "per second of the server's CPU time"
	}
	return "per second and core"
}

// verdict is one sentence on which to use, and a second on what to doubt.
func verdict(r *result.Results, base string) string {
	var best, bestKernel *result.Comparison
	for i := range r.Comparisons {
		c := &r.Comparisons[i]
		if c.Invalid != "" || !find(r, c.Subject, 0).Median.Proof.Active {
			continue
		}
		s := subjectOf(r, c.Subject)
		if len(s.Command) > 0 {
			continue // another program: a comparison, not a choice of path and mode
		}
		if best == nil || c.Ratio > best.Ratio {
			best = c
		}
		if s.Path == string(runtime.Kernel) && (bestKernel == nil || c.Ratio > bestKernel.Ratio) {
			bestKernel = c
		}
	}
	where := "in the lab"
	if r.Plan.Device != "" {
		where = "on " + r.Plan.Device
	}
	work := fmt.Sprintf("%s, %d connections, depth %d", r.Plan.Workload.Kind, r.Plan.Workload.Connections, r.Plan.Workload.Depth)
	if best == nil || best.Ratio <= 1 {
		return fmt.Sprintf("For %s %s, nothing was better than %s.", work, where, base) + doubt(r, base)
	}
	text := fmt.Sprintf("For %s %s, use %s: it answers %.2f times the requests %s that %s does (rounds %s, spread %.0f %%)",
		work, where, best.Subject, best.Ratio, words(best.Metric), base, between(best), 100*spread(best))
	if best.Metric == byCPU {
		text += fmt.Sprintf("; the client was the limit of %s, so that CPU time is compared, not throughput", strings.Join(bound(r), ", "))
	}
	switch {
	case bestKernel == nil || bestKernel == best:
	case bestKernel.Ratio <= 1:
		text += fmt.Sprintf("; on the kernel's path nothing was better than %s", base)
	default:
		text += fmt.Sprintf("; of the kernel's path %s is best, %.2f times (rounds %s)", bestKernel.Subject, bestKernel.Ratio, between(bestKernel))
	}
	return text + "." + doubt(r, best.Subject, base)
}

func between(c *result.Comparison) string { return fmt.Sprintf("%.2f to %.2f", c.Low, c.High) }

// spread of a comparison's ratio over the rounds.
func spread(c *result.Comparison) float64 { return (c.High - c.Low) / c.Ratio }

// bound lists the subjects of whose closed loop the client was the limit.
func bound(r *result.Results) (names []string) {
	for _, s := range r.Plan.Subjects {
		if row := find(r, s.Name, 0); row != nil && row.Median.ClientBound {
			names = append(names, s.Name)
		}
	}
	return names
}

func subjectOf(r *result.Results, name string) result.Subject {
	i := slices.IndexFunc(r.Plan.Subjects, func(s result.Subject) bool { return s.Name == name })
	if i < 0 {
		return result.Subject{}
	}
	return r.Plan.Subjects[i]
}

// doubt is what to say beside a verdict on these subjects.
func doubt(r *result.Results, subjects ...string) string {
	for _, c := range r.Comparisons {
		if slices.Contains(subjects, c.Subject) && c.Invalid == "" && spread(&c) > noisy {
			return fmt.Sprintf(" The machine was noisy: the ratio of single rounds varies by %.0f %%.", 100*spread(&c))
		}
	}
	for _, name := range subjects {
		if row := find(r, name, 0); row != nil && row.Spread > noisy {
			return fmt.Sprintf(" The machine was noisy: the rounds of %s differ by %.0f %%.", name, 100*row.Spread)
		}
	}
	return ""
}

// warnings are all that makes a figure doubtful, row by row.
func warnings(r *result.Results) []string {
	// What was noted while it ran is not found in the rows again.
	list := slices.DeleteFunc(slices.Clone(r.Warnings), func(w string) bool {
		return strings.HasPrefix(w, rowMark) || strings.HasPrefix(w, unlikelyMark)
	})
	for i := range r.Rows {
		row := &r.Rows[i]
		m := row.Median
		load := "closed loop"
		if row.Rate > 0 {
			load = fmt.Sprintf("%.0f/s offered", row.Rate)
		}
		warn := func(format string, args ...any) {
			list = append(list, rowMark+row.Subject+", "+load+": "+fmt.Sprintf(format, args...))
		}
		for _, x := range row.Rounds {
			if x.Invalid != "" {
				warn("round %d does not count: %s", x.Number, x.Invalid)
			}
		}
		valid := validRounds(row)
		if len(valid) == 0 {
			continue
		}
		if row.Spread > noisy {
			warn("noisy: the rounds differ by %.0f %%", 100*row.Spread)
		}
		if m.Foreign > foreign {
			warn("other programs took %.0f %% of the server's core", 100*m.Foreign)
		}
		if m.ClientBound {
			warn("the client was the limit (%.0f %% busy, the server's core %.0f %%): requests per second are no limit of the server's; compare the CPU time per request", 100*m.ClientBusy, 100*m.CoreUsed())
		} else if row.Rate == 0 && m.CoreUsed() < idleSaturation && m.ClientBusy < idleSaturation && m.ServerBusy > 0 {
			warn("neither side was at its limit (server %.0f %%, client %.0f %% busy): more connections would give more", 100*m.ServerBusy, 100*m.ClientBusy)
		}
		if m.Observed > 0 && (m.Observed < (1-unlike)*m.Throughput || m.Observed > (1+unlike)*m.Throughput) {
			unlikely := fmt.Sprintf("%s, %s: while it was measured the server answered %.0f/s, and %.0f/s when nothing was attached: its CPU time per request is not that of its throughput", row.Subject, load, m.Observed, m.Throughput)
			list = append(list, unlikelyMark+unlikely)
		}
		if !m.Proof.Active {
			warn("the mode is not proven to have been in force: %s", m.Proof.Why)
		}
		if misses := rowMisses(row); misses > 0 {
			warn("%d requests found no value, which costs less to answer than one that does", misses)
		}
		if metricOf(r) == byCPU && m.UpperBound() {
			warn("its CPU time per request is an upper bound: it contains polls in vain, which cannot be told apart (they took some %.0f %% of the core)", 100*m.InVain())
		}
		if m.Elsewhere > 0.01 {
			warn("receive work took %.0f %% of a second core, which is in the server's CPU time", 100*m.Elsewhere)
		}
	}
	return list
}

func rowMisses(row *result.Row) (n uint64) {
	for _, x := range validRounds(row) {
		n += x.Misses
	}
	return n
}

const (
	// rowMark begins the warnings that follow from rows.
	rowMark = "row "
	// unlikelyMark begins those that the report has no words of its own for.
	unlikelyMark = "cost of "
	// unlike is by how much the observed time may differ from the measured one.
	unlike = 0.25
	// idleSaturation is how busy the busier side of a closed loop ought to be.
	idleSaturation = 0.80
)
