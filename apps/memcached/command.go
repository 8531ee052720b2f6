package memcached

import (
	"bytes"
	"errors"
	"math"
	"strconv"

	"github.com/pollux-net/pollux/apps/memcached/numeral"
	"github.com/pollux-net/pollux/apps/memcached/store"
)

// maxTokens is how many words of a line are told apart, as in memcached; what
// follows is never looked at, but by get.
const maxTokens = 23

// tokenize splits a line at spaces. Only spaces separate: a tab may be part of a
// key.
func (r *request) tokenize(line []byte) [][]byte {
	tokens := r.shard.tokens[:0]
	for len(tokens) < maxTokens {
		for len(line) > 0 && line[0] == ' ' {
			line = line[1:]
		}
		if len(line) == 0 {
			break
		}
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		tokens = append(tokens, line[:end])
		line = line[end:]
	}
	return tokens
}

// command carries out a command line without its end. It returns 0, or the
// number of bytes of the line that it has dealt with if the rest are keys.
func (r *request) command(line []byte) int {
	start := 0
	for start < len(line) && line[start] == ' ' {
		start++
	}
	// The commonest commands first, without telling all words apart.
	name := line[start:]
	if space := bytes.IndexByte(name, ' '); space >= 0 {
		name = name[:space]
	}
	switch string(name) {
	case "get", "bget":
		return r.get(line, start+len(name), retrieval{head: head})
	case "gets":
		return r.get(line, start+len(name), retrieval{head: headWithCAS})
	case "gat":
		return r.getAndTouch(line, start+len(name), head)
	case "gats":
		return r.getAndTouch(line, start+len(name), headWithCAS)
	}
	tokens := r.tokenize(line)
	n := len(tokens)
	// In memcached, some of the wrong numbers of words are noticed before, some
	// after looking at the words.
	wrong := false
	switch string(name) {
	case "set":
		wrong = !r.update(tokens, store.Set)
	case "add":
		wrong = !r.update(tokens, store.Add)
	case "replace":
		wrong = !r.update(tokens, store.Replace)
	case "append":
		wrong = !r.update(tokens, store.Append)
	case "prepend":
		wrong = !r.update(tokens, store.Prepend)
	case "cas":
		wrong = !r.update(tokens, store.CompareAndSwap)
	case "incr", "decr":
		if wrong = n != 3 && n != 4; !wrong {
			r.delta(tokens, name[0] == 'd')
		}
	case "delete":
		if wrong = n < 2 || n > 4; !wrong {
			r.delete(tokens)
		}
	case "touch":
		if wrong = n != 3 && n != 4; !wrong {
			r.touch(tokens)
		}
	case "flush_all":
		if wrong = n > 3; !wrong {
			r.flushAll(tokens)
		}
	case "verbosity":
		if wrong = n != 2 && n != 3; !wrong {
			r.verbosity(tokens)
		}
	case "version":
		r.reply("VERSION " + r.server.version)
	case "stats":
		r.stats(tokens)
	case "quit":
		r.conn.closing = true
	case "mg":
		r.metaGet(tokens)
	case "ms":
		r.metaSet(tokens)
	case "md":
		r.metaDelete(tokens)
	case "ma":
		r.metaArithmetic(tokens)
	case "mn":
		r.reply("MN")
	case "me":
		r.metaDebug(tokens)
	case "shutdown":
		r.reply("ERROR: shutdown not enabled")
	default:
		// Browsers are tricked into talking to memcached; they get no answer.
		if n > 0 && len(name) > 1 && !knownInitial(name) && bytes.HasPrefix(tokens[n-1], []byte("HTTP/")) {
			r.conn.closing = true
			return 0
		}
		wrong = true
	}
	if wrong {
		r.reply("ERROR")
	}
	return 0
}

// knownInitial says whether memcached, which looks at a command's first letter
// first, finds out that the command is unknown before it looks for HTTP.
func knownInitial(name []byte) bool {
	return bytes.IndexByte([]byte("gsacidt"), name[0]) >= 0 || name[0] == 'm' && len(name) == 2
}

