package memcached

import (
	"strconv"

	"github.com/pollux-net/pollux/apps/memcached/numeral"
	"github.com/pollux-net/pollux/apps/memcached/store"
)

const (
	// A meta command has fewer words than this.
	maxMetaWords = 20
	// An opaque token is shorter than this, its letter included.
	maxOpaque = 33

	invalidFlags  = "CLIENT_ERROR invalid or duplicate flag"
	tooManyFlags  = "CLIENT_ERROR options flags too long"
	opaqueTooLong = "CLIENT_ERROR opaque token too long"
)

// meta is the meta command that a shard is carrying out: its flags as they were
// read, and what its See functions need.
type meta struct {
	words [][]byte // the flags, in order
	key   []byte

	quiet, value, keep, binaryKey bool // flags q, v, u, b
	vivify, newTTL, hasCAS, stale bool // N, T, C, I
	locked                        bool // one of those that memcached locks the item for
	mode                          byte // M
	expires                       uint32
	vivifyExpires, recache        uint32
	clientFlags                   uint32
	cas, initial                  uint64

	visit store.Visit
	sum   store.Arithmetic
	now   uint32
	// origin is the time that memcached's own clock would begin with.
	origin uint32

	decoded [store.MaxKey]byte
	// The methods as functions, bound once, so that a command allocates none.
	seeGet, seeSum store.See
}

func (m *meta) bind() { m.seeGet, m.seeSum = m.get, m.computed }

// parse reads the flags, which begin with word first. It returns what is wrong
// with them, "" if nothing is. All flags are known to all commands, whether they
// mean something to them or not.
func (m *meta) parse(r *request, tokens [][]byte, first int) string {
	m.words, m.key, m.now = tokens[first:], tokens[1], r.now
	m.origin = r.server.epoch - clockHeadstart
	m.quiet, m.value, m.keep, m.binaryKey = false, false, false, false
	m.vivify, m.newTTL, m.hasCAS, m.stale, m.locked = false, false, false, false, false
	m.mode, m.clientFlags, m.cas, m.initial = 0, 0, 0, 0
	m.expires, m.recache, m.vivifyExpires = 0, 0, 0
	m.sum = store.Arithmetic{By: 1}
	var seen [2]uint64
	bad, failed := badFormat, false
	fail := func(why string) { bad, failed = why, true }
	const badToken = "CLIENT_ERROR bad token in command line format"
	for _, word := range m.words {
		letter, rest := word[0], word[1:]
		if letter >= 127 || seen[letter/64]&(1<<(letter%64)) != 0 {
			return "CLIENT_ERROR duplicate flag"
		}
		seen[letter/64] |= 1 << (letter % 64)
		switch letter {
		case 'N', 'T', 'R', 'l', 'h':
			m.locked = true
		}
		var ok bool
		switch letter {
		case 'b':
			m.binaryKey = true
			if m.key, ok = decodeKey(m.decoded[:0], m.key); !ok {
				fail("CLIENT_ERROR error decoding key")
			}
		case 'N':
			m.vivify = true
			if m.vivifyExpires, ok = r.expiry(rest); !ok {
				fail(badToken)
			}
		case 'T':
			if m.expires, ok = r.expiry(rest); !ok {
				fail(badToken)
			}
			m.newTTL = true
		case 'R':
			if m.recache, ok = r.expiry(rest); !ok {
				fail(badToken)
			}
		case 'F':
			flags, ok := numeral.Unsigned(rest)
			if m.clientFlags = uint32(flags); !ok {
				failed = true // in the words of an earlier failure
			}
		case 'C':
			if m.cas, m.hasCAS = numeral.Unsigned(rest); !m.hasCAS {
				fail(badToken)
			}
		case 'M':
			if len(word) != 2 {
				fail("CLIENT_ERROR incorrect length for M token")
			} else {
				m.mode = word[1]
			}
		case 'J':
			if m.initial, ok = numeral.Unsigned(rest); !ok {
				fail("CLIENT_ERROR invalid numeric initial value")
			}
		case 'D':
			if m.sum.By, ok = numeral.Unsigned(rest); !ok {
				fail("CLIENT_ERROR invalid numeric delta value")
			}
		case 'I':
			m.stale = true
		case 'q':
			m.quiet = true
		case 'u':
			m.keep = true
		case 'v':
			m.value = true
		case 'O', 'P', 'L', 'k', 's', 't', 'c', 'f', 'l', 'h':
		default:
			return "CLIENT_ERROR invalid flag"
		}
	}
	if failed {
		return bad
	}
	return ""
}

