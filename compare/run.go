package compare

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

// A stage is where servers are put to be measured: the lab, or a test's fake.
type stage interface {
	// serve has the subject's server up while visit runs.
	serve(ctx context.Context, s result.Subject, visit func(server) error) error
}

// A server is one that is up.
type server interface {
	// idle measures what it costs while nobody asks.
	idle(ctx context.Context) (result.Idle, error)
	// round loads and measures it once; rate 0 is the closed loop.
	round(ctx context.Context, rate float64) (result.Round, error)
}

// A run carries out the plan of its results, which may have some of it already.
type run struct {
	results *result.Results
	stage   stage
	// save keeps what there is, after every visit.
	save func() error
	// step is told what is about to happen, and, when it is done, with an empty
	// text, how much of the estimated time that was.
	step func(what string, done time.Duration)
}

func (r *run) all(ctx context.Context) error {
	p := &r.results.Plan
	fixed := slices.DeleteFunc(slices.Clone(p.Rates), func(rate float64) bool { return slices.Contains(r.derived(), rate) })
	if err := r.rounds(ctx, fixed, true); err != nil {
		return err
	}
	if p.Search {
		for _, s := range p.Subjects {
			if err := r.search(ctx, s); err != nil {
				return err
			}
		}
	}
	if derived := r.derived(); len(derived) > 0 {
		for _, rate := range derived {
			if !slices.Contains(p.Rates, rate) {
				p.Rates = append(p.Rates, rate)
			}
		}
		if err := r.rounds(ctx, derived, false); err != nil {
			return err
		}
	}
	r.results.Complete = true
	return nil
}

// derived are the rates that the plan's fractions come to, once all that
// they depend on is known.
func (r *run) derived() []float64 {
	p := r.results.Plan
	highest := 0.0
	for _, s := range p.Subjects {
		row := find(r.results, s.Name, 0)
		if row == nil || len(row.Rounds) < p.Repetitions || p.Search && row.Saturation == nil {
			return nil
		}
		highest = max(highest, row.Most())
	}
	if highest == 0 {
		return nil
	}
	var rates []float64
	for _, f := range p.Fractions {
		rate := f * highest
		unit := math.Pow(10, math.Floor(math.Log10(rate))-1) // two digits
		rates = append(rates, math.Round(rate/unit)*unit)
	}
	return rates
}

// rounds does the first round of every subject, then the second of every, so
// that what drifts hits all alike.
func (r *run) rounds(ctx context.Context, rates []float64, idle bool) error {
	p := r.results.Plan
	for number := 1; number <= p.Repetitions; number++ {
		for _, s := range p.Subjects {
			if err := r.visit(ctx, s, rates, number, idle && number == 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// visit does what there is to do of one subject in one round. A subject that
// fails is noted and does not end the run.
func (r *run) visit(ctx context.Context, s result.Subject, rates []float64, number int, idle bool) error {
	todo := slices.DeleteFunc(slices.Clone(rates), func(rate float64) bool {
		row := find(r.results, s.Name, rate)
		done := row != nil && slices.ContainsFunc(row.Rounds, func(x result.Round) bool { return x.Number == number })
		return done || r.results.TooMuch(s.Name, rate)
	})
	if len(todo) == 0 {
		return ctx.Err()
	}
	p := r.results.Plan
	one := p.Warmup + p.Duration + roundOverhead
	name := fmt.Sprintf("round %d of %d: %s", number, p.Repetitions, s.Name)
	r.step(name, 0)
	err := r.stage.serve(ctx, s, func(v server) error {
		if row := find(r.results, s.Name, todo[0]); idle && (row == nil || row.Idle == nil) {
			r.step(name+", idle", 0)
			i, err := v.idle(ctx)
			if err != nil {
				return err
			}
			entry(r.results, s.Name, todo[0]).Idle = &i
			r.step("", idleTime)
		}
		for len(todo) > 0 {
			what := name + ", closed loop"
			if todo[0] > 0 {
				what = fmt.Sprintf("%s, %.0f/s", name, todo[0])
			}
			r.step(what, 0)
			round, err := v.round(ctx, todo[0])
			if err != nil {
				return err
			}
			round.Number = number
			add(r.results, s.Name, todo[0], round)
			todo = todo[1:]
			r.step("", one)
		}
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err() // what was begun does not count
	}
	for _, rate := range todo {
		if err == nil {
			err = errors.New("the server was not measured")
		}
		add(r.results, s.Name, rate, result.Round{Number: number, Invalid: err.Error()})
	}
	if err != nil && len(todo) == 0 {
		r.results.Warnings = append(r.results.Warnings, fmt.Sprintf("%s, round %d: %v", s.Name, number, err))
	}
	r.step("", visitOverhead+time.Duration(len(todo))*one)
	return r.save()
}

func find(r *result.Results, subject string, rate float64) *result.Row {
	for i := range r.Rows {
		if r.Rows[i].Subject == subject && r.Rows[i].Rate == rate {
			return &r.Rows[i]
		}
	}
	return nil
}

func entry(r *result.Results, subject string, rate float64) *result.Row {
	if row := find(r, subject, rate); row != nil {
		return row
	}
	r.Rows = append(r.Rows, result.Row{Subject: subject, Rate: rate})
	return &r.Rows[len(r.Rows)-1]
}

func add(r *result.Results, subject string, rate float64, round result.Round) {
	row := entry(r, subject, rate)
	row.Rounds = append(row.Rounds, round)
	summarize(row)
}