// noReply notes whether a command's last word is noreply.
func (r *request) noReply(tokens [][]byte) bool {
	r.conn.noreply = string(tokens[len(tokens)-1]) == "noreply"
	return r.conn.noreply
}

// get answers a get whose keys start at line[at:].
func (r *request) get(line []byte, at int, get retrieval) int {
	if hasLongKey(line[at:]) {
		r.reply(badFormat)
		return 0
	}
	return r.retrieve(line, at, get, errorReply)
}

// getAndTouch answers a gat, whose first word is the expiry time.
func (r *request) getAndTouch(line []byte, at int, head store.Head) int {
	for at < len(line) && line[at] == ' ' {
		at++
	}
	word := line[at:]
	if space := bytes.IndexByte(word, ' '); space >= 0 {
		word = word[:space]
	}
	if len(word) == 0 {
		r.reply("ERROR")
		return 0
	}
	expires, ok := r.expiry(word)
	if !ok {
		r.reply(badExpiry)
		return 0
	}
	at += len(word)
	if hasLongKey(line[at:]) {
		r.reply(badFormat)
		return 0
	}
	return r.retrieve(line, at, retrieval{head: head, touch: true, expires: expires}, endOfGet)
}

// int32Of reads a number as memcached does: 64 bits wide, then cut.
func int32Of(word []byte) (int32, bool) {
	n, ok := numeral.Signed(word)
	return int32(n), ok
}

// A time up to 30 days is relative, a later one is Unix time.
const relativeLimit = 60 * 60 * 24 * 30

// expiry reads an expiry time, in the store's sense: 0 is never. A negative time
// has passed already.
func (r *request) expiry(word []byte) (uint32, bool) {
	switch t, ok := int32Of(word); {
	case t < 0:
		return 1, ok
	default:
		return r.unsignedExpiry(uint32(t)), ok
	}
}

// update begins a command that is followed by a value; false if it has the wrong
// number of words.
func (r *request) update(tokens [][]byte, op store.Op) bool {
	least := 5
	if op == store.CompareAndSwap {
		least = 6
	}
	if len(tokens) != least && len(tokens) != least+1 {
		return false
	}
	cn := r.conn
	r.noReply(tokens)
	flags, okFlags := numeral.Unsigned(tokens[2])
	expires, okExpires := r.expiry(tokens[3])
	size, okSize := int32Of(tokens[4])
	var cas uint64
	okCAS := true
	if op == store.CompareAndSwap {
		cas, okCAS = numeral.Unsigned(tokens[5])
	}
	key := tokens[1]
	if len(key) > store.MaxKey || !okFlags || !okExpires || !okSize || !okCAS || !validSize(size) {
		r.reply(badFormat)
		return true
	}
	if bad := r.begin(key, op, uint32(flags), expires, int(size), cas); bad != "" {
		if op == store.Set {
			// The old value would be stale.
			r.server.store.Delete(key, r.now)
		}
		cn.swallow(int(size)+2, bad)
	}
	return true
}

const itemTooLarge = "SERVER_ERROR object too large for cache"

// validSize says whether a value may be announced with a length.
func validSize(size int32) bool { return size >= 0 && size <= math.MaxInt32-2 }

// begin makes room for a value, which is to come; if there is none it returns
// what to answer.
func (r *request) begin(key []byte, op store.Op, flags, expires uint32, size int, cas uint64) string {
	cn := r.conn
	switch err := r.server.store.Begin(&cn.pending, key, size, flags, expires, r.now); {
	case err == nil:
		cn.state, cn.op, cn.cas, cn.left, cn.ends, cn.bad = inValue, op, cas, size, 0, false
		return ""
	case errors.Is(err, store.ErrTooLarge):
		r.refused(tooLarge)
		return itemTooLarge
	default:
		r.refused(noMemory)
		return "SERVER_ERROR out of memory storing object"
	}
}