// opaque returns the opaque token with its letter, nil if there is none, false
// if it is too long.
func (m *meta) opaque() ([]byte, bool) {
	for _, word := range m.words {
		if word[0] == 'O' {
			return word, len(word) < maxOpaque
		}
	}
	return nil, true
}

// appendKey appends the flag k.
func appendKey(dst, key []byte, binary bool) []byte {
	dst = append(dst, " k"...)
	if !binary {
		return append(dst, key...)
	}
	return append(encodeKey(dst, key), " b"...)
}

// echo appends what a command that found nothing, or changed nothing that could
// be told of, gives back: key and opaque token.
func (m *meta) echo(dst []byte) []byte {
	for _, word := range m.words {
		switch word[0] {
		case 'O':
			dst = append(append(dst, ' '), word...)
		case 'k':
			dst = appendKey(dst, m.key, m.binaryKey)
		}
	}
	return dst
}

// The clock of memcached begins so many seconds before the process, so that
// nothing is older than the clock.
const clockHeadstart = 62

// appendTTL appends the flag t. Of what has expired it tells what memcached
// does: a negative number of 32 bits.
func (m *meta) appendTTL(dst []byte, expires uint32) []byte {
	dst = append(dst, " t"...)
	if expires == 0 {
		return append(dst, "-1"...)
	}
	if expires <= m.origin {
		expires = m.origin + 1
	}
	return strconv.AppendUint(dst, uint64(expires-m.now), 10)
}

// metaKey checks what all meta commands but me have in common: their number of
// words and the length of the key.
func (r *request) metaKey(tokens [][]byte, tooMany string) bool {
	switch {
	case len(tokens) < 2:
		r.reply("ERROR")
	case len(tokens[1]) > store.MaxKey:
		r.reply(badFormat)
	case len(tokens) >= maxMetaWords:
		r.reply(tooMany)
	default:
		return true
	}
	return false
}

// metaGet is mg.
func (r *request) metaGet(tokens [][]byte) {
	if !r.metaKey(tokens, "CLIENT_ERROR options flags are too long") {
		return
	}
	m := &r.shard.meta
	if bad := m.parse(r, tokens, 2); bad != "" {
		r.reply(bad)
		return
	}
	m.visit = store.Visit{Create: m.vivify, Peek: m.keep, Value: m.value}
	out, hit := r.server.store.Visit(r.out, m.key, &m.visit, r.now, m.seeGet)
	if !hit {
		r.shard.tally.add(getMisses, 1)
	}
	_, ok := m.opaque()
	switch {
	case !ok:
		// Only now, and what the command did stays done, as in memcached.
		r.reply(opaqueTooLong)
		return
	case !hit && !m.quiet:
		r.out = append(m.echo(append(r.out, "EN"...)), '\r', '\n')
	case hit && m.newTTL:
		r.shard.tally.add(touchHits, 1)
	case hit:
		r.shard.tally.add(getHits, 1)
	}
	if !hit {
		return
	}
	if r.out = out; m.value {
		r.out = append(r.out, '\r', '\n')
	}
}

