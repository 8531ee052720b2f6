package memcached

import (
	"encoding/binary"
	"strings"

	"github.com/pollux-net/pollux/apps/memcached/store"
)

// The binary protocol: a header of 24 bytes, then extras, key and value, whose
// lengths it tells. Numbers are big-endian.
const (
	binaryHeader   = 24
	requestMagic   = 0x80
	responseMagic  = 0x81
	opGet          = 0x00
	opSet          = 0x01
	opAdd          = 0x02
	opReplace      = 0x03
	opDelete       = 0x04
	opIncrement    = 0x05
	opDecrement    = 0x06
	opQuit         = 0x07
	opFlush        = 0x08
	opGetQ         = 0x09
	opNoop         = 0x0a
	opVersion      = 0x0b
	opGetK         = 0x0c
	opGetKQ        = 0x0d
	opAppend       = 0x0e
	opPrepend      = 0x0f
	opStat         = 0x10
	opSetQ         = 0x11 // to opPrependQ: the quiet forms of opSet to opFlush, opAppend and opPrepend
	opFlushQ       = 0x18
	opAppendQ      = 0x19
	opPrependQ     = 0x1a
	opTouch        = 0x1c
	opGAT          = 0x1d
	opGATQ         = 0x1e
	opSASLList     = 0x20
	opSASLAuth     = 0x21
	opSASLStep     = 0x22
	opGATK         = 0x23
	opGATKQ        = 0x24
	neverCreated   = 0xffffffff // as the expiry of a number: do not create it
	arithmeticSize = 20
)

// status is the outcome of a binary request.
type status uint16

const (
	statusOK        status = 0x00
	statusNotFound  status = 0x01
	statusExists    status = 0x02
	statusTooLarge  status = 0x03
	statusInvalid   status = 0x04
	statusNotStored status = 0x05
	statusNotNumber status = 0x06
	statusUnknown   status = 0x81
	statusNoMemory  status = 0x82
)

func (s status) String() string {
	switch s {
	case statusNotFound:
		return "Not found"
	case statusExists:
		return "Data exists for key."
	case statusTooLarge:
		return "Too large."
	case statusInvalid:
		return "Invalid arguments"
	case statusNotStored:
		return "Not stored."
	case statusNotNumber:
		return "Non-numeric server-side value for incr or decr"
	case statusUnknown:
		return "Unknown command"
	case statusNoMemory:
		return "Out of memory"
	}
	return ""
}

// binaryRequest is the part of a request that its reply needs.
type binaryRequest struct {
	opcode byte
	quiet  bool
	opaque [4]byte
}

// fetch is what the See of the binary protocol's get and touch needs.
type fetch struct {
	binaryRequest
	visit          store.Visit
	withKey, touch bool
	expires        uint32
	see            store.See // the method seen, bound once
}

// base splits an opcode into that of its loud form and whether it is quiet.
func base(opcode byte) (loud byte, quiet bool) {
	switch {
	case opcode == opGetQ:
		return opGet, true
	case opcode == opGetKQ:
		return opGetK, true
	case opcode >= opSetQ && opcode <= opFlushQ:
		return opcode - opSetQ + opSet, true
	case opcode == opAppendQ || opcode == opPrependQ:
		return opcode - opAppendQ + opAppend, true
	case opcode == opGATQ:
		return opGAT, true
	case opcode == opGATKQ:
		return opGATK, true
	}
	return opcode, false
}

