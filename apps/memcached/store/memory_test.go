package store

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// resident is how many bytes of memory the process has from the kernel, without
// those that the race detector keeps about the others.
func resident(t testing.TB) int {
	t.Helper()
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	total, counts := 0, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var start, end uint64
		var kilobytes int
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &start, &end); n == 2 {
			// Where ThreadSanitizer keeps its shadow.
			counts = !underRace || start < 0x100000000000 || start >= 0x600000000000
		} else if n, _ := fmt.Sscanf(lines.Text(), "Rss: %d kB", &kilobytes); n == 1 && counts {
			total += kilobytes << 10
		}
	}
	return total
}

// fill stores items of mixed sizes until so many bytes of values were stored.
func fill(t testing.TB, s *Store, rng *rand.Rand, bytes int, now uint32) {
	t.Helper()
	var p Pending
	key, value := make([]byte, 0, 20), make([]byte, 100<<10)
	for bytes > 0 {
		size := 1 + rng.IntN(300)
		switch rng.IntN(50) {
		case 0:
			size = rng.IntN(len(value))
		case 1, 2, 3, 4, 5:
			size = rng.IntN(5000)
		}
		key = fmt.Append(key[:0], rng.Uint64())
		if err := s.Begin(&p, key, size, 0, 0, now); err != nil {
			t.Fatalf("item of %d bytes: %v", size, err)
		}
		s.Write(&p, value[:size])
		s.Commit(&p, Set, 0, now)
		bytes -= size
	}
}

func TestTheMemoryLimitHoldsWithinFivePercent(t *testing.T) {
	const memory, seed = 48 << 20, 91
	rng := rand.New(rand.NewPCG(seed, 1))
	before := resident(t)
	// Of the kernel, as the server has it: what Go's heap gives may be memory that was
	// used before and cleared, all of it resident.
	s := newStore(t, Options{Memory: memory, MaxItem: 1 << 20, Allocate: mapped(t)})
	if grown := resident(t) - before; grown > memory/20 {
		t.Errorf("an empty store takes %d bytes", grown)
	}
	fill(t, s, rng, 3*memory, 1)
	st := s.Stats()
	if st.Evictions == 0 {
		t.Error("nothing was evicted")
	}
	// By its own account.
	total := int(st.HashBytes + st.FixedBytes + (st.Chunks+1)*st.ChunkSize)
	if total > memory || total < memory-2*chunkSize {
		t.Errorf("%d bytes are accounted for, of %d", total, memory)
	}
	if st.UsedChunks < st.Chunks*98/100 {
		t.Errorf("a full store uses %d of %d chunks", st.UsedChunks, st.Chunks)
	}
	// By the kernel's.
	if grown := resident(t) - before; grown > memory*105/100 || grown < memory*95/100 {
		t.Errorf("the process grew by %d bytes, %.1f %% of the limit", grown, 100*float64(grown)/memory)
	} else {
		t.Logf("the process grew by %.1f %% of the limit; items as memcached counts them are %.1f %%", 100*float64(grown)/memory, 100*float64(st.Bytes)/memory)
	}
	// Flushed and filled anew, it is no larger.
	s.Flush(2, 2)
	for range s.Stats().Buckets/sweepBatch + s.Stats().Stripes + 1 {
		s.Sweep(sweepBatch, 2)
	}
	if left := s.Stats(); left.UsedChunks != 0 || left.Items != 0 {
		t.Errorf("after a flush and a sweep: %d items, %d chunks", left.Items, left.UsedChunks)
	}
	fill(t, s, rng, 2*memory, 2)
	if grown := resident(t) - before; grown > memory*105/100 {
		t.Errorf("filled again, the process has grown by %d bytes", grown)
	}
	runtime.KeepAlive(s)
}

// What a SET costs is what it looks at and what it moves. That is bounded from
// the first to the last item, because the tables are never rebuilt.
func TestNoSetIsLongWhileTheStoreFillsUp(t *testing.T) {
	s := newStore(t, Options{Memory: 4 << 20, Stripes: 4})
	tables := make([]*uint32, len(s.stripes))
	for i := range s.stripes {
		tables[i] = &s.stripes[i].buckets[0]
	}
	capacity := int(s.Stats().Chunks)
	longest, most := 0, uint64(0)
	for i := range 3 * capacity {
		key := []byte(fmt.Sprint(i))
		st, h := s.locate(key)
		length := 0
		for c := *st.bucket(uint32(h)); c != 0; c = s.slab.header(c).bucket {
			length++
		}
		longest = max(longest, length)
		work := func() uint64 {
			c := st.stats
			return c.movesToCold + c.movesToWarm + c.movesWithin + c.evictions + c.reclaimed
		}
		before := work()
		s.add(i, 1)
		most = max(most, work()-before)
	}
	for i := range s.stripes {
		if tables[i] != &s.stripes[i].buckets[0] {
			t.Error("a table was replaced")
		}
	}
	// All items have one chunk, so a bucket has two on average; the longest of
	// tens of thousands is a matter of chance.
	if longest > 16 {
		t.Errorf("a bucket held %d items", longest)
	}
	if most > balanceSteps+1 {
		t.Errorf("a SET moved or evicted %d items", most)
	}
	if s.Stats().Evictions == 0 {
		t.Error("it did not fill up")
	}
}

