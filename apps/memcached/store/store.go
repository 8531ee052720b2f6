// Package store keeps memcached's items: a hash table with expiry, compare and
// swap, and eviction from a segmented LRU list under a fixed memory limit.
//
// Keys are spread by hash over stripes, each with its own lock, table and lists,
// so cores rarely meet. All items live in one slab of small chunks
// without pointers: the garbage collector never looks inside, nothing is
// allocated after New, and any freed chunk suits any item. Nothing here reads a
// clock or asks the system for memory: the caller passes the time, in Unix
// seconds, with every call, and may pass memory that is not Go's.
package store

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"unsafe"
)

// MaxKey is the longest key in bytes.
const MaxKey = 250

const (
	minItemLimit = 1 << 10
	maxItemLimit = 1 << 30
	maxStripes   = 1024
	// A stripe should have room for this many bytes, and for so many of the
	// largest items, so that evicting from one stripe is close to evicting from
	// all.
	bytesPerStripe = 256 << 10
	itemsPerStripe = 8
)

// ErrTooLarge says that an item exceeds Options.MaxItem.
var ErrTooLarge = errors.New("item exceeds the size limit")

// ErrMemory says that an item found no room although everything that could be
// evicted was: the rest of the memory is held by items still being written.
var ErrMemory = errors.New("no memory left for the item")

// Options configures a Store.
type Options struct {
	// Memory is the limit in bytes for all that the Store takes: items with
	// their overhead and what is unused at their end, items being written, hash
	// tables, locks. At least Minimum(MaxItem).
	Memory int
	// MaxItem is the largest item in bytes as Size counts it, 1 KiB to 1 GiB.
	MaxItem int
	// Stripes is how many locks to spread the keys over, a power of two up to
	// 1024; 0 chooses by Memory.
	Stripes int
	// Seed makes the spreading of keys reproducible; 0 takes a random seed,
	// which clients cannot exploit to make keys collide.
	Seed uint64
	// Allocate, if not nil, gives the memory for items and tables: so many bytes,
	// all zero and at an address that is a multiple of 8, to be left to the Store
	// for as long as it is used. If it is nil they are one object on Go's heap.
	Allocate func(bytes int) ([]byte, error)
}

// Minimum is the smallest Options.Memory in bytes for a given Options.MaxItem:
// room for eight of the largest items, and no less than 1 MiB.
func Minimum(maxItem int) int { return max(8*maxItem, 1<<20) }

// Size is the size of an item in bytes as memcached 1.6 counts it on a 64-bit
// machine: 48 of header, 8 of CAS, the key and a zero, 4 of flags unless they
// are 0, the value and its line end. MaxItem and Stats.Bytes are in this
// measure, so that a value that just fits memcached just fits here.
func Size(key, value int, flags uint32) int {
	size := 48 + 8 + key + 1 + value + 2
	if flags != 0 {
		size += 4
	}
	return size
}

// Store is safe for concurrent use.
type Store struct {
	slab    slab
	pool    pool
	stripes []stripe
	// shift takes a hash to its stripe.
	shift   uint
	secret  secret
	maxItem int
	memory  int
	hash    int // bytes of hash tables

	sweep sweep
	sizes sizes
}

