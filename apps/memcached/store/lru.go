package store

// segment is one of the three lists that a stripe's items stand in, as in
// memcached 1.6: what is stored enters hot; what is fetched again before it
// falls out of hot, or later in cold, belongs to warm; cold is what memory is
// taken from. So a scan, whose items are used once, passes through hot and cold
// without pushing out what is in use (warm).
type segment uint8

const (
	hot segment = iota
	warm
	cold
	segments
)

// What hot and warm may hold, in percent of the bytes of a stripe's items, and
// how long an item may stand there unused, as a multiple of the age of the oldest
// in cold. These are memcached's defaults.
const (
	HotShare, WarmShare   = 20, 40
	HotMaxAge, WarmMaxAge = 0.2, 2.0
)

const (
	// An operation that puts an item into hot or warm moves no more items than
	// this out of them again, so that no operation takes long. One would do for
	// items of one size that nobody reads.
	balanceSteps = 4
)

// heat is what is known of the use of an item.
type heat uint8

const (
	// unread: not fetched since it was stored.
	unread heat = iota
	// fetched: once, or not again since its list was last looked through.
	fetched
	// active: again. In warm an active item gets another turn.
	active
)

// list is one segment of a stripe, linked through the items' headers.
type list struct {
	newest, oldest uint32
	items, bytes   uint64
}

// hit notes that an item was fetched.
func (st *stripe) hit(i, now uint32) {
	it := st.store.slab.header(i)
	it.accessed = now
	if it.heat < active {
		it.heat++
	}
	if it.segment == cold && it.heat == active {
		it.heat = fetched
		st.stats.movesToWarm++
		st.move(i, it, warm)
		st.balance()
	}
}

// renew puts an item where a new one would be, after it was changed in place.
func (st *stripe) renew(i, now uint32) {
	it := st.store.slab.header(i)
	it.accessed = now
	st.move(i, it, hot)
	st.balance()
}

// bytes is the sum of the items' sizes.
func (st *stripe) bytes() (n uint64) {
	for k := range st.lists {
		n += st.lists[k].bytes
	}
	return n
}

// items is the number of items.
func (st *stripe) items() (n uint64) {
	for k := range st.lists {
		n += st.lists[k].items
	}
	return n
}

// balance moves items out of hot and warm while those hold more than their
// share. The last step does not ask whether the item is active, so that they
// shrink even if all are.
func (st *stripe) balance() {
	bytes := st.bytes()
	for step := 1; step <= balanceSteps; step++ {
		switch {
		case st.lists[hot].bytes*100 > bytes*HotShare:
			st.pull(hot, step == balanceSteps)
		case st.lists[warm].bytes*100 > bytes*WarmShare:
			st.pull(warm, step == balanceSteps)
		default:
			return
		}
	}
}

// pull moves the oldest item of hot or warm on: to warm if it is active, unless
// it is to be made cold whatever it is.
func (st *stripe) pull(from segment, anyway bool) {
	i := st.lists[from].oldest
	it := st.store.slab.header(i)
	to := cold
	if it.heat == active {
		it.heat = fetched
		if !anyway {
			to = warm
		}
	}
	switch {
	case to == cold:
		st.stats.movesToCold++
	case from == hot:
		st.stats.movesToWarm++
	default:
		st.stats.movesWithin++
	}
	st.move(i, it, to)
}

// cool moves up to so many items out of hot and warm that were not used for
// long, compared with those in cold; else a list whose items nobody wants any
// more would keep its share for as long as nothing new is worth it.
func (st *stripe) cool(steps int, now uint32) {
	slab := st.store.slab
	if st.lists[cold].oldest == 0 {
		return
	}
	age := func(i uint32) float64 {
		used := slab.header(i).accessed
		return float64(now - min(used, now))
	}
	limit := age(st.lists[cold].oldest)
	for from, factor := range [...]float64{hot: HotMaxAge, warm: WarmMaxAge} {
		for ; steps > 0; steps-- {
			i := st.lists[from].oldest
			if i == 0 || age(i) <= limit*factor {
				break
			}
			st.pull(segment(from), false)
		}
	}
}

// victim is the item to evict next, 0 if there is none but the given one.
func (st *stripe) victim(but uint32) uint32 {
	for _, from := range [...]segment{cold, hot, warm} {
		i := st.lists[from].oldest
		if i != 0 && i == but {
			i = st.store.slab.header(i).newer
		}
		if i != 0 {
			return i
		}
	}
	return 0
}

// move takes an item from its list to the new end of another, or of the same.
func (st *stripe) move(i uint32, it *header, to segment) {
	if st.lists[to].newest == i {
		return
	}
	st.drop(it)
	st.push(i, it, to)
}

func (st *stripe) push(i uint32, it *header, to segment) {
	l := &st.lists[to]
	it.segment = to
	it.older, it.newer = l.newest, 0
	if l.newest != 0 {
		st.store.slab.header(l.newest).newer = i
	} else {
		l.oldest = i
	}
	l.newest = i
	l.items++
	l.bytes += it.bytes()
}

func (st *stripe) drop(it *header) {
	slab, l := st.store.slab, &st.lists[it.segment]
	if it.newer != 0 {
		slab.header(it.newer).older = it.older
	} else {
		l.newest = it.older
	}
	if it.older != 0 {
		slab.header(it.older).newer = it.newer
	} else {
		l.oldest = it.newer
	}
	l.items--
	l.bytes -= it.bytes()
}