// get is the See of mg.
func (m *meta) get(dst, key []byte, e *store.Entry) []byte {
	if m.value {
		dst = strconv.AppendInt(append(dst, "VA "...), int64(e.Size), 10)
	} else {
		dst = append(dst, "HD"...)
	}
	won := false
	for _, word := range m.words {
		switch word[0] {
		case 'T':
			e.Expires = m.expires
		case 'N':
			if m.visit.Created {
				e.Expires = m.vivifyExpires
				won = true
			}
		case 'R':
			if !e.Claimed && !m.visit.Created && e.Expires != 0 && e.Expires < m.recache {
				won = true
			}
		case 's':
			dst = strconv.AppendInt(append(dst, " s"...), int64(e.Size), 10)
		case 't':
			dst = m.appendTTL(dst, e.Expires)
		case 'c':
			dst = strconv.AppendUint(append(dst, " c"...), e.CAS, 10)
		case 'f':
			dst = strconv.AppendUint(append(dst, " f"...), uint64(e.Flags), 10)
		case 'l':
			dst = strconv.AppendUint(append(dst, " l"...), uint64(m.now-min(e.Accessed, m.now)), 10)
		case 'h':
			hit := byte('0')
			if e.Fetched {
				hit = '1'
			}
			dst = append(dst, ' ', 'h', hit)
		case 'O':
			if len(word) >= maxOpaque {
				// The flags behind it are not reached; the item counts as
				// fetched only if none of all the flags needed a lock.
				m.visit.Peek = m.visit.Peek || m.locked
				return dst
			}
			dst = append(append(dst, ' '), word...)
		case 'k':
			dst = appendKey(dst, key, e.BinaryKey)
		}
	}
	if e.Claimed {
		dst = append(dst, " Z"...)
	}
	if e.Stale {
		dst = append(dst, " X"...)
		won = won || !e.Claimed
	}
	if won {
		dst = append(dst, " W"...)
		e.Claimed = true
	}
	return append(dst, '\r', '\n')
}

// metaReply is what the reply to an ms will say, kept until its value is here.
type metaReply struct {
	quiet, binaryKey bool
	// order has the letters of the flags to give back.
	order  [3]byte
	count  uint8
	opaque [maxOpaque]byte
	length uint8 // of opaque
}

// metaSet is ms, up to its value.
func (r *request) metaSet(tokens [][]byte) {
	cn := r.conn
	if len(tokens) == 2 && len(tokens[1]) <= store.MaxKey {
		r.reply(badFormat)
		return
	}
	if !r.metaKey(tokens, tooManyFlags) {
		return
	}
	size, ok := int32Of(tokens[2])
	if !ok || !validSize(size) {
		r.reply(badFormat)
		return
	}
	m := &cn.shard.meta
	bad := m.parse(r, tokens, 3)
	op := store.Set
	if bad == "" {
		opaque, short := m.opaque()
		if !short {
			bad = opaqueTooLong
		}
		switch m.mode {
		case 0, 'S':
		case 'E':
			op = store.Add
		case 'A':
			op = store.Append
		case 'P':
			op = store.Prepend
		case 'R':
			op = store.Replace
		default:
			bad = "CLIENT_ERROR invalid mode for ms M token"
		}
		if m.hasCAS && (op == store.Set || op == store.Replace) {
			op = store.CompareAndSwap
		}
		if bad == "" {
			cn.noteReply(m, opaque)
		}
	}
	if bad != "" {
		cn.swallow(int(size)+2, bad)
		return
	}
	if bad = r.begin(m.key, op, m.clientFlags, m.expires, int(size), m.cas); bad != "" {
		// Whatever the mode: the old value would be stale.
		r.server.store.Delete(m.key, r.now)
		cn.swallow(int(size)+2, bad)
		return
	}
	cn.metaSet = true
	if m.binaryKey {
		cn.pending.BinaryKey()
	}
	if m.stale && op == store.CompareAndSwap {
		cn.pending.Invalidate()
	}
}

// noteReply keeps what the reply to an ms needs. The memory is allocated at the
// first ms of a connection: most have none.
func (cn *conn) noteReply(m *meta, opaque []byte) {
	if cn.metaReply == nil {
		cn.metaReply = new(metaReply)
	}
	p := cn.metaReply
	p.quiet, p.binaryKey, p.count = m.quiet, m.binaryKey, 0
	p.length = uint8(copy(p.opaque[:], opaque))
	for _, word := range m.words {
		switch word[0] {
		case 'O', 'k', 'c':
			p.order[p.count] = word[0]
			p.count++
		}
	}
}

