package report

import (
	"slices"
	"testing"
	"time"

	"gonum.org/v1/plot/vg"
)

func TestFiguresAreWrittenWithThreeDigitsThatCount(t *testing.T) {
	for got, want := range map[string]string{
		rate(48512): "48.5 k", rate(1234567): "1.23 M", rate(999_600): "1.00 M", rate(999.6): "1.00 k", rate(12): "12.0", rate(723_900): "724 k",
		thousands(1234567): "1,234,567", thousands(999): "999", thousands(-1234): "−1,234", thousands(-0.2): "0",
		duration(665 * time.Microsecond): "665 µs", duration(1500): "1.50 µs", duration(6283 * time.Microsecond): "6,283 µs",
		duration(41 * time.Millisecond): "41.0 ms", duration(12 * time.Second): "12.0 s", duration(0): notMeasured,
		percent(0.0123): "1.2 %", percent(0.24): "24 %", percent(0): "0 %", percent(0.0996): "10 %",
		change(100, 120): "+20 %", change(100, 95): "−5.0 %", change(0, 5): notMeasured, change(3, 3): "0 %",
		count(0): "0", count(0.0001): "<0.001", count(0.25): "0.250", count(0.999): "1.00", count(36181): "36,181",
		nanoseconds(0): notMeasured, nanoseconds(2130.4): "2,130", memory(8 << 30): "8.0 GiB", times(0): notMeasured,
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLabelsAreMovedApartAndStayInside(t *testing.T) {
	for _, c := range []struct{ y, want []vg.Length }{
		{[]vg.Length{5, 50}, []vg.Length{5, 50}},
		{[]vg.Length{10, 10, 10}, []vg.Length{10, 20, 30}},
		{[]vg.Length{99, 99}, []vg.Length{90, 100}},
		{[]vg.Length{-5}, []vg.Length{0}},
		{[]vg.Length{50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50}, []vg.Length{0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}},
	} {
		y := slices.Clone(c.y)
		spread(y, 10, 0, 100)
		if !slices.Equal(y, c.want) {
			t.Errorf("%v became %v, want %v", c.y, y, c.want)
		}
	}
	crowd := make([]vg.Length, 40)
	spread(crowd, 10, 0, 100)
	for i := range crowd {
		if crowd[i] < -0.001 || crowd[i] > 100.001 || i > 0 && crowd[i] <= crowd[i-1] {
			t.Fatalf("a crowd became %v", crowd)
		}
	}
}