// refused counts a value that was not taken in; memcached does so for the text
// protocol alone.
func (r *request) refused(why counter) {
	if r.conn.protocol != protocolBinary {
		r.shard.tally.add(why, 1)
	}
}

// swallow throws the next n bytes away and then answers, unless answer is empty.
func (cn *conn) swallow(n int, answer string) {
	cn.state, cn.left, cn.afterwards = inSwallow, n, answer
}

func (r *request) delta(tokens [][]byte, subtract bool) {
	t := &r.shard.tally
	r.noReply(tokens)
	if len(tokens[1]) > store.MaxKey {
		r.reply(badFormat)
		return
	}
	delta, ok := numeral.Unsigned(tokens[2])
	if !ok {
		r.reply("CLIENT_ERROR invalid numeric delta argument")
		return
	}
	hits, misses := incrHits, incrMisses
	if subtract {
		hits, misses = decrHits, decrMisses
	}
	value, result := r.server.store.Delta(tokens[1], delta, subtract, r.now)
	switch result {
	case store.Stored:
		t.add(hits, 1)
		if r.conn.noreply {
			r.conn.noreply = false
			return
		}
		r.out = append(strconv.AppendUint(r.out, value, 10), '\r', '\n')
	case store.NotFound:
		t.add(misses, 1)
		r.reply("NOT_FOUND")
	case store.NotNumber:
		r.reply("CLIENT_ERROR cannot increment or decrement non-numeric value")
	default:
		r.reply("SERVER_ERROR out of memory")
	}
}

func (r *request) delete(tokens [][]byte) {
	if n := len(tokens); n > 2 {
		// Once there was a time to hold the key; 0 is still accepted.
		noHold := string(tokens[2]) == "0"
		noReply := r.noReply(tokens)
		if !(n == 3 && (noHold || noReply) || n == 4 && noHold && noReply) {
			r.reply("CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]")
			return
		}
	}
	switch {
	case len(tokens[1]) > store.MaxKey:
		r.reply(badFormat)
	case r.server.store.Delete(tokens[1], r.now):
		r.shard.tally.add(deleteHits, 1)
		r.reply("DELETED")
	default:
		r.shard.tally.add(deleteMisses, 1)
		r.reply("NOT_FOUND")
	}
}

func (r *request) touch(tokens [][]byte) {
	r.noReply(tokens)
	if len(tokens[1]) > store.MaxKey {
		r.reply(badFormat)
		return
	}
	expires, ok := r.expiry(tokens[2])
	switch {
	case !ok:
		r.reply(badExpiry)
	case r.server.store.Touch(tokens[1], expires, r.now):
		r.shard.tally.add(touchHits, 1)
		r.reply("TOUCHED")
	default:
		r.shard.tally.add(touchMisses, 1)
		r.reply("NOT_FOUND")
	}
}

func (r *request) flushAll(tokens [][]byte) {
	noReply := r.noReply(tokens)
	var delay int32
	if n := len(tokens); n > 2 || n == 2 && !noReply {
		var ok bool
		if delay, ok = int32Of(tokens[1]); !ok {
			r.shard.tally.add(flushCommands, 1)
			r.reply(badExpiry)
			return
		}
	}
	r.flush(uint32(max(delay, 0)))
	r.reply("OK")
}

// flush makes all items go, at once or after a delay or at a time.
func (r *request) flush(delay uint32) {
	r.shard.tally.add(flushCommands, 1)
	at := r.now
	if delay > 0 {
		// As in memcached, a delay of a second is none.
		at = max(r.unsignedExpiry(delay)-1, r.now)
	}
	r.server.admin.flushedAt.Store(at)
	r.server.store.Flush(at, r.now)
}

func (r *request) verbosity(tokens [][]byte) {
	r.noReply(tokens)
	level, ok := numeral.Unsigned(tokens[1])
	if !ok {
		r.reply(badFormat)
		return
	}
	// There is no log to be verbose in; stats settings tells the level.
	r.server.admin.verbosity.Store(min(uint32(level), 2))
	r.reply("OK")
}
