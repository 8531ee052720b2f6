package forward

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/apps/packet/nat"
	"github.com/pollux-net/pollux/apps/packet/queue"
	"github.com/pollux-net/pollux/driver"
)

// Local is the box's own stack on a shard. It runs inside Step.
type Local interface {
	// Deliver takes a packet for one of the box's addresses, in by a port. The
	// frame stays the caller's.
	Deliver(in int, f *driver.Frame)
	// Step does what is due, and returns how much was done. What the stack sends
	// it hands to Shard.Originate.
	Step(now time.Duration) int
	// Deadline is when Step next has something to do by itself.
	Deadline() time.Duration
	// Idle says whether Step has nothing to do now.
	Idle() bool
}

const burst = 64

// maxPieces is how many fragments a packet may become.
const maxPieces = 128

// Shard is one core's share: its queue of every port, its flows, its part of the
// translation. Except where a method says otherwise it belongs to one goroutine.
type Shard struct {
	forwarder *Forwarder
	index     int
	ports     []port
	snap      *snapshot
	seed      [2]uint64
	four      *cache[key4] // nil without a flow cache
	six       *cache[key6]
	nat       *nat.Table
	natRules  *natRules
	local     Local
	now       time.Duration
	tick      uint32 // now in the cache's units
	swept     time.Duration
	pending   []pendingNeighbour
	held      int
	icmp      bucket
	frames    [burst]driver.Frame
	metas     [burst]meta
	scratch   decision
	own       decision // the header of a packet of the box's own
	spare     [1]driver.Frame
	pieces    [maxPieces]driver.Frame
	dead      [burst]driver.Frame
	nDead     int
	touched   uint32
	window    struct{ looked, found, skipped uint32 } // of the flow cache
	crowded   bool                                    // see admit
	counters  Counters
	learned   *ring[learned]

	acknowledged atomic.Uint32
	mail         struct {
		waiting atomic.Int32
		mu      sync.Mutex
		posted  []func()
		closed  bool
	}
	waker atomic.Pointer[func()]
}

// port is a shard's view of one. It fills two cache lines, so that none holds two
// shards' ports: staged changes with every frame.
type port struct {
	index  int
	queue  driver.Queue
	mac    uint64
	staged []driver.Frame // on their way to the device, before the virtual queue
	stale  int            // so many of the first have among them all that an earlier snapshot decided
	wait   *queue.Queue
	_      [128 - 72]byte
}

func newShard(f *Forwarder, index int) *Shard {
	c := &f.config
	r := rand.New(rand.NewPCG(c.Seed, uint64(index)))
	s := &Shard{forwarder: f, index: index, seed: [2]uint64{r.Uint64(), r.Uint64()}, learned: newRing[learned](1024)}
	if c.Flows > 0 {
		s.four, s.six = newCache[key4](c.Flows), newCache[key6](c.Flows)
	}
	for i, p := range f.ports {
		a := p.Address()
		s.ports = append(s.ports, port{
			index: i, queue: c.Queue(i, index), mac: mac48(append(a[:], 0, 0)), staged: make([]driver.Frame, 0, 2*burst), wait: queue.New(c.Output, f.outputs[i]),
		})
	}
	s.icmp = bucket{rate: c.ICMPRate, burst: c.ICMPBurst}
	s.adopt(f.control.current.Load())
	return s
}

// SetLocal sets what packets for the box itself are delivered to; without it
// they are dropped and counted.
func (s *Shard) SetLocal(l Local) { s.local = l }

// SetWake sets what is called, from any goroutine, when there is work for a
// shard that might be asleep.
func (s *Shard) SetWake(wake func()) { s.waker.Store(&wake) }

func (s *Shard) wake() {
	if w := s.waker.Load(); w != nil {
		(*w)()
	}
}

// Post has the shard call f soon. It may be called from any goroutine; false
// means that the shard is closed.
func (s *Shard) Post(f func()) bool {
	s.mail.mu.Lock()
	if s.mail.closed {
		s.mail.mu.Unlock()
		return false
	}
	s.mail.posted = append(s.mail.posted, f)
	s.mail.waiting.Store(int32(len(s.mail.posted)))
	s.mail.mu.Unlock()
	s.wake()
	return true
}

func (s *Shard) runMail() int {
	s.mail.mu.Lock()
	posted := s.mail.posted
	s.mail.posted = nil
	s.mail.waiting.Store(0)
	s.mail.mu.Unlock()
	for _, f := range posted {
		f()
	}
	return len(posted)
}

// adopt forwards by another snapshot from now on.
func (s *Shard) adopt(n *snapshot) {
	s.snap = n
	s.counters.Adopted++
	if s.natRules != n.nat {
		s.natRules = n.nat
		s.nat = nat.New(nat.Config{
			Rules: n.nat.list, Ports: s.forwarder.names, Shard: s.index, Shards: s.forwarder.config.Shards,
			Bindings: s.forwarder.bindings(n.nat), Timeouts: s.forwarder.config.Timeouts, Prefer: s.forwarder.prefer(s.index),
			Reserved: s.forwarder.config.Reserved, Seed: s.seed,
		})
	}
	for i := range s.ports {
		p := &s.ports[i]
		p.stale = len(p.staged)
		p.wait.NewEpoch()
	}
	s.retryPending()
}

