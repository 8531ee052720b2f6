package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func newStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.MaxItem == 0 {
		o.MaxItem = 64 << 10
	}
	if o.Memory == 0 {
		o.Memory = 4 << 20
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Store) put(op Op, key, value string, flags, expires uint32, cas uint64, now uint32) (Result, error) {
	var p Pending
	if err := s.Begin(&p, []byte(key), len(value), flags, expires, now); err != nil {
		return NoMemory, err
	}
	// In two parts, as values arrive.
	half := len(value) / 2
	s.Write(&p, []byte(value[:half]))
	s.Write(&p, []byte(value[half:]))
	return s.Commit(&p, op, cas, now), nil
}

func (s *Store) get(key string, now uint32) (value string, m Meta, hit bool) {
	out, hit := s.Get(nil, []byte(key), now, func(dst, _ []byte, found Meta) []byte { m = found; return dst })
	return string(out), m, hit
}

// check verifies that every chunk is in exactly one place, that the tables and
// the lists hold the same items, and that the counters agree.
func check(t testing.TB, s *Store, pending ...*Pending) {
	t.Helper()
	chunks := len(s.slab)/chunkSize - 1
	seen := make([]bool, chunks+1)
	visit := func(what string, c chain) {
		n := 0
		last := uint32(0)
		for i := c.first; i != 0 && n <= chunks; i = *s.slab.next(i) {
			if seen[i] {
				t.Fatalf("chunk %d is in two places; the second is %s", i, what)
			}
			seen[i], last = true, i
			n++
		}
		if n != c.count || last != c.last {
			t.Fatalf("%s: %d chunks up to %d, should be %d up to %d", what, n, last, c.count, c.last)
		}
	}
	visit("the pool", s.pool.free)
	for i := s.pool.fresh; i < s.pool.end; i++ {
		if seen[i] {
			t.Fatalf("fresh chunk %d is in use", i)
		}
		seen[i] = true
	}
	for _, p := range pending {
		visit("a pending item", s.slab.chainOf(p.item))
	}
	for n := range s.stripes {
		st := &s.stripes[n]
		visit("free", st.free)
		inTable := map[uint32]bool{}
		for b, first := range st.buckets {
			for i := first; i != 0; i = s.slab.header(i).bucket {
				it := s.slab.header(i)
				if st.bucket(it.hash) != &st.buckets[b] || inTable[i] {
					t.Fatalf("item %d is in the wrong bucket or in two", i)
				}
				key := s.slab.append(nil, s.slab.at(i, 0), int(it.key))
				if at, h := s.locate(key); at != st || uint32(h) != it.hash {
					t.Fatalf("item %d of key %q is in the wrong stripe", i, key)
				}
				inTable[i] = true
			}
		}
		inLists := 0
		for k := range st.lists {
			l := &st.lists[k]
			count, size, older := uint64(0), uint64(0), uint32(0)
			for i := l.oldest; i != 0; i = s.slab.header(i).newer {
				it := s.slab.header(i)
				if !inTable[i] || it.older != older || int(it.segment) != k {
					t.Fatalf("list %d of stripe %d is broken at item %d", k, n, i)
				}
				visit("an item", s.slab.chainOf(i))
				count++
				size += it.bytes()
				older = i
			}
			if older != l.newest || count != l.items || size != l.bytes {
				t.Fatalf("list %d of stripe %d: %d items of %d bytes, counted %d of %d", k, n, count, size, l.items, l.bytes)
			}
			inLists += int(count)
		}
		if inLists != len(inTable) {
			t.Fatalf("stripe %d: %d items in the lists, %d in the table", n, inLists, len(inTable))
		}
	}
	for i := 1; i <= chunks; i++ {
		if !seen[i] {
			t.Fatalf("chunk %d is lost", i)
		}
	}
}

type modelItem struct {
	value          string
	flags, expires uint32
}

