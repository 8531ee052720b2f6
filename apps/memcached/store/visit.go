package store

// Entry is what is known of an item besides its key and value.
type Entry struct {
	Meta
	// Expires is in Unix seconds, 0: never. Accessed is when the item was
	// stored or last fetched, Fetched whether it ever was.
	Expires, Accessed uint32
	Fetched           bool
	// Stale: it was invalidated. Claimed: some client was told to renew it.
	// BinaryKey: its key came as base64.
	Stale, Claimed, BinaryKey bool
}

// See appends to dst what is to be said of an item. It runs while the item is
// locked: it must not call the Store. What it sets Expires and Claimed to is
// noted on the item; e is valid only during the call.
type See func(dst, key []byte, e *Entry) []byte

// Visit is how to fetch an item.
type Visit struct {
	// Create: if there is no item, an empty one is made that never expires,
	// unless See says otherwise.
	Create bool
	// Peek leaves no trace of the fetch on the item. See may still set it.
	Peek bool
	// Value: the value is appended behind what See appended.
	Value bool
	// Created is set if the item was.
	Created bool
}

// Visit fetches an item for see. On a miss, and if there is no memory to create
// an item, it returns dst as it is and false.
func (s *Store) Visit(dst, key []byte, v *Visit, now uint32, see See) ([]byte, bool) {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	v.Created = false
	i := st.find(key, h, now)
	if i == 0 && v.Create {
		if n := chunksFor(len(key), 0); !st.reserve(n, 0, now) && st.refill(n, 0, now) {
			i = st.find(key, h, now)
		}
		if i == 0 {
			i = st.create(key, h, nil, 0, now)
			v.Created = i != 0
		}
	}
	if i == 0 {
		return dst, false
	}
	dst = st.see(dst, key, i, see)
	if v.Value {
		dst = s.slab.append(dst, s.slab.at(i, len(key)), int(s.slab.header(i).size))
	}
	if !v.Peek {
		st.stats.hits[s.slab.header(i).segment]++
		st.hit(i, now)
	}
	return dst, true
}

// see shows an item to a See and takes over what that changes.
func (st *stripe) see(dst, key []byte, i uint32, see See) []byte {
	it := st.store.slab.header(i)
	st.entry = Entry{
		Meta:    Meta{Flags: it.flags, Size: int(it.size), CAS: it.cas},
		Expires: it.expires, Accessed: it.accessed, Fetched: it.heat != unread,
		Stale: it.marks&stale != 0, Claimed: it.marks&claimed != 0, BinaryKey: it.marks&binaryKey != 0,
	}
	dst = see(dst, key, &st.entry)
	st.expire(it, st.entry.Expires)
	if st.entry.Claimed {
		it.marks |= claimed
	} else {
		it.marks &^= claimed
	}
	return dst
}

// create stores a small item under the stripe's lock; 0 if the stripe has no
// memory for it, and refill is to be asked.
func (st *stripe) create(key []byte, h uint64, value []byte, expires, now uint32) uint32 {
	slab := st.store.slab
	n := chunksFor(len(key), len(value))
	if !st.reserve(n, 0, now) {
		return 0
	}
	c := st.free.take(slab, n)
	it := slab.header(c.first)
	*it = header{next: it.next, key: uint8(len(key)), hash: uint32(h), expires: expires, size: uint32(len(value)), last: c.last}
	place := cursor{c.first, uint32(headerSize)}
	slab.write(&place, key)
	slab.write(&place, value)
	st.link(c.first, now)
	return c.first
}
