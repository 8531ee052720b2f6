package load

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/compare/load/distribution"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/stack"
)

// Engine is what carries the requests.
type Engine string

const (
	// Kernel is the kernel's sockets, one epoll loop a thread. The default.
	Kernel Engine = "kernel"
	// User is our own stack over a driver.Port, on one thread that polls. It
	// costs less per request, which matters where the client is the limit.
	User Engine = "user"
	// Reference is gomemcache, one request at a time on each connection.
	Reference Engine = "reference"
)

// Engines lists all.
var Engines = []Engine{Kernel, User, Reference}

// Workload names what is asked for. It fills in what the fields of Config that
// it concerns leave open.
type Workload string

const (
	// Mixed gets and sets by SetRatio. The default.
	Mixed Workload = "mixed"
	// Get only gets and Set only sets.
	Get Workload = "get"
	Set Workload = "set"
	// ETC is Facebook's general-purpose pool: sizes of keys and values, times
	// between requests (in the open loop) and 3 % sets as published.
	ETC Workload = "etc"
)

// Workloads lists all.
var Workloads = []Workload{Mixed, Get, Set, ETC}

// Config says what to do to which server. Zero values are replaced by defaults,
// except SetRatio, for which zero means that nothing is set once all keys are.
type Config struct {
	// Address is HOST:PORT of the server.
	Address string
	Engine  Engine
	// Workload decides SetRatio, unless it is Mixed, and the defaults of
	// KeySize, ValueSize and Arrivals.
	Workload Workload
	// SetRatio is the share of sets among the requests of Mixed, 0 to 1.
	SetRatio float64
	// KeySize and ValueSize are in bytes, as distribution.Parse reads them;
	// default 30 and 100, etc-key and etc-value with ETC. A key's length and
	// the size of its value stay the same for the whole run. The reference
	// engine has keys of its own and wants values of one size, at least 8.
	KeySize, ValueSize string
	// Keys is how many there are, at least one for each connection; default 1,000.
	Keys int
	// Zipf is the exponent by which some keys are asked for more often than
	// others; 0 is all alike.
	Zipf float64
	// Prefix of every key; default "pollux-". Two runs at once against one
	// server need different ones if they differ in seed or sizes.
	Prefix string

	// Connections is how many there are; default 16.
	Connections int
	// Depth is how many requests may be under way on a connection; default 1.
	Depth int
	// Churn is the number of requests after which a connection is given up for
	// a new one; 0 is never.
	Churn int

	// Rate is the load offered, in requests per second over all connections. At
	// 0 the loop is closed: a connection sends its next request when a reply
	// makes room for it, and latency counts from then. Else the loop is open:
	// requests are due at times that do not depend on the server, and latency
	// counts from when a request was due, sent late or not.
	Rate float64
	// Arrivals is the distribution of the time between the requests of one
	// connection, scaled to Rate: "poisson" (default), "etc", "fixed", or
	// anything that distribution.Parse reads.
	Arrivals string

	// Duration and Requests, answered or not, end the run, whichever is first.
	// The default is 10 seconds, or no number of requests that takes longer
	// than 10 minutes. Requests are shared out evenly among the connections.
	Duration time.Duration
	Requests uint64
	// Warmup comes before and counts for neither; default none.
	Warmup time.Duration
	// Begin, if not nil, holds the load in its warm-up until it is closed or
	// something is sent on it, so that whoever measures the server meanwhile
	// can take the time that it takes.
	Begin <-chan struct{}
	// Replies, if not nil, is added the replies to as they come, those of the
	// warm-up included: a little later, by each thread now and then.
	Replies *atomic.Uint64
	// Timeout of a connection attempt and of each request; default 5 s.
	Timeout time.Duration
	// NoStore leaves out storing every key once: an earlier run with the same
	// keys and sizes has.
	NoStore bool
	// Seed of the choice of keys and operations, of sizes and of values; default 1.
	Seed uint64

	// Threads of the kernel engine; default 1.
	Threads int
	// Cores are what threads are pinned to, the i-th to the i-th. Default: the
	// last ones that this process may use, since servers take the first.
	Cores []int
	// Spin has the kernel engine poll instead of sleep: requests are sent more
	// punctually, at the price of the whole core.
	Spin bool
	// EnterThread, if not nil, is called on each thread before it opens
	// anything, and what it returns when it ends: a driver registers the
	// thread there, a lab enters a network namespace.
	EnterThread func() (leave func(), err error)

	// Port is what the user engine runs on: its only queue, which nobody else
	// may use meanwhile. The caller opens and closes it.
	Port driver.Port
	// Stack configures the user engine's stack: at least its Addresses.
	Stack stack.Config
}

