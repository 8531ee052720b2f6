package store

// stripeStats are guarded by the stripe's lock.
type stripeStats struct {
	total                              uint64
	evictions, evictedUnfetched        uint64
	evictedNonzero, evictedActive      uint64
	evictedAge                         uint32
	directReclaims                     uint64
	movesToCold, movesToWarm           uint64
	movesWithin                        uint64
	hits                               [segments]uint64
	reclaimed, expiredUnfetched, swept uint64
	checked                            uint64
	expired, flushed                   uint64
}

// Segment tells of one of the lists of items.
type Segment struct {
	Items, Bytes uint64
	// Oldest is the time at which the item at the list's old end was used, in
	// Unix seconds: the earliest of the stripes'. 0 if there is none.
	Oldest uint32
	// Hits counts the items that were fetched while they were in the list.
	Hits uint64
}

// Stats is a snapshot. The counters of different stripes are read one after
// another.
type Stats struct {
	// Items is the number of items now, dead ones included that were not
	// reclaimed yet; Total the number ever stored.
	Items, Total uint64
	// Bytes is the sum of the items' Size.
	Bytes uint64
	// Evictions counts live items that had to make room, EvictedUnfetched those
	// that were never read.
	Evictions, EvictedUnfetched uint64
	// EvictedNonzero counts those of them that had an expiry time, EvictedActive
	// those that were in use, so that nothing better was left to evict.
	// EvictedAge is how many seconds ago the one evicted last, of any stripe, had
	// been used: the longest of the stripes'.
	EvictedNonzero, EvictedActive uint64
	EvictedAge                    uint32
	// DirectReclaims counts how often a request had to make room by evicting.
	DirectReclaims uint64
	// Hot, Warm and Cold are the lists that items stand in; MovesToCold,
	// MovesToWarm and MovesWithin count moves between them, and within warm.
	Hot, Warm, Cold                       Segment
	MovesToCold, MovesToWarm, MovesWithin uint64
	// Reclaimed counts the dead items, expired or flushed, that made room in
	// place of living ones, Swept those that Sweep found, and ExpiredUnfetched
	// those of both that were never read; as in memcached, those of Swept that
	// were flushed are not among them. What a lookup finds is in none of them.
	Reclaimed, ExpiredUnfetched, Swept uint64
	// Checked counts the items that Sweep looked at.
	Checked uint64
	// Expired and Flushed count the lookups, for whatever purpose, that found a
	// dead item.
	Expired, Flushed uint64
	// ChunkSize is in bytes. UsedChunks belong to items or to items being
	// written.
	ChunkSize, Chunks, UsedChunks uint64
	// Memory is the limit in bytes, HashBytes the part of it that the hash
	// tables take, FixedBytes that of the locks, lists and counters. Buckets is
	// the number of the tables' entries, Stripes that of locks.
	Memory, HashBytes, FixedBytes, Buckets, Stripes uint64
}

// Stats adds up what the stripes counted.
func (s *Store) Stats() Stats {
	chunks := len(s.slab)/chunkSize - 1
	sum := Stats{
		ChunkSize: chunkSize, Chunks: uint64(chunks), Memory: uint64(s.memory), HashBytes: uint64(s.hash),
		FixedBytes: uint64(fixedBytes(len(s.stripes))), Buckets: uint64(s.hash / 4), Stripes: uint64(len(s.stripes)),
	}
	free := s.pool.count()
	for i := range s.stripes {
		st := &s.stripes[i]
		st.mu.Lock()
		c := st.stats
		free += st.free.count
		for k, to := range [...]*Segment{&sum.Hot, &sum.Warm, &sum.Cold} {
			l := &st.lists[k]
			to.Items += l.items
			to.Bytes += l.bytes
			to.Hits += c.hits[k]
			if l.oldest != 0 {
				if used := s.slab.header(l.oldest).accessed; to.Oldest == 0 || used < to.Oldest {
					to.Oldest = used
				}
			}
		}
		sum.Items += st.items()
		sum.Bytes += st.bytes()
		st.mu.Unlock()
		sum.Total += c.total
		sum.Evictions += c.evictions
		sum.EvictedUnfetched += c.evictedUnfetched
		sum.EvictedNonzero += c.evictedNonzero
		sum.EvictedActive += c.evictedActive
		sum.DirectReclaims += c.directReclaims
		sum.MovesToCold += c.movesToCold
		sum.MovesToWarm += c.movesToWarm
		sum.MovesWithin += c.movesWithin
		sum.EvictedAge = max(sum.EvictedAge, c.evictedAge)
		sum.Reclaimed += c.reclaimed
		sum.ExpiredUnfetched += c.expiredUnfetched
		sum.Swept += c.swept
		sum.Checked += c.checked
		sum.Expired += c.expired
		sum.Flushed += c.flushed
	}
	sum.UsedChunks = uint64(max(chunks-free, 0))
	return sum
}
