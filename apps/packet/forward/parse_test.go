package forward

import (
	"math/rand/v2"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// What plain4 takes, parse4 would have read the same way; what it leaves, it has not
// touched.
func TestAPlainPacketIsReadLikeAnyOther(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	s := &Shard{seed: [2]uint64{r.Uint64(), r.Uint64()}}
	in := &port{index: 3}
	taken := 0
	const frames = 200_000
	for range frames {
		b := make([]byte, 34+r.IntN(60))
		for i := ethernet; i < len(b); i++ {
			b[i] = byte(r.Uint32())
		}
		h := b[ethernet:]
		h[0], h[9] = 0x45, []byte{protocolTCP, protocolUDP, protocolICMP}[r.IntN(3)]
		be.PutUint16(h[2:], uint16(max(ip4, len(h)-r.IntN(8))))
		be.PutUint16(h[6:], 0x4000)
		if r.IntN(4) == 0 { // something is not as it should be
			h[r.IntN(ip4)] = byte(r.Uint32())
		}
		if r.IntN(8) != 0 {
			be.PutUint16(h[10:], 0)
			be.PutUint16(h[10:], ^fold(sum(h[:ip4], 0)))
		}
		f := driver.Frame{Data: b}
		if r.IntN(4) == 0 {
			f.Flags = driver.ChecksumValid
		}
		var plain, any meta
		if !s.plain4(&f, in, &plain) {
			if plain != (meta{}) {
				t.Fatalf("seed %d: left % x, but with %+v", seed, b, plain)
			}
			continue
		}
		taken++
		s.parse4(&f, in, &any)
		any.cause = plain.cause // of a drop only
		if plain != any {
			t.Fatalf("seed %d: % x\n%+v, want\n%+v", seed, b, plain, any)
		}
	}
	if taken < frames/4 {
		t.Errorf("seed %d: only %d of %d packets were plain", seed, taken, frames)
	}
}
