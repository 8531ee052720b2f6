package load

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/pollux-net/pollux/compare/load/distribution"
)

// content says what is stored under which key. A value is a piece of one random
// text, cut at a place that depends on seed, key and size: a byte that is lost,
// doubled, changed or some other value's shows. Reading it is safe from any
// goroutine.
type content struct {
	seed   uint64
	prefix string
	digits int // that every key's number has
	text   []byte

	// One size for all, or a size for each key.
	keySize    int
	valueSize  int
	keySizes   []uint8
	valueSizes []uint32
}

// cuts is the number of places where the text may be cut; prime.
const cuts = 65521

func newContent(c Config, w workload) *content {
	t := &content{seed: c.Seed, prefix: c.Prefix, digits: len(decimal(nil, c.Keys-1, 1))}
	shortest := len(t.prefix) + t.digits
	keySize := func(u float64) int {
		return min(max(int(math.Round(w.keySize.Quantile(u))), shortest), maxKeySize)
	}
	valueSize := func(u float64) int {
		return min(max(int(math.Round(w.valueSize.Quantile(u))), 0), maxValueSize)
	}
	largest := 0
	if _, fixed := w.keySize.(distribution.Fixed); fixed {
		t.keySize = keySize(0.5)
	} else {
		t.keySizes = make([]uint8, c.Keys)
		for k := range t.keySizes {
			t.keySizes[k] = uint8(keySize(distribution.Uniform(mix(c.Seed, uint64(k), 1))))
		}
	}
	if _, fixed := w.valueSize.(distribution.Fixed); fixed {
		t.valueSize = valueSize(0.5)
		largest = t.valueSize
	} else {
		t.valueSizes = make([]uint32, c.Keys)
		for k := range t.valueSizes {
			n := valueSize(distribution.Uniform(mix(c.Seed, uint64(k), 2)))
			t.valueSizes[k] = uint32(n)
			largest = max(largest, n)
		}
	}
	t.text = make([]byte, largest+cuts)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], c.Seed)
	rand.NewChaCha8(seed).Read(t.text) // never fails
	return t
}

// mix makes 64 bits of which every one depends on every bit of what it is given,
// by the last steps of splitmix64.
func mix(seed, a, b uint64) uint64 {
	x := seed + a*0x9e3779b97f4a7c15 + b*0xbf58476d1ce4e5b9
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// appendKey appends key k's name: the prefix, zeros up to its length, its number.
func (t *content) appendKey(b []byte, k int) []byte {
	n := t.keySize
	if t.keySizes != nil {
		n = int(t.keySizes[k])
	}
	return decimal(append(b, t.prefix...), k, n-len(t.prefix))
}

// value is what is stored under key k. It is valid for ever and must not be
// changed.
func (t *content) value(k int) []byte {
	n := t.valueSize
	if t.valueSizes != nil {
		n = int(t.valueSizes[k])
	}
	return t.text[mix(t.seed, uint64(k), uint64(n)+3)%cuts:][:n]
}

// decimal appends v with at least so many digits.
func decimal(b []byte, v, digits int) []byte {
	var buffer [maxKeySize]byte
	i := len(buffer)
	for v > 0 || digits > 0 {
		i--
		buffer[i] = '0' + byte(v%10)
		v /= 10
		digits--
	}
	return append(b, buffer[i:]...)
}

// firstDifference is the index of the first byte that differs.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

var crlf = []byte("\r\n")

// appendGet and appendSet append requests.
func (t *content) appendGet(b []byte, k int) []byte {
	b = append(b, "get "...)
	return append(t.appendKey(b, k), crlf...)
}

func (t *content) appendSet(b []byte, k int) []byte {
	value := t.value(k)
	b = append(b, "set "...)
	b = append(t.appendKey(b, k), " 0 0 "...)
	b = append(decimal(b, len(value), 1), crlf...)
	b = append(b, value...)
	return append(b, crlf...)
}

// number reads decimal digits.
func number(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 9 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// field cuts the next blank-separated field off a line.
func field(line []byte) (first, rest []byte) {
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		return line[:i], line[i+1:]
	}
	return line, nil
}