const (
	defaultConnections = 16
	defaultDuration    = 10 * time.Second
	defaultKeySize     = "fixed:30"
	defaultValueSize   = "fixed:100"
	defaultKeys        = 1000
	defaultTimeout     = 5 * time.Second
	defaultPrefix      = "pollux-"
	// longest is how long a run that is bound by requests may take.
	longest = 10 * time.Minute

	maxConnections = 1 << 16
	maxDepth       = 1 << 10
	maxThreads     = 256
	maxKeys        = 1 << 26
	maxKeySize     = 250     // memcached's
	maxPrefix      = 200     // leaves room for the number
	maxValueSize   = 1000000 // of memcached's 1 MiB for an item
	maxRate        = 100e6
)

// workload is what Config's words about the workload mean.
type workload struct {
	keySize, valueSize, arrivals distribution.Distribution
}

func (c Config) complete() (Config, workload, error) {
	var w workload
	fail := func(format string, args ...any) (Config, workload, error) { return c, w, fmt.Errorf(format, args...) }
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fail("%q is not an address to load; use HOST:PORT", c.Address)
	}
	c.Engine = cmp.Or(c.Engine, Kernel)
	c.Workload = cmp.Or(c.Workload, Mixed)
	switch c.Workload {
	case Mixed:
	case Get:
		c.SetRatio = 0
	case Set:
		c.SetRatio = 1
	case ETC:
		c.SetRatio = distribution.ETCSets
		c.KeySize = cmp.Or(c.KeySize, distribution.ETCKey.String())
		c.ValueSize = cmp.Or(c.ValueSize, distribution.ETCValue.String())
		if c.Rate > 0 {
			c.Arrivals = cmp.Or(c.Arrivals, "etc")
		}
	default:
		return fail("%q is not a workload; use one of %v", c.Workload, Workloads)
	}
	c.KeySize = cmp.Or(c.KeySize, defaultKeySize)
	c.ValueSize = cmp.Or(c.ValueSize, defaultValueSize)
	c.Connections = cmp.Or(c.Connections, defaultConnections)
	c.Depth = cmp.Or(c.Depth, 1)
	c.Keys = cmp.Or(c.Keys, max(defaultKeys, c.Connections))
	c.Timeout = cmp.Or(c.Timeout, defaultTimeout)
	c.Seed = cmp.Or(c.Seed, 1)
	c.Prefix = cmp.Or(c.Prefix, defaultPrefix)
	c.Threads = cmp.Or(c.Threads, 1)
	if c.Requests == 0 {
		c.Duration = cmp.Or(c.Duration, defaultDuration)
	} else {
		c.Duration = cmp.Or(c.Duration, longest)
	}
	if c.Rate > 0 {
		c.Arrivals = cmp.Or(c.Arrivals, "poisson")
	}
	switch {
	case c.Connections < 1 || c.Connections > maxConnections:
		return fail("%d connections; use 1 to %d", c.Connections, maxConnections)
	case c.Depth < 1 || c.Depth > maxDepth:
		return fail("%d requests at a time on a connection; use 1 to %d", c.Depth, maxDepth)
	case c.Churn < 0:
		return fail("a connection cannot have %d requests", c.Churn)
	case c.Duration < 0:
		return fail("a run cannot last %v", c.Duration)
	case c.Warmup < 0:
		return fail("a warm-up cannot last %v", c.Warmup)
	case !(c.SetRatio >= 0 && c.SetRatio <= 1):
		return fail("a share of sets of %v; use 0 to 1", c.SetRatio)
	case c.Keys < c.Connections || c.Keys > maxKeys:
		return fail("%d keys for %d connections; use at least one for each and at most %d", c.Keys, c.Connections, maxKeys)
	case !(c.Zipf >= 0 && c.Zipf <= 10):
		return fail("a Zipf exponent of %v; use 0 to 10", c.Zipf)
	case c.Timeout < 0:
		return fail("a timeout cannot be %v", c.Timeout)
	case len(c.Prefix) > maxPrefix:
		return fail("a key's prefix of %d bytes; use at most %d", len(c.Prefix), maxPrefix)
	case slices.ContainsFunc([]byte(c.Prefix), func(b byte) bool { return b <= ' ' || b == 0x7f }):
		return fail("a key's prefix %q; blanks and control characters cannot be in a key", c.Prefix)
	case !(c.Rate >= 0 && c.Rate <= maxRate):
		return fail("%v requests per second; use 0 (closed loop) to %v", c.Rate, maxRate)
	case c.Rate == 0 && c.Arrivals != "":
		return fail("arrivals %q without a rate: say how many requests per second", c.Arrivals)
	case c.Threads < 1 || c.Threads > maxThreads:
		return fail("%d threads; use 1 to %d", c.Threads, maxThreads)
	}
	var err error
	if w.keySize, err = distribution.Parse(c.KeySize); err != nil {
		return fail("size of keys: %w", err)
	}
	if w.valueSize, err = distribution.Parse(c.ValueSize); err != nil {
		return fail("size of values: %w", err)
	}
	// What is always the same must be possible; of what varies, the tails are cut.
	if n, fixed := w.keySize.(distribution.Fixed); fixed && (n < 1 || n > maxKeySize) {
		return fail("keys of %v bytes; use 1 to %d", float64(n), maxKeySize)
	}
	if n, fixed := w.valueSize.(distribution.Fixed); fixed && (n < 0 || n > maxValueSize) {
		return fail("values of %v bytes; use 0 to %d", float64(n), maxValueSize)
	}
	if w.arrivals, err = parseArrivals(c.Arrivals); err != nil {
		return c, w, err
	}
	return c.completeEngine(w)
}

