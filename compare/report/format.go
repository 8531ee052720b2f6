package report

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

const (
	notMeasured = "n/a"
	noPMU       = "n/a (no PMU)"
)

// rate is of requests per second: 48.5 k, 1.23 M.
func rate(x float64) string {
	switch {
	case x >= 999.5e3:
		return digits(x/1e6) + " M"
	case x >= 999.5:
		return digits(x/1e3) + " k"
	}
	return digits(x)
}

// digits writes three of them that count.
func digits(x float64) string {
	switch a := math.Abs(x); {
	case a >= 99.95:
		return thousands(x)
	case a >= 9.995:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// thousands writes a whole number with commas.
func thousands(x float64) string {
	s := strconv.FormatFloat(math.Abs(math.Round(x)), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if x <= -0.5 {
		s = "−" + s
	}
	return s
}

// nanoseconds of CPU time. What costs nothing was not measured: use only where
// zero is no answer.
func nanoseconds(x float64) string {
	if x <= 0 {
		return notMeasured
	}
	return thousands(x)
}

// duration in the unit that a reader of latencies expects.
func duration(d time.Duration) string {
	us := float64(d) / float64(time.Microsecond)
	switch {
	case d <= 0:
		return notMeasured
	case us < 9999.5:
		return digits(us) + " µs"
	case us < 9999.5e3:
		return digits(us/1e3) + " ms"
	}
	return digits(us/1e6) + " s"
}

// count is of events per request or second, of which none is an answer too.
func count(x float64) string {
	switch {
	case x == 0:
		return "0"
	case math.Abs(x) < 0.0005:
		return "<0.001"
	case math.Abs(x) < 0.995:
		return strconv.FormatFloat(x, 'f', 3, 64)
	}
	return digits(x)
}

func percent(x float64) string {
	if a := math.Abs(100 * x); a > 0 && a < 9.95 {
		return strconv.FormatFloat(100*x, 'f', 1, 64) + " %"
	}
	return thousands(100*x) + " %"
}

// change from one figure to another.
func change(before, after float64) string {
	if before <= 0 || after <= 0 {
		return notMeasured
	}
	p := 100 * (after/before - 1)
	if math.Abs(p) < 0.05 {
		return "0 %"
	}
	sign := "+"
	if p < 0 {
		sign = "−"
	}
	if p = math.Abs(p); p < 9.95 {
		return sign + strconv.FormatFloat(p, 'f', 1, 64) + " %"
	}
	return sign + thousands(p) + " %"
}

func times(x float64) string {
	if x <= 0 {
		return notMeasured
	}
	return fmt.Sprintf("%.2f×", x)
}

// offered is a row's load.
func offered(r float64) string {
	if r == 0 {
		return "closed loop"
	}
	return rate(r) + "/s"
}

// memory in binary units.
func memory(n uint64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
}

// plural of a noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
