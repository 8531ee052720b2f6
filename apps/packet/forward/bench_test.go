package forward_test

import (
	"math/rand/v2"
	"net/netip"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/apps/packet/fib/generate"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

// loopQueue is a queue in memory that costs next to nothing: it receives the
// same frames again and again, and takes back what is sent through its pool.
type loopQueue struct {
	frame []byte // the first, of which the others differ in what flows says
	flows []flow
	at    int
	pool  *loopPool
	none  bool
	sent  int
}

// flow is what differs between two frames: small, so that the generator does
// not wait for memory longer than the forwarder.
type flow struct {
	source, destination uint32
	port, checksum      uint16
}

func (w *flow) put(b []byte) {
	be.PutUint32(b[26:], w.source)
	be.PutUint32(b[30:], w.destination)
	be.PutUint16(b[34:], w.port)
	be.PutUint16(b[24:], w.checksum)
}

type loopPool struct{ buffers [][]byte }

func (p *loopPool) Free(f []driver.Frame) {
	for i := range f {
		p.buffers = append(p.buffers, f[i].Data[:cap(f[i].Data)])
	}
}

func (q *loopQueue) Receive(f []driver.Frame) int {
	if q.none {
		return 0
	}
	n := min(len(f), len(q.pool.buffers))
	for i := range f[:n] {
		b := q.pool.buffers[len(q.pool.buffers)-1]
		q.pool.buffers = q.pool.buffers[:len(q.pool.buffers)-1]
		copy(b[:64], q.frame) // a device would write it
		q.flows[q.at].put(b)
		if q.at++; q.at == len(q.flows) {
			q.at = 0
		}
		f[i] = driver.Frame{Data: b[:len(q.frame)], Pool: q.pool}
	}
	return n
}

func (q *loopQueue) Transmit(f []driver.Frame) int {
	q.sent += len(f)
	q.pool.Free(f)
	clear(f)
	return len(f)
}

func (q *loopQueue) Allocate(f []driver.Frame, size int) int { return 0 }
func (q *loopQueue) Interrupt() driver.Interrupt             { return nil }
func (q *loopQueue) Statistics() driver.QueueStatistics      { return driver.QueueStatistics{} }

// full is a full-size table with some next hops, and addresses that it covers.
var full = sync.OnceValue(func() (t struct {
	u  routes.Update
	to []netip.Addr
}) {
	prefixes := generate.Prefixes4(7, 1_000_000)
	for i, p := range prefixes {
		t.u.Routes = append(t.u.Routes, routes.Route{Prefix: p, NextHops: []routes.NextHop{{Gateway: netip.AddrFrom4([4]byte{10, 1, 1, byte(i % 200)}), Interface: 2}}})
	}
	for i := range 200 {
		t.u.Neighbours = append(t.u.Neighbours, routes.Neighbour{Interface: 2, Address: netip.AddrFrom4([4]byte{10, 1, 1, byte(i)}), MAC: peerMAC(1), Valid: true, Permanent: true})
	}
	for _, a := range generate.Destinations(8, prefixes, 1<<18) {
		b := a.As4()
		if b[0] != 0 && b[0] != 127 && b[0] < 224 && b[0] != 10 && !(b[0] == 169 && b[1] == 254) {
			t.to = append(t.to, a)
		}
	}
	return t
})

const edge = `
deny proto tcp to-port 25
deny from 10.0.9.0/24
deny proto udp to-port 1900
permit proto udp from 10.0.0.0/8
permit proto tcp from 10.0.0.0/8 to-port 80-443
default permit
`

// BenchmarkForward is one core's forwarder with 64-byte frames of UDP, in memory
// that costs next to nothing (loop) and on driver/wire with the generator inline.
func BenchmarkForward(b *testing.B) {
	for _, c := range []struct {
		name  string
		full  bool
		flows int
		cache int
		rules string
	}{
		{"routes=1/flows=1000/cache=on", false, 1000, 0, ""},
		{"routes=1/flows=1000/cache=off", false, 1000, -1, ""},
		{"routes=1M/flows=random/cache=on", true, 1 << 18, 0, ""},
		{"routes=1M/flows=random/cache=off", true, 1 << 18, -1, ""},
		{"routes=1/flows=1000/cache=on/acl", false, 1000, 0, edge},
		{"routes=1/flows=1000/cache=off/acl", false, 1000, -1, edge},
		{"routes=1/flows=1000/cache=on/acl+nat", false, 1000, 0, edge + "nat out p1 from 10.0.0.0/8 to 198.51.100.1"},
		{"routes=1/flows=1000/cache=off/acl+nat", false, 1000, -1, edge + "nat out p1 from 10.0.0.0/8 to 198.51.100.1"},
	} {
		b.Run("loop/"+c.name, func(b *testing.B) {
			pool := &loopPool{}
			for range 4096 {
				pool.buffers = append(pool.buffers, make([]byte, 2048))
			}
			in, out := &loopQueue{pool: pool}, &loopQueue{pool: pool, none: true}
			bd := newBed(b, 2, wire.Config{}, forward.Config{Flows: c.cache, Bindings: 1 << 16, Queue: func(port, _ int) driver.Queue {
				return []driver.Queue{in, out}[port]
			}})
			in.frame, in.flows = benchFrames(b, bd, c.full, c.flows, c.rules)
			s := bd.f.Shard(0)
			now := time.Duration(0)
			s.Step(now)
			s.Step(now)
			goruntime.LockOSThread()
			defer goruntime.UnlockOSThread()
			goruntime.GC()
			start, begin := out.sent, spent()
			b.ReportAllocs()
			b.ResetTimer()
			for out.sent-start < b.N {
				now += 5 * time.Microsecond
				s.Step(now)
			}
			mpps(b, out.sent-start, spent()-begin)
			if drops := bd.drops(); len(drops) > 0 {
				b.Fatalf("dropped %v", drops)
			}
		})
	}
	b.Run("wire/routes=1/flows=1000/cache=on", benchWire)
}

// mpps reports frames by the clock and, for machines that are not idle, by the
// processor time that they took.
func mpps(b *testing.B, n int, spent time.Duration) {
	b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mpps")
	b.ReportMetric(float64(n)/spent.Seconds()/1e6, "Mpps/core")
}

// spent is the processor time of the calling thread, which must be locked.
func spent() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// benchFrames sets a bed's tables up and makes what comes in by port 0.
func benchFrames(b *testing.B, bd *bed, fullTable bool, flows int, text string) (first []byte, list []flow) {
	to := []netip.Addr{netip.MustParseAddr("20.0.0.1")}
	if fullTable {
		t := full()
		bd.apply(t.u)
		to = t.to
	} else {
		bd.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1)}})
	}
	if text != "" {
		set, err := rules.Parse(strings.NewReader(text), "bench", bd.f.Names())
		if err != nil {
			b.Fatal(err)
		}
		bd.f.Control().SetRules(set)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range flows {
		p := packet{from: netip.AddrFrom4([4]byte{10, 0, byte(1 + i%8), byte(i)}), to: to[i%len(to)], sport: uint16(1024 + i%10_000), dport: 4000 + uint16(r.IntN(100)), payload: 18}
		if i == 0 {
			first = p.frame()
			clear(first[40:42]) // no UDP checksum: the flows differ
		}
		f := p.frame()
		list = append(list, flow{be.Uint32(f[26:]), be.Uint32(f[30:]), be.Uint16(f[34:]), be.Uint16(f[24:])})
	}
	return first, list
}

