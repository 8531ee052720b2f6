package dpdk

/*
#include "burst.h"
#cgo noescape px_free
#cgo nocallback px_free
*/
import "C"

import (
	"runtime"
	"sync"
	"unsafe"

	"github.com/pollux-net/pollux/driver"
)

// mbufs is the driver.Pool of every frame of this package: an mbuf knows
// itself which of the pools in C it belongs to.
type mbufs struct{ _ byte }

var memory driver.Pool = &mbufs{}

// lists holds arrays in C memory for Free, which may run on any thread.
var lists = sync.Pool{New: func() any {
	l := &list{handles: (*[burst]uintptr)(C.px_list_new())}
	runtime.AddCleanup(l, func(h *[burst]uintptr) { C.px_list_free(unsafe.Pointer(h)) }, l.handles)
	return l
}}

type list struct{ handles *[burst]uintptr }

// Free implements driver.Pool.
func (*mbufs) Free(frames []driver.Frame) {
	l := lists.Get().(*list)
	for len(frames) > 0 {
		n := min(len(frames), burst)
		for i := range n {
			l.handles[i] = frames[i].Handle
		}
		C.px_free(C.uintptr_t(uintptr(unsafe.Pointer(l.handles))), C.uint(n))
		frames = frames[n:]
	}
	lists.Put(l)
}
