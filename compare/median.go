package compare

import (
	"reflect"
	"slices"

	"github.com/pollux-net/pollux/compare/result"
)

// summarize fills in what follows from a row's rounds: medians, figure by
// figure, over those that count, and the spread of their throughput.
func summarize(row *result.Row) {
	valid := validRounds(row)
	row.Median, row.Spread = result.Round{}, 0
	if len(valid) == 0 {
		return
	}
	last := valid[len(valid)-1]
	row.Median = last // texts are the last one's
	values := make([]reflect.Value, len(valid))
	for i := range valid {
		values[i] = reflect.ValueOf(valid[i])
	}
	medianInto(reflect.ValueOf(&row.Median).Elem(), values)
	row.Median.Number = 0
	low, high := valid[0].Throughput, valid[0].Throughput
	bound, active, client, server := 0, 0, 0, 0
	for _, r := range valid {
		low, high = min(low, r.Throughput), max(high, r.Throughput)
		if r.ClientBound {
			bound++
		}
		if r.ClientFull {
			client++
		}
		if r.ServerFull {
			server++
		}
		if r.Proof.Active {
			active++
		}
	}
	if row.Median.Throughput > 0 {
		row.Spread = (high - low) / row.Median.Throughput
	}
	// One doubtful round is doubt enough.
	row.Median.ClientBound = bound > 0
	row.Median.ClientFull, row.Median.ServerFull = client > 0, server == len(valid)
	row.Median.Proof.Active = active == len(valid)
	for _, r := range valid {
		if !r.Proof.Active {
			row.Median.Proof.Why = r.Proof.Why
		}
	}
}

func validRounds(row *result.Row) []result.Round {
	if row == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(row.Rounds), func(r result.Round) bool { return r.Invalid != "" })
}

// medianInto sets every number in to to the median of those at the same place.
func medianInto(to reflect.Value, from []reflect.Value) {
	switch to.Kind() {
	case reflect.Struct:
		for i := range to.NumField() {
			fields := make([]reflect.Value, len(from))
			for k := range from {
				fields[k] = from[k].Field(i)
			}
			medianInto(to.Field(i), fields)
		}
	case reflect.Pointer:
		from = slices.DeleteFunc(slices.Clone(from), reflect.Value.IsNil)
		if len(from) == 0 {
			return
		}
		fresh := reflect.New(to.Type().Elem())
		targets := make([]reflect.Value, len(from))
		for k := range from {
			targets[k] = from[k].Elem()
		}
		medianInto(fresh.Elem(), targets)
		to.Set(fresh)
	case reflect.Float64:
		x := make([]float64, len(from))
		for k := range from {
			x[k] = from[k].Float()
		}
		to.SetFloat(median(x))
	case reflect.Int, reflect.Int64:
		x := make([]int64, len(from))
		for k := range from {
			x[k] = from[k].Int()
		}
		to.SetInt(median(x))
	case reflect.Uint64:
		x := make([]uint64, len(from))
		for k := range from {
			x[k] = from[k].Uint()
		}
		to.SetUint(median(x))
	}
}

// median of an even number is the mean of the two in the middle.
func median[T float64 | int64 | uint64](x []T) T {
	slices.Sort(x)
	n := len(x)
	if n%2 == 1 {
		return x[n/2]
	}
	return x[n/2-1] + (x[n/2]-x[n/2-1])/2
}
