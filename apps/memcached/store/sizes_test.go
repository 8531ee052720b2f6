package store

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestSizesAreThoseOfTheItemsStoredSince(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 61))
		s, err := New(Options{Memory: 1 << 20, MaxItem: 1 << 14, Stripes: 4, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		put := func(op Op) {
			var p Pending
			value := fmt.Append(nil, rng.Uint64()>>rng.IntN(64))
			for range rng.IntN(5) {
				value = append(value, make([]byte, rng.IntN(300))...)
			}
			if s.Begin(&p, fmt.Append(nil, "key", rng.IntN(400)), len(value), rng.Uint32()&1, 0, 1) == nil {
				s.Write(&p, value)
				s.Commit(&p, op, 0, 1)
			}
		}
		for range 200 {
			put(Set)
		}
		if s.Sizes(nil) {
			t.Fatal("sizes are counted before that was asked for")
		}
		s.CountSizes(true)
		for range 5000 {
			key := fmt.Append(nil, "key", rng.IntN(400))
			switch rng.IntN(8) {
			case 0:
				s.Delete(key, 1)
			case 1:
				s.Delta(key, rng.Uint64()>>rng.IntN(64), rng.IntN(2) == 0, 1)
			case 2:
				s.Invalidate(key, 0, nil, 1)
			case 3:
				put(Append)
			case 4:
				put(Prepend)
			default:
				put(Set)
			}
		}
		// Count by hand what is there.
		want := map[int]int64{}
		for i := range s.stripes {
			st := &s.stripes[i]
			for k := range st.lists {
				for it := st.lists[k].newest; it != 0; it = s.slab.header(it).older {
					if h := s.slab.header(it); h.cas > st.sizesFrom {
						want[(int(h.bytes())+31)/32*32]++
					}
				}
			}
		}
		got := map[int]int64{}
		s.Sizes(func(bytes int, items int64) { got[bytes] = items })
		if fmt.Sprint(got) != fmt.Sprint(want) || len(want) == 0 {
			t.Fatalf("seed %d: sizes %v, want %v", seed, got, want)
		}
		s.CountSizes(false)
		if put(Set); s.Sizes(nil) {
			t.Error("sizes are still counted")
		}
	}
}
