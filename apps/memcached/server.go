// Package memcached is a memcached: the text protocol with the meta commands and
// the binary protocol over a store, as a runtime.Handler. It answers, errs and closes as memcached 1.6.18 does, byte
// for byte, and knows nothing of sockets: one Server serves the connections of
// all shards, whichever path carries them.
//
// On the path of a request nothing is allocated, no clock is read and no lock is
// taken but the one of the key's stripe in the store; time comes from Tick.
//
// Where memcached's answer depends on how its input happens to be cut into
// packets, this one's does not: a line other than get, gets, gat or gats is
// closed upon after 2 KiB even if its end is at hand, one of those that is longer
// is answered key by key, and no reply to an earlier command is lost when a later
// one in the pipeline is bad. A binary request's value that its command has no use for is
// skipped, where memcached reads on in the middle of it. What memcached's own
// slabs, crawlers and watchers are tuned with is not understood.
package memcached

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/apps/memcached/store"
	"github.com/pollux-net/pollux/runtime"
)

// Defaults of Options.
const (
	DefaultMemory   = 64 << 20
	DefaultMaxItem  = 1 << 20
	DefaultMaxConns = 1024
	DefaultVersion  = "1.6.18"
)

// Options configures a Server. Zero values mean the defaults.
type Options struct {
	// Memory is the limit in bytes for items, with their overhead.
	Memory int
	// MaxItem is the largest item in bytes, its key and 59 bytes of overhead
	// included (see store.Size).
	MaxItem int
	// MaxConns is how many connections may be open at a time.
	MaxConns int
	// IdleTimeout closes a connection from which nothing has come for so long,
	// to the second; 0 is never. It needs a runtime that calls TickShard.
	IdleTimeout time.Duration
	// CPU, if not nil, tells the process's CPU time, for stats.
	CPU func() (user, system time.Duration)
	// Shards is how many shards the Server expects; more will do.
	Shards int
	// Now is the time to begin with; the zero time means the system's.
	Now time.Time
	// Version is what the version command says. Clients parse it, so it should
	// begin with three numbers; the default names the version that the text
	// protocol was checked against.
	Version string
	// Seed makes runs reproducible in every byte (CAS values depend on it); 0
	// takes a random one, which protects from chosen keys.
	Seed uint64
	// Stripes is the number of locks of the store; 0 chooses by Memory.
	Stripes int
	// Allocate, if not nil, gives the memory for items, as store.Options says:
	// an anonymous mapping, say, which the garbage collector does not count. If
	// it is nil they are on Go's heap, and the collector waits until as much
	// garbage has gathered beside them.
	Allocate func(bytes int) ([]byte, error)
}

// Server is a memcached. It implements runtime.Handler for any number of shards
// at once, of one runtime: two runtimes number their shards alike, and what a
// shard's connections share has no lock. When two loops are found in the same
// shard at once the Server panics, before one gets the other's replies. Tick and
// Statistics may be called from any goroutine.
type Server struct {
	store    *store.Store
	version  string
	maxItem  int
	maxConns int64

	// start is the time of New, epoch the same in Unix seconds: the clock is
	// epoch plus what has passed since start, so that it does not jump when the
	// system's is set.
	start time.Time
	epoch uint32
	clock atomic.Uint32

	// idle is in seconds, 0: connections may be idle for ever.
	idle uint32

	conns atomic.Int64 // open now
	cpu   func() (user, system time.Duration)
	// The ports that are served, 0: none yet.
	tcpPort, udpPort atomic.Uint32
	shards           atomic.Pointer[[]*shard]
	grow             sync.Mutex // guards replacing shards

	admin administration
}

var _ runtime.Handler = (*Server)(nil)

