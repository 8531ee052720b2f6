package store

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"
)

const valueSize = 100

// contender is a cache as a server would use it: keys and values come as bytes
// that it does not own, and a value that was found is copied to the reply.
type contender interface {
	get(reply, key []byte) []byte
	set(key, value []byte)
}

type ours struct{ *Store }

func newOurs(b testing.TB, items, stripes int) ours {
	// Two chunks for each item, half an entry of the table for each chunk, and
	// one for the imbalance of stripes.
	s, err := New(Options{Memory: items*(2*chunkSize+4)*106/100 + 8<<20, MaxItem: 1 << 20, Stripes: stripes, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	return ours{s}
}

func none(dst, _ []byte, _ Meta) []byte { return dst }

func (c ours) get(reply, key []byte) []byte {
	reply, _ = c.Get(reply, key, 1, none)
	return reply
}

func (c ours) set(key, value []byte) {
	var p Pending
	if c.Begin(&p, key, len(value), 0, 0, 1) == nil {
		c.Write(&p, value)
		c.Commit(&p, Set, 0, 1)
	}
}

// mutexMap is what one writes first.
type mutexMap struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (c *mutexMap) get(reply, key []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(reply, c.m[string(key)]...)
}

func (c *mutexMap) set(key, value []byte) {
	value = append([]byte(nil), value...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[string(key)] = value
}

type syncMap struct{ m sync.Map }

func (c *syncMap) get(reply, key []byte) []byte {
	if value, hit := c.m.Load(string(key)); hit {
		return append(reply, value.([]byte)...)
	}
	return reply
}

func (c *syncMap) set(key, value []byte) { c.m.Store(string(key), append([]byte(nil), value...)) }

type otterCache struct {
	c *otter.Cache[string, []byte]
}

func (c otterCache) get(reply, key []byte) []byte {
	value, _ := c.c.GetIfPresent(string(key))
	return append(reply, value...)
}

func (c otterCache) set(key, value []byte) { c.c.Set(string(key), append([]byte(nil), value...)) }

// nothing shows what the benchmark itself takes.
type nothing struct{}

func (nothing) get(reply, _ []byte) []byte { return append(reply, make([]byte, valueSize)...) }
func (nothing) set(_, _ []byte)            {}

var contenders = []struct {
	name string
	make func(b testing.TB, items int) contender
}{
	{"store", func(b testing.TB, items int) contender { return newOurs(b, items, 0) }},
	{"mutexmap", func(_ testing.TB, items int) contender { return &mutexMap{m: make(map[string][]byte, items)} }},
	{"syncmap", func(testing.TB, int) contender { return &syncMap{} }},
	{"otter", func(_ testing.TB, items int) contender {
		return otterCache{otter.Must(&otter.Options[string, []byte]{MaximumSize: items + items/10, InitialCapacity: items})}
	}},
	{"nothing", func(testing.TB, int) contender { return nothing{} }},
}

// appendKey makes the key of a number: 12 bytes, in no time to speak of.
func appendKey(dst []byte, n uint32) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, "key-"...)
	for shift := 28; shift >= 0; shift -= 4 {
		dst = append(dst, digits[n>>shift&15])
	}
	return dst
}

// access is one goroutine's: keys at random, all as likely.
type access struct {
	state      uint64
	key, reply []byte
	value      [valueSize]byte
}

func newAccess(seed uint64) *access {
	return &access{state: seed*0x9e3779b97f4a7c15 + 1, key: make([]byte, 0, 32), reply: make([]byte, 0, 1000)}
}

func (a *access) next(items int) []byte {
	a.state ^= a.state << 13
	a.state ^= a.state >> 7
	a.state ^= a.state << 17
	a.key = appendKey(a.key[:0], uint32(a.state>>32*uint64(items)>>32))
	return a.key
}

// fillUp stores all items, on all processors and with the collector held back,
// so that it takes no longer than it must.
func fillUp(c contender, items, size int) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	workers := runtime.GOMAXPROCS(0)
	var done sync.WaitGroup
	for w := range workers {
		done.Go(func() {
			value, key := make([]byte, size), make([]byte, 0, 32)
			for i := w; i < items; i += workers {
				key = appendKey(key[:0], uint32(i))
				c.set(key, value)
			}
		})
	}
	done.Wait()
}

// onProcs runs one benchmark on so many processors, a goroutine on each; pick
// says which contender a goroutine uses. It goes in rounds, because the
// collector, which runs before each of testing's own attempts at a b.N, takes
// seconds for ten million items of a map.
func onProcs(b *testing.B, procs int, set bool, items int, pick func(goroutine int) contender) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	const round = 20_000
	accesses, misses := make([]*access, procs), atomic.Int64{}
	for g := range accesses {
		accesses[g] = newAccess(uint64(g + 1))
	}
	b.ReportAllocs()
	n := 0
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		var done sync.WaitGroup
		for g, a := range accesses {
			done.Go(func() {
				c := pick(g)
				for range round {
					if key := a.next(items); set {
						c.set(key, a.value[:])
					} else if len(c.get(a.reply[:0], key)) != valueSize {
						misses.Add(1)
					}
				}
			})
		}
		done.Wait()
		n += procs * round
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/op")
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(n), "allocs/op")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(n), "B/op")
	if m := misses.Load(); m > 0 {
		b.Errorf("%d items are missing", m)
	}
}

