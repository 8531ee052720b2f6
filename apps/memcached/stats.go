package memcached

import (
	"math/bits"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/pollux-net/pollux/apps/memcached/store"
	"github.com/pollux-net/pollux/runtime"
)

// Statistics is a snapshot of what a Server counted since New; stats reset does
// not change it. The counters of different shards are read one after another.
type Statistics struct {
	// Uptime is in seconds, by the clock that Tick sets.
	Uptime uint64

	GetHits, GetMisses       uint64
	TouchHits, TouchMisses   uint64 // touch and gat
	Sets                     uint64 // set, add, replace, append, prepend and cas with their value
	Flushes                  uint64
	Meta                     uint64 // me; the other meta commands count as what they do
	DeleteHits, DeleteMisses uint64
	IncrHits, IncrMisses     uint64
	DecrHits, DecrMisses     uint64
	CASHits, CASMisses       uint64
	CASBad                   uint64 // the value had changed
	TooLarge, NoMemory       uint64 // refused
	BytesRead, BytesWritten  uint64
	ConnsOpened              uint64
	ConnsRejected            uint64 // over the limit
	IdleKicks                uint64 // connections closed for being idle
	Datagrams                uint64 // received
	DatagramsIgnored         uint64 // of them, for not being a whole request
	Conns, MaxConns          uint64 // now, and at most
	MaxItem                  uint64 // bytes
	Store                    store.Stats
}

// Statistics takes a snapshot. It may be called from any goroutine.
func (s *Server) Statistics() Statistics {
	var sum [numCounters]uint64
	for _, sh := range *s.shards.Load() {
		for i := range sh.counters {
			sum[i] += sh.counters[i].Load()
		}
	}
	return Statistics{
		Uptime:  uint64(s.clock.Load() - s.epoch),
		GetHits: sum[getHits], GetMisses: sum[getMisses],
		TouchHits: sum[touchHits], TouchMisses: sum[touchMisses],
		Sets: sum[setCommands], Flushes: sum[flushCommands], Meta: sum[metaCommands],
		DeleteHits: sum[deleteHits], DeleteMisses: sum[deleteMisses],
		IncrHits: sum[incrHits], IncrMisses: sum[incrMisses],
		DecrHits: sum[decrHits], DecrMisses: sum[decrMisses],
		CASHits: sum[casHits], CASMisses: sum[casMisses], CASBad: sum[casBad],
		TooLarge: sum[tooLarge], NoMemory: sum[noMemory],
		BytesRead: sum[bytesRead], BytesWritten: sum[bytesWritten],
		ConnsOpened: sum[connsOpened], ConnsRejected: sum[connsRejected],
		IdleKicks: sum[idleKicks], Datagrams: sum[datagramsRead], DatagramsIgnored: sum[datagramsIgnored],
		Conns: uint64(s.conns.Load()), MaxConns: uint64(s.maxConns), MaxItem: uint64(s.maxItem),
		Store: s.store.Stats(),
	}
}

