package report

import (
	"math"
	"slices"

	"github.com/pollux-net/pollux/compare/result"
)

// The names of paths and modes, as they are in a plan.
const (
	userPath   = "user"
	kernelPath = "kernel"
	vanilla    = "vanilla"
)

// family is what a subject is shown as: colours tell families apart, labels do
// the rest.
type family string

const (
	user   family = "user"
	kernel family = "kernel"
	other  family = "other" // another program
)

// view is a comparison with what reports look up in it.
type view struct {
	*result.Results
	subjects []result.Subject
	// base is the subject that others are compared with, or empty.
	base string
}

func newView(r *result.Results) view {
	v := view{Results: r, subjects: slices.Clone(r.Plan.Subjects)}
	for _, row := range r.Rows { // whatever else was measured
		if !slices.ContainsFunc(v.subjects, func(s result.Subject) bool { return s.Name == row.Subject }) {
			v.subjects = append(v.subjects, result.Subject{Name: row.Subject})
		}
	}
	if len(r.Comparisons) > 0 {
		v.base = r.Comparisons[0].Baseline
	} else if i := slices.IndexFunc(v.subjects, func(s result.Subject) bool {
		return s.Path == kernelPath && s.Mode == vanilla && len(s.Command) == 0 && usable(v.row(s.Name, 0))
	}); i >= 0 {
		v.base = v.subjects[i].Name
	}
	return v
}

// row finds a subject's row at a load, or nil.
func (v view) row(subject string, rate float64) *result.Row {
	for i := range v.Rows {
		if v.Rows[i].Subject == subject && v.Rows[i].Rate == rate {
			return &v.Rows[i]
		}
	}
	return nil
}

// offeredRows are a subject's with a rate, lowest first.
func (v view) offeredRows(subject string) (rows []*result.Row) {
	for i := range v.Rows {
		if v.Rows[i].Subject == subject && v.Rows[i].Rate > 0 {
			rows = append(rows, &v.Rows[i])
		}
	}
	slices.SortStableFunc(rows, func(a, b *result.Row) int { return int(math.Copysign(1, a.Rate-b.Rate)) })
	return rows
}

// allRows are all of a subject's, the closed loop first.
func (v view) allRows(subject string) (rows []*result.Row) {
	if row := v.row(subject, 0); row != nil {
		rows = append(rows, row)
	}
	return append(rows, v.offeredRows(subject)...)
}

func (v view) hasOffered() bool {
	return slices.ContainsFunc(v.Rows, func(r result.Row) bool { return r.Rate > 0 })
}

// comparison of a subject with the baseline, or nil.
func (v view) comparison(subject string) *result.Comparison {
	for i := range v.Comparisons {
		if v.Comparisons[i].Subject == subject {
			return &v.Comparisons[i]
		}
	}
	return nil
}

// ofMode finds our own server on the kernel's path in a mode: its closed loop.
func (v view) ofMode(mode string) (result.Subject, bool) {
	for _, s := range v.subjects {
		if s.Path == kernelPath && s.Mode == mode && len(s.Command) == 0 {
			return s, true
		}
	}
	return result.Subject{}, false
}

func (v view) family(subject string) family {
	for _, s := range v.subjects {
		if s.Name != subject {
			continue
		}
		switch {
		case len(s.Command) > 0:
			return other
		case s.Path == userPath:
			return user
		case s.Path == kernelPath:
			return kernel
		}
	}
	return other
}

// usable says whether a row has figures: at least one of its rounds counts.
func usable(row *result.Row) bool {
	return row != nil && counted(row) > 0 && row.Median.Invalid == "" && row.Median.Throughput > 0
}

// counted is the number of rounds that count.
func counted(row *result.Row) (n int) {
	for _, r := range row.Rounds {
		if r.Invalid == "" {
			n++
		}
	}
	return n
}