var operations = []struct {
	name string
	set  bool
}{{"get", false}, {"set", true}}

// GET and SET against what else a Go program would use. ns/op is the time that
// passes per operation: with two processors two are under way.
func BenchmarkStore(b *testing.B) {
	for _, size := range []struct {
		name  string
		items int
	}{{"1M", 1_000_000}, {"10M", 10_000_000}} {
		for _, kind := range contenders {
			b.Run(size.name+"/"+kind.name, func(b *testing.B) {
				c := kind.make(b, size.items)
				fillUp(c, size.items, valueSize)
				runtime.GC()
				for _, op := range operations {
					for procs := 1; procs <= 2; procs++ {
						b.Run(fmt.Sprintf("%s/procs=%d", op.name, procs), func(b *testing.B) {
							onProcs(b, procs, op.set, size.items, func(int) contender { return c })
						})
					}
				}
				c = nil
				debug.FreeOSMemory()
			})
		}
	}
}

// Locks striped by key against a store for each owner, whose lock nobody else
// ever takes, and against one lock for all.
func BenchmarkSharing(b *testing.B) {
	const items = 1_000_000
	for _, sharing := range []struct {
		name            string
		stripes, stores int
	}{{"striped", 0, 1}, {"owned", 1, 2}, {"onelock", 1, 1}} {
		b.Run(sharing.name, func(b *testing.B) {
			each := items / sharing.stores
			stores := make([]contender, sharing.stores)
			for i := range stores {
				stores[i] = newOurs(b, each, sharing.stripes)
				fillUp(stores[i], each, valueSize)
			}
			for _, op := range operations {
				for procs := 1; procs <= 2; procs++ {
					b.Run(fmt.Sprintf("%s/procs=%d", op.name, procs), func(b *testing.B) {
						onProcs(b, procs, op.set, each, func(g int) contender { return stores[g%len(stores)] })
					})
				}
			}
		})
	}
}

// What 4 GiB of items, with values of 300 bytes, cost the collector: its longest pause, its processor time
// and how long a cycle takes, while one goroutine reads and another allocates.
func BenchmarkCollector(b *testing.B) {
	const size = 300
	const items = 4 << 30 / (4*chunkSize + 8)
	for _, kind := range []string{"nothing", "store", "mutexmap"} {
		b.Run(kind, func(b *testing.B) {
			var c contender = nothing{}
			switch kind {
			case "store":
				s, err := New(Options{Memory: 4 << 30, MaxItem: 1 << 20, Seed: 1})
				if err != nil {
					b.Fatal(err)
				}
				c = ours{s}
			case "mutexmap":
				c = &mutexMap{m: make(map[string][]byte, items)}
			}
			fillUp(c, items, size)
			runtime.GC()
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for a := newAccess(1); ; {
					select {
					case <-stop:
						return
					default:
						for range 100 {
							c.get(a.reply[:0], a.next(items))
						}
					}
				}
			}()
			cpu := collectorTime()
			var before, after debug.GCStats
			debug.ReadGCStats(&before)
			for b.Loop() {
				garbage(1 << 20)
				runtime.GC()
			}
			debug.ReadGCStats(&after)
			cycles := after.NumGC - before.NumGC
			cpu = collectorTime() - cpu
			close(stop)
			<-done
			longest := time.Duration(0)
			for _, pause := range after.Pause[:min(int(cycles), len(after.Pause))] {
				longest = max(longest, pause)
			}
			b.ReportMetric(float64(longest.Microseconds()), "µs-longest-pause")
			b.ReportMetric(1000*cpu/float64(cycles), "ms-cpu/cycle")
			c = nil
			debug.FreeOSMemory()
		})
	}
}

var sink [][]byte

func garbage(bytes int) {
	for ; bytes > 0; bytes -= 100 {
		sink = append(sink[:0], make([]byte, 100))
	}
}

// collectorTime is the processor time in seconds that the collector has used,
// on idle processors too.
func collectorTime() float64 {
	samples := []metrics.Sample{{Name: "/cpu/classes/gc/mark/assist:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/dedicated:cpu-seconds"},
		{Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}, {Name: "/cpu/classes/gc/pause:cpu-seconds"}}
	metrics.Read(samples)
	sum := 0.0
	for _, s := range samples {
		sum += s.Value.Float64()
	}
	return sum
}
