package memcached

import (
	"math/bits"
	"sync/atomic"
)

// counter names one thing that is counted per shard.
type counter uint8

const (
	getHits counter = iota
	getMisses
	touchHits
	touchMisses
	setCommands
	flushCommands
	metaCommands
	deleteHits
	deleteMisses
	incrHits
	incrMisses
	decrHits
	decrMisses
	casHits
	casMisses
	casBad
	tooLarge
	noMemory
	bytesRead
	bytesWritten
	connsOpened
	connsRejected
	idleKicks
	datagramsRead
	datagramsIgnored
	numCounters
)

// counters are one shard's. They are written by its core alone and read by any.
type counters [numCounters]atomic.Uint64

func (c *counters) add(which counter, n uint64) { c[which].Add(n) }

// tally counts during one call of Data, so that a pipeline of requests costs one
// atomic addition per counter.
type tally struct {
	touched uint32 // a bit for each counter that is not 0
	n       [numCounters]uint64
}

func (t *tally) add(which counter, n uint64) {
	t.touched |= 1 << which
	t.n[which] += n
}

// flush adds to c and begins anew.
func (t *tally) flush(c *counters) {
	for t.touched != 0 {
		which := counter(bits.TrailingZeros32(t.touched))
		t.touched &= t.touched - 1
		c.add(which, t.n[which])
		t.n[which] = 0
	}
}
