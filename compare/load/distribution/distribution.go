// Package distribution has the distributions that a memcached's load is made of:
// sizes of keys and values, times between requests, and which key is asked for.
// Each is its quantile function, so that a draw is one uniform number away, from
// a generator or from the hash of a key, and the same seed draws the same.
// Nothing here holds state; all of it may be used from any goroutine.
package distribution

import (
	"fmt"
	"math"
)

// A Distribution is one over the real numbers.
type Distribution interface {
	// Quantile is the value below which a share u of all draws lies; u is
	// between 0 and 1, both excluded.
	Quantile(u float64) float64
	// Mean is the expected value.
	Mean() float64
	// String is what Parse reads.
	String() string
}

// Uniform turns 64 random bits into a number between 0 and 1, both excluded.
func Uniform(x uint64) float64 { return (float64(x>>11) + 0.5) / (1 << 53) }

// Fixed is always the same.
type Fixed float64

func (d Fixed) Quantile(float64) float64 { return float64(d) }
func (d Fixed) Mean() float64            { return float64(d) }
func (d Fixed) String() string           { return fmt.Sprintf("fixed:%v", float64(d)) }

// Range is uniform from Low to High.
type Range struct{ Low, High float64 }

func (d Range) Quantile(u float64) float64 { return d.Low + u*(d.High-d.Low) }
func (d Range) Mean() float64              { return (d.Low + d.High) / 2 }
func (d Range) String() string             { return fmt.Sprintf("uniform:%v,%v", d.Low, d.High) }

// Normal has the given mean and standard deviation.
type Normal struct{ Center, Deviation float64 }

func (d Normal) Quantile(u float64) float64 {
	return d.Center + d.Deviation*math.Sqrt2*math.Erfinv(2*u-1)
}
func (d Normal) Mean() float64  { return d.Center }
func (d Normal) String() string { return fmt.Sprintf("normal:%v,%v", d.Center, d.Deviation) }

// Exponential has the given mean: the times between the events of a Poisson
// process.
type Exponential float64

func (d Exponential) Quantile(u float64) float64 { return -float64(d) * math.Log1p(-u) }
func (d Exponential) Mean() float64              { return float64(d) }
func (d Exponential) String() string             { return fmt.Sprintf("exponential:%v", float64(d)) }

// Pareto is the generalized Pareto distribution. Its mean exists for a Shape
// below 1, its variance below ½.
type Pareto struct{ Location, Scale, Shape float64 }

func (d Pareto) Quantile(u float64) float64 {
	if d.Shape == 0 {
		return d.Location + Exponential(d.Scale).Quantile(u)
	}
	return d.Location + d.Scale*math.Expm1(-d.Shape*math.Log1p(-u))/d.Shape
}
func (d Pareto) Mean() float64 { return d.Location + d.Scale/(1-d.Shape) }
func (d Pareto) String() string {
	return fmt.Sprintf("pareto:%v,%v,%v", d.Location, d.Scale, d.Shape)
}

// GEV is the generalized extreme value distribution, with the same conditions on
// Shape as Pareto's.
type GEV struct{ Location, Scale, Shape float64 }

func (d GEV) Quantile(u float64) float64 {
	if d.Shape == 0 {
		return d.Location - d.Scale*math.Log(-math.Log(u))
	}
	return d.Location + d.Scale*math.Expm1(-d.Shape*math.Log(-math.Log(u)))/d.Shape
}

func (d GEV) Mean() float64 {
	if d.Shape == 0 {
		const eulerMascheroni = 0.57721566490153286
		return d.Location + d.Scale*eulerMascheroni
	}
	return d.Location + d.Scale*(math.Gamma(1-d.Shape)-1)/d.Shape
}
func (d GEV) String() string { return fmt.Sprintf("gev:%v,%v,%v", d.Location, d.Scale, d.Shape) }
