package distribution

import "math"

// Zipf draws ranks from 0 to N-1, rank k with a probability proportional to
// 1/(k+1)^s, for any s ≥ 0 (0 is uniform; math/rand's needs s > 1). It takes
// constant time and memory by rejection-inversion (W. Hörmann, G. Derflinger,
// "Rejection-inversion to generate variates from monotone discrete
// distributions", ACM TOMACS 6(3), 1996).
type Zipf struct {
	n, s               float64
	first, last, right float64
}

// NewZipf makes one over n ≥ 1 ranks.
func NewZipf(n int, s float64) Zipf {
	z := Zipf{n: float64(n), s: s}
	z.first = z.integral(1.5) - 1
	z.last = z.integral(z.n + 0.5)
	z.right = 2 - z.inverse(z.integral(2.5)-z.density(2))
	return z
}

// Draw returns a rank, made from as many uniform numbers as it takes, mostly one.
func (z *Zipf) Draw(uniform func() uint64) int {
	for {
		u := z.last + Uniform(uniform())*(z.first-z.last)
		x := z.inverse(u)
		k := math.Round(x)
		k = min(max(k, 1), z.n)
		if k-x <= z.right || u >= z.integral(k+0.5)-z.density(k) {
			return int(k) - 1
		}
	}
}

// density is x^-s, and integral its antiderivative that is 0 at x = 1.
func (z *Zipf) density(x float64) float64 { return math.Exp(-z.s * math.Log(x)) }

func (z *Zipf) integral(x float64) float64 {
	l := math.Log(x)
	return l * expm1OverX((1-z.s)*l)
}

func (z *Zipf) inverse(u float64) float64 {
	t := max(u*(1-z.s), -1) // rounding may take it below
	return math.Exp(u * log1pOverX(t))
}

// expm1OverX is (e^x-1)/x and log1pOverX ln(1+x)/x, also near 0, which is where
// they are for an s near 1.
func expm1OverX(x float64) float64 {
	if math.Abs(x) > 1e-8 {
		return math.Expm1(x) / x
	}
	return 1 + x/2
}

func log1pOverX(x float64) float64 {
	if math.Abs(x) > 1e-8 {
		return math.Log1p(x) / x
	}
	return 1 - x/2
}
