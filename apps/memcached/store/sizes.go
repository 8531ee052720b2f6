package store

import "sync/atomic"

// SizeStep is the width in bytes of a class of sizes.
const SizeStep = 32

// sizes counts the items by their size, while that is asked for.
type sizes struct {
	counts atomic.Pointer[[]atomic.Int64]
}

// CountSizes begins or ends to count items by size: those that are stored from
// then on.
func (s *Store) CountSizes(on bool) {
	if on == (s.sizes.counts.Load() != nil) {
		return
	}
	if on {
		counts := make([]atomic.Int64, s.maxItem/SizeStep+2)
		s.sizes.counts.Store(&counts)
	}
	for i := range s.stripes {
		st := &s.stripes[i]
		st.mu.Lock()
		if st.sizesFrom = 0; on {
			st.sizesFrom = st.nextCAS()
		}
		st.mu.Unlock()
	}
	if !on {
		s.sizes.counts.Store(nil)
	}
}

// Sizes tells how many items have up to so many bytes, and more than SizeStep
// less, for each class that is not empty. False if they are not counted.
func (s *Store) Sizes(visit func(bytes int, items int64)) bool {
	counts := s.sizes.counts.Load()
	if counts == nil {
		return false
	}
	for i := range *counts {
		if n := (*counts)[i].Load(); n != 0 {
			visit(i*SizeStep, n)
		}
	}
	return true
}

// countSize counts an item after its CAS value or size was set, uncountSize takes
// that back before they change. Items from before CountSizes do not count.
func (st *stripe) countSize(it *header)   { st.addSize(it, 1) }
func (st *stripe) uncountSize(it *header) { st.addSize(it, -1) }

func (st *stripe) addSize(it *header, n int64) {
	if st.sizesFrom == 0 || it.cas <= st.sizesFrom {
		return
	}
	if counts := st.store.sizes.counts.Load(); counts != nil {
		(*counts)[(int(it.bytes())+SizeStep-1)/SizeStep].Add(n)
	}
}
