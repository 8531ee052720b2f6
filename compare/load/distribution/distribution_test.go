package distribution

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

const seed = 20120611

// moments draws n times and returns mean, standard deviation, and the draws in
// order.
func moments(d Distribution, n int) (mean, deviation float64, sorted []float64) {
	random := rand.NewPCG(seed, 1)
	sorted = make([]float64, n)
	for i := range sorted {
		sorted[i] = d.Quantile(Uniform(random.Uint64()))
		mean += sorted[i]
	}
	mean /= float64(n)
	for _, v := range sorted {
		deviation += (v - mean) * (v - mean)
	}
	slices.Sort(sorted)
	return mean, math.Sqrt(deviation / float64(n)), sorted
}

func near(got, want, tolerance float64) bool {
	return math.Abs(got-want) <= tolerance*math.Max(math.Abs(want), 1e-9)
}

// The numbers on the right follow from the published parameters by the closed
// forms of the moments, worked out apart from this package.
func TestETCHasThePublishedMoments(t *testing.T) {
	for _, c := range []struct {
		d                            Distribution
		mean, deviation              float64 // 0: infinite or too slow to converge
		median, quantile90, quantile float64 // the last is the 99 % quantile
	}{
		// mean µ+σ(Γ(1-ξ)-1)/ξ; quantile µ+σ((-ln u)^-ξ-1)/ξ
		{ETCKey, 36.22305, 11.80895, 33.84923, 50.99713, 76.27564},
		// mean σ/(1-ξ), deviation mean/√(1-2ξ); quantile σ((1-u)^-ξ-1)/ξ
		{ETCArrival, 18.96882, 22.83481, 11.72929, 44.35215, 107.72245},
		// mean Σ i·p(i) + (1-0.44155)(15+σ/(1-ξ)); quantiles in the tail
		{ETCValue, 194.44483, 0, 39.17419, 520.17603, 1898.70133},
	} {
		mean, deviation, sorted := moments(c.d, 2_000_000)
		if !near(mean, c.mean, 0.01) || !near(c.d.Mean(), c.mean, 0.0005) {
			t.Errorf("seed %d: %v: mean %v and %v, not %v", seed, c.d, mean, c.d.Mean(), c.mean)
		}
		if c.deviation > 0 && !near(deviation, c.deviation, 0.02) {
			t.Errorf("seed %d: %v: standard deviation %v, not %v", seed, c.d, deviation, c.deviation)
		}
		for u, want := range map[float64]float64{0.5: c.median, 0.9: c.quantile90, 0.99: c.quantile} {
			if got := sorted[int(u*float64(len(sorted)))]; !near(got, want, 0.015) {
				t.Errorf("seed %d: %v: quantile %v is %v, not %v", seed, c.d, u, got, want)
			}
		}
	}
}

func TestSmallETCValuesFollowTheTable(t *testing.T) {
	const draws = 1_000_000
	random := rand.NewPCG(seed, 2)
	var counts [15]float64
	for range draws {
		if v := ETCValue.Quantile(Uniform(random.Uint64())); v < 15 {
			counts[int(v)]++
		}
	}
	for size, share := range etcSmall {
		if got := counts[size] / draws; math.Abs(got-share) > 0.001 {
			t.Errorf("seed %d: %.5f of the values have %d bytes, not %.5f", seed, got, size, share)
		}
	}
}

func TestMeansAndDeviationsAreAsAsked(t *testing.T) {
	for _, c := range []struct {
		d               Distribution
		mean, deviation float64
	}{
		{Fixed(7), 7, 0},
		{Range{10, 50}, 30, 40 / math.Sqrt(12)},
		{Normal{100, 20}, 100, 20},
		{Exponential(3), 3, 3},
		{Pareto{5, 2, 0}, 7, 2},
		{GEV{5, 2, 0}, 5 + 2*0.5772156649, 2 * math.Pi / math.Sqrt(6)},
	} {
		mean, deviation, _ := moments(c.d, 500_000)
		if !near(mean, c.mean, 0.01) || !near(c.d.Mean(), c.mean, 1e-9) || !near(deviation, c.deviation, 0.01) {
			t.Errorf("seed %d: %v: mean %v (%v), deviation %v; want %v, %v", seed, c.d, mean, c.d.Mean(), deviation, c.mean, c.deviation)
		}
	}
}

func TestZipfRanksHaveTheirShares(t *testing.T) {
	const draws = 1_000_000
	for _, n := range []int{1, 2, 10, 1000} {
		for _, s := range []float64{0, 0.5, 0.99, 1, 1.2, 2.5} {
			sum := 0.0
			for k := range n {
				sum += math.Pow(float64(k+1), -s)
			}
			z, random, counts := NewZipf(n, s), rand.NewPCG(seed, uint64(n)), make([]float64, n)
			for range draws {
				counts[z.Draw(random.Uint64)]++
			}
			for k := range n {
				want := math.Pow(float64(k+1), -s) / sum * draws
				// Six standard deviations of a count.
				if math.Abs(counts[k]-want) > 6*math.Sqrt(want)+1 {
					t.Errorf("seed %d: n %d, s %v: rank %d was drawn %v times of %v expected", seed, n, s, k, counts[k], want)
					break
				}
			}
		}
	}
}

func TestParseReadsWhatStringWrites(t *testing.T) {
	for _, s := range []string{"fixed:100", "uniform:10,50", "normal:100,20", "exponential:0.5", "pareto:15,214.476,0.348238",
		"gev:30.7984,8.20449,0.078688", "etc-key", "etc-value", "etc-arrival"} {
		if d, err := Parse(s); err != nil || d.String() != s {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
	if d, err := Parse("42"); err != nil || d != Fixed(42) {
		t.Errorf("a number: %v, %v", d, err)
	}
	for s, want := range map[string]string{
		"":               "not a number",
		"many":           "not a number",
		"zipf:1":         "no distribution",
		"fixed:1,2":      "2 parameters; fixed takes 1",
		"uniform:5,1":    "cannot have",
		"pareto:0,1,1":   "cannot have",
		"normal:1,x":     `"x" in`,
		"fixed:Inf":      "not a number",
		"exponential:-1": "cannot have",
	} {
		if _, err := Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
	}
}