// since returns the counters less those of an earlier snapshot.
func (a Statistics) since(b Statistics) Statistics {
	for _, p := range []struct {
		n    *uint64
		less uint64
	}{
		{&a.GetHits, b.GetHits}, {&a.GetMisses, b.GetMisses}, {&a.Store.Expired, b.Store.Expired}, {&a.Store.Flushed, b.Store.Flushed},
		{&a.TouchHits, b.TouchHits}, {&a.TouchMisses, b.TouchMisses}, {&a.Sets, b.Sets}, {&a.Flushes, b.Flushes}, {&a.Meta, b.Meta},
		{&a.DeleteHits, b.DeleteHits}, {&a.DeleteMisses, b.DeleteMisses}, {&a.IncrHits, b.IncrHits}, {&a.IncrMisses, b.IncrMisses},
		{&a.DecrHits, b.DecrHits}, {&a.DecrMisses, b.DecrMisses}, {&a.CASHits, b.CASHits}, {&a.CASMisses, b.CASMisses}, {&a.CASBad, b.CASBad},
		{&a.TooLarge, b.TooLarge}, {&a.NoMemory, b.NoMemory}, {&a.BytesRead, b.BytesRead}, {&a.BytesWritten, b.BytesWritten},
		{&a.ConnsOpened, b.ConnsOpened}, {&a.ConnsRejected, b.ConnsRejected},
		{&a.IdleKicks, b.IdleKicks}, {&a.Datagrams, b.Datagrams}, {&a.DatagramsIgnored, b.DatagramsIgnored},
		{&a.Store.Total, b.Store.Total}, {&a.Store.Evictions, b.Store.Evictions}, {&a.Store.EvictedUnfetched, b.Store.EvictedUnfetched},
		{&a.Store.EvictedNonzero, b.Store.EvictedNonzero}, {&a.Store.EvictedActive, b.Store.EvictedActive}, {&a.Store.DirectReclaims, b.Store.DirectReclaims},
		{&a.Store.MovesToCold, b.Store.MovesToCold}, {&a.Store.MovesToWarm, b.Store.MovesToWarm}, {&a.Store.MovesWithin, b.Store.MovesWithin},
		{&a.Store.Hot.Hits, b.Store.Hot.Hits}, {&a.Store.Warm.Hits, b.Store.Warm.Hits}, {&a.Store.Cold.Hits, b.Store.Cold.Hits},
		{&a.Store.Reclaimed, b.Store.Reclaimed}, {&a.Store.ExpiredUnfetched, b.Store.ExpiredUnfetched}, {&a.Store.Swept, b.Store.Swept}, {&a.Store.Checked, b.Store.Checked},
	} {
		*p.n -= p.less
	}
	return a
}

// administration is what rare commands change.
type administration struct {
	verbosity atomic.Uint32
	// flushedAt is the Unix second of the last flush_all, or of the next.
	flushedAt atomic.Uint32

	mu sync.Mutex
	// reset is the snapshot of the last stats reset.
	reset Statistics
}

// stats answers the stats commands.
func (r *request) stats(tokens [][]byte) {
	// What came before it in the same piece of input counts.
	r.shard.tally.flush(&r.shard.counters)
	kind := ""
	if len(tokens) > 1 {
		kind = string(tokens[1])
	}
	switch kind {
	case "reset":
		r.server.resetStats()
		r.reply("RESET")
		return
	case "settings":
		r.settings()
	case "detail":
		// Nothing is counted by prefixes of keys here.
		switch {
		case len(tokens) > 2 && string(tokens[2]) == "off":
			r.reply("OK")
		case len(tokens) > 2 && (string(tokens[2]) == "on" || string(tokens[2]) == "dump"):
			r.reply("CLIENT_ERROR stats detail not allowed")
		default:
			r.reply("CLIENT_ERROR usage: stats detail on|off|dump")
		}
		return
	case "cachedump":
		// What memcached says when started with -X.
		r.reply("CLIENT_ERROR stats cachedump not allowed")
		return
	case "conns":
		r.connStats()
	default:
		if !r.statGroup(kind) {
			r.reply("ERROR")
			return
		}
	}
	r.reply("END")
}

// statGroup tells the numbers of a group that both protocols have; false if there
// is no such group.
func (r *request) statGroup(kind string) bool {
	switch kind {
	case "":
		r.generalStats()
	case "items":
		r.itemStats()
	case "slabs":
		r.slabStats()
	case "sizes":
		if !r.server.store.Sizes(func(bytes int, items int64) { r.count(strconv.Itoa(bytes), uint64(max(items, 0))) }) {
			r.stat("sizes_status", "disabled")
		}
	case "sizes_enable":
		r.server.store.CountSizes(true)
		r.stat("sizes_status", "enabled")
	case "sizes_disable":
		r.server.store.CountSizes(false)
		r.stat("sizes_status", "disabled")
	default:
		return false
	}
	return true
}