// Every operation against a plain map, with values across all chunk boundaries.
func TestTheStoreBehavesLikeAMap(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := newStore(t, Options{Memory: 16 << 20, Stripes: 1 << rng.IntN(5), Seed: seed + 1})
		model := map[string]modelItem{}
		now := uint32(1000)
		for step := range 6000 {
			if rng.IntN(20) == 0 {
				now++
			}
			key := strings.Repeat("k", rng.IntN(3)*rng.IntN(80)) + fmt.Sprint(rng.IntN(30))
			old, there := model[key]
			if there && old.expires != 0 && old.expires <= now {
				delete(model, key)
				old, there = modelItem{}, false
			}
			expires := uint32(0)
			if rng.IntN(4) == 0 {
				expires = now + uint32(rng.IntN(10))
			}
			fail := func(format string, arguments ...any) {
				t.Helper()
				t.Fatalf("seed %d step %d key %q: %s", seed, step, key, fmt.Sprintf(format, arguments...))
			}
			switch rng.IntN(12) {
			case 0, 1, 2, 3:
				op := Op(rng.IntN(6))
				length := rng.IntN(300)
				if rng.IntN(50) == 0 {
					length = rng.IntN(60000)
				}
				value := strings.Repeat(string(rune('a'+rng.IntN(26))), length)
				item := modelItem{value, rng.Uint32N(3), expires}
				cas := uint64(0)
				if op == CompareAndSwap {
					_, m, _ := s.get(key, now)
					cas = m.CAS + uint64(rng.IntN(2))
				}
				_, m, _ := s.get(key, now)
				want := Stored
				switch {
				case op == Add && there, (op == Replace || op == Append || op == Prepend) && !there:
					want = NotStored
				case op == CompareAndSwap && !there:
					want = NotFound
				case op == CompareAndSwap && m.CAS != cas:
					want = Exists
				case op == Append:
					item = modelItem{old.value + value, old.flags, old.expires}
				case op == Prepend:
					item = modelItem{value + old.value, old.flags, old.expires}
				}
				if want == Stored && Size(len(key), len(item.value), item.flags) > 64<<10 {
					want = NotStored
				}
				got, err := s.put(op, key, value, item.flags, expires, cas, now)
				if err != nil || got != want {
					fail("op %d is %d (%v), want %d", op, got, err, want)
				}
				if want == Stored {
					model[key] = item
				}
			case 4:
				if got := s.Delete([]byte(key), now); got != there {
					fail("delete is %v", got)
				}
				delete(model, key)
			case 5:
				if got := s.Touch([]byte(key), expires, now); got != there {
					fail("touch is %v", got)
				}
				if there {
					old.expires = expires
					model[key] = old
				}
			case 6:
				number := fmt.Sprint(rng.Uint64() >> rng.IntN(64))
				if _, err := s.put(Set, key, number, 0, 0, 0, now); err != nil {
					fail("set: %v", err)
				}
				delta := rng.Uint64() >> rng.IntN(64)
				var value uint64
				fmt.Sscan(number, &value)
				subtract := rng.IntN(2) == 0
				if !subtract {
					value += delta
				} else {
					value -= min(value, delta)
				}
				if got, result := s.Delta([]byte(key), delta, subtract, now); got != value || result != Stored {
					fail("%s and %d make %d, want %d", number, delta, got, value)
				}
				model[key] = modelItem{fmt.Sprintf("%-*d", len(number), value), 0, 0}
			case 7:
				if rng.IntN(100) == 0 {
					s.Flush(now, now)
					clear(model)
				}
				s.Sweep(1+rng.IntN(1000), now)
			default:
				value, m, hit := s.get(key, now)
				if hit != there || value != old.value || m.Flags != old.flags || m.Size != len(value) {
					fail("found %v %q, want %v %q", hit, value, there, old.value)
				}
			}
			if step%500 == 0 {
				check(t, s)
			}
		}
		check(t, s)
		if e := s.Stats().Evictions; e != 0 {
			t.Errorf("seed %d: %d items were evicted from a store with room", seed, e)
		}
	}
}

