package memcached

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/pollux-net/pollux/apps/memcached/store"
	"github.com/pollux-net/pollux/runtime"
)

const (
	// A command line that has no end within so many bytes is not one, and the
	// connection is closed, unless it is a get of many keys.
	maxLine = 2048
	// Such a get may begin with so many spaces.
	maxIndent = 100
	// Replies are handed over when they reach this many bytes.
	outSize = 16 << 10
	// What a shard keeps of the buffer for replies after large values.
	outKeep = 2 << 20
)

// state is what the next byte of a connection belongs to.
type state uint8

const (
	// inCommand: the start of a command line.
	inCommand state = iota
	// inKeys: the keys of a get; the next one, or white space.
	inKeys
	// inRest: the rest of a get's line, which nobody reads.
	inRest
	// inValue: the value that a command like set announced, and its line end.
	inValue
	// inSwallow: a value that is thrown away.
	inSwallow
)

// protocol is what a connection speaks.
type protocol uint8

const (
	protocolUnknown protocol = iota
	protocolText
	protocolBinary
)

// conn is one connection. It belongs to its shard's core.
type conn struct {
	shard *shard
	state state
	// rejected: over the limit of connections, and about to be closed.
	rejected bool
	// closing: nothing more is to be read.
	closing bool
	noreply bool
	// The first byte tells the protocol.
	protocol protocol

	// In the keys of a get: how to answer, and what to answer at the end of the
	// line.
	get retrieval
	end string

	// In a value: the item and how it is to be stored, and how many bytes are
	// to come, the line end not counted.
	pending store.Pending
	cas     uint64
	left    int
	op      store.Op
	// ends counts the bytes of the line end that were read; bad says that they
	// were others.
	ends uint8
	bad  bool
	// afterwards is the reply to a value that was thrown away.
	afterwards string
	// binary is the request of the binary protocol that is being handled, if
	// that is what the connection speaks.
	binary binaryRequest
	// metaSet: the value is an ms's, to be answered as metaReply says.
	metaSet   bool
	metaReply *metaReply

	// kept is how many bytes the last call of Data left.
	kept  int
	entry connEntry
}

// connEntry is a connection's place in its shard's list, for stats conns and to
// find those that are idle.
type connEntry struct {
	prev, next    *connEntry
	listed        bool
	owner         *conn
	conn          runtime.Conn
	remote, local netip.AddrPort
	// lastCommand is in Unix seconds.
	lastCommand atomic.Uint32
	// waiting is how much output waited when the connection was idle last.
	waiting int
}

// connList holds the open connections of a shard, the one that was used last
// first. Only the shard changes it, but others look.
type connList struct {
	mu          sync.Mutex
	first, last *connEntry
}

func (l *connList) add(e *connEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.push(e)
}

func (l *connList) push(e *connEntry) {
	e.prev, e.next, e.listed = nil, l.first, true
	if l.first != nil {
		l.first.prev = e
	} else {
		l.last = e
	}
	l.first = e
}

func (l *connList) drop(e *connEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlink(e)
}

func (l *connList) unlink(e *connEntry) {
	if !e.listed {
		return
	}
	e.listed = false
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.last = e.prev
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		l.first = e.next
	}
}

// use notes that something came from a connection.
func (l *connList) use(e *connEntry, now uint32) {
	e.lastCommand.Store(now)
	if l.first == e || !e.listed {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlink(e)
	l.push(e)
}

// popIdle takes the connection that was used least lately out of the list if
// that is more than idle seconds ago.
func (l *connList) popIdle(now, idle uint32) *connEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.last
	if e == nil || e.lastCommand.Load()+idle >= now {
		return nil
	}
	l.unlink(e)
	return e
}

// Open is runtime.Handler's. One connection too many is told so and closed, as
// memcached does with maxconns_fast.
func (s *Server) Open(c runtime.Conn) {
	cn := &conn{shard: s.shard(c.Shard())}
	c.SetContext(cn)
	if s.conns.Add(1) > s.maxConns {
		s.conns.Add(-1)
		cn.rejected = true
		cn.shard.counters.add(connsRejected, 1)
		c.Write([]byte("ERROR Too many open connections\r\n"))
		c.Close()
		return
	}
	cn.shard.counters.add(connsOpened, 1)
	cn.entry.remote, cn.entry.local = c.RemoteAddr(), c.LocalAddr()
	cn.entry.owner, cn.entry.conn = cn, c
	s.tcpPort.Store(uint32(cn.entry.local.Port()))
	cn.entry.lastCommand.Store(s.clock.Load())
	cn.shard.list.add(&cn.entry)
}

// Close is runtime.Handler's. An item that was being received is dropped.
func (s *Server) Close(c runtime.Conn, err error) {
	cn, _ := c.Context().(*conn)
	if cn == nil || cn.rejected {
		return
	}
	if cn.pending.Active() {
		s.store.Abort(&cn.pending)
	}
	cn.shard.list.drop(&cn.entry)
	s.conns.Add(-1)
	c.SetContext(nil)
}