// benchWire forwards from wire to wire on one core.
func benchWire(b *testing.B) {
	c := newCrew(b, 0, 1)[0]
	b.ResetTimer()
	r := c.work(func(received int) bool { return received < b.N })
	mpps(b, r.frames, r.spent)
}

// A hand forwards from wire to wire by a shard of its own, pinned to a core; the
// generator and the sink are inline.
type hand struct {
	turns   chan func(received int) bool
	results chan result
}

type result struct {
	frames         int
	elapsed, spent time.Duration // by the clock, and of the thread
}

func (r result) rate() float64 { return float64(r.frames) / r.elapsed.Seconds() }

// work has it forward as long as more says so.
func (h *hand) work(more func(received int) bool) result {
	h.turns <- more
	return <-h.results
}

// newCrew makes one forwarder with so many shards, which run on the cores from
// first on when they are told to.
func newCrew(b *testing.B, first, shards int) (crew []*hand) {
	links := make([][2]*wire.Link, shards)
	bd := newBed(b, 2, wire.Config{}, forward.Config{Shards: shards, Queue: func(port, shard int) driver.Queue {
		l, err := wire.New(wire.Config{})
		if err != nil {
			b.Fatal(err)
		}
		links[shard][port] = l
		return l.Port(wire.B).Queue(0)
	}})
	frame, flows := benchFrames(b, bd, false, 1000, "")
	for shard := range shards {
		h := &hand{make(chan func(int) bool), make(chan result)}
		crew = append(crew, h)
		go func() {
			goruntime.LockOSThread() // and never unlocked: it is pinned
			var one unix.CPUSet
			one.Set(first + shard)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				b.Errorf("pin a thread to core %d: %v", first+shard, err)
			}
			source, sink := links[shard][0].Port(wire.A).Queue(0), links[shard][1].Port(wire.A).Queue(0)
			s := bd.f.Shard(shard)
			var f [64]driver.Frame
			at := 0
			now := time.Duration(0)
			for more := range h.turns {
				begin, used, received := time.Now(), spent(), 0
				for more(received) {
					n := source.Allocate(f[:], 64)
					for i := range f[:n] {
						f[i].Data = f[i].Data[:60]
						copy(f[i].Data, frame)
						flows[at].put(f[i].Data)
						if at++; at == len(flows) {
							at = 0
						}
					}
					driver.Free(f[source.Transmit(f[:n]):n])
					now += 5 * time.Microsecond
					s.Step(now)
					n = sink.Receive(f[:])
					received += n
					driver.Free(f[:n])
				}
				h.results <- result{received, time.Since(begin), spent() - used}
			}
		}()
		b.Cleanup(func() { close(h.turns) })
	}
	return crew
}

