// Package kernel runs applications on the kernel path: N shards in one process,
// each one loop over one epoll instance on its own pinned thread, with its own
// listening socket of every SO_REUSEPORT group. The loop waits, reads, runs the
// handlers and writes, with raw system calls of which Go's scheduler knows
// nothing where they cannot block. Shards share nothing on the data path; what
// crosses between them goes through mailboxes.
package kernel
