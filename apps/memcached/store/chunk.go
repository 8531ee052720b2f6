package store

import (
	"fmt"
	"sync"
	"unsafe"
)

// An item is a chain of chunks. The first begins with a header, the others with
// the index of their successor; the rest of each holds first the key, then the
// value. Chunks are named by their index; 0 is none. Small chunks waste less at
// an item's end, large ones less on links and on following them: with 96 bytes
// an item of 100 bytes takes two, and what memcached's slabs take.
const (
	chunkSize  = 96
	headerSize = int(unsafe.Sizeof(header{}))
	linkSize   = 4
	firstData  = chunkSize - headerSize // bytes of key and value in the first chunk
	otherData  = chunkSize - linkSize   // and in any other
	maxChunks  = 1<<32 - 2
)

// header is the start of an item's first chunk.
type header struct {
	next    uint32 // next chunk of the chain; at the same place in every chunk
	key     uint8  // length of the key
	marks   marks
	heat    heat
	segment segment // the list that it is in
	cas     uint64
	bucket  uint32 // next item in the same bucket
	older   uint32 // neighbours in the list
	newer   uint32
	hash    uint32 // the low half of the key's hash
	flags   uint32
	expires uint32 // Unix seconds, 0: never
	size    uint32 // length of the value
	last    uint32 // last chunk of the chain
	// accessed is when the item was stored or last fetched, in Unix seconds.
	accessed uint32
}

// marks are what the meta commands note on an item.
type marks uint8

const (
	// stale: the value was declared outdated, but may still be served.
	stale marks = 1 << iota
	// claimed: some client was told to renew the value.
	claimed
	// binaryKey: the key came as base64 and is to be shown so.
	binaryKey
)

// chunksFor is the number of chunks of an item.
func chunksFor(key, value int) int {
	rest := key + value - firstData
	if rest <= 0 {
		return 1
	}
	return 1 + (rest+otherData-1)/otherData
}

// slab is the memory of all chunks. It is a byte slice so that the garbage
// collector does not scan it.
type slab []byte

// allocate makes a slab and the tables' entries, from one piece of memory.
func allocate(from func(bytes int) ([]byte, error), chunks, entries int) (slab, []uint32, error) {
	const entry = int(unsafe.Sizeof(uint32(0)))
	size := (chunks + 1) * chunkSize
	total := size + entries*entry
	var memory []byte
	if from == nil {
		memory = make([]byte, total) // aligned to a page, as Go does with any so large
	} else {
		var err error
		if memory, err = from(total); err != nil {
			return nil, nil, fmt.Errorf("allocate %d bytes for items: %w", total, err)
		}
		if len(memory) < total || uintptr(unsafe.Pointer(&memory[0]))%unsafe.Alignof(header{}) != 0 {
			return nil, nil, fmt.Errorf("allocate %d bytes for items: got %d bytes at %p", total, len(memory), memory)
		}
	}
	return memory[:size:size], unsafe.Slice((*uint32)(unsafe.Pointer(&memory[size])), entries), nil
}

// header views the start of a chunk. The result aliases the slab.
func (b slab) header(chunk uint32) *header {
	return (*header)(unsafe.Pointer(&b[int(chunk)*chunkSize]))
}

// next is the link of any chunk.
func (b slab) next(chunk uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&b[int(chunk)*chunkSize]))
}

// cursor is a place in an item's key or value. At the end of a chunk, offset is
// chunkSize.
type cursor struct {
	chunk  uint32
	offset uint32
}

// at is the place of byte i of an item's key and value.
func (b slab) at(item uint32, i int) cursor {
	if i <= firstData {
		return cursor{item, uint32(headerSize + i)}
	}
	i -= firstData
	chunk := *b.next(item)
	for i > otherData {
		chunk = *b.next(chunk)
		i -= otherData
	}
	return cursor{chunk, uint32(linkSize + i)}
}

// end is the place behind the last byte of an item's value.
func (b slab) end(item uint32) cursor {
	it := b.header(item)
	rest := int(it.key) + int(it.size) - firstData
	if rest <= 0 {
		return cursor{item, uint32(chunkSize + rest)}
	}
	return cursor{it.last, uint32(linkSize + (rest-1)%otherData + 1)}
}

// rest is what the chunk under the cursor holds from there on, of n bytes that
// are to be read or written; the cursor moves behind it. N must be positive.
func (b slab) rest(c *cursor, n int) []byte {
	if c.offset == chunkSize {
		*c = cursor{*b.next(c.chunk), linkSize}
	}
	n = min(n, chunkSize-int(c.offset))
	start := int(c.chunk)*chunkSize + int(c.offset)
	c.offset += uint32(n)
	return b[start : start+n]
}

// write copies p to the cursor and moves it.
func (b slab) write(c *cursor, p []byte) {
	for len(p) > 0 {
		p = p[copy(b.rest(c, len(p)), p):]
	}
}

// fill writes n times the byte v.
func (b slab) fill(c *cursor, v byte, n int) {
	for n > 0 {
		part := b.rest(c, n)
		for i := range part {
			part[i] = v
		}
		n -= len(part)
	}
}

// append appends n bytes from the cursor to dst.
func (b slab) append(dst []byte, c cursor, n int) []byte {
	for n > 0 {
		part := b.rest(&c, n)
		dst = append(dst, part...)
		n -= len(part)
	}
	return dst
}

// hasKey compares an item's key.
func (b slab) hasKey(item uint32, key []byte) bool {
	c := cursor{item, uint32(headerSize)}
	for len(key) > 0 {
		part := b.rest(&c, len(key))
		if string(part) != string(key[:len(part)]) {
			return false
		}
		key = key[len(part):]
	}
	return true
}

// chain is a list of chunks that belong to no item.
type chain struct {
	first, last uint32
	count       int
}

// push puts the chunks of other in front.
func (c *chain) push(b slab, other chain) {
	if other.count == 0 {
		return
	}
	*b.next(other.last) = c.first
	if c.count == 0 {
		c.last = other.last
	}
	c.first = other.first
	c.count += other.count
}

// take cuts up to n chunks off the front.
func (c *chain) take(b slab, n int) chain {
	if n >= c.count {
		all := *c
		*c = chain{}
		return all
	}
	if n == 0 {
		return chain{}
	}
	cut := chain{c.first, c.first, n}
	for range n - 1 {
		cut.last = *b.next(cut.last)
	}
	c.first = *b.next(cut.last)
	c.count -= n
	*b.next(cut.last) = 0
	return cut
}

// through cuts the front of the chain off, up to and with a chunk in it.
func (c *chain) through(b slab, chunk uint32) chain {
	n := 1
	for i := c.first; i != chunk; i = *b.next(i) {
		n++
	}
	return c.take(b, n)
}

// pool holds the chunks that belong to no stripe. Stripes come here rarely, for
// a batch at a time.
type pool struct {
	mu   sync.Mutex
	free chain
	// Chunks from fresh up to end were never used: their memory is untouched.
	fresh, end uint32
}

func newPool(chunks int) pool { return pool{fresh: 1, end: uint32(chunks) + 1} }

// take gives up to n chunks.
func (p *pool) take(b slab, n int) chain {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.free.take(b, n)
	if n = min(n-got.count, int(p.end-p.fresh)); n > 0 {
		first := p.fresh
		p.fresh += uint32(n)
		for i := first; i < p.fresh-1; i++ {
			*b.next(i) = i + 1
		}
		got.push(b, chain{first, p.fresh - 1, n})
	}
	return got
}

func (p *pool) give(b slab, c chain) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free.push(b, c)
}

func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free.count + int(p.end-p.fresh)
}
