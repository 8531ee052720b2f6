package main

import (
	"runtime"
	"testing"

	"github.com/pollux-net/pollux/apps/memcached"
)

func TestItemsAreNotOnGosHeap(t *testing.T) {
	const memory = 256 << 20
	if _, err := memcached.New(memcached.Options{Memory: memory, Allocate: itemMemory}); err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > memory/4 {
		t.Errorf("%d bytes are on the heap, with a cache of %d", m.HeapAlloc, memory)
	}
}
