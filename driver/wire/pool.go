package wire

import (
	"fmt"
	"math"
	"sync"

	"github.com/pollux-net/pollux/driver"
)

// noBuffer is what an exhausted pool gives.
const noBuffer = math.MaxUint32

// A pool is the frames' memory, of two sizes: small ones hold an MTU, large ones
// any packet. A buffer's handle is its index, small ones first.
type pool struct {
	mu           sync.Mutex
	small, large class
	held         []bool
}

// A class is the buffers of one size. The last one freed is the next one given,
// so that a few buffers stay in the cache and memory never used stays untouched.
type class struct {
	slab  []byte
	size  int
	first uint32
	free  []uint32
}

func newClass(first uint32, n, size int) class {
	c := class{slab: make([]byte, n*size), size: size, first: first, free: make([]uint32, n)}
	for i := range c.free {
		c.free[i] = first + uint32(n-1-i)
	}
	return c
}

func newPool(small, size, large int) *pool {
	return &pool{
		small: newClass(0, small, size),
		large: newClass(uint32(small), large, largeFrame),
		held:  make([]bool, small+large),
	}
}

// class returns the class of buffers with room for size bytes.
func (p *pool) class(size int) *class {
	if size <= p.small.size {
		return &p.small
	}
	return &p.large
}

// buffer returns the whole memory of a buffer. It needs no lock.
func (p *pool) buffer(handle uint32) []byte {
	c := &p.small
	if handle >= p.large.first {
		c = &p.large
	}
	i := int(handle-c.first) * c.size
	return c.slab[i : i+c.size : i+c.size]
}

// take gives a buffer with room for size bytes, or noBuffer.
func (p *pool) take(size int) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeLocked(p.class(size))
}

func (p *pool) takeLocked(c *class) uint32 {
	last := len(c.free) - 1
	if last < 0 {
		return noBuffer
	}
	handle := c.free[last]
	c.free = c.free[:last]
	p.held[handle] = true
	return handle
}

func (p *pool) put(handle uint32) {
	p.mu.Lock()
	p.putLocked(handle)
	p.mu.Unlock()
}

func (p *pool) putLocked(handle uint32) {
	if !p.held[handle] {
		panic(fmt.Sprintf("wire: frame %d was freed twice", handle))
	}
	p.held[handle] = false
	c := &p.small
	if handle >= p.large.first {
		c = &p.large
	}
	c.free = append(c.free, handle)
}

// allocate is Queue.Allocate.
func (p *pool) allocate(frames []driver.Frame, size int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.class(size)
	if size > c.size {
		return 0
	}
	for i := range frames {
		handle := p.takeLocked(c)
		if handle == noBuffer {
			return i
		}
		frames[i] = driver.Frame{Data: p.buffer(handle)[:0], Pool: p, Handle: uintptr(handle)}
	}
	return len(frames)
}

// Free implements driver.Pool. It may be called from any goroutine, and panics
// if a frame is freed twice: that is a fault of the program, and the frame
// might by then be somebody else's.
func (p *pool) Free(frames []driver.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range frames {
		p.putLocked(uint32(frames[i].Handle))
	}
}

func (p *pool) available() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.small.free) + len(p.large.free)
}
