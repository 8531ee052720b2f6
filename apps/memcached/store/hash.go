package store

import (
	"encoding/binary"
	"math/bits"
)

// Odd constants with half of their bits set, for mixing.
const (
	mix0 = 0xa0761d6478bd642f
	mix1 = 0xe7037ed1a0b428db
	mix2 = 0x8ebc6af09c88c6e3
)

// hashOf spreads a key over 64 bits: eight bytes a step, each folded in by a
// 64-by-64 multiplication. The seed keeps clients from choosing collisions.
func hashOf(key []byte, seed uint64) uint64 {
	h := seed ^ mix0
	n := uint64(len(key))
	for len(key) >= 8 {
		h = fold(binary.LittleEndian.Uint64(key)^mix1, h^mix2)
		key = key[8:]
	}
	var last uint64
	for i := len(key) - 1; i >= 0; i-- {
		last = last<<8 | uint64(key[i])
	}
	return fold(fold(last^mix1, h^mix2)^n, mix0)
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}
