package store

import (
	"strconv"

	"github.com/pollux-net/pollux/apps/memcached/numeral"
)

// numberWindow is how far into a value Delta looks for the end of its number.
const numberWindow = 256

// maxDigits is the length of the largest number.
const maxDigits = 20

// Arithmetic is how to change a number.
type Arithmetic struct {
	// By is added modulo 2^64, or subtracted, but not below 0.
	By       uint64
	Subtract bool
	// CAS is the CAS value that the item must have; 0 is any.
	CAS uint64
	// Create: if there is no item, one is made with the value Initial, that
	// expires at Expires.
	Create  bool
	Initial uint64
	Expires uint32
	// Value is the new number, NewCAS the item's new CAS value, and Created is
	// set if there was no item.
	Value, NewCAS uint64
	Created       bool
}

// Delta is Compute for those who want the number only.
func (s *Store) Delta(key []byte, delta uint64, subtract bool, now uint32) (uint64, Result) {
	a := Arithmetic{By: delta, Subtract: subtract}
	_, result := s.Compute(nil, key, &a, now, nil)
	return a.Value, result
}

// Compute changes the number that an item's value is. A result that is shorter
// than the value is padded with spaces behind. Flags and expiry stay. The
// result is Stored, NotFound, Exists, NotNumber or NoMemory; if it is Stored, a
// see that is not nil sees the item afterwards, and a has the outcome.
func (s *Store) Compute(dst, key []byte, a *Arithmetic, now uint32, see See) ([]byte, Result) {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	i, result := st.computeOrCreate(key, h, a, now)
	if result == NoMemory && st.refill(chunksFor(len(key), maxDigits), i, now) {
		i, result = st.computeOrCreate(key, h, a, now)
	}
	if result != Stored {
		return dst, result
	}
	a.NewCAS = s.slab.header(i).cas
	if see != nil {
		dst = st.see(dst, key, i, see)
	}
	return dst, Stored
}

// computeOrCreate returns the item, if there is one. If the result is NoMemory,
// nothing was changed.
func (st *stripe) computeOrCreate(key []byte, h uint64, a *Arithmetic, now uint32) (uint32, Result) {
	a.Created = false
	if i := st.find(key, h, now); i != 0 {
		return i, st.compute(i, a, now)
	}
	if !a.Create {
		return 0, NotFound
	}
	var text [maxDigits]byte
	i := st.create(key, h, strconv.AppendUint(text[:0], a.Initial, 10), a.Expires, now)
	if i == 0 {
		return 0, NoMemory
	}
	a.Value, a.Created = a.Initial, true
	return i, Stored
}

func (st *stripe) compute(i uint32, a *Arithmetic, now uint32) Result {
	slab := st.store.slab
	it := slab.header(i)
	if it.size == 0 {
		return NotNumber
	}
	if a.CAS != 0 && a.CAS != it.cas {
		return Exists
	}
	var text [numberWindow]byte
	value, ok := numeral.Unsigned(slab.append(text[:0], slab.at(i, int(it.key)), min(int(it.size), numberWindow)))
	if !ok {
		return NotNumber
	}
	switch {
	case !a.Subtract:
		value += a.By
	case a.By < value:
		value -= a.By
	default:
		value = 0
	}
	digits := strconv.AppendUint(text[:0], value, 10)
	st.uncountSize(it)
	defer st.countSize(it)
	if grow := len(digits) - int(it.size); grow > 0 {
		if !st.growNumber(i, it, len(digits), now) {
			return NoMemory
		}
		st.stats.total++
		it.heat, it.marks = unread, 0
	}
	place := slab.at(i, int(it.key))
	slab.write(&place, digits)
	slab.fill(&place, ' ', int(it.size)-len(digits))
	it.cas = st.nextCAS()
	st.renew(i, now)
	a.Value = value
	return Stored
}

// growNumber makes an item's value size bytes long; a number is so short that
// at most one more chunk is needed.
func (st *stripe) growNumber(i uint32, it *header, size int, now uint32) bool {
	slab := st.store.slab
	if chunksFor(int(it.key), size) > chunksFor(int(it.key), int(it.size)) {
		if !st.reserve(1, i, now) {
			return false
		}
		c := st.free.take(slab, 1)
		*slab.next(it.last), *slab.next(c.first) = c.first, 0
		it.last = c.first
	}
	st.lists[it.segment].bytes += uint64(size) - uint64(it.size)
	it.size = uint32(size)
	return true
}