func parseArrivals(s string) (distribution.Distribution, error) {
	switch s {
	case "", "poisson":
		return distribution.Exponential(1), nil
	case "etc":
		return distribution.ETCArrival, nil
	case "fixed":
		return distribution.Fixed(1), nil
	}
	d, err := distribution.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("arrivals: %w; or poisson, etc, fixed", err)
	}
	if !(d.Mean() > 0) || math.IsInf(d.Mean(), 0) || d.Quantile(1e-9) < 0 {
		return nil, fmt.Errorf("arrivals %q: time between requests must be positive and have a mean", s)
	}
	return d, nil
}

func (c Config) completeEngine(w workload) (Config, workload, error) {
	fail := func(format string, args ...any) (Config, workload, error) { return c, w, fmt.Errorf(format, args...) }
	switch c.Engine {
	case Kernel:
	case User:
		if c.Port == nil {
			return fail("the %s engine needs a device of its own", User)
		}
		if n := c.Port.Queues(); n != 1 {
			return fail("%s has %d queues; the %s engine uses one", c.Port.Name(), n, User)
		}
		if c.Threads != 1 {
			return fail("%d threads; the %s engine has one", c.Threads, User)
		}
		if len(c.Stack.Addresses) == 0 {
			return fail("the %s engine needs an address of its own", User)
		}
	case Reference:
		size, fixed := w.valueSize.(distribution.Fixed)
		switch {
		case !fixed || size < versionSize:
			return fail("values of %s; the %s engine takes one size, at least %d bytes", c.ValueSize, Reference, versionSize)
		case c.Depth != 1 || c.Churn != 0 || c.Rate != 0 || c.Zipf != 0 || c.Warmup != 0 || c.NoStore || c.Threads != 1 || len(c.Cores) != 0 || c.KeySize != defaultKeySize:
			return fail("the %s engine knows nothing of key sizes, depth, churn, rate, Zipf, warm-up, threads and cores; use --engine %s", Reference, Kernel)
		}
		return c, w, nil
	default:
		return fail("%q is not an engine; use one of %v", c.Engine, Engines)
	}
	c.Threads = min(c.Threads, c.Connections)
	allowed, err := affinity.Allowed()
	if err != nil {
		return c, w, err
	}
	if c.Cores == nil {
		for i := range c.Threads {
			c.Cores = append(c.Cores, allowed[len(allowed)-1-i%len(allowed)])
		}
	}
	if len(c.Cores) < c.Threads {
		return fail("%d cores for %d threads; give one each", len(c.Cores), c.Threads)
	}
	c.Cores = c.Cores[:c.Threads]
	for _, core := range c.Cores {
		if !slices.Contains(allowed, core) {
			return fail("core %d: this process may use %v", core, allowed)
		}
	}
	return c, w, nil
}
