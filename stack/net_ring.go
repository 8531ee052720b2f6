package stack

import "sync"

// ringSize bounds the bytes that wait between a Conn and the loop, each way, on
// top of the stack's own buffers.
const ringSize = 64 << 10

// ring is a bounded queue of bytes between one goroutine that puts and one that
// takes. Its methods are called under the owner's lock; the copying is done
// without it, so that neither side ever waits for the other's copy. An idle ring
// holds no memory.
type ring struct {
	buf      *[ringSize]byte
	start, n int
	users    int // slices that room and data gave out
}

var ringPool = sync.Pool{New: func() any { return new([ringSize]byte) }}

// room returns free space to copy into; nil if there is none. Put must follow.
func (r *ring) room() []byte {
	if r.n == ringSize {
		return nil
	}
	if r.buf == nil {
		r.buf = ringPool.Get().(*[ringSize]byte)
	}
	r.users++
	end := r.start + r.n
	if end >= ringSize {
		return r.buf[end-ringSize : r.start]
	}
	return r.buf[end:]
}

// put adds the first n bytes of what room returned.
func (r *ring) put(n int) {
	r.n += n
	r.release()
}

// data returns the oldest bytes; nil if there are none. Take must follow.
func (r *ring) data() []byte {
	if r.n == 0 {
		return nil
	}
	r.users++
	return r.buf[r.start:min(r.start+r.n, ringSize)]
}

// take removes the first n bytes of what data returned.
func (r *ring) take(n int) {
	r.start = (r.start + n) % ringSize
	r.n -= n
	r.release()
}

// drop gives the memory back early; what is being copied just now keeps it.
func (r *ring) drop() {
	if r.users == 0 {
		r.users++
		r.take(r.n)
	}
}

func (r *ring) release() {
	if r.users--; r.users == 0 && r.n == 0 && r.buf != nil {
		ringPool.Put(r.buf)
		r.buf, r.start = nil, 0
	}
}
