package store

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// small is a store of one stripe for items of one chunk: capacity of them.
func small(t testing.TB) (s *Store, capacity int) {
	s = newStore(t, Options{Memory: 1 << 20, Stripes: 1})
	return s, int(s.Stats().Chunks)
}

func (s *Store) has(i int) bool {
	m := Visit{Peek: true}
	_, hit := s.Visit(nil, fmt.Append(nil, i), &m, 1, func(dst, _ []byte, _ *Entry) []byte { return dst })
	return hit
}

func (s *Store) add(i int, now uint32) { s.put(Set, fmt.Sprint(i), "x", 0, 0, 0, now) }

func TestItemsThatNobodyReadsGoInTheOrderTheyCame(t *testing.T) {
	s, capacity := small(t)
	for i := range 2 * capacity {
		s.add(i, 1)
		if i >= capacity && (s.has(i-capacity) || !s.has(i-capacity+1)) {
			t.Fatalf("after item %d, with room for %d: the oldest is still there (%v), or the next is not", i, capacity, s.has(i-capacity))
		}
	}
	if st := s.Stats(); st.Evictions != uint64(capacity) || st.EvictedUnfetched != st.Evictions || st.Warm.Items != 0 {
		t.Errorf("%+v", st)
	}
	check(t, s)
}

func TestAScanDoesNotPushOutWhatIsInUse(t *testing.T) {
	s, capacity := small(t)
	used := capacity / 4
	for i := range capacity {
		s.add(i, 1)
	}
	// Fetched twice, an item moves from cold to warm, or will from hot.
	for range 2 {
		for i := range used {
			s.get(fmt.Sprint(i), 1)
			s.get(fmt.Sprint(capacity-1-i), 1) // some of those are hot
		}
	}
	// A scan of five times the memory, its items each fetched once.
	for i := range 5 * capacity {
		s.add(capacity+i, 1)
		s.get(fmt.Sprint(capacity+i), 1)
	}
	kept := 0
	for i := range capacity {
		if s.has(i) {
			kept++
		}
	}
	// Warm has 40 % of the memory for the 50 % that were used.
	if kept < capacity*38/100 {
		t.Errorf("after a scan, %d of %d used items are left, with room for %d", kept, 2*used, capacity)
	}
	check(t, s)
}

func TestItemsMoveBetweenTheListsAsInMemcached(t *testing.T) {
	s, capacity := small(t)
	state := func(key int) string {
		st, h := s.locate(fmt.Append(nil, key))
		i := st.find(fmt.Append(nil, key), h, 1)
		if i == 0 {
			return "gone"
		}
		return [...]string{"hot", "warm", "cold"}[s.slab.header(i).segment]
	}
	expect := func(when string, key int, want string) {
		t.Helper()
		if got := state(key); got != want {
			t.Errorf("%s: item %d is %s, want %s", when, key, got, want)
		}
	}
	for i := range capacity / 2 {
		s.add(i, 1)
	}
	newest := capacity/2 - 1
	expect("stored", newest, "hot")
	expect("later", 0, "cold")
	s.get("0", 1)
	expect("fetched once in cold", 0, "cold")
	s.get("0", 1)
	expect("fetched twice in cold", 0, "warm")
	if st := s.Stats(); st.MovesToWarm != 1 || st.MovesToCold == 0 || st.Cold.Hits != 2 || st.Hot.Items+st.Warm.Items+st.Cold.Items != st.Items {
		t.Errorf("%+v", st)
	}
	s.get(fmt.Sprint(newest), 1)
	s.get(fmt.Sprint(newest), 1)
	s.get(fmt.Sprint(newest-1), 1)
	expect("fetched twice in hot", newest, "hot")
	for i := range capacity / 4 {
		s.add(capacity+i, 1)
	}
	expect("out of hot, active", newest, "warm")
	expect("out of hot, fetched once", newest-1, "cold")
	// In warm one fetch is enough for another turn.
	s.get("0", 1)
	for i := range capacity / 2 {
		s.get(fmt.Sprint(i), 1)
		s.get(fmt.Sprint(i), 1)
	}
	expect("warm and active", 0, "warm")
	if st := s.Stats(); st.MovesWithin == 0 {
		t.Errorf("%+v", st)
	}
	// What is written anew is new.
	s.add(0, 1)
	expect("written anew", 0, "hot")
	s.put(Set, "1", "5", 0, 0, 0, 1)
	for i := range capacity / 3 {
		s.add(2*capacity+i, 1)
	}
	expect("a number, later", 1, "cold")
	s.Delta([]byte("1"), 1, false, 1)
	expect("counted up", 1, "hot")
	check(t, s)
}