// Step does one round: takes frames in, forwards, and transmits. It returns how
// much was done; 0 is an empty poll. Now must not go back.
func (s *Shard) Step(now time.Duration) int {
	s.now, s.tick = now, uint32(now>>30)
	work := 0
	if n := s.forwarder.control.current.Load(); n != s.snap {
		s.adopt(n)
		work++
	}
	if s.mail.waiting.Load() > 0 {
		work += s.runMail()
	}
	if len(s.forwarder.shards) > 1 {
		work += s.takeHanded()
	}
	for i := range s.ports {
		work += s.receive(&s.ports[i])
	}
	if s.local != nil {
		work += s.local.Step(now)
	}
	if len(s.pending) > 0 {
		s.tickPending()
	}
	if now-s.swept >= sweepEvery {
		s.swept = now
		s.nat.Expire(sweepBindings, now)
	}
	for i := range s.ports {
		work += s.flush(&s.ports[i])
	}
	if s.nDead > 0 {
		s.freeDead()
	}
	if s.acknowledged.Load() != s.snap.generation {
		s.acknowledge()
	}
	return work
}

// Bindings are looked at for age so many at a time, so often.
const (
	sweepEvery    = 10 * time.Millisecond
	sweepBindings = 256
)

// acknowledge says that nothing decided by earlier snapshots is waiting.
func (s *Shard) acknowledge() {
	for i := range s.ports {
		if s.ports[i].stale > 0 || s.ports[i].wait.Stale() > 0 {
			return
		}
	}
	s.acknowledged.Store(s.snap.generation)
}

// receive takes one burst from a port.
func (s *Shard) receive(in *port) int {
	n := in.queue.Receive(s.frames[:])
	if n == 0 {
		return 0
	}
	s.counters.Received += uint64(n)
	s.input(in, n)
	return n
}

// input decides what happens to the first n of frames, in passes over all of
// them: what one pass reads of large tables, the processor fetches for many
// frames at once, and the next pass finds it near.
func (s *Shard) input(in *port, n int) {
	for i := range n {
		m := &s.metas[i]
		s.parse(&s.frames[i], in, m)
		if s.four == nil {
			continue
		}
		switch m.kind {
		case packet4:
			s.touched += s.four.touch(m.hash)
		case packet6:
			s.touched += s.six.touch(m.hash)
		}
	}
	for i := range n {
		s.lookAhead(&s.metas[i])
	}
	for i := range n {
		s.handle(in, &s.frames[i], &s.metas[i])
	}
}

// lookAhead finds the decision on a packet in the cache or, failing that, its
// route.
func (s *Shard) lookAhead(m *meta) {
	switch m.kind {
	case packet4:
		if s.four != nil {
			m.place = s.four.find(m.hash, m.key4(), s.snap.generation, s.tick)
		}
		if m.place == nowhere {
			m.hop = s.snap.table.Lookup4(uint32(m.destination.low))
		}
	case packet6:
		if s.six != nil {
			m.place = s.six.find(m.hash, m.key6(), s.snap.generation, s.tick)
		}
		if m.place == nowhere {
			m.hop = s.snap.table.Lookup6(m.destination.high, m.destination.low)
		}
	}
}

// one is input for a frame that waited.
func (s *Shard) one(in *port, f *driver.Frame) { s.again(in, f, 0) }

// again is one for a frame that so many shards have passed on.
func (s *Shard) again(in *port, f *driver.Frame, passed int) {
	m := meta{passed: uint16(passed)}
	s.parse(f, in, &m)
	s.handle(in, f, &m)
}

func (s *Shard) handle(in *port, f *driver.Frame, m *meta) {
	switch m.kind {
	case packet4:
		s.handle4(in, f, m)
	case packet6:
		s.handle6(in, f, m)
	case arp:
		s.arp(in, f)
	case discovery:
		s.discovery(in, f, m)
	default:
		s.drop(f, m.cause)
	}
}

// drop frees a frame, with others, and counts why.
func (s *Shard) drop(f *driver.Frame, c Cause) {
	s.counters.Dropped[c]++
	s.free(f)
}

func (s *Shard) free(f *driver.Frame) {
	s.dead[s.nDead] = *f
	*f = driver.Frame{}
	if s.nDead++; s.nDead == len(s.dead) {
		s.freeDead()
	}
}

func (s *Shard) freeDead() {
	driver.Free(s.dead[:s.nDead])
	s.nDead = 0
}

// output queues a finished frame, which asks nothing of the device.
func (s *Shard) output(to *port, f *driver.Frame, hash uint64) {
	if n := len(to.staged); n < cap(to.staged) && to.wait.Len() == 0 && !to.wait.Limited() {
		// What describes offloads stays as Transmit left the slot: clear. And field by
		// field, as a frame that was just written to in small parts, and is then copied
		// in large ones, waits for the small ones to reach the cache.
		to.staged = to.staged[:n+1]
		t := &to.staged[n]
		t.Data, t.Pool, t.Handle = f.Data, f.Pool, f.Handle
		*f = driver.Frame{}
		return
	}
	f.Flags, f.SegmentSize, f.L2, f.L3, f.L4 = 0, 0, 0, 0, 0
	to.wait.Push(f, uint32(hash>>32), s.now)
}

