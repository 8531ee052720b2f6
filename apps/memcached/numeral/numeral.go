// Package numeral reads decimal numbers the way memcached's text protocol does,
// which is the way of C's strtol and strtoull: leading white space and a sign
// are allowed, a zero byte ends the text, and whatever follows the digits must
// begin with white space. Clients rely on it: decr leaves "9 " in a value, and
// the next incr must read that as 9.
package numeral

import (
	"bytes"
	"math"
)

// Unsigned reads an unsigned 64-bit number. A minus sign is accepted as C
// accepts it (the value is negated), unless the result has its highest bit set.
func Unsigned(text []byte) (uint64, bool) {
	value, negative, ok := scan(text)
	if !ok {
		return 0, false
	}
	if negative {
		value = -value
	}
	if value > math.MaxInt64 && bytes.IndexByte(cString(text), '-') >= 0 {
		return 0, false
	}
	return value, true
}

// Signed reads a signed 64-bit number.
func Signed(text []byte) (int64, bool) {
	value, negative, ok := scan(text)
	switch {
	case !ok:
		return 0, false
	case negative && value <= 1<<63:
		return -int64(value), true
	case !negative && value <= math.MaxInt64:
		return int64(value), true
	}
	return 0, false
}

// scan reads white space, a sign and digits; false if there are no digits, if
// they exceed 64 bits or if something else than white space follows them.
func scan(text []byte) (value uint64, negative, ok bool) {
	i := 0
	for i < len(text) && isSpace(text[i]) {
		i++
	}
	if i < len(text) && (text[i] == '-' || text[i] == '+') {
		negative = text[i] == '-'
		i++
	}
	first := i
	for ; i < len(text) && text[i]-'0' <= 9; i++ {
		digit := uint64(text[i] - '0')
		if value > math.MaxUint64/10 || value*10 > math.MaxUint64-digit {
			return 0, false, false
		}
		value = value*10 + digit
	}
	if i == first || i < len(text) && text[i] != 0 && !isSpace(text[i]) {
		return 0, false, false
	}
	return value, negative, true
}

func isSpace(b byte) bool { return b == ' ' || b-'\t' <= '\r'-'\t' }

func cString(text []byte) []byte {
	if end := bytes.IndexByte(text, 0); end >= 0 {
		return text[:end]
	}
	return text
}