// Whatever is asked for, hot and warm stay within their share of the memory,
// and what one operation moves is bounded.
func TestHotAndWarmKeepToTheirShares(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 71))
	s, capacity := small(t)
	st := &s.stripes[0]
	most, zipf := uint64(0), rand.NewZipf(rng, 1.05, 1, uint64(3*capacity))
	for step := range 20 * capacity {
		key := int(zipf.Uint64())
		before := st.stats.movesToCold + st.stats.movesToWarm + st.stats.movesWithin
		if _, _, hit := s.get(fmt.Sprint(key), 1); !hit {
			s.add(key, 1)
		}
		most = max(most, st.stats.movesToCold+st.stats.movesToWarm+st.stats.movesWithin-before)
		const slack = 100 * 200 // two items
		if h, w := st.lists[hot].bytes*100, st.lists[warm].bytes*100; h > st.bytes()*HotShare+slack || w > st.bytes()*WarmShare+slack {
			t.Fatalf("seed %d step %d: %d bytes in hot, %d in warm, of %d", seed, step, h/100, w/100, st.bytes())
		}
	}
	if most > 1+balanceSteps {
		t.Errorf("seed %d: one operation moved %d items", seed, most)
	}
	if st.stats.evictions == 0 || st.stats.movesWithin == 0 {
		t.Errorf("seed %d: %+v", seed, st.stats)
	}
	check(t, s)
}

func TestWhatIsNoLongerUsedLeavesWarmInTime(t *testing.T) {
	s, capacity := small(t)
	for i := range capacity / 2 {
		s.add(i, 1)
	}
	for i := range capacity / 5 {
		s.get(fmt.Sprint(i), 1)
		s.get(fmt.Sprint(i), 1)
	}
	before := s.Stats().Warm.Items
	if before == 0 {
		t.Fatal("nothing is warm")
	}
	// Others come and go: cold is never older than a few seconds.
	for now := uint32(10); now < 10+12; now++ {
		for i := range capacity {
			s.add(int(now)*capacity+i, now)
		}
		for range len(s.stripes[0].buckets)/sweepBatch + 1 {
			s.Sweep(sweepBatch, now)
		}
	}
	if after := s.Stats().Warm.Items; after != 0 {
		t.Errorf("%d of %d items that were not used for long are still warm", after, before)
	}
	check(t, s)
}

func TestDeadItemsNearTheOldEndMakeRoomBeforeLivingOnes(t *testing.T) {
	s, capacity := small(t)
	for i := range capacity {
		expires := uint32(0)
		if i == 2 || i == tailSearch {
			expires = 10
		}
		s.put(Set, fmt.Sprint(i), "x", 0, expires, 0, 1)
	}
	for i := range 3 {
		if st := s.Stats(); st.Evictions > 0 || st.Reclaimed != uint64(i) || st.ExpiredUnfetched != uint64(i) {
			t.Errorf("before item %d: %d living and %d dead items made room", i, st.Evictions, st.Reclaimed)
		}
		s.put(Set, fmt.Sprint("new", i), "x", 0, 0, 0, 10)
	}
	// None is left to find: now the oldest goes.
	if _, _, hit := s.get("0", 10); hit || s.Stats().Evictions != 1 {
		t.Errorf("the oldest is still there: %+v", s.Stats())
	}
	check(t, s)
}

func TestWhatALookupFindsDeadIsNotReclaimed(t *testing.T) {
	s, _ := small(t)
	whole := func(now uint32) {
		for range len(s.stripes[0].buckets)/sweepBatch + 1 {
			s.Sweep(sweepBatch, now)
		}
	}
	for i := range 5 {
		s.put(Set, fmt.Sprint(i), "x", 0, 10, 0, 1)
	}
	s.get("0", 10)
	if st := s.Stats(); st.Reclaimed+st.ExpiredUnfetched+st.Swept != 0 || st.Expired != 1 {
		t.Errorf("after a lookup: %+v", st)
	}
	s.get("1", 5) // one of four is fetched
	whole(10)
	if st := s.Stats(); st.Reclaimed != 0 || st.Swept != 4 || st.ExpiredUnfetched != 3 {
		t.Errorf("after a sweep: %+v", st)
	}
	s.add(5, 11)
	s.Flush(12, 12)
	whole(12)
	if st := s.Stats(); st.Reclaimed != 0 || st.Swept != 5 || st.ExpiredUnfetched != 3 || st.Items != 0 {
		t.Errorf("after a sweep of what was flushed: %+v", st)
	}
}