// Far more than fits, of all sizes, with items pending for long: nothing is
// lost, what is found is whole, and the newest item is always there.
func TestUnderPressureNothingIsLostOrTorn(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := newStore(t, Options{Memory: 1 << 20, MaxItem: 100 << 10, Stripes: 1 << rng.IntN(4)})
		var pending []*Pending
		for step := range 4000 {
			now := uint32(1000 + step/100)
			key := fmt.Sprint(rng.IntN(3000))
			length := rng.IntN(1000)
			if rng.IntN(10) == 0 {
				length = rng.IntN(100 << 10)
			}
			value := strings.Repeat(key[:1], length)
			switch rng.IntN(10) {
			case 0:
				p := new(Pending)
				if err := s.Begin(p, []byte(key), length%50000, 0, 0, now); err == nil {
					pending = append(pending, p)
				}
				if len(pending) > 5 {
					s.Abort(pending[0])
					pending = pending[1:]
				}
			case 1:
				s.put(Append, key, value[:length/10], 0, 0, 0, now)
			case 2:
				s.put(Prepend, key, value[:length/10], 0, 0, 0, now)
			case 3:
				s.put(Set, key, "9", 0, 0, 0, now)
				if n, result := s.Delta([]byte(key), 99999999999, false, now); result != Stored || n != 100000000008 {
					t.Fatalf("seed %d step %d: 9 became %d (%d)", seed, step, n, result)
				}
				s.Delete([]byte(key), now)
			case 4:
				if got, _, hit := s.get(key, now); hit && strings.Trim(got, key[:1]) != "" {
					t.Fatalf("seed %d step %d: torn value", seed, step)
				}
			default:
				_, err := s.put(Set, key, value, 0, uint32(rng.IntN(2))*(now+5), 0, now)
				if errors.Is(err, ErrTooLarge) {
					continue
				}
				if err != nil {
					t.Fatalf("seed %d step %d: %v", seed, step, err)
				}
				if got, _, hit := s.get(key, now); !hit || got != value {
					t.Fatalf("seed %d step %d: what was just set is not there", seed, step)
				}
			}
			if step%200 == 0 {
				check(t, s, pending...)
			}
		}
		check(t, s, pending...)
		if s.Stats().Evictions == 0 {
			t.Errorf("seed %d: nothing was evicted", seed)
		}
	}
}

func TestSweepTakesBackWhatIsDead(t *testing.T) {
	s := newStore(t, Options{})
	for i := range 1000 {
		s.put(Set, fmt.Sprint(i), "x", 0, uint32(i%2)*10, 0, 1)
	}
	for range len(s.stripes) * (len(s.stripes[0].buckets)/64 + 1) {
		s.Sweep(64, 10)
	}
	if st := s.Stats(); st.Items != 500 || st.Swept != 500 || st.UsedChunks != 500 {
		t.Errorf("after a sweep: %+v", st)
	}
	s.Flush(11, 11)
	s.Sweep(1<<20, 11)
	if st := s.Stats(); st.Items != 0 || st.Bytes != 0 || st.UsedChunks != 0 {
		t.Errorf("after a flush and a sweep: %+v", st)
	}
	check(t, s)
}

func TestALargeItemMakesRoomInAllStripes(t *testing.T) {
	s := newStore(t, Options{Memory: 1 << 20, MaxItem: 128 << 10, Stripes: 16})
	for i := range 20000 {
		s.put(Set, fmt.Sprint(i), "x", 0, 0, 0, 1)
	}
	value := strings.Repeat("v", 120<<10)
	for i := range 100 {
		if r, err := s.put(Set, fmt.Sprint("large", i), value, 0, 0, 0, 1); r != Stored || err != nil {
			t.Fatalf("large item %d: %d, %v", i, r, err)
		}
	}
	if got, _, _ := s.get("large99", 1); got != value {
		t.Error("the last large item is not whole")
	}
	check(t, s)
}

func TestWithAllMemoryPendingAnItemIsRefused(t *testing.T) {
	s := newStore(t, Options{Memory: 1 << 20, MaxItem: 128 << 10})
	var pending []*Pending
	var err error
	for i := 0; err == nil; i++ {
		p := new(Pending)
		if err = s.Begin(p, fmt.Append(nil, i), 100<<10, 0, 0, 1); err == nil {
			pending = append(pending, p)
		}
	}
	if !errors.Is(err, ErrMemory) || len(pending) < 8 {
		t.Fatalf("after %d items: %v", len(pending), err)
	}
	check(t, s, pending...)
	for _, p := range pending {
		s.Abort(p)
	}
	check(t, s)
	if r, err := s.put(Set, "a", strings.Repeat("v", 100<<10), 0, 0, 0, 1); r != Stored || err != nil {
		t.Errorf("afterwards: %d, %v", r, err)
	}
}

func TestKeysSpreadOverStripesAndBuckets(t *testing.T) {
	s := newStore(t, Options{Memory: 64 << 20, Stripes: 64})
	const n = 100000
	stripes, buckets := map[*stripe]int{}, map[[2]any]int{}
	for i := range n {
		st, h := s.locate(fmt.Appendf(nil, "key-%d", i))
		stripes[st]++
		buckets[[2]any{st, st.bucket(uint32(h))}]++
	}
	for _, count := range stripes {
		if count < n/64*8/10 || count > n/64*12/10 {
			t.Errorf("a stripe has %d of %d keys", count, n)
		}
	}
	for _, count := range buckets {
		if count > 10 {
			t.Errorf("a bucket has %d of %d keys", count, n)
		}
	}
	one, two := newSecret(1), newSecret(2)
	if a, b := hashOf([]byte("key"), &one), hashOf([]byte("key"), &two); a == b {
		t.Error("the hash does not depend on the seed")
	}
	if a, b := hashOf([]byte("key"), &one), hashOf([]byte("key\x00"), &one); a == b {
		t.Error("the hash does not depend on the length")
	}
}