// metaStored replies to an ms. Key is the key if the reply is to have it.
func (r *request) metaStored(result store.Result, key []byte, cas uint64) {
	p := r.conn.metaReply
	if result == store.Stored && p.quiet {
		return
	}
	r.out = append(r.out, [...]string{store.Stored: "HD", store.NotStored: "NS", store.Exists: "EX", store.NotFound: "NF"}[result]...)
	for _, letter := range p.order[:p.count] {
		switch letter {
		case 'O':
			r.out = append(append(r.out, ' '), p.opaque[:p.length]...)
		case 'k':
			r.out = appendKey(r.out, key, p.binaryKey)
		case 'c':
			r.out = strconv.AppendUint(append(r.out, " c"...), cas, 10)
		}
	}
	r.out = append(r.out, '\r', '\n')
}

// metaDelete is md.
func (r *request) metaDelete(tokens [][]byte) {
	if !r.metaKey(tokens, tooManyFlags) {
		return
	}
	m, t := &r.shard.meta, &r.shard.tally
	if bad := m.parse(r, tokens, 2); bad != "" {
		r.reply(invalidFlags)
		return
	}
	if _, ok := m.opaque(); !ok {
		r.reply(opaqueTooLong)
		return
	}
	if m.hasCAS && m.cas == 0 {
		m.cas = impossibleCAS
	}
	var result store.Result
	if m.stale {
		var expires *uint32
		if m.newTTL {
			expires = &m.expires
		}
		result = r.server.store.Invalidate(m.key, m.cas, expires, r.now)
	} else {
		result = r.server.store.DeleteIf(m.key, m.cas, r.now)
	}
	code := "HD"
	switch result {
	case store.Stored:
		if !m.stale {
			t.add(deleteHits, 1)
		}
		if m.quiet {
			return
		}
	case store.Exists:
		t.add(deleteMisses, 1)
		code = "EX"
	default:
		t.add(deleteMisses, 1)
		code = "NF"
	}
	r.out = append(m.echo(append(r.out, code...)), '\r', '\n')
}

// impossibleCAS is a CAS value that no item ever gets.
const impossibleCAS = 1<<64 - 1

// metaArithmetic is ma.
func (r *request) metaArithmetic(tokens [][]byte) {
	if !r.metaKey(tokens, tooManyFlags) {
		return
	}
	m, t := &r.shard.meta, &r.shard.tally
	if bad := m.parse(r, tokens, 2); bad != "" {
		r.reply(invalidFlags)
		return
	}
	hits, misses := incrHits, incrMisses
	switch m.mode {
	case 0, 'I', '+':
	case 'D', '-':
		hits, misses = decrHits, decrMisses
		m.sum.Subtract = true
	default:
		r.reply("CLIENT_ERROR invalid mode for ma M token")
		return
	}
	m.sum.CAS, m.sum.Create, m.sum.Initial = m.cas, m.vivify, m.initial
	out, result := r.server.store.Compute(r.out, m.key, &m.sum, r.now, m.seeSum)
	bad := ""
	switch result {
	case store.Stored:
		if !m.sum.Created {
			t.add(hits, 1)
		}
	case store.NotFound:
		t.add(misses, 1)
	case store.NotNumber:
		bad = "CLIENT_ERROR cannot increment or decrement non-numeric value"
	case store.NoMemory:
		bad = "SERVER_ERROR out of memory"
	}
	if _, ok := m.opaque(); bad == "" && !ok {
		bad = opaqueTooLong // and what was done stays done
	}
	switch {
	case bad != "":
		r.reply(bad)
	case result == store.Stored && m.quiet && !m.sum.Created:
	case result == store.Stored:
		r.out = out
	case result == store.NotFound:
		r.out = append(m.echo(append(r.out, "NF"...)), '\r', '\n')
	default:
		r.out = append(m.echo(append(r.out, "EX"...)), '\r', '\n')
	}
}

// computed is the See of ma.
func (m *meta) computed(dst, _ []byte, e *store.Entry) []byte {
	var text [20]byte
	number := strconv.AppendUint(text[:0], m.sum.Value, 10)
	if m.value {
		dst = strconv.AppendInt(append(dst, "VA "...), int64(len(number)), 10)
	} else {
		dst = append(dst, "HD"...)
	}
	for _, word := range m.words {
		switch word[0] {
		case 'c':
			dst = strconv.AppendUint(append(dst, " c"...), e.CAS, 10)
		case 't':
			dst = m.appendTTL(dst, e.Expires)
		case 'T':
			e.Expires = m.expires
		case 'N':
			if m.sum.Created {
				e.Expires = m.vivifyExpires
			}
		case 'O':
			if len(word) >= maxOpaque {
				return dst // as in get
			}
			dst = append(append(dst, ' '), word...)
		case 'k':
			dst = appendKey(dst, m.key, m.binaryKey)
		}
	}
	if m.value {
		dst = append(append(dst, '\r', '\n'), number...)
	}
	return append(dst, '\r', '\n')
}

