package compare

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

const (
	// follows is what part of a load must be answered in time for the server to
	// have followed it.
	follows = 0.97
	// stride is the factor between loads until one is followed and one is not,
	// and near the one between these two at which the search ends.
	stride = 1.25
	near   = 1.06
	// searchSteps bounds the search.
	searchSteps = 8
)

// limits says whose limit a load was that was not followed. It asks for what each
// side had left, not for the bottleneck that the client names: to the client, a load
// of which it got a little less than this search wants was served. A server that had
// time left was not at its limit, whatever was.
func limits(x result.Round) (client, server bool) {
	client = x.ClientFull && !x.ServerFull
	server = x.ServerFull || !x.ClientFull && x.CoreUsed() >= idleSaturation
	return client, server && x.Invalid == ""
}

// search finds the highest load that a subject follows, beginning where its
// closed loop ended. The closed loop offers what comes back; here load is
// offered that does not wait.
func (r *run) search(ctx context.Context, s result.Subject) error {
	row := find(r.results, s.Name, 0)
	if row == nil || row.Saturation != nil {
		return ctx.Err()
	}
	p := r.results.Plan
	step := p.Warmup + p.Duration + roundOverhead
	found := result.Saturation{}
	steps := 0
	err := r.stage.serve(ctx, s, func(v server) error {
		for rate := row.Median.Throughput; rate > 0 && steps < searchSteps; steps++ {
			r.step(fmt.Sprintf("search: %s, %.0f/s", s.Name, rate), 0)
			x, err := v.round(ctx, rate)
			if err != nil {
				return err
			}
			r.step("", step)
			if x.Invalid == "" && x.Throughput >= follows*rate {
				found.Rate, found.Latency = rate, x.Latency
			} else {
				found.Beyond, found.Why = rate, x.Invalid
				found.ClientBound, found.ServerBound = limits(x)
			}
			switch {
			case found.Beyond == 0:
				rate *= stride
			case found.Rate == 0:
				rate /= stride
			case found.Beyond <= near*found.Rate:
				return nil
			default:
				rate = (found.Rate + found.Beyond) / 2
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err() // what was begun does not count
	}
	if err != nil {
		found.Why = err.Error() // what was found before it holds
	}
	r.step("", visitOverhead+time.Duration(searchSteps-steps)*step)
	row.Saturation = &found
	return r.save()
}
