package store

import (
	"encoding/binary"
	"math/bits"
)

// secret is what a store mixes into its hashes, so that clients, who do not know
// it, cannot choose keys that collide.
type secret struct{ block, state uint64 }

// Odd constants with half of their bits set, for mixing.
const (
	mix0 = 0xa0761d6478bd642f
	mix1 = 0xe7037ed1a0b428db
	mix2 = 0x8ebc6af09c88c6e3
)

func newSecret(seed uint64) secret {
	return secret{fold(seed^mix0, mix1), fold(seed^mix2, mix0)}
}

// hashOf spreads a key over 64 bits: eight bytes a step, each folded in by a
// 64-by-64 multiplication.
func hashOf(key []byte, k *secret) uint64 {
	h := uint64(mix2)
	n := uint64(len(key))
	for len(key) >= 8 {
		h = fold(binary.LittleEndian.Uint64(key)^k.block, h^k.state)
		key = key[8:]
	}
	var last uint64
	for i := len(key) - 1; i >= 0; i-- {
		last = last<<8 | uint64(key[i])
	}
	return fold(fold(last^k.block, h^k.state)^n, mix0)
}

// fold mixes two numbers. Where one of them is 0 the product is too, and nothing
// would be left of the other without the two themselves.
func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low ^ a ^ b
}
