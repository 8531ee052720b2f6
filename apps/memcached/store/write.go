package store

import "fmt"

// Op is a way of storing an item.
type Op uint8

const (
	// Set stores always, Add only a key that is not there, Replace only one
	// that is, CompareAndSwap only over the item with the given CAS value.
	Set Op = iota
	Add
	Replace
	CompareAndSwap
	// Append and Prepend put the value behind or before the one that is there,
	// whose flags and expiry stay.
	Append
	Prepend
)

// Result says what became of an item.
type Result uint8

const (
	Stored Result = iota
	NotStored
	// Exists: the CAS value is another.
	Exists
	NotFound
	// NotNumber: the value is not a decimal number (Delta).
	NotNumber
	// NoMemory: as ErrMemory (Delta).
	NoMemory
)

// Pending is an item that is being written: it counts towards the memory limit,
// but nobody can find it until Commit. One goroutine at a time may use it. The
// zero Pending is none.
type Pending struct {
	item   uint32
	stripe *stripe
	place  cursor
	room   int

	binaryKey, invalidate bool
	cas                   uint64
}

// BinaryKey notes on the item that its key came as base64.
func (p *Pending) BinaryKey() { p.binaryKey = true }

// Invalidate lets CompareAndSwap also replace an item with a higher CAS value
// than the one asked for: the new item is then stale, and keeps the expiry time
// of the old one and whether somebody has claimed it.
func (p *Pending) Invalidate() { p.invalidate = true }

// CAS is the CAS value that the last Commit gave to the item, 0 if it was not
// stored.
func (p *Pending) CAS() uint64 { return p.cas }

// Active says whether p stands between Begin and Commit or Abort.
func (p *Pending) Active() bool { return p.item != 0 }

// Begin makes room for an item with a value of size bytes and copies the key.
// It returns ErrTooLarge or ErrMemory if there is none. The item must be ended
// with Commit or Abort, or its memory is lost.
func (s *Store) Begin(p *Pending, key []byte, size int, flags, expires, now uint32) error {
	if len(key) > MaxKey {
		return fmt.Errorf("key of %d bytes: the longest is %d", len(key), MaxKey)
	}
	if size > s.maxItem || Size(len(key), size, flags) > s.maxItem {
		return ErrTooLarge
	}
	st, h := s.locate(key)
	n := chunksFor(len(key), size)
	var c chain
	var old uint32
	st.lock(now)
	enough := st.supply(n)
	if !enough {
		// What this item is to replace or to be joined to must not make room for
		// it, or there would be nothing left to replace.
		old = st.find(key, h, now)
		enough = st.makeRoom(n, old, now)
	}
	if enough {
		c = st.free.take(s.slab, n)
	}
	st.mu.Unlock()
	if !enough {
		if c, enough = s.gather(n, st, old, now); !enough {
			return ErrMemory
		}
	}
	it := s.slab.header(c.first)
	*it = header{next: it.next, key: uint8(len(key)), hash: uint32(h), flags: flags, expires: expires, size: uint32(size), last: c.last}
	*p = Pending{item: c.first, stripe: st, place: cursor{c.first, uint32(headerSize)}, room: size}
	s.slab.write(&p.place, key)
	return nil
}

// AppendKey appends the item's key to dst.
func (s *Store) AppendKey(dst []byte, p *Pending) []byte {
	return s.slab.append(dst, s.slab.at(p.item, 0), int(s.slab.header(p.item).key))
}

// Write appends to the value. It panics if that exceeds Begin's size.
func (s *Store) Write(p *Pending, value []byte) {
	if len(value) > p.room {
		panic("store: value longer than announced")
	}
	p.room -= len(value)
	s.slab.write(&p.place, value)
}

// Abort gives up the item.
func (s *Store) Abort(p *Pending) {
	p.stripe.mu.Lock()
	p.stripe.release(s.slab.chainOf(p.item))
	p.stripe.mu.Unlock()
	*p = Pending{}
}

