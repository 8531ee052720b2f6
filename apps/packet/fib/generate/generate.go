// Package generate makes routing tables and destinations from a seed, shaped
// like the tables of the Internet's default-free zone: the lengths follow the
// distribution that its collectors report, and most prefixes are more specific
// parts of a smaller number of allocations.
package generate

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// share is how many of 10,000 prefixes have a length.
type share struct{ bits, n int }

// The lengths in the default-free zone, rounded, from the reports that CIDR and
// BGP observers publish.
var (
	lengths4 = []share{
		{8, 1}, {9, 1}, {10, 1}, {11, 1}, {12, 3}, {13, 6}, {14, 12}, {15, 20}, {16, 135}, {17, 82}, {18, 138},
		{19, 250}, {20, 440}, {21, 500}, {22, 1090}, {23, 1010}, {24, 6310},
	}
	lengths6 = []share{
		{19, 1}, {20, 5}, {21, 2}, {22, 5}, {24, 15}, {26, 5}, {28, 60}, {29, 330}, {30, 60}, {31, 20}, {32, 1230}, {33, 150},
		{34, 130}, {35, 60}, {36, 480}, {37, 40}, {38, 110}, {39, 60}, {40, 1060}, {41, 60}, {42, 250}, {43, 60}, {44, 1020},
		{45, 100}, {46, 340}, {47, 310}, {48, 4000}, {56, 10}, {64, 22}, {127, 2}, {128, 3},
	}
)

// roots6 are where the registries' allocations begin: the first 16 bits.
var roots6 = []uint16{
	0x2001, 0x2001, 0x2400, 0x2401, 0x2402, 0x2403, 0x2404, 0x2405, 0x2406, 0x2407, 0x2408, 0x2409, 0x240a, 0x240e,
	0x2600, 0x2602, 0x2603, 0x2604, 0x2605, 0x2606, 0x2607, 0x2610, 0x2620, 0x2800, 0x2801, 0x2803, 0x2804, 0x2806,
	0x2a00, 0x2a01, 0x2a02, 0x2a03, 0x2a04, 0x2a05, 0x2a06, 0x2a07, 0x2a09, 0x2a0a, 0x2a0b, 0x2a0c, 0x2a0d, 0x2a0e,
	0x2a0f, 0x2a10, 0x2a12, 0x2a13, 0x2a14, 0x2c0f,
}

func draw(r *rand.Rand, lengths []share) int {
	total := 0
	for _, s := range lengths {
		total += s.n
	}
	n := r.IntN(total)
	for _, s := range lengths {
		if n -= s.n; n < 0 {
			return s.bits
		}
	}
	panic("unreachable")
}

// Prefixes4 returns n different IPv4 prefixes.
func Prefixes4(seed uint64, n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(seed, 4))
	blocks := make([]uint32, max(1, n/16))
	for i := range blocks {
		for {
			a := r.Uint32()
			if first := a >> 24; first == 0 || first == 10 || first == 127 || first >= 224 {
				continue
			}
			blocks[i] = a &^ (1<<14 - 1) // an allocation of about a /18
			break
		}
	}
	return unique(n, func() netip.Prefix {
		bits := draw(r, lengths4)
		a := blocks[r.IntN(len(blocks))]
		if bits > 18 {
			a |= r.Uint32() & (1<<14 - 1)
		}
		if r.IntN(3) == 0 { // not everybody is part of a cluster
			a ^= r.Uint32() >> 6
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], a)
		return netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked()
	})
}

// Prefixes6 returns n different IPv6 prefixes.
func Prefixes6(seed uint64, n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(seed, 6))
	blocks := make([]uint64, max(1, n/6))
	for i := range blocks {
		// Registries space their allocations: /32s in steps of a /29.
		blocks[i] = uint64(roots6[r.IntN(len(roots6))])<<48 | uint64(r.IntN(1<<13))<<35
	}
	return unique(n, func() netip.Prefix {
		bits := draw(r, lengths6)
		high, low := blocks[r.IntN(len(blocks))], uint64(0)
		if bits > 29 {
			high |= uint64(r.IntN(8)) << 32 & -uint64(r.IntN(2))
			high |= r.Uint64() & (1<<32 - 1) &^ (1<<(64-min(bits, 64)) - 1)
		}
		if bits > 64 {
			low = r.Uint64()
		}
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], high)
		binary.BigEndian.PutUint64(b[8:], low)
		return netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
	})
}

func unique(n int, next func() netip.Prefix) []netip.Prefix {
	seen := make(map[netip.Prefix]struct{}, n)
	list := make([]netip.Prefix, 0, n)
	for len(list) < n {
		p := next()
		if _, found := seen[p]; !found {
			seen[p] = struct{}{}
			list = append(list, p)
		}
	}
	return list
}

// Destinations returns n addresses, each within a prefix drawn from the list.
func Destinations(seed uint64, prefixes []netip.Prefix, n int) []netip.Addr {
	r := rand.New(rand.NewPCG(seed, 1))
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = Within(r, prefixes[r.IntN(len(prefixes))])
	}
	return list
}

// Within returns a random address that a prefix covers.
func Within(r *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		free := min(8, max(0, 8*(i+1)-p.Bits()))
		b[i] = b[i]&^byte(1<<free-1) | byte(r.Uint32())&byte(1<<free-1)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