// Keys with a block that a client may know to be special: the constants of the
// hash, which are no secret. And with a block that a client cannot know, because
// it is the secret, what came before must count all the same.
func TestNoBlockOfAKeyWipesOutWhatCameBefore(t *testing.T) {
	const seed, n = 3, 1000
	rng := rand.New(rand.NewPCG(seed, 4))
	for round := range 20 {
		k, other := newSecret(rng.Uint64()), newSecret(rng.Uint64())
		for _, block := range []uint64{0, 1, 1<<64 - 1, mix0, mix1, mix2, mix0 ^ mix1, mix1 ^ mix2, k.block, k.state, k.block ^ k.state, k.block ^ mix1} {
			for _, after := range []string{"", "x", "12345678", "12345678x"} {
				seen, same := map[uint32]bool{}, 0
				for range n {
					key := binary.LittleEndian.AppendUint64(nil, rng.Uint64())
					key = append(binary.LittleEndian.AppendUint64(key, block), after...)
					h := hashOf(key, &k)
					seen[uint32(h)] = true
					if h == hashOf(key, &other) {
						same++
					}
				}
				if len(seen) < n-2 || same > 0 {
					t.Errorf("seed %d round %d: %d keys with block %#x and %q have %d hashes, %d of them with any secret", seed, round, n, block, after, len(seen), same)
				}
			}
		}
	}
}

func BenchmarkHash(b *testing.B) {
	k, sum := newSecret(1), uint64(0)
	for _, n := range []int{12, 40, 250} {
		key := bytes.Repeat([]byte("k"), n)
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			for range b.N {
				key[0]++
				sum += hashOf(key, &k)
			}
		})
	}
	if sum == 0 {
		b.Log(sum)
	}
}

