package distribution

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Parse reads a distribution as String writes it: a number, or a name and its
// parameters.
//
//	100  fixed:100  uniform:10,50  normal:100,20  exponential:100
//	pareto:15,214.476,0.348238  gev:30.7984,8.20449,0.078688
//	etc-key  etc-value  etc-arrival
func Parse(s string) (Distribution, error) {
	for _, d := range []named{ETCKey, ETCValue, ETCArrival} {
		if s == d.name {
			return d, nil
		}
	}
	name, list, found := strings.Cut(s, ":")
	if !found {
		name, list = "fixed", s
	}
	makers := map[string]struct {
		parameters int
		make       func(p []float64) (Distribution, bool)
	}{
		"fixed":       {1, func(p []float64) (Distribution, bool) { return Fixed(p[0]), true }},
		"uniform":     {2, func(p []float64) (Distribution, bool) { return Range{p[0], p[1]}, p[0] <= p[1] }},
		"normal":      {2, func(p []float64) (Distribution, bool) { return Normal{p[0], p[1]}, p[1] >= 0 }},
		"exponential": {1, func(p []float64) (Distribution, bool) { return Exponential(p[0]), p[0] >= 0 }},
		// A shape of 1 or more has no mean.
		"pareto": {3, func(p []float64) (Distribution, bool) { return Pareto{p[0], p[1], p[2]}, p[1] >= 0 && p[2] < 1 }},
		"gev":    {3, func(p []float64) (Distribution, bool) { return GEV{p[0], p[1], p[2]}, p[1] >= 0 && p[2] < 1 }},
	}
	maker, ok := makers[name]
	if !ok {
		return nil, fmt.Errorf("%q is no distribution; use a number, fixed:N, uniform:LOW,HIGH, normal:MEAN,DEVIATION, exponential:MEAN, pareto:LOCATION,SCALE,SHAPE, gev:LOCATION,SCALE,SHAPE, etc-key, etc-value or etc-arrival", s)
	}
	var p []float64
	for field := range strings.SplitSeq(list, ",") {
		v, err := strconv.ParseFloat(field, 64)
		if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
			return nil, fmt.Errorf("%q in %q is not a number", field, s)
		}
		p = append(p, v)
	}
	if len(p) != maker.parameters {
		return nil, fmt.Errorf("%q has %d parameters; %s takes %d", s, len(p), name, maker.parameters)
	}
	d, ok := maker.make(p)
	if !ok {
		return nil, fmt.Errorf("%q has parameters that %s cannot have", s, name)
	}
	return d, nil
}