func TestExpiredItemsGiveTheirMemoryBackUntouched(t *testing.T) {
	for _, o := range []Options{{Memory: 4 << 20}, {Memory: 32 << 20, Stripes: 128}, {Memory: 2 << 20, Stripes: 1}} {
		s := newStore(t, o)
		value := strings.Repeat("v", 300)
		for i := range 1000 {
			s.put(Set, fmt.Sprint("dies", i), value, 0, 100, 0, 1)
			s.put(Set, fmt.Sprint("touched", i), value, 0, 100, 0, 1)
			s.put(Set, fmt.Sprint("lives", i), value, 0, 0, 0, 1)
			s.Touch(fmt.Append(nil, "touched", i), 300, 1)
		}
		used := s.Stats().UsedChunks
		ticks := func(now uint32) (n int) {
			for ; n < 2*sweepTicks && s.Stats().Swept < uint64(now)*10; n++ {
				s.Tick(now)
			}
			return n
		}
		// Before anything can have died nothing is searched, after the first
		// round.
		for range 2 * sweepTicks {
			s.Tick(50)
		}
		checked := s.Stats().Checked
		for range sweepTicks {
			s.Tick(99)
		}
		if st := s.Stats(); st.Swept != 0 || st.Checked != checked {
			t.Errorf("%+v: nothing has expired, and %d items were looked at, %d reclaimed", o, st.Checked-checked, st.Swept)
		}
		if n := ticks(100); s.Stats().Swept != 1000 || s.Stats().UsedChunks != used*2/3 {
			t.Errorf("%+v: after %d ticks %d of 1000 were reclaimed, %d of %d chunks are left", o, n, s.Stats().Swept, s.Stats().UsedChunks, used)
		}
		for range 2 * sweepTicks {
			s.Tick(300)
		}
		if st := s.Stats(); st.Swept != 2000 || st.Items != 1000 || st.UsedChunks != used/3 {
			t.Errorf("%+v: %d of 2000 were reclaimed, %d of 3000 are left in %d of %d chunks", o, st.Swept, st.Items, st.UsedChunks, used)
		}
		check(t, s)
	}
}

// One step of the background work looks at no more than it was told to,
// however much is dead.
func TestASweepIsBounded(t *testing.T) {
	s := newStore(t, Options{Memory: 8 << 20, Stripes: 8})
	for i := range int(s.Stats().Chunks) {
		s.put(Set, fmt.Sprint(i), "x", 0, 10, 0, 1)
	}
	for n := range 200 {
		before := s.Stats().Checked
		s.Sweep(256, 20)
		// Two items to a bucket.
		if did := s.Stats().Checked - before; did > 256*4 {
			t.Fatalf("step %d looked at %d items", n, did)
		}
	}
	if s.Stats().Swept == 0 {
		t.Error("nothing was found")
	}
	check(t, s)
}

func TestAFlushTouchesNoItem(t *testing.T) {
	s := newStore(t, Options{Memory: 8 << 20, Stripes: 8})
	for i := range 20000 {
		s.add(i, 1)
	}
	before := append(slab(nil), s.slab...)
	s.Flush(2, 2)
	if string(before) != string(s.slab) {
		t.Error("a flush wrote to items")
	}
	if st := s.Stats(); st.Items != 20000 || st.Reclaimed != 0 {
		t.Errorf("right after a flush: %+v", st)
	}
	for i := range 20000 {
		if s.has(i) {
			t.Fatalf("item %d survived a flush", i)
		}
	}
	check(t, s)
}

// mapped is memory that Go knows nothing of.
func mapped(t testing.TB) func(int) ([]byte, error) {
	return func(bytes int) ([]byte, error) {
		memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err == nil {
			t.Cleanup(func() { unix.Munmap(memory) })
		}
		return memory, err
	}
}

func TestTheCollectorDoesNotCountMemoryThatIsNotGos(t *testing.T) {
	const memory, seed = 48 << 20, 92
	s := newStore(t, Options{Memory: memory, MaxItem: 1 << 20, Allocate: mapped(t)})
	before := resident(t)
	fill(t, s, rand.New(rand.NewPCG(seed, 1)), 2*memory, 1)
	if grown := resident(t) - before; grown > memory*105/100 || grown < memory*95/100 {
		t.Errorf("the process grew by %d bytes, %.1f %% of the limit", grown, 100*float64(grown)/memory)
	}
	check(t, s)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > memory/4 || m.NextGC > memory/2 {
		t.Errorf("beside a full store of %d bytes the heap has %d, and grows to %d", memory, m.HeapAlloc, m.NextGC)
	}
}

func TestMemoryThatDoesNotDoIsRefused(t *testing.T) {
	for what, allocate := range map[string]func(int) ([]byte, error){
		"no more memory":          func(int) ([]byte, error) { return nil, errors.New("no more memory") },
		"got 1046639 bytes":       func(n int) ([]byte, error) { return make([]byte, n-1), nil },
		"got 1046644 bytes at 0x": func(n int) ([]byte, error) { return make([]byte, n+8)[4:], nil },
		"got 0 bytes":             func(n int) ([]byte, error) { return nil, nil },
	} {
		if _, err := New(Options{Memory: 1 << 20, MaxItem: 1 << 10, Allocate: allocate}); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q: %v", what, err)
		}
	}
}
