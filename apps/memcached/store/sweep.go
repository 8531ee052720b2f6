package store

import "sync"

const (
	// A whole search for dead items takes this many ticks, but for stores so
	// large that a tick would be longer than it may: at ten ticks a second, ten
	// minutes.
	sweepTicks            = 6000
	minSweep, maxSweep    = 64, 2048
	sweepBatch, coolSteps = 64, 16
)

// sweep is where Sweep will go on.
type sweep struct {
	mu             sync.Mutex
	stripe, bucket int
}

// Tick does what is to be done in the background, a little of it: it moves items
// out of the hot and warm lists that have not been used for long, and searches
// for dead ones. Call it some ten times a second, on any goroutine. It takes
// some hundred microseconds at most, and holds no stripe for more than some ten.
func (s *Store) Tick(now uint32) {
	buckets := s.hash / 4
	s.Sweep(min(max(buckets/sweepTicks, minSweep), maxSweep), now)
}

// Sweep looks through the next buckets of the tables and removes items that
// have expired or were flushed: they would otherwise hold memory until they are
// asked for or grow old. A bucket takes about as long as a lookup; a stripe in
// which nothing can have died counts as one batch of them.
func (s *Store) Sweep(buckets int, now uint32) {
	if !s.sweep.mu.TryLock() {
		return // somebody else is at it
	}
	defer s.sweep.mu.Unlock()
	for buckets > 0 {
		st := &s.stripes[s.sweep.stripe]
		n := min(buckets, sweepBatch)
		buckets -= n
		if s.sweep.bucket = st.sweep(s.sweep.bucket, n, now); s.sweep.bucket == 0 {
			s.sweep.stripe = (s.sweep.stripe + 1) % len(s.stripes)
		}
	}
}

// sweep looks through n buckets from one on, and returns the next one; 0 after
// the last, or if there is nothing to be found.
func (st *stripe) sweep(from, n int, now uint32) int {
	st.lock(now)
	defer st.mu.Unlock()
	st.cool(coolSteps, now)
	if from == 0 {
		if st.swept == st.floor && (st.soonest == 0 || st.soonest > now) {
			return 0
		}
		// What is stored from here on may be in buckets that are behind already.
		st.sweepFloor, st.soonest = st.floor, 0
	}
	slab := st.store.slab
	end := min(from+n, len(st.buckets))
	for b := from; b < end; b++ {
		for i := st.buckets[b]; i != 0; {
			it := slab.header(i)
			next := it.bucket
			st.stats.checked++
			if st.dead(it, now) {
				st.stats.swept++
				if it.heat == unread && !st.flushed(it) {
					st.stats.expiredUnfetched++
				}
				st.remove(i)
			} else {
				st.noteExpiry(it.expires)
			}
			i = next
		}
	}
	if end < len(st.buckets) {
		return end
	}
	st.swept = st.sweepFloor
	return 0
}

// noteExpiry keeps the time at which the next item may expire.
func (st *stripe) noteExpiry(at uint32) {
	if at != 0 && (st.soonest == 0 || at < st.soonest) {
		st.soonest = at
	}
}

// expire gives an item an expiry time.
func (st *stripe) expire(it *header, at uint32) {
	it.expires = at
	st.noteExpiry(at)
}