// resetStats has the counters that stats tells begin anew.
func (s *Server) resetStats() {
	now := s.Statistics()
	s.admin.mu.Lock()
	defer s.admin.mu.Unlock()
	s.admin.reset = now
}

// stat tells one number, in the connection's protocol.
func (r *request) stat(name, value string) {
	if r.conn.protocol == protocolBinary {
		r.out = r.conn.binary.appendHeader(r.out, statusOK, 0, len(name), len(name)+len(value), 0)
		r.out = append(append(r.out, name...), value...)
		return
	}
	r.out = append(append(append(append(append(r.out, "STAT "...), name...), ' '), value...), '\r', '\n')
}

func (r *request) count(name string, value uint64) {
	r.stat(name, strconv.FormatUint(value, 10))
}

func (r *request) countSince() Statistics {
	a := &r.server.admin
	a.mu.Lock()
	defer a.mu.Unlock()
	return r.server.Statistics().since(a.reset)
}

// generalStats tells what memcached tells, but for what has no meaning here.
func (r *request) generalStats() {
	s := r.countSince()
	r.count("pid", uint64(os.Getpid()))
	r.count("uptime", s.Uptime)
	r.count("time", uint64(r.now))
	r.stat("version", r.server.version)
	r.count("pointer_size", strconv.IntSize)
	if r.server.cpu != nil {
		user, system := r.server.cpu()
		r.stat("rusage_user", strconv.FormatFloat(user.Seconds(), 'f', 6, 64))
		r.stat("rusage_system", strconv.FormatFloat(system.Seconds(), 'f', 6, 64))
	}
	r.count("max_connections", s.MaxConns)
	r.count("curr_connections", s.Conns)
	r.count("total_connections", s.ConnsOpened)
	r.count("rejected_connections", s.ConnsRejected)
	r.count("connection_structures", s.Conns)
	if r.server.idle > 0 {
		r.count("idle_kicks", s.IdleKicks)
	}
	r.count("cmd_get", s.GetHits+s.GetMisses)
	r.count("cmd_set", s.Sets)
	r.count("cmd_flush", s.Flushes)
	r.count("cmd_touch", s.TouchHits+s.TouchMisses)
	r.count("cmd_meta", s.Meta)
	r.count("get_hits", s.GetHits)
	r.count("get_misses", s.GetMisses)
	r.count("get_expired", s.Store.Expired)
	r.count("get_flushed", s.Store.Flushed)
	r.count("delete_misses", s.DeleteMisses)
	r.count("delete_hits", s.DeleteHits)
	r.count("incr_misses", s.IncrMisses)
	r.count("incr_hits", s.IncrHits)
	r.count("decr_misses", s.DecrMisses)
	r.count("decr_hits", s.DecrHits)
	r.count("cas_misses", s.CASMisses)
	r.count("cas_hits", s.CASHits)
	r.count("cas_badval", s.CASBad)
	r.count("touch_hits", s.TouchHits)
	r.count("touch_misses", s.TouchMisses)
	r.count("store_too_large", s.TooLarge)
	r.count("store_no_memory", s.NoMemory)
	r.count("auth_cmds", 0)
	r.count("auth_errors", 0)
	r.count("bytes_read", s.BytesRead)
	r.count("bytes_written", s.BytesWritten)
	r.count("limit_maxbytes", s.Store.Memory)
	r.count("accepting_conns", 1)
	r.count("listen_disabled_num", 0)
	r.count("time_in_listen_disabled_us", 0)
	r.count("threads", uint64(len(*r.server.shards.Load())))
	r.count("conn_yields", 0)
	r.count("hash_power_level", uint64(bits.Len64(s.Store.Buckets)-1))
	r.count("hash_bytes", s.Store.HashBytes)
	r.count("hash_is_expanding", 0)
	r.count("malloc_fails", 0)
	r.count("datagrams_read", s.Datagrams)
	r.count("datagrams_ignored", s.DatagramsIgnored)
	r.count("bytes", s.Store.Bytes)
	r.count("curr_items", s.Store.Items)
	r.count("total_items", s.Store.Total)
	r.count("expired_unfetched", s.Store.ExpiredUnfetched)
	r.count("evicted_unfetched", s.Store.EvictedUnfetched)
	r.count("evicted_active", s.Store.EvictedActive)
	r.count("evictions", s.Store.Evictions)
	r.count("reclaimed", s.Store.Reclaimed)
	r.count("crawler_reclaimed", s.Store.Swept)
	r.count("crawler_items_checked", s.Store.Checked)
	r.count("lrutail_reflocked", 0)
	r.count("moves_to_cold", s.Store.MovesToCold)
	r.count("moves_to_warm", s.Store.MovesToWarm)
	r.count("moves_within_lru", s.Store.MovesWithin)
	r.count("direct_reclaims", s.Store.DirectReclaims)
	r.count("lru_bumps_dropped", 0)
}