func TestOperationsDoNotAllocate(t *testing.T) {
	s := newStore(t, Options{Memory: 1 << 20})
	key, value, out := []byte("a key of some length"), bytes.Repeat([]byte("v"), 1000), make([]byte, 0, 4096)
	number := []byte("number")
	s.put(Set, "number", "1", 0, 0, 0, 1)
	head := func(dst, key []byte, m Meta) []byte { return append(dst, key...) }
	var p Pending
	store := func(op Op) {
		if err := s.Begin(&p, key, len(value), 0, 0, 1); err != nil {
			t.Fatal(err)
		}
		s.Write(&p, value)
		s.Commit(&p, op, 0, 1)
	}
	for what, f := range map[string]func(){
		"get":     func() { s.Get(out, key, 1, head) },
		"set":     func() { store(Set) },
		"cas":     func() { store(CompareAndSwap) },
		"append":  func() { store(Append); store(Prepend); store(Set) },
		"delta":   func() { s.Delta(number, 1, false, 1) },
		"touch":   func() { s.Touch(key, 0, 1) },
		"delete":  func() { s.Delete(key, 1); store(Set) },
		"fill it": func() { key[0]++; key[1] += key[0] & 1; store(Set) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}

// large fills a store with values of nearly a megabyte, one a second, and returns
// how many of the last are left and when it was done.
func large(t *testing.T, s *Store, n int) (kept int, now uint32) {
	t.Helper()
	value := strings.Repeat("v", 1<<20-200)
	for now = 1; now <= uint32(n); now++ {
		if r, err := s.put(Set, fmt.Sprint(now), value, 0, 0, 0, now); r != Stored || err != nil {
			t.Fatalf("item %d: %d, %v", now, r, err)
		}
	}
	for kept < n && s.has(n-kept) {
		kept++
	}
	return kept, now
}

func TestALargeValueIsNotEvictedByWhatReplacesIt(t *testing.T) {
	for _, o := range []Options{{}, {Stripes: 1}, {Stripes: 256}} {
		o.Memory, o.MaxItem = 64<<20, 1<<20
		s := newStore(t, o)
		_, now := large(t, s, 200)
		value := strings.Repeat("w", 1<<20-300)
		for i := range 200 {
			key := fmt.Sprint(1 + i)
			_, m, hit := s.get(key, now)
			if !hit {
				continue
			}
			// It was just read, but let it be the next to go.
			st, h := s.locate([]byte(key))
			st.store.slab.header(st.find([]byte(key), h, now)).accessed = 0
			op, more := []Op{Replace, CompareAndSwap, Append, Prepend}[i%4], value
			if op == Append || op == Prepend {
				more = "w" // longer than that it would be too large
			}
			if r, err := s.put(op, key, more, 0, 0, m.CAS, now); r != Stored || err != nil {
				t.Errorf("%+v: op %d on item %s: %d, %v", o, op, key, r, err)
			}
		}
		// A value to be joined to another needs as much memory as any.
		s.put(Set, "joined", "x", 0, 0, 0, now)
		if r, err := s.put(Append, "joined", value, 0, 0, 0, now); r != Stored || err != nil {
			t.Errorf("%+v: append to a small value: %d, %v", o, r, err)
		}
		check(t, s)
	}
}

// The same with small items, whose room is made in their own stripe.
func TestASmallValueIsNotEvictedByWhatReplacesIt(t *testing.T) {
	for _, op := range []Op{Replace, Append, Prepend} {
		s, capacity := small(t)
		for i := range capacity {
			s.add(i, 1)
		}
		if r, err := s.put(op, "0", strings.Repeat("x", 100), 0, 0, 0, 1); r != Stored || err != nil {
			t.Errorf("op %d on the oldest item: %d, %v", op, r, err)
		}
		check(t, s)
	}
}

func TestLargeValuesGoInTheOrderTheyCame(t *testing.T) {
	s := newStore(t, Options{Memory: 64 << 20, MaxItem: 1 << 20})
	items := func() int { return int(s.Stats().Items) }
	kept, _ := large(t, s, 500)
	if fit := int(s.Stats().Chunks) / chunksFor(3, 1<<20-200); kept != items() || kept != fit {
		t.Errorf("%d values are there, the last %d among them, where %d fit", items(), kept, fit)
	}
	for i := range s.stripes {
		if n := s.stripes[i].free.count; n > stripeKeep {
			t.Errorf("stripe %d keeps %d free chunks for itself", i, n)
		}
	}
	check(t, s)
}

// All memory is the items' of one stripe, and another wants some of it.
func TestASmallItemFindsRoomInOtherStripes(t *testing.T) {
	const seed = 5
	var s *Store
	n := 0
	// key makes a new key of a stripe, of so many bytes.
	key := func(stripe, length int) string {
		for {
			n++
			k := fmt.Sprintf("%0*d", length, n)
			if st, _ := s.locate([]byte(k)); st.index == stripe {
				return k
			}
		}
	}
	full := func() {
		s = newStore(t, Options{Memory: 1 << 20, Stripes: 4, Seed: seed})
		for s.stripes[0].stats.evictions == 0 {
			s.put(Set, key(0, 8), "x", 0, 0, 0, 1)
		}
	}
	full()
	v := Visit{Create: true}
	see := func(dst, _ []byte, _ *Entry) []byte { return dst }
	if _, hit := s.Visit(nil, []byte(key(1, 8)), &v, 1, see); !hit || !v.Created {
		t.Errorf("seed %d: Visit made no item", seed)
	}
	check(t, s)

	full()
	a, k := Arithmetic{By: 1, Create: true, Initial: 7}, []byte(key(1, 8))
	if _, r := s.Compute(nil, k, &a, 1, nil); r != Stored || !a.Created || a.Value != 7 {
		t.Errorf("seed %d: Compute: %d, %+v", seed, r, a)
	}
	if _, r := s.Compute(nil, k, &a, 1, nil); r != Stored || a.Created || a.Value != 8 {
		t.Errorf("seed %d: Compute, again: %d, %+v", seed, r, a)
	}
	check(t, s)

	// The only item of its stripe outgrows its chunk, when the other chunks of
	// the batch that this came in are with the first stripe too.
	full()
	k = []byte(key(1, firstData-1))
	s.put(Set, string(k), "9", 0, 0, 0, 1)
	st := &s.stripes[1]
	s.pool.give(s.slab, st.free.take(s.slab, st.free.count))
	for s.pool.count() > 0 {
		s.put(Set, key(0, 8), "x", 0, 0, 0, 1)
	}
	if n, r := s.Delta(k, 1, false, 1); r != Stored || n != 10 || st.items() != 1 {
		t.Errorf("seed %d: 9 and 1 make %d (%d)", seed, n, r)
	}
	check(t, s)
}
