package memcached

import (
	"bytes"
	"strconv"

	"github.com/pollux-net/pollux/apps/memcached/store"
)

// retrieval says which of get, gets, gat and gats a command is.
type retrieval struct {
	head    store.Head
	touch   bool
	expires uint32
}

// What comes before a value.
func head(dst, key []byte, m store.Meta) []byte {
	dst = append(append(dst, "VALUE "...), key...)
	dst = strconv.AppendUint(append(dst, ' '), uint64(m.Flags), 10)
	dst = strconv.AppendInt(append(dst, ' '), int64(m.Size), 10)
	return append(dst, "\r\n"...)
}

func headWithCAS(dst, key []byte, m store.Meta) []byte {
	dst = append(append(dst, "VALUE "...), key...)
	dst = strconv.AppendUint(append(dst, ' '), uint64(m.Flags), 10)
	dst = strconv.AppendInt(append(dst, ' '), int64(m.Size), 10)
	dst = strconv.AppendUint(append(dst, ' '), m.CAS, 10)
	return append(dst, "\r\n"...)
}

const (
	endOfGet = "END\r\n"
	// A get without any key.
	errorReply = "ERROR\r\n"
	badFormat  = "CLIENT_ERROR bad command line format"
	badExpiry  = "CLIENT_ERROR invalid exptime argument"
)

// retrieve answers the keys of a get from line[at] on. It returns 0, or how far it
// came before the peer had to be waited for: the values may be more than it wants
// to take at once, and keys goes on with the rest.
func (r *request) retrieve(line []byte, at int, get retrieval, end string) int {
	for at < len(line) {
		if line[at] == ' ' {
			at++
			continue
		}
		if len(r.out) >= r.limit {
			r.later(get, end)
			return at
		}
		key := line[at:]
		if space := bytes.IndexByte(key, ' '); space >= 0 {
			key = key[:space]
		}
		r.lookup(&get, key)
		end = endOfGet
		at += len(key)
	}
	r.out = append(r.out, end...)
	return 0
}

// later has the keys of a get answered by keys, from the input.
func (r *request) later(get retrieval, end string) {
	r.conn.state, r.conn.get, r.conn.end = inKeys, get, end
}

// keys answers the keys of a get that later has begun. In begins with a key or
// white space.
func (r *request) keys(in []byte) (n int, more bool) {
	cn := r.conn
	for len(r.out) < r.limit {
		for n < len(in) && in[n] == ' ' {
			n++
		}
		i := n
		for i < len(in) && in[i] != ' ' && in[i] != '\n' && in[i] != 0 {
			i++
		}
		key := in[n:i]
		if i == len(in) {
			if len(key) <= store.MaxKey+1 { // and a carriage return
				return n, true
			}
		} else if in[i] == '\n' && len(key) > 0 && key[len(key)-1] == '\r' {
			key = key[:len(key)-1]
		}
		if len(key) > store.MaxKey {
			cn.state, cn.end = inRest, badFormat+"\r\n"
			return n, false
		}
		if len(key) > 0 {
			cn.end = endOfGet
			r.lookup(&cn.get, key)
		}
		switch in[i] {
		case '\n':
			cn.state = inCommand
			r.out = append(r.out, cn.end...)
			return i + 1, false
		case 0:
			cn.state = inRest
			return i, false
		}
		n = i
	}
	return n, false
}

// lookup answers one key.
func (r *request) lookup(get *retrieval, key []byte) {
	items := r.server.store
	hits, misses := getHits, getMisses
	var hit bool
	if get.touch {
		hits, misses = touchHits, touchMisses
		r.out, hit = items.GetAndTouch(r.out, key, get.expires, r.now, get.head)
	} else {
		r.out, hit = items.Get(r.out, key, r.now, get.head)
	}
	if !hit {
		r.shard.tally.add(misses, 1)
		return
	}
	r.shard.tally.add(hits, 1)
	r.out = append(r.out, '\r', '\n')
}

// hasLongKey says whether a word of a line exceeds the length of a key.
func hasLongKey(line []byte) bool {
	for len(line) > store.MaxKey {
		space := bytes.IndexByte(line, ' ')
		if space < 0 || space > store.MaxKey {
			return true
		}
		line = line[space+1:]
	}
	return false
}

// longGet handles the start of a line that has no end within maxLine. Only get,
// gets, gat and gats may be so long. Their keys are answered as they come: if one
// of them is too long, the values before it have been sent already.
func (r *request) longGet(in []byte) (n int, more bool) {
	for n <= maxIndent && in[n] == ' ' {
		n++
	}
	switch {
	case n > maxIndent:
	case bytes.HasPrefix(in[n:], []byte("get ")):
		r.later(retrieval{head: head}, errorReply)
		return n + len("get "), false
	case bytes.HasPrefix(in[n:], []byte("gets ")):
		r.later(retrieval{head: headWithCAS}, errorReply)
		return n + len("gets "), false
	case bytes.HasPrefix(in[n:], []byte("gat ")):
		return r.longGetAndTouch(in, n+len("gat "), head)
	case bytes.HasPrefix(in[n:], []byte("gats ")):
		return r.longGetAndTouch(in, n+len("gats "), headWithCAS)
	}
	r.conn.closing = true
	return len(in), false
}

// longGetAndTouch is longGet for a gat, whose first word is the expiry time and
// must be at hand.
func (r *request) longGetAndTouch(in []byte, at int, head store.Head) (n int, more bool) {
	for at < maxLine && in[at] == ' ' {
		at++
	}
	space := bytes.IndexByte(in[at:maxLine], ' ')
	if space <= 0 {
		r.conn.closing = true
		return len(in), false
	}
	expires, ok := r.expiry(in[at : at+space])
	if !ok {
		r.conn.state, r.conn.end = inRest, badExpiry+"\r\n"
	} else {
		r.later(retrieval{head: head, touch: true, expires: expires}, endOfGet)
	}
	return at + space, false
}