// packet handles one binary request, but for its value.
func (r *request) packet(in []byte) (n int, more bool) {
	cn := r.conn
	if len(in) < binaryHeader {
		return 0, true
	}
	if in[0] != requestMagic {
		cn.closing = true
		return len(in), false
	}
	keySize, extraSize := int(binary.BigEndian.Uint16(in[2:])), int(in[4])
	bodySize := int(binary.BigEndian.Uint32(in[8:]))
	opcode, quiet := base(in[1])
	cn.binary = binaryRequest{opcode: in[1], quiet: quiet, opaque: [4]byte(in[12:])}
	switch {
	case keySize+extraSize > bodySize:
		r.fail(statusUnknown)
		cn.closing = true
		return len(in), false
	case keySize > store.MaxKey:
		return r.malformed(in)
	}
	n = binaryHeader + extraSize + keySize
	if len(in) < n {
		return 0, true
	}
	extras, key := in[binaryHeader:n-keySize], in[n-keySize:n]
	valueSize := bodySize - extraSize - keySize
	cas := binary.BigEndian.Uint64(in[16:])

	valid := true
	switch opcode {
	case opGet, opGetK:
		if valid = extraSize == 0 && valueSize == 0 && keySize > 0; valid {
			r.binaryGet(opcode, key, 0)
		}
	case opTouch, opGAT, opGATK:
		if valid = extraSize == 4 && keySize > 0; valid {
			r.binaryGet(opcode, key, binary.BigEndian.Uint32(extras))
		}
	case opSet, opAdd, opReplace:
		if valid = extraSize == 8 && keySize > 0; valid {
			flags, expires := binary.BigEndian.Uint32(extras), r.unsignedExpiry(binary.BigEndian.Uint32(extras[4:]))
			r.binaryStore(opcode, key, flags, expires, valueSize, cas)
			return n, false
		}
	case opAppend, opPrepend:
		if valid = extraSize == 0 && keySize > 0; valid {
			r.binaryStore(opcode, key, 0, 0, valueSize, cas)
			return n, false
		}
	case opDelete:
		if valid = extraSize == 0 && valueSize == 0 && keySize > 0; valid {
			r.binaryDelete(key, cas)
		}
	case opIncrement, opDecrement:
		if valid = extraSize == arithmeticSize && valueSize == 0 && keySize > 0; valid {
			r.binaryArithmetic(opcode, key, extras, cas)
		}
	case opFlush:
		if valid = (extraSize == 0 || extraSize == 4) && bodySize == extraSize; valid {
			delay := uint32(0)
			if extraSize == 4 {
				delay = binary.BigEndian.Uint32(extras)
			}
			r.flush(delay)
			r.succeed(0, nil)
		}
	case opNoop:
		if valid = bodySize == 0; valid {
			r.succeed(0, nil)
		}
	case opVersion:
		if valid = bodySize == 0; valid {
			r.succeed(0, []byte(r.server.version))
		}
	case opQuit:
		if valid = bodySize == 0; valid {
			r.succeed(0, nil)
			cn.closing = true
		}
	case opStat:
		if valid = extraSize == 0; valid {
			r.binaryStats(string(key))
		}
	case opSASLList:
		// As a memcached that was started without SASL.
		if valid = bodySize == 0; valid {
			r.fail(statusUnknown)
		}
	case opSASLAuth, opSASLStep:
		if valid = extraSize == 0 && keySize > 0; valid {
			r.fail(statusUnknown)
		}
	default:
		r.fail(statusUnknown)
	}
	if !valid {
		return r.malformed(in)
	}
	if valueSize > 0 {
		cn.swallow(valueSize, "")
	}
	return n, false
}

// malformed refuses a request whose parts do not belong to it, and ends the
// connection.
func (r *request) malformed(in []byte) (n int, more bool) {
	r.fail(statusInvalid)
	r.conn.closing = true
	return len(in), false
}

// appendHeader appends the header of a reply.
func (b *binaryRequest) appendHeader(dst []byte, s status, extras, key, body int, cas uint64) []byte {
	dst = append(dst, responseMagic, b.opcode, byte(key>>8), byte(key), byte(extras), 0, byte(s>>8), byte(s))
	dst = binary.BigEndian.AppendUint32(dst, uint32(body))
	dst = append(dst, b.opaque[:]...)
	return binary.BigEndian.AppendUint64(dst, cas)
}

// succeed replies to a request, unless it was a quiet one.
func (r *request) succeed(cas uint64, body []byte) {
	b := &r.conn.binary
	if !b.quiet {
		r.out = append(b.appendHeader(r.out, statusOK, 0, 0, len(body), cas), body...)
	}
}

// fail replies to a request, quiet or not.
func (r *request) fail(s status) { r.failWith(s, s.String()) }

func (r *request) failWith(s status, text string) {
	r.out = append(r.conn.binary.appendHeader(r.out, s, 0, 0, len(text), 0), text...)
}

// unsignedExpiry is expiry for a time that cannot be negative.
func (r *request) unsignedExpiry(t uint32) uint32 {
	switch {
	case t == 0:
		return 0
	case t > relativeLimit:
		return t
	default:
		return r.now + t
	}
}

func (r *request) binaryGet(opcode byte, key []byte, expires uint32) {
	f, t := &r.shard.fetch, &r.shard.tally
	f.binaryRequest = r.conn.binary
	f.visit = store.Visit{Value: opcode != opTouch}
	f.withKey = opcode == opGetK || opcode == opGATK
	f.touch = opcode == opTouch || opcode == opGAT || opcode == opGATK
	f.expires = r.unsignedExpiry(expires)
	hits, misses := getHits, getMisses
	if f.touch {
		hits, misses = touchHits, touchMisses
	}
	var hit bool
	r.out, hit = r.server.store.Visit(r.out, key, &f.visit, r.now, f.see)
	switch {
	case hit:
		t.add(hits, 1)
		return
	case f.quiet:
	case f.withKey:
		r.out = append(f.appendHeader(r.out, statusNotFound, 0, len(key), len(key), 0), key...)
	default:
		r.fail(statusNotFound)
	}
	t.add(misses, 1)
}