// New makes a Server. It fails if a limit is out of bounds, and then names the bound.
func New(o Options) (*Server, error) {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.MaxItem == 0 {
		o.MaxItem = DefaultMaxItem
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.MaxConns < 0 {
		return nil, fmt.Errorf("memcached: connection limit of %d: must be at least 1", o.MaxConns)
	}
	if o.IdleTimeout < 0 || o.IdleTimeout > 0 && o.IdleTimeout < time.Second {
		return nil, fmt.Errorf("memcached: idle timeout of %v: must be at least 1s, or 0 for none", o.IdleTimeout)
	}
	if o.Version == "" {
		o.Version = DefaultVersion
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	items, err := store.New(store.Options{Memory: o.Memory, MaxItem: o.MaxItem, Stripes: o.Stripes, Seed: o.Seed, Allocate: o.Allocate})
	if err != nil {
		return nil, fmt.Errorf("memcached: %w", err)
	}
	s := &Server{
		store:    items,
		version:  o.Version,
		maxItem:  o.MaxItem,
		maxConns: int64(o.MaxConns),
		start:    o.Now,
		epoch:    uint32(o.Now.Unix()),
		cpu:      o.CPU,
		idle:     uint32(o.IdleTimeout / time.Second),
	}
	s.clock.Store(s.epoch)
	s.shards.Store(&[]*shard{})
	s.shard(max(o.Shards, 1) - 1)
	return s, nil
}

// Tick tells the Server the time. Expiry, flush_all with a delay and the ages in
// stats go by it, in whole seconds, and each call does a little of the store's
// background work, so it should be called some ten times a second, by one or all
// of the loops. Time never runs backwards.
func (s *Server) Tick(now time.Time) {
	passed := now.Sub(s.start)
	if passed < 0 {
		return
	}
	second := s.epoch + uint32(passed/time.Second)
	for {
		last := s.clock.Load()
		if second <= last || s.clock.CompareAndSwap(last, second) {
			break
		}
	}
	s.store.Tick(s.clock.Load())
}

// TickShard is runtime.Ticker's: it tells the Server the time, and closes the
// shard's idle connections.
func (s *Server) TickShard(index int, now time.Time) {
	s.Tick(now)
	if s.idle == 0 {
		return
	}
	sh := s.shard(index)
	sh.enter()
	defer sh.leave()
	second := s.clock.Load()
	for {
		e := sh.list.popIdle(second, s.idle)
		if e == nil {
			return
		}
		// What the peer does not take is given up only if it took nothing since
		// the last look.
		if waiting := e.conn.Buffered(); waiting > 0 && waiting != e.waiting {
			e.waiting = waiting
			e.lastCommand.Store(second)
			sh.list.add(e)
			continue
		} else if waiting > 0 {
			e.conn.Abort()
		} else {
			e.conn.Close()
		}
		e.owner.closing = true
		sh.counters.add(idleKicks, 1)
	}
}

var _ runtime.Ticker = (*Server)(nil)

// keep takes back the buffer for replies, unless a large one has made it so.
func (sh *shard) keep(out []byte) {
	if sh.out = out; cap(out) > outKeep {
		sh.out = make([]byte, 0, outSize)
	}
}

// shard is what the connections of one core share: used by that core alone,
// but for the counters, which anybody may read.
type shard struct {
	// entered: a loop is at work with it.
	entered  atomic.Bool
	counters counters
	tally    tally
	// out collects the replies of one call of Data.
	out []byte
	// tokens are the words of one command.
	tokens [maxTokens][]byte
	meta   meta
	fetch  fetch
	list   connList
	// datagram is the connection that a datagram is handled as, frame the
	// datagram of a reply.
	datagram conn
	frame    [datagramSize]byte
	_        [64]byte
}

func (sh *shard) enter() {
	if !sh.entered.CompareAndSwap(false, true) {
		panic("memcached: two loops use one shard; a Server serves the shards of one runtime, make another for each other runtime")
	}
}

func (sh *shard) leave() { sh.entered.Store(false) }

// shard returns the shard of an index, which it makes if there is none yet.
func (s *Server) shard(index int) *shard {
	if list := *s.shards.Load(); index < len(list) {
		return list[index]
	}
	s.grow.Lock()
	defer s.grow.Unlock()
	list := append([]*shard(nil), *s.shards.Load()...)
	for len(list) <= index {
		sh := &shard{out: make([]byte, 0, outSize)}
		sh.meta.bind()
		sh.fetch.see = sh.fetch.seen
		list = append(list, sh)
	}
	s.shards.Store(&list)
	return list[index]
}