func (r *request) settings() {
	s, server := r.server.store.Stats(), r.server
	r.count("maxbytes", s.Memory)
	r.count("maxconns", uint64(server.maxConns))
	r.count("tcpport", uint64(server.tcpPort.Load()))
	r.count("udpport", uint64(server.udpPort.Load()))
	r.stat("inter", "NULL")
	r.count("verbosity", uint64(server.admin.verbosity.Load()))
	oldest := server.admin.flushedAt.Load()
	if oldest != 0 {
		oldest -= server.epoch // memcached's clock begins with the process
	}
	r.count("oldest", uint64(oldest))
	r.stat("evictions", "on")
	r.stat("shutdown_command", "no")
	r.count("chunk_size", s.ChunkSize)
	r.count("num_threads", uint64(len(*server.shards.Load())))
	r.stat("detail_enabled", "no")
	r.stat("cas_enabled", "yes")
	r.stat("binding_protocol", "auto-negotiate")
	r.stat("auth_enabled_sasl", "no")
	r.stat("auth_enabled_ascii", "no")
	r.count("item_size_max", uint64(server.maxItem))
	r.stat("maxconns_fast", "yes")
	r.stat("slab_reassign", "no")
	r.stat("lru_crawler", "yes")
	r.stat("flush_enabled", "yes")
	r.stat("dump_enabled", "no")
	r.stat("lru_maintainer_thread", "no")
	r.stat("lru_segmented", "yes")
	r.count("hot_lru_pct", store.HotShare)
	r.count("warm_lru_pct", store.WarmShare)
	r.stat("hot_max_factor", strconv.FormatFloat(store.HotMaxAge, 'f', 2, 64))
	r.stat("warm_max_factor", strconv.FormatFloat(store.WarmMaxAge, 'f', 2, 64))
	r.stat("temp_lru", "no")
	r.count("idle_timeout", uint64(server.idle))
	r.stat("track_sizes", yesNo(server.store.Sizes(func(int, int64) {})))
	r.stat("ssl_enabled", "no")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// itemStats tells of one class of items: all share one kind of chunk.
func (r *request) itemStats() {
	all := r.countSince()
	s := all.Store
	if s.Items == 0 {
		return
	}
	age := func(since uint32) uint64 {
		if since == 0 {
			return 0
		}
		return uint64(r.now - min(since, r.now))
	}
	r.count("items:1:number", s.Items)
	r.count("items:1:number_hot", s.Hot.Items)
	r.count("items:1:number_warm", s.Warm.Items)
	r.count("items:1:number_cold", s.Cold.Items)
	r.count("items:1:age_hot", age(s.Hot.Oldest))
	r.count("items:1:age_warm", age(s.Warm.Oldest))
	r.count("items:1:age", age(s.Cold.Oldest))
	r.count("items:1:mem_requested", s.Bytes)
	r.count("items:1:evicted", s.Evictions)
	r.count("items:1:evicted_nonzero", s.EvictedNonzero)
	r.count("items:1:evicted_time", uint64(s.EvictedAge))
	r.count("items:1:outofmemory", all.NoMemory)
	r.count("items:1:tailrepairs", 0)
	r.count("items:1:reclaimed", s.Reclaimed)
	r.count("items:1:expired_unfetched", s.ExpiredUnfetched)
	r.count("items:1:evicted_unfetched", s.EvictedUnfetched)
	r.count("items:1:evicted_active", s.EvictedActive)
	r.count("items:1:crawler_reclaimed", s.Swept)
	r.count("items:1:crawler_items_checked", s.Checked)
	r.count("items:1:lrutail_reflocked", 0)
	r.count("items:1:moves_to_cold", s.MovesToCold)
	r.count("items:1:moves_to_warm", s.MovesToWarm)
	r.count("items:1:moves_within_lru", s.MovesWithin)
	r.count("items:1:direct_reclaims", s.DirectReclaims)
	r.count("items:1:hits_to_hot", s.Hot.Hits)
	r.count("items:1:hits_to_warm", s.Warm.Hits)
	r.count("items:1:hits_to_cold", s.Cold.Hits)
	r.count("items:1:hits_to_temp", 0)
}

func (r *request) slabStats() {
	s := r.countSince()
	const page = 1 << 20
	r.count("1:chunk_size", s.Store.ChunkSize)
	r.count("1:chunks_per_page", page/s.Store.ChunkSize)
	r.count("1:total_pages", (s.Store.Chunks*s.Store.ChunkSize+page-1)/page)
	r.count("1:total_chunks", s.Store.Chunks)
	r.count("1:used_chunks", s.Store.UsedChunks)
	r.count("1:free_chunks", s.Store.Chunks-s.Store.UsedChunks)
	r.count("1:free_chunks_end", 0)
	r.count("1:get_hits", s.GetHits)
	r.count("1:cmd_set", s.Sets)
	r.count("1:delete_hits", s.DeleteHits)
	r.count("1:incr_hits", s.IncrHits)
	r.count("1:decr_hits", s.DecrHits)
	r.count("1:cas_hits", s.CASHits)
	r.count("1:cas_badval", s.CASBad)
	r.count("1:touch_hits", s.TouchHits)
	r.count("active_slabs", 1)
	r.count("total_malloced", s.Store.Chunks*s.Store.ChunkSize)
}

// connsListed is how many connections stats conns tells of: what keeps the reply
// within what waits for any peer. A connection takes some 150 bytes of it, 210
// with long IPv6 addresses.
const connsListed = runtime.OutputLimit / 128

// connStats lists connections, shard by shard, as far as the reply may go.
func (r *request) connStats() {
	end := len(r.out) + runtime.OutputLimit
	var found []listed
	for _, sh := range *r.server.shards.Load() {
		found = sh.list.appendTo(found, connsListed-len(found))
	}
	for n, e := range found {
		if len(r.out) >= end {
			return
		}
		name := strconv.Itoa(n)
		r.stat(name+":addr", "tcp:"+e.remote.String())
		r.stat(name+":listen_addr", "tcp:"+e.local.String())
		state := "conn_read"
		if e.of == &r.conn.entry {
			state = "conn_parse_cmd"
		}
		r.stat(name+":state", state)
		r.count(name+":secs_since_last_cmd", uint64(max(r.now, e.lastCommand)-e.lastCommand))
	}
}

// listed is what stats conns tells of a connection.
type listed struct {
	of            *connEntry
	remote, local netip.AddrPort
	lastCommand   uint32
}

// appendTo copies up to so many of the connections, those that were used last,
// and holds the shard up for no longer than that takes.
func (l *connList) appendTo(found []listed, most int) []listed {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.first; e != nil && most > 0; e = e.next {
		found = append(found, listed{e, e.remote, e.local, e.lastCommand.Load()})
		most--
	}
	return found
}