// seen replies to a get or touch that hit, but for the value.
func (f *fetch) seen(dst, key []byte, e *store.Entry) []byte {
	if f.touch {
		e.Expires = f.expires
	}
	size, keySize := 4, 0
	if f.visit.Value {
		size += e.Size
	}
	if f.withKey {
		keySize = len(key)
	}
	dst = f.appendHeader(dst, statusOK, 4, keySize, size+keySize, e.CAS)
	dst = binary.BigEndian.AppendUint32(dst, e.Flags)
	return append(dst, key[:keySize]...)
}

// binaryStore begins a request with a value.
func (r *request) binaryStore(opcode byte, key []byte, flags, expires uint32, size int, cas uint64) {
	cn := r.conn
	op := [...]store.Op{opSet: store.Set, opAdd: store.Add, opReplace: store.Replace, opAppend: store.Append, opPrepend: store.Prepend}[opcode]
	kind := op
	if cas != 0 && op <= store.Replace {
		op = store.CompareAndSwap
	}
	if bad := r.begin(key, op, flags, expires, size, cas); bad != "" {
		if kind == store.Set {
			// The old value would be stale.
			r.server.store.Delete(key, r.now)
		}
		if bad == itemTooLarge {
			r.fail(statusTooLarge)
		} else {
			r.failWith(statusNoMemory, "Out of memory allocating item")
		}
		if size > 0 {
			cn.swallow(size, "")
		}
		return
	}
	cn.ends = uint8(len(lineEnd)) // there is none
	if size == 0 {
		r.store()
	}
}

// binaryStored replies to a request with a value.
func (r *request) binaryStored(result store.Result, op store.Op, cas uint64) {
	switch {
	case result == store.Stored:
		r.succeed(cas, nil)
	case result == store.Exists || result == store.NotStored && op == store.Add:
		r.fail(statusExists)
	case result == store.NotFound || op == store.Replace:
		r.fail(statusNotFound)
	default:
		r.fail(statusNotStored)
	}
}

func (r *request) binaryDelete(key []byte, cas uint64) {
	switch r.server.store.DeleteIf(key, cas, r.now) {
	case store.Stored:
		r.shard.tally.add(deleteHits, 1)
		r.succeed(0, nil)
	case store.Exists:
		r.fail(statusExists)
	default:
		r.shard.tally.add(deleteMisses, 1)
		r.fail(statusNotFound)
	}
}

func (r *request) binaryArithmetic(opcode byte, key, extras []byte, cas uint64) {
	t := &r.shard.tally
	hits, misses := incrHits, incrMisses
	if opcode == opDecrement {
		hits, misses = decrHits, decrMisses
	}
	expires := binary.BigEndian.Uint32(extras[16:])
	a := store.Arithmetic{
		By: binary.BigEndian.Uint64(extras), Subtract: opcode == opDecrement, CAS: cas,
		Create: expires != neverCreated, Initial: binary.BigEndian.Uint64(extras[8:]), Expires: r.unsignedExpiry(expires),
	}
	switch _, result := r.server.store.Compute(nil, key, &a, r.now, nil); result {
	case store.Stored:
		if !a.Created {
			t.add(hits, 1)
		}
		var body [8]byte
		binary.BigEndian.PutUint64(body[:], a.Value)
		r.succeed(a.NewCAS, body[:])
	case store.NotFound:
		t.add(misses, 1)
		r.fail(statusNotFound)
	case store.Exists:
		r.fail(statusExists)
	case store.NotNumber:
		r.fail(statusNotNumber)
	default:
		r.failWith(statusNoMemory, "Out of memory allocating new item")
	}
}

// binaryStats answers a stat request: a reply for each number, then one without
// a name.
func (r *request) binaryStats(kind string) {
	r.shard.tally.flush(&r.shard.counters)
	const detail = "detail"
	switch {
	case strings.HasPrefix(kind, "reset"):
		r.server.resetStats()
	case strings.HasPrefix(kind, "settings"):
		r.settings()
	case strings.HasPrefix(kind, detail+" off"):
	case strings.HasPrefix(kind, detail), kind == "conns", !r.statGroup(kind):
		r.fail(statusNotFound)
		return
	}
	r.stat("", "")
}