// metaDebug is me.
func (r *request) metaDebug(tokens [][]byte) {
	if len(tokens) < 2 || len(tokens[1]) > store.MaxKey {
		r.reply(badFormat)
		return
	}
	m, key := &r.shard.meta, tokens[1]
	if len(tokens) > 2 && string(tokens[2]) == "b" {
		var ok bool
		if key, ok = decodeKey(m.decoded[:0], key); !ok {
			r.reply(badFormat)
			return
		}
	}
	r.shard.tally.add(metaCommands, 1)
	m.visit = store.Visit{Peek: true}
	var hit bool
	r.out, hit = r.server.store.Visit(r.out, key, &m.visit, r.now, func(dst, key []byte, e *store.Entry) []byte {
		dst = append(dst, "ME "...)
		if e.BinaryKey {
			dst = encodeKey(dst, key)
		} else {
			dst = append(dst, key...)
		}
		expires := int64(-1)
		if e.Expires != 0 {
			expires = int64(int32(r.now - e.Expires)) // negative, as memcached has it
		}
		dst = strconv.AppendInt(append(dst, " exp="...), expires, 10)
		dst = strconv.AppendUint(append(dst, " la="...), uint64(r.now-min(e.Accessed, r.now)), 10)
		dst = strconv.AppendUint(append(dst, " cas="...), e.CAS, 10)
		fetched := "no"
		if e.Fetched {
			fetched = "yes"
		}
		dst = append(append(dst, " fetch="...), fetched...)
		dst = append(dst, " cls=1 size="...)
		dst = strconv.AppendInt(dst, int64(store.Size(len(key), e.Size, e.Flags)), 10)
		return append(dst, '\r', '\n')
	})
	if !hit {
		r.reply("EN")
	}
}

const base64Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

func encodeKey(dst, key []byte) []byte {
	for len(key) >= 3 {
		dst = append(dst, base64Letters[key[0]>>2], base64Letters[key[0]<<4&63|key[1]>>4], base64Letters[key[1]<<2&63|key[2]>>6], base64Letters[key[2]&63])
		key = key[3:]
	}
	switch len(key) {
	case 1:
		dst = append(dst, base64Letters[key[0]>>2], base64Letters[key[0]<<4&63], '=', '=')
	case 2:
		dst = append(dst, base64Letters[key[0]>>2], base64Letters[key[0]<<4&63|key[1]>>4], base64Letters[key[1]<<2&63], '=')
	}
	return dst
}

// base64Values has the value of each letter; 64 is the padding, 255 no letter.
var base64Values = func() (v [256]byte) {
	for i := range v {
		v[i] = 255
	}
	for i := range len(base64Letters) {
		v[base64Letters[i]] = byte(i)
	}
	v['='] = 64
	return v
}()

// decodeKey decodes base64 as leniently as memcached: it skips what is none of
// its letters, and ends with the first padding. False if there is no whole group
// of four or the padding is too long.
func decodeKey(dst, text []byte) ([]byte, bool) {
	count := 0
	for _, b := range text {
		if base64Values[b] <= 64 {
			count++
		}
	}
	if count == 0 || count%4 != 0 {
		return nil, false
	}
	var group [4]byte
	n, padding := 0, 0
	for _, b := range text {
		value := base64Values[b]
		if value > 64 {
			continue
		}
		if value == 64 {
			padding++
		}
		group[n] = value & 63
		if n++; n < 4 {
			continue
		}
		n = 0
		dst = append(dst, group[0]<<2|group[1]>>4, group[1]<<4|group[2]>>2, group[2]<<6|group[3])
		if padding > 2 {
			return nil, false
		}
		if padding > 0 {
			return dst[:len(dst)-padding], true
		}
	}
	return dst, true
}
