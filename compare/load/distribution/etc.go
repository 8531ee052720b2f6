package distribution

// The ETC pool of Facebook's memcached, as fitted by Atikoglu et al., "Workload
// Analysis of a Large-Scale Key-Value Store", SIGMETRICS 2012, and used since by
// the load generator mutilate (fb_key, fb_value, fb_ia).

// ETCSets is the share of sets that studies with this workload use: about one in
// thirty.
const ETCSets = 0.03

// ETCKey is the size of a key in bytes.
var ETCKey = named{GEV{30.7984, 8.20449, 0.078688}, "etc-key"}

// ETCArrival is the time between requests in microseconds at the paper's own
// rate; a load at another rate scales it.
var ETCArrival = named{Pareto{0, 16.0292, 0.154971}, "etc-arrival"}

// ETCValue is the size of a value in bytes: a table for those below 15, which
// fit no curve, and a generalized Pareto distribution for the others.
var ETCValue = named{etcValue{}, "etc-value"}

// etcSmall is the share of values of 0 to 14 bytes.
var etcSmall = [15]float64{
	0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606,
	0.00023, 0.00837, 0.00837, 0.08989, 0.00092, 0.00326, 0.01980,
}

var etcLarge = Pareto{15, 214.476, 0.348238}

type etcValue struct{}

func (etcValue) Quantile(u float64) float64 {
	for size, share := range etcSmall {
		if u < share {
			return float64(size)
		}
		u -= share
	}
	return etcLarge.Quantile(u / (1 - etcSmallShare()))
}

func (etcValue) Mean() float64 {
	mean := (1 - etcSmallShare()) * etcLarge.Mean()
	for size, share := range etcSmall {
		mean += share * float64(size)
	}
	return mean
}

func (etcValue) String() string { return "etc-value" }

func etcSmallShare() float64 {
	sum := 0.0
	for _, share := range etcSmall {
		sum += share
	}
	return sum
}

// named is a distribution under a name of its own.
type named struct {
	Distribution
	name string
}

func (d named) String() string { return d.name }
