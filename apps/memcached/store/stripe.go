package store

import (
	"math"
	"sync"
)

const (
	// A stripe takes chunks from the pool by this many, and gives back what it
	// has beyond twice as many.
	poolBatch  = 32
	stripeKeep = 2 * poolBatch
	// Longer items are not made room for by evicting from one stripe only.
	shortChain = poolBatch
	// How far from the old end of the cold list to look for an item that is dead
	// already, before evicting a live one.
	tailSearch = 5
)

// stripe holds a share of the keys. Everything in it is guarded by mu.
type stripe struct {
	mu      sync.Mutex
	store   *Store
	index   int
	buckets []uint32
	lists   [segments]list
	free    chain

	// The CAS values of a stripe are its number plus multiples of the number of
	// stripes, so that they are unique in the store.
	cas uint64
	// Items with a CAS value up to floor were flushed.
	floor uint64
	// flushAt is when the next flush is due; 0: none.
	flushAt uint32
	// soonest is when an item may next expire, not too late; 0: none will.
	soonest uint32
	// Items with a CAS value up to swept were searched for whole and are gone;
	// those up to sweepFloor will be when the search that is under way ends.
	swept, sweepFloor uint64

	stats stripeStats
	entry Entry // what a See sees
	// Items with a CAS value above sizesFrom are in the store's sizes; 0: none
	// are.
	sizesFrom uint64
	_         [64]byte // keep neighbours off this cache line
}

func (st *stripe) init(s *Store, index int, buckets []uint32) {
	st.store, st.index, st.buckets = s, index, buckets
	st.cas = uint64(index) + 1 - uint64(len(s.stripes)) // the first is index + 1
}

// lock also carries out a flush that has come due.
func (st *stripe) lock(now uint32) {
	st.mu.Lock()
	if st.flushAt != 0 && st.flushAt <= now {
		st.flush()
	}
}

func (st *stripe) flush() {
	st.floor = st.nextCAS()
	st.flushAt = 0
}

func (st *stripe) nextCAS() uint64 {
	st.cas += uint64(len(st.store.stripes))
	return st.cas
}

func (st *stripe) flushed(it *header) bool { return it.cas <= st.floor }

func (it *header) expired(now uint32) bool { return it.expires != 0 && it.expires <= now }

// dead says whether an item was flushed or has expired.
func (st *stripe) dead(it *header, now uint32) bool { return st.flushed(it) || it.expired(now) }

// bucket scales a hash to the number of buckets, which may be any.
func (st *stripe) bucket(hash uint32) *uint32 {
	return &st.buckets[uint64(hash)*uint64(len(st.buckets))>>32]
}

// find returns the live item of a key, or 0. A dead one is removed.
func (st *stripe) find(key []byte, h uint64, now uint32) uint32 {
	slab, hash := st.store.slab, uint32(h)
	for i := *st.bucket(hash); i != 0; {
		it := slab.header(i)
		if it.hash != hash || int(it.key) != len(key) || !slab.hasKey(i, key) {
			i = it.bucket
			continue
		}
		switch {
		case st.flushed(it):
			st.stats.flushed++
		case it.expired(now):
			st.stats.expired++
		default:
			return i
		}
		st.remove(i)
		return 0
	}
	return 0
}

// link enters a complete item that is in no list yet and gives it a CAS value.
func (st *stripe) link(i, now uint32) {
	it := st.store.slab.header(i)
	it.cas, it.accessed = st.nextCAS(), now
	bucket := st.bucket(it.hash)
	it.bucket, *bucket = *bucket, i
	st.noteExpiry(it.expires)
	st.push(i, it, hot)
	st.balance()
	st.countSize(it)
	st.stats.total++
}

// unlink takes an item out of all lists; its chunks remain the caller's.
func (st *stripe) unlink(i uint32) {
	slab := st.store.slab
	it := slab.header(i)
	place := st.bucket(it.hash)
	for *place != i {
		place = &slab.header(*place).bucket
	}
	*place = it.bucket
	st.drop(it)
	st.uncountSize(it)
}

func (st *stripe) remove(i uint32) {
	st.unlink(i)
	st.release(st.store.slab.chainOf(i))
}

func (h *header) bytes() uint64 { return uint64(Size(int(h.key), int(h.size), h.flags)) }

func (b slab) chainOf(i uint32) chain {
	it := b.header(i)
	return chain{i, it.last, chunksFor(int(it.key), int(it.size))}
}