// Commit enters the item by the rules of op, or drops it. All of the value must
// have been written. Cas is for CompareAndSwap, and for Append and Prepend, where
// 0 is no condition. P is none afterwards.
func (s *Store) Commit(p *Pending, op Op, cas uint64, now uint32) Result {
	if p.room != 0 {
		panic("store: value shorter than announced")
	}
	i, st, invalidate := p.item, p.stripe, p.invalidate
	it := s.slab.header(i)
	if p.binaryKey {
		it.marks |= binaryKey
	}
	*p = Pending{}
	st.lock(now)
	defer st.mu.Unlock()
	old := st.findItem(i, now)
	result := Stored
	switch op {
	case Add:
		if old != 0 {
			// Somebody cares for it, but has not fetched it.
			was := s.slab.header(old)
			was.accessed = now
			st.move(old, was, was.segment)
			result = NotStored
		}
	case CompareAndSwap:
		if old == 0 {
			result = NotFound
		} else if has := s.slab.header(old); has.cas != cas {
			result = Exists
			if invalidate && cas != 0 && cas < has.cas {
				result = Stored
				it.expires = has.expires
				it.marks |= stale | has.marks&claimed
			}
		}
	case Replace:
		if old == 0 {
			result = NotStored
		}
	case Append, Prepend:
		if old == 0 {
			result = NotStored
		} else if cas != 0 && s.slab.header(old).cas != cas {
			result = Exists
		} else if !st.joins(old, it) {
			result = NotStored
		}
	}
	if result != Stored {
		st.release(s.slab.chainOf(i))
		return result
	}
	switch {
	case op == Append:
		// The old item stays and takes the new one's value.
		head := s.slab.header(old)
		st.lists[head.segment].bytes += uint64(it.size)
		st.uncountSize(head)
		st.extend(old, i)
		head.heat, head.marks = unread, 0
		head.cas = st.nextCAS()
		p.cas = head.cas
		st.countSize(head)
		st.stats.total++
		st.renew(old, now)
		return Stored
	case op == Prepend:
		// The new item takes the old one's value and its place.
		head := s.slab.header(old)
		it.flags, it.expires, it.marks = head.flags, head.expires, 0
		st.unlink(old)
		st.extend(i, old)
	case old != 0:
		st.remove(old)
	}
	st.link(i, now)
	p.cas = it.cas
	return Stored
}

// joins says whether two values together are within the size limit.
func (st *stripe) joins(old uint32, add *header) bool {
	it := st.store.slab.header(old)
	return Size(int(it.key), int(it.size)+int(add.size), it.flags) <= st.store.maxItem
}

// findItem finds the live item that has the same key as item i.
func (st *stripe) findItem(i, now uint32) uint32 {
	slab := st.store.slab
	it := slab.header(i)
	var key [MaxKey]byte
	return st.find(slab.append(key[:0], slab.at(i, 0), int(it.key)), uint64(it.hash), now)
}

// extend moves the value of item from behind the value of item to. Item from is
// in no list; its chunks are reused as they are read, so that no memory is
// needed: what is left of them is freed.
func (st *stripe) extend(to, from uint32) {
	slab := st.store.slab
	dst, src := slab.header(to), slab.header(from)
	place, remaining := slab.at(from, int(src.key)), int(src.size)
	end := slab.end(to)
	dst.size += src.size

	// A chunk of the source holds no more than one of the destination, so those
	// that were read are enough for those that are needed.
	unread, read := slab.chainOf(from), chain{}
	var data [chunkSize]byte
	for unread.count > 0 {
		part := data[:copy(data[:min(remaining, chunkSize-int(place.offset))], slab[int(place.chunk)*chunkSize+int(place.offset):])]
		remaining -= len(part)
		read.push(slab, unread.through(slab, place.chunk))
		place = cursor{unread.first, linkSize}
		for len(part) > 0 {
			if end.offset == chunkSize {
				grown := read.take(slab, 1)
				*slab.next(end.chunk), *slab.next(grown.first) = grown.first, 0
				dst.last = grown.first
				end = cursor{grown.first, linkSize}
			}
			part = part[copy(slab.rest(&end, len(part)), part):]
		}
	}
	st.release(read)
}
