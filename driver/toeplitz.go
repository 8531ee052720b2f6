package driver

import (
	"encoding/binary"
	"net/netip"
)

// MicrosoftKey is the RSS key of Microsoft's specification, which most devices
// come with. A copy is returned, so that nobody can change everybody's key.
func MicrosoftKey() []byte {
	return []byte{
		0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2,
		0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
		0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4,
		0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
		0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
	}
}

// Toeplitz is the hash of receive-side scaling ("Introduction to Receive Side
// Scaling", Microsoft): for each bit of data that is set, the 32 bits of key
// that begin at the same bit are folded in. Key bits that are missing count as
// zero; 40 bytes of key suffice for 36 of data, which is IPv6 with ports.
//
// It looks at every bit, some 100 ns for IPv4; a Hasher is for the hot path.
func Toeplitz(key, data []byte) uint32 {
	var hash uint32
	for i, b := range data {
		window := keyWindow(key, i)
		for bit := range 8 {
			if b&(0x80>>bit) != 0 {
				hash ^= uint32(window << bit >> 32)
			}
		}
	}
	return hash
}

// keyWindow returns the 64 bits of key from byte i on.
func keyWindow(key []byte, i int) uint64 {
	var w [8]byte
	if i < len(key) {
		copy(w[:], key[i:])
	}
	return binary.BigEndian.Uint64(w[:])
}

// A Hasher computes Toeplitz for one key, a byte at a time out of a table of 36
// KiB. It may be used from any goroutine.
type Hasher struct{ table [36][256]uint32 }

// NewHasher prepares the table for a key.
func NewHasher(key []byte) *Hasher {
	h := new(Hasher)
	for i := range h.table {
		window := keyWindow(key, i)
		for b := range 256 {
			var hash uint32
			for bit := range 8 {
				if b&(0x80>>bit) != 0 {
					hash ^= uint32(window << bit >> 32)
				}
			}
			h.table[i][b] = hash
		}
	}
	return h
}

// Sum returns Toeplitz(key, data). Only the first 36 bytes of data count: the
// input for IPv6 with ports is as long.
func (h *Hasher) Sum(data []byte) uint32 {
	var hash uint32
	for i, b := range data[:min(len(data), len(h.table))] {
		hash ^= h.table[i][b]
	}
	return hash
}

// AppendFlow appends what RSS hashes for a TCP or UDP packet from src to dst:
// both addresses, then both ports, in network order. Both addresses must be of
// the same family; IPv4 addresses in IPv6 form count as IPv4.
func AppendFlow(b []byte, src, dst netip.AddrPort) []byte {
	for _, a := range [2]netip.Addr{src.Addr().Unmap(), dst.Addr().Unmap()} {
		if a.Is4() {
			four := a.As4()
			b = append(b, four[:]...)
		} else {
			sixteen := a.As16()
			b = append(b, sixteen[:]...)
		}
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// Hash returns the hash that a device with this RSS gives a TCP (or UDP) packet
// from src to dst, as the packet names them: a reply's src is our peer.
func (r RSS) Hash(src, dst netip.AddrPort) uint32 {
	var flow [36]byte
	return Toeplitz(r.Key, AppendFlow(flow[:0], src, dst))
}

// Queue returns the receive queue of a hash; 0 if there is no table.
func (r RSS) Queue(hash uint32) int {
	if len(r.Table) == 0 {
		return 0
	}
	return int(r.Table[hash%uint32(len(r.Table))])
}