// New makes a Store. The memory is reserved at once and touched as it fills.
func New(o Options) (*Store, error) {
	if o.MaxItem < minItemLimit || o.MaxItem > maxItemLimit {
		return nil, fmt.Errorf("item size limit of %d bytes: must be between %d (1 KiB) and %d (1 GiB)", o.MaxItem, minItemLimit, maxItemLimit)
	}
	if minimum := Minimum(o.MaxItem); o.Memory < minimum {
		return nil, fmt.Errorf("memory limit of %d bytes is too small: with items up to %d bytes the minimum is %d bytes (%.4g MiB)",
			o.Memory, o.MaxItem, minimum, float64(minimum)/(1<<20))
	}
	if o.Stripes == 0 {
		each := max(bytesPerStripe, itemsPerStripe*o.MaxItem)
		o.Stripes = min(1<<(bits.Len(uint(o.Memory/each))-1), maxStripes)
	}
	if o.Stripes < 1 || o.Stripes > maxStripes || o.Stripes&(o.Stripes-1) != 0 {
		return nil, fmt.Errorf("%d stripes: must be a power of two up to %d", o.Stripes, maxStripes)
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	// As large as it will ever have to be, so that it never grows: a bucket for
	// every two chunks, which is less than an item for each unless all are tiny.
	buckets := max(1, o.Memory/chunkSize/2/o.Stripes)
	hash := buckets * o.Stripes * 4
	chunks := (o.Memory-hash-fixedBytes(o.Stripes))/chunkSize - 1 // one is none
	if chunks > maxChunks {
		return nil, fmt.Errorf("memory limit of %d bytes is too large: the maximum is %d bytes (%d GiB)", o.Memory, maxChunks*chunkSize, maxChunks*chunkSize>>30)
	}
	slab, tables, err := allocate(o.Allocate, chunks, buckets*o.Stripes)
	if err != nil {
		return nil, err
	}
	s := &Store{
		slab:    slab,
		pool:    newPool(chunks),
		stripes: make([]stripe, o.Stripes),
		shift:   uint(64 - bits.Len(uint(o.Stripes-1))),
		secret:  newSecret(o.Seed),
		maxItem: o.MaxItem,
		memory:  o.Memory,
		hash:    hash,
	}
	for i := range s.stripes {
		s.stripes[i].init(s, i, tables[i*buckets:(i+1)*buckets:(i+1)*buckets])
	}
	return s, nil
}

// fixedBytes is what a store takes besides chunks and tables.
func fixedBytes(stripes int) int {
	return int(unsafe.Sizeof(Store{})) + stripes*int(unsafe.Sizeof(stripe{}))
}

// locate returns the stripe and the hash of a key.
func (s *Store) locate(key []byte) (*stripe, uint64) {
	h := hashOf(key, &s.secret)
	return &s.stripes[h>>s.shift], h
}

// Delete removes an item, and says whether there was one.
func (s *Store) Delete(key []byte, now uint32) bool {
	return s.DeleteIf(key, 0, now) == Stored
}

// DeleteIf removes an item if its CAS value is cas, or whatever it is if cas is
// 0. The result is Stored, NotFound or Exists.
func (s *Store) DeleteIf(key []byte, cas uint64, now uint32) Result {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	it, result := st.findIf(key, h, cas, now)
	if result == Stored {
		st.remove(it)
	}
	return result
}

// Invalidate marks an item as stale and gives it a new CAS value, under the same
// condition as DeleteIf; somebody may claim it anew. A not nil expires is its new
// expiry time.
func (s *Store) Invalidate(key []byte, cas uint64, expires *uint32, now uint32) Result {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	i, result := st.findIf(key, h, cas, now)
	if result != Stored {
		return result
	}
	it := s.slab.header(i)
	if expires != nil {
		st.expire(it, *expires)
	}
	it.marks = it.marks&^claimed | stale
	st.uncountSize(it)
	it.cas = st.nextCAS()
	st.countSize(it)
	return Stored
}

// findIf is find with a condition on the CAS value; 0 is none.
func (st *stripe) findIf(key []byte, h, cas uint64, now uint32) (uint32, Result) {
	switch it := st.find(key, h, now); {
	case it == 0:
		return 0, NotFound
	case cas != 0 && st.store.slab.header(it).cas != cas:
		return it, Exists
	default:
		return it, Stored
	}
}

// Touch gives an item a new expiry time (0: never), and says whether there was one.
func (s *Store) Touch(key []byte, expires, now uint32) bool {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	it := st.find(key, h, now)
	if it == 0 {
		return false
	}
	st.expire(s.slab.header(it), expires)
	st.hit(it, now)
	return true
}

// Flush makes every item that is stored before the time at unreachable from
// then on; their memory is reclaimed as it is needed. It replaces an earlier
// Flush that has not come yet. Stripes are flushed one after another.
func (s *Store) Flush(at, now uint32) {
	for i := range s.stripes {
		st := &s.stripes[i]
		st.lock(now)
		if at <= now {
			st.flush()
		} else {
			st.flushAt = at
		}
		st.mu.Unlock()
	}
}
