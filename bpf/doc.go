// Package bpf is the room of the programs that run in the kernel: steer, which
// sends a connection to the worker that owns its receive queue, and observe,
// which counts what happens to a processor and to chosen threads. Each is C, the
// object that it compiles to (committed, so that a build needs no compiler for
// it; a test holds it to the source) and a small loader. Nothing is pinned: what
// is loaded is gone when its process is.
package bpf
