package forwarding

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// noisy is the spread of rounds from which figures are not to be trusted, foreign
// the share of the router's core that others may have, and limit how busy that core
// must be for a figure to be the router's limit.
const (
	noisy   = 0.10
	foreign = 0.05
	limit   = 0.95
)

// Table prints the rows, and what they come to in a sentence.
func Table(out io.Writer, rows []Row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "subject\tMpps\tspread\tbetter\tCPU ns/frame\tcore busy\toffered Mpps\tlost\tidle\tsleeps per 1,000\t")
	for _, r := range rows {
		if len(r.Rounds) == 0 {
			continue
		}
		bound := "≥ "
		if r.Median(Round.Busy) >= limit {
			bound = ""
		}
		offered := r.Median(func(x Round) float64 { return float64(x.Offered) / x.Elapsed.Seconds() })
		sleeps := r.Median(func(x Round) float64 { return 1000 * float64(x.Sleeps) / float64(max(1, x.Frames)) })
		fmt.Fprintf(w, "%s\t%s%.2f\t%.0f %%\t%s\t%.0f\t%.0f %%\t%.2f\t%.0f %%\t%.1f %%\t%.1f\t\n", r.Subject, bound, r.PerSecond()/1e6, 100*r.Spread(),
			better(rows, r), r.Cost(), 100*r.Median(Round.Busy), offered/1e6, 100*r.Median(Round.Lost), 100*r.Median(func(x Round) float64 { return x.Idle }), sleeps)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, `“Better” is in frames per second of the router's processor time, against the first. “≥”: the router had time left, and something else was the limit: the generator and the sink on the other core, or the ring before the router.`)
	_, err := fmt.Fprintf(out, "\n%s\n", Verdict(rows))
	return err
}

// ratio is how many times the frames of the first row one does in the same
// processor time.
func ratio(rows []Row, r Row) float64 {
	if cost := r.Cost(); cost > 0 {
		return rows[0].Cost() / cost
	}
	return 0
}

func better(rows []Row, r Row) string {
	if r.Subject == rows[0].Subject {
		return "base"
	}
	return fmt.Sprintf("%.2f×", ratio(rows, r))
}

// Verdict says in a sentence which subject costs least.
func Verdict(rows []Row) string {
	if len(rows) == 0 || len(rows[0].Rounds) == 0 {
		return "No verdict: nothing was measured."
	}
	best := rows[0]
	doubtful, crowded := false, false
	for _, r := range rows {
		if len(r.Rounds) == 0 {
			continue
		}
		if ratio(rows, r) > ratio(rows, best) {
			best = r
		}
		doubtful = doubtful || r.Spread() > noisy
		crowded = crowded || r.Median(func(x Round) float64 { return x.Foreign }) > foreign
	}
	text := fmt.Sprintf("For %d-byte frames of 1,024 flows and one route, between veths, %s costs the least processor time: %.2f times the frames of %s.", frameSize, best.Subject, ratio(rows, best), rows[0].Subject)
	if best.Subject == rows[0].Subject {
		text = fmt.Sprintf("For %d-byte frames of 1,024 flows and one route, between veths, nothing costs less processor time than %s.", frameSize, best.Subject)
	}
	if doubtful {
		text += " The machine was noisy: rounds of some subjects differ by more than 10 %."
	}
	if crowded {
		text += " Other programs ran on the router's processor."
	}
	return text
}