// release takes chunks back.
func (st *stripe) release(c chain) {
	slab := st.store.slab
	if c.count > poolBatch {
		st.store.pool.give(slab, c)
		return
	}
	st.free.push(slab, c)
	if st.free.count > stripeKeep {
		st.store.pool.give(slab, st.free.take(slab, st.free.count-poolBatch))
	}
}

// supply sees to it that at least n chunks are free in the stripe, if need be
// from the pool; false if that has too few.
func (st *stripe) supply(n int) bool {
	if st.free.count < n {
		slab := st.store.slab
		st.free.push(slab, st.store.pool.take(slab, max(n-st.free.count, poolBatch)))
	}
	return st.free.count >= n
}

// reserve is supply that also evicts items of the stripe, but for the given one;
// false if n is large or there are too few.
func (st *stripe) reserve(n int, but, now uint32) bool {
	return st.supply(n) || st.makeRoom(n, but, now)
}

func (st *stripe) makeRoom(n int, but, now uint32) bool {
	for st.free.count < n && n <= shortChain && st.victim(but) != 0 {
		st.stats.directReclaims++
		st.free.push(st.store.slab, st.evict(but, now))
	}
	return st.free.count >= n
}

// refill has n chunks free in the stripe after reserve could not, evicting
// items of any stripe but the given one; false if there are too few. The stripe
// is unlocked meanwhile: what was found in it before must be looked up again.
func (st *stripe) refill(n int, but, now uint32) bool {
	st.mu.Unlock()
	c, enough := st.store.gather(n, st, but, now)
	st.lock(now)
	st.free.push(st.store.slab, c)
	return enough
}

// evict unlinks the item at the old end of the cold list, or a dead one that is
// nearly as old, and returns its chunks. There must be an item besides the one
// that is not to be evicted.
func (st *stripe) evict(but, now uint32) chain {
	slab := st.store.slab
	victim := st.victim(but)
	for i, n := victim, 0; i != 0 && n < tailSearch; n++ {
		it := slab.header(i)
		if st.dead(it, now) && i != but {
			victim = i
			break
		}
		i = it.newer
	}
	it := slab.header(victim)
	if st.dead(it, now) {
		st.stats.reclaimed++
		if it.heat == unread {
			st.stats.expiredUnfetched++
		}
	} else {
		st.stats.evictions++
		st.stats.evictedAge = now - min(it.accessed, now)
		if it.expires != 0 {
			st.stats.evictedNonzero++
		}
		switch it.heat {
		case unread:
			st.stats.evictedUnfetched++
		case active:
			st.stats.evictedActive++
		}
	}
	st.unlink(victim)
	return slab.chainOf(victim)
}

// gather collects n chunks: those that the stripe at home has free, from the pool,
// and then from all stripes in turn, evicting a few items of each but not the
// given one. Of the stripe at home and some beside it, that with the oldest item
// is the first. No stripe may be locked by the caller.
func (s *Store) gather(n int, home *stripe, but, now uint32) (chain, bool) {
	const evictions = 4 // of a stripe before the next one's turn
	home.mu.Lock()
	got := home.free.take(s.slab, n)
	home.mu.Unlock()
	got.push(s.slab, s.pool.take(s.slab, n-got.count))
	start := home.index
	if got.count < n {
		start = s.oldest(home.index, but)
	}
	for progress := true; progress && got.count < n; {
		progress = false
		for i := range s.stripes {
			st := &s.stripes[(start+i)%len(s.stripes)]
			st.lock(now)
			for e := 0; e < evictions && got.count+st.free.count < n && st.victim(but) != 0; e++ {
				st.stats.directReclaims++
				st.free.push(s.slab, st.evict(but, now))
			}
			if part := st.free.take(s.slab, n-got.count); part.count > 0 {
				got.push(s.slab, part)
				progress = true
			}
			st.release(chain{}) // an evicted item may have left more than a stripe keeps
			st.mu.Unlock()
			if got.count == n {
				break
			}
		}
	}
	if got.count < n {
		s.pool.give(s.slab, got)
		return chain{}, false
	}
	return got, true
}

// oldest returns, of a few stripes from one on, the one whose next victim was
// used least lately; the first, if several were in the same second.
func (s *Store) oldest(from int, but uint32) int {
	const look = 8
	oldest, used := from, uint32(math.MaxUint32)
	for i := range min(look, len(s.stripes)) {
		st := &s.stripes[(from+i)%len(s.stripes)]
		st.mu.Lock()
		if v := st.victim(but); v != 0 {
			if at := s.slab.header(v).accessed; at < used {
				oldest, used = st.index, at
			}
		}
		st.mu.Unlock()
	}
	return oldest
}