// BenchmarkCores is one forwarder on two cores, in turns with each of its shards
// alone, so that a machine that others use, too, is the same to all; and two
// forwarders that share nothing, which is as much as the machine has to give. One
// iteration is a turn of each, 20 ms long.
func BenchmarkCores(b *testing.B) {
	const turn = 20 * time.Millisecond
	together := newCrew(b, 0, 2)
	apart := append(newCrew(b, 0, 1), newCrew(b, 1, 1)...)
	timed := func(hands ...*hand) (rate float64) {
		end := time.Now().Add(turn)
		for _, h := range hands {
			h.turns <- func(int) bool { return time.Now().Before(end) }
		}
		for _, h := range hands {
			r := <-h.results
			rate += r.rate()
		}
		return rate
	}
	var shared, unshared, one []float64
	for b.Loop() {
		for _, crew := range []struct {
			hands  []*hand
			ratios *[]float64
		}{{together, &shared}, {apart, &unshared}} {
			alone := (timed(crew.hands[0]) + timed(crew.hands[1])) / 2
			*crew.ratios = append(*crew.ratios, timed(crew.hands...)/alone)
			one = append(one, alone/1e6)
		}
	}
	b.ReportMetric(median(shared), "times-one-core")
	b.ReportMetric(median(unshared), "times-one-core-apart")
	b.ReportMetric(median(one), "Mpps/one-core")
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
