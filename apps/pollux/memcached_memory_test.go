package main

import (
	"runtime"
	"testing"

	"github.com/pollux-net/pollux/apps/memcached"
)

func TestItemsAreNotOnGosHeap(t *testing.T) {
	const memory = 256 << 20
	before := heap()
	cache, err := memcached.New(memcached.Options{Memory: memory, Allocate: itemMemory})
	if err != nil {
		t.Fatal(err)
	}
	if grown := heap() - before; grown > memory/16 {
		t.Errorf("the heap grew by %d bytes for a cache of %d", grown, memory)
	}
	runtime.KeepAlive(cache)
}

// heap is what is in use of Go's heap, without what earlier tests have left.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