// flush hands the device what it takes.
func (s *Shard) flush(to *port) int {
	sent := 0
	for {
		if len(to.staged) > 0 {
			n := to.queue.Transmit(to.staged)
			sent += n
			to.stale = max(0, to.stale-n)
			if n < len(to.staged) { // the device is full
				left := copy(to.staged, to.staged[n:])
				clear(to.staged[left:])
				to.staged = to.staged[:left]
				return sent
			}
			to.staged = to.staged[:0]
		}
		if to.wait.Len() == 0 || sent > 4*burst {
			to.wait.Flush()
			return sent
		}
		before := to.wait.Stale()
		n := to.wait.Pop(to.staged[:burst], s.now)
		to.staged = to.staged[:n]
		if to.wait.Stale() < before {
			to.stale = n // flows take turns, so the last of them may be it
		}
		if n == 0 {
			return sent
		}
	}
}

// takeHanded takes in what other shards received and this one must translate.
func (s *Shard) takeHanded() (n int) {
	for from := range s.forwarder.shards {
		r := s.forwarder.handed[from][s.index]
		for range burst {
			h, ok := r.get()
			if !ok {
				break
			}
			n++
			s.counters.HandedIn++
			s.again(&s.ports[h.in], &h.frame, h.passed)
		}
	}
	return n
}

// handOver passes a frame to the shard that owns its binding, or may own it, if
// so many have not.
func (s *Shard) handOver(to int, in *port, f *driver.Frame, passed int) {
	if !s.forwarder.handed[s.index][to].put(handed{*f, in.index, passed}) {
		s.drop(f, HandoverFull)
		return
	}
	*f = driver.Frame{}
	s.counters.HandedOut++
	s.forwarder.shards[to].wake()
}

// Idle says whether there is nothing to do now: frames from outside, Deadline or
// another goroutine's wake can bring work then.
func (s *Shard) Idle() bool {
	if s.mail.waiting.Load() > 0 || s.forwarder.control.current.Load() != s.snap || s.local != nil && !s.local.Idle() {
		return false
	}
	for from := range s.forwarder.shards {
		if !s.forwarder.handed[from][s.index].empty() {
			return false
		}
	}
	for i := range s.ports {
		p := &s.ports[i]
		if len(p.staged) > 0 {
			return false
		}
		if at, waiting := p.wait.Ready(s.now); waiting && at <= s.now {
			return false
		}
	}
	return true
}

// Deadline is when Step next has something to do by itself.
func (s *Shard) Deadline() time.Duration {
	d := Never
	if s.local != nil {
		d = s.local.Deadline()
	}
	for i := range s.ports {
		if at, waiting := s.ports[i].wait.Ready(s.now); waiting {
			d = min(d, at)
		}
	}
	for i := range s.pending {
		d = min(d, s.pending[i].next)
	}
	if s.nat.Used() > 0 {
		d = min(d, s.swept+sweepEvery*10)
	}
	return d
}

// Statistics of the shard.
func (s *Shard) Statistics() Statistics {
	st := Statistics{Shard: s.index, Counters: s.counters, Held: s.held, Bindings: s.nat.Used(), BindingsLimit: s.nat.Size(), Generation: s.snap.generation}
	if s.four != nil {
		st.CacheSize = len(s.four.entries)
	}
	for i := range s.ports {
		p := &s.ports[i]
		d := p.wait.Dropped()
		st.Outputs = append(st.Outputs, OutputStatistics{Frames: p.wait.Len() + len(p.staged), Bytes: p.wait.Bytes(), Dropped: d})
		st.Dropped[QueueFull] += d.Full
		st.Dropped[QueueCut] += d.Cut
		st.Dropped[CoDel] += d.CoDel
	}
	return st
}

// Close gives every frame back. Frames that other shards hand over afterwards
// are theirs to free: close all shards when none of them runs any more.
func (s *Shard) Close() {
	s.mail.mu.Lock()
	s.mail.closed = true
	s.mail.mu.Unlock()
	s.runMail()
	for from := range s.forwarder.shards {
		for {
			h, ok := s.forwarder.handed[from][s.index].get()
			if !ok {
				break
			}
			s.free(&h.frame)
		}
	}
	for i := range s.pending {
		s.dropPending(&s.pending[i], NeighbourDead)
	}
	s.pending = nil
	for i := range s.ports {
		p := &s.ports[i]
		driver.Free(p.staged)
		p.staged = p.staged[:0]
		p.wait.Clear()
	}
	s.freeDead()
}

// bucket is a token bucket.
type bucket struct {
	rate, burst int
	full        time.Duration // when it is full again
}

func (b *bucket) take(now time.Duration) bool {
	each := time.Second / time.Duration(b.rate)
	b.full = max(b.full, now)
	if b.full-now > each*time.Duration(b.burst-1) {
		return false
	}
	b.full += each
	return true
}
