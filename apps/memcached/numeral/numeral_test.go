package numeral

import (
	"math"
	"testing"
)

func TestUnsignedReadsWhatStrtoullReads(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{"0", 0, true}, {"18446744073709551615", math.MaxUint64, true}, {"18446744073709551616", 0, false},
		{"99999999999999999999", 0, false}, {"00000000000000000000000007", 7, true},
		{"", 0, false}, {" ", 0, false}, {"x", 0, false}, {"+", 0, false}, {"-", 0, false}, {"1x", 0, false},
		{"9 ", 9, true}, {" \t\n\v\f\r9", 9, true}, {"9\tx", 9, true}, {"9 -", 9, true}, {"+9", 9, true}, {"++9", 0, false},
		{"9\x00x", 9, true}, {"\x009", 0, false}, {"-1", 0, false}, {"-0", 0, true},
		{"-18446744073709551615", 1, true}, {"-9223372036854775808", 0, false},
		{"18446744073709551615 -", 0, false}, {"18446744073709551615\x00-", math.MaxUint64, true},
		{"0x10", 0, false}, {"1.5", 0, false},
	} {
		if got, ok := Unsigned([]byte(c.text)); got != c.want || ok != c.ok {
			t.Errorf("Unsigned(%q) = %d, %v; want %d, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

func TestSignedReadsWhatStrtolReads(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"-1", -1, true}, {"+5 y", 5, true}, {"9223372036854775807", math.MaxInt64, true},
		{"9223372036854775808", 0, false}, {"-9223372036854775808", math.MinInt64, true},
		{"-9223372036854775809", 0, false}, {"", 0, false}, {"-", 0, false}, {"1-", 0, false}, {"--1", 0, false},
	} {
		if got, ok := Signed([]byte(c.text)); got != c.want || ok != c.ok {
			t.Errorf("Signed(%q) = %d, %v; want %d, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}
