package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// versionSize is the part of a value that holds its version.
const versionSize = 8

// values makes values that can be recognised: a version, then a piece of one
// random text, cut at a place that depends on seed, key and version. A byte that
// is lost, doubled, changed or someone else's shows.
type values struct {
	seed uint64
	size int
	text []byte
}

// pieces is the number of places where the text may be cut; prime, so that
// neighbouring versions and keys are far apart.
const pieces = 4093

func newValues(seed uint64, size int) values {
	v := values{seed: seed, size: size, text: make([]byte, size+pieces)}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	rand.NewChaCha8(key).Read(v.text) // never fails
	return v
}

func (v values) piece(key int, version uint64) []byte {
	// Mixed as in splitmix64, so that every bit of key and version counts.
	x := v.seed + uint64(key)*0x9e3779b97f4a7c15 + version*0xbf58476d1ce4e5b9
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return v.text[x%pieces:][:v.size-versionSize]
}

func (v values) make(key int, version uint64) []byte {
	value := make([]byte, 0, v.size)
	value = binary.BigEndian.AppendUint64(value, version)
	return append(value, v.piece(key, version)...)
}

// check returns the version of a value, or what is wrong with it.
func (v values) check(key int, value []byte) (uint64, error) {
	if len(value) != v.size {
		return 0, fmt.Errorf("the reply has %d bytes, not %d", len(value), v.size)
	}
	version := binary.BigEndian.Uint64(value)
	if want := v.piece(key, version); !bytes.Equal(value[versionSize:], want) {
		at := versionSize
		for value[at] == want[at-versionSize] {
			at++
		}
		return 0, fmt.Errorf("the reply differs from what was stored at byte %d of %d", at, v.size)
	}
	return version, nil
}