// Data is runtime.Handler's. It answers all complete commands in in, and takes
// in values as far as they have arrived; only the beginning of a command line,
// of at most 2 KiB, is left, or more if the peer does not read its replies.
func (s *Server) Data(c runtime.Conn, in []byte) int {
	cn, _ := c.Context().(*conn)
	if cn == nil || cn.rejected || cn.closing {
		return len(in)
	}
	now := s.clock.Load()
	sh := cn.shard
	sh.enter()
	if cn.entry.lastCommand.Load() != now {
		sh.list.use(&cn.entry, now)
	}
	sh.tally.add(bytesRead, uint64(max(len(in)-cn.kept, 0)))
	r := request{server: s, shard: sh, conn: cn, now: now, out: sh.out[:0]}
	buffered := c.Buffered()
	pos := 0
	for pos < len(in) && !cn.closing && buffered+len(r.out) < runtime.OutputLimit {
		if len(r.out) >= outSize {
			buffered += len(r.out)
			r.send(c)
		}
		r.limit = runtime.OutputLimit - buffered
		n, more := r.step(in[pos:])
		pos += n
		if more {
			break
		}
	}
	r.send(c)
	if cn.closing {
		c.Close()
		pos = len(in)
	}
	cn.kept = len(in) - pos
	sh.tally.flush(&sh.counters)
	sh.keep(r.out)
	sh.leave()
	return pos
}

// request is the state of one call of Data.
type request struct {
	server *Server
	shard  *shard
	conn   *conn
	now    uint32
	out    []byte
	// A get stops between keys when out has so many bytes.
	limit int
}

// send hands over the replies.
func (r *request) send(c runtime.Conn) {
	if len(r.out) == 0 {
		return
	}
	// It fails only if the connection is closed already; Close will be called.
	c.Write(r.out)
	r.shard.tally.add(bytesWritten, uint64(len(r.out)))
	r.out = r.out[:0]
}

// step handles the next thing in in, which is not empty: a command, some keys of
// a get, a part of a value. It returns how many bytes that took; more says that
// the rest makes sense only with more bytes.
func (r *request) step(in []byte) (n int, more bool) {
	switch cn := r.conn; cn.state {
	case inCommand:
		if cn.protocol != protocolText {
			return r.other(in)
		}
		return r.line(in)
	case inKeys:
		return r.keys(in)
	case inRest:
		end := bytes.IndexByte(in, '\n')
		if end < 0 {
			return len(in), true
		}
		cn.state = inCommand
		r.out = append(r.out, cn.end...)
		return end + 1, false
	case inValue:
		return r.value(in), false
	default:
		n = min(len(in), cn.left)
		if cn.left -= n; cn.left == 0 {
			cn.state = inCommand
			if cn.afterwards != "" {
				r.reply(cn.afterwards)
			}
		}
		return n, false
	}
}

// other handles a command of a connection that does not speak text, or that has
// not begun to speak.
func (r *request) other(in []byte) (n int, more bool) {
	cn := r.conn
	if cn.protocol == protocolUnknown {
		if cn.protocol = protocolText; in[0] == requestMagic {
			cn.protocol = protocolBinary
		}
	}
	if cn.protocol == protocolBinary {
		return r.packet(in)
	}
	return r.line(in)
}

// line handles a command line, or as much of a get as needs handling at once.
func (r *request) line(in []byte) (n int, more bool) {
	end := bytes.IndexByte(in[:min(len(in), maxLine+1)], '\n')
	if end < 0 {
		if len(in) <= maxLine {
			return 0, true
		}
		return r.longGet(in)
	}
	line := in[:end]
	if end > 1 && line[end-1] == '\r' {
		line = line[:end-1]
	}
	// To memcached a line is a C string.
	if zero := bytes.IndexByte(line, 0); zero >= 0 {
		line = line[:zero]
	}
	if n := r.command(line); n > 0 {
		return n, false
	}
	return end + 1, false
}

// reply answers a command, unless it said noreply.
func (r *request) reply(text string) {
	if r.conn.noreply {
		r.conn.noreply = false
		return
	}
	r.out = append(append(r.out, text...), '\r', '\n')
}

// value takes in a part of a value and its line end, and stores it when it is
// complete.
func (r *request) value(in []byte) int {
	cn, items := r.conn, r.server.store
	n := min(len(in), cn.left)
	items.Write(&cn.pending, in[:n])
	cn.left -= n
	for n < len(in) && int(cn.ends) < len(lineEnd) {
		cn.bad = cn.bad || in[n] != lineEnd[cn.ends]
		cn.ends++
		n++
	}
	if cn.left == 0 && int(cn.ends) == len(lineEnd) {
		r.store()
	}
	return n
}

const lineEnd = "\r\n"

// store stores a value that has come whole.
func (r *request) store() {
	cn, items := r.conn, r.server.store
	cn.state = inCommand
	r.shard.tally.add(setCommands, 1)
	isMeta := cn.metaSet
	cn.metaSet = false
	if cn.bad {
		items.Abort(&cn.pending)
		r.reply("CLIENT_ERROR bad data chunk")
		return
	}
	var key []byte
	if isMeta {
		key = items.AppendKey(cn.shard.meta.decoded[:0], &cn.pending)
	}
	result := items.Commit(&cn.pending, cn.op, cn.cas, r.now)
	if cn.op == store.CompareAndSwap {
		switch result {
		case store.Stored:
			r.shard.tally.add(casHits, 1)
		case store.Exists:
			r.shard.tally.add(casBad, 1)
		case store.NotFound:
			r.shard.tally.add(casMisses, 1)
		}
	}
	switch {
	case cn.protocol == protocolBinary:
		r.binaryStored(result, cn.op, cn.pending.CAS())
		return
	case isMeta:
		r.metaStored(result, key, cn.pending.CAS())
		return
	}
	r.reply([...]string{store.Stored: "STORED", store.NotStored: "NOT_STORED", store.Exists: "EXISTS", store.NotFound: "NOT_FOUND"}[result])
}
