package store

// Meta describes an item that was found.
type Meta struct {
	Flags uint32
	// Size is the length of the value in bytes.
	Size int
	CAS  uint64
}

// Head appends what goes before a value to dst. It runs while the item is
// locked: it must not call the Store.
type Head func(dst, key []byte, m Meta) []byte

// Get appends head's bytes and then the value to dst, and notes that the
// item is in use. On a miss it returns dst as it is and false.
func (s *Store) Get(dst, key []byte, now uint32, head Head) ([]byte, bool) {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	i := st.find(key, h, now)
	if i == 0 {
		return dst, false
	}
	return st.read(dst, key, i, now, head), true
}

// GetAndTouch is Get, and gives the item a new expiry time (0: never).
func (s *Store) GetAndTouch(dst, key []byte, expires, now uint32, head Head) ([]byte, bool) {
	st, h := s.locate(key)
	st.lock(now)
	defer st.mu.Unlock()
	i := st.find(key, h, now)
	if i == 0 {
		return dst, false
	}
	st.expire(s.slab.header(i), expires)
	return st.read(dst, key, i, now, head), true
}

func (st *stripe) read(dst, key []byte, i, now uint32, head Head) []byte {
	slab := st.store.slab
	it := slab.header(i)
	st.stats.hits[it.segment]++
	st.hit(i, now)
	dst = head(dst, key, Meta{Flags: it.flags, Size: int(it.size), CAS: it.cas})
	return slab.append(dst, slab.at(i, int(it.key)), int(it.size))
}
