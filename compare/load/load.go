// Package load drives a memcached server and tells how it went: throughput,
// latency from the time at which each request was meant to be sent, every reply
// verified. Three engines do it: kernel (epoll on pinned threads), user (our own
// stack and driver on the client's end of the wire) and reference (a client that
// Go programs use). A result says how busy the client was, so that a client's
// limit is never taken for a server's.
package load

import (
	"context"
	"fmt"
)

// Run connects, stores every key once, then loads the server until a bound is
// reached or ctx ends. The result tells of errors and of wrong replies; Run
// itself fails only if the run could not begin, or ended early: then the result
// of what was done until then comes with ctx's error.
//
// Which requests are sent on which connection, and in which order, depends on
// the configuration and its seed alone, not on time or threads; time decides
// only how far a run gets.
func Run(ctx context.Context, c Config) (Result, error) {
	c, w, err := c.complete()
	if err != nil {
		return Result{}, fmt.Errorf("load a server: %w", err)
	}
	if c.Engine == Reference {
		return runReference(ctx, c, int(w.valueSize.Mean()))
	}
	p, err := newPlan(c, w)
	if err != nil {
		return Result{}, fmt.Errorf("load a server: %w", err)
	}
	return p.run(ctx)
}
