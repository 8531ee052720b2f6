// Package user runs applications on the user path: N shards in one process, each
// one queue, one stack and one loop on its own pinned thread. The loop receives
// a burst, runs TCP, runs the handlers, pays the ACKs, transmits a burst and
// runs the timers; when nothing is left it waits as its mode says. Shards share
// nothing on the data path; what crosses between them goes through mailboxes.
package user
