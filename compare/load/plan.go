package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/pollux-net/pollux/compare/load/distribution"
)

// A plan is what the threads of a run share; nobody changes it while they run.
type plan struct {
	config   Config
	workload workload
	remote   netip.AddrPort
	content  *content
	zipf     distribution.Zipf
	mean     float64 // nanoseconds between the requests of a connection
	scale    float64 // nanoseconds to the unit of workload.arrivals
}

const (
	never = math.MaxInt64
	// storeLimit is how long storing the keys may take.
	storeLimit = 10 * time.Minute
)

func newPlan(c Config, w workload) (*plan, error) {
	address, err := net.ResolveTCPAddr("tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("find the server: %w", err)
	}
	remote := address.AddrPort()
	if !remote.Addr().IsValid() {
		return nil, fmt.Errorf("%q names no host", c.Address)
	}
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	p := &plan{config: c, workload: w, remote: remote, content: newContent(c, w)}
	if c.Zipf > 0 {
		p.zipf = distribution.NewZipf(c.Keys, c.Zipf)
	}
	if c.Rate > 0 {
		p.mean = float64(time.Second) * float64(c.Connections) / c.Rate
		p.scale = p.mean / w.arrivals.Mean()
	}
	return p, nil
}

func (p *plan) newTransport(t *thread) (transport, error) {
	if p.config.Engine == User {
		return newUserTransport(t)
	}
	return newKernelTransport(t)
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(lowest, highest, digits) }

// newThreads deals the sessions out.
func (p *plan) newThreads(stop *atomic.Bool) []*thread {
	c := p.config
	threads := make([]*thread, c.Threads)
	origin := time.Now()
	for i := range threads {
		threads[i] = &thread{plan: p, index: i, origin: origin, stop: stop, latencies: newHistogram(), connectTimes: newHistogram()}
	}
	for i := range c.Connections {
		t := threads[i%c.Threads]
		s := &session{thread: t, index: i, slot: len(t.sessions), pending: make([]request, max(c.Depth, storeDepth))}
		s.random, s.times = *rand.NewPCG(c.Seed, uint64(i)), *rand.NewPCG(c.Seed, uint64(i)+maxConnections)
		t.sessions = append(t.sessions, s)
	}
	return threads
}

// run carries out the phases, each on all threads at once.
func (p *plan) run(ctx context.Context) (Result, error) {
	c := p.config
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()

	threads := p.newThreads(&stop)
	done := make(chan error, len(threads))
	phases := make([]chan *phase, len(threads))
	wait := func() (err error) {
		for range threads {
			err = errors.Join(err, <-done)
		}
		return err
	}
	for i, t := range threads {
		phases[i] = make(chan *phase, 1)
		go t.main(phases[i], done)
	}
	if err := wait(); err != nil {
		// Those that did begin wait for a phase.
		for _, ch := range phases {
			close(ch)
		}
		return Result{}, fmt.Errorf("begin to load %s: %w", c.Address, err)
	}
	finish := func() error {
		for _, ch := range phases {
			close(ch)
		}
		return wait()
	}
	all := func(ph *phase) error {
		for _, ch := range phases {
			ch <- ph
		}
		return wait()
	}
	begin := func(kind phaseKind) *phase {
		ph := &phase{kind: kind, begin: threads[0].now()}
		ph.measureFrom(never, 0)
		return ph
	}

	err := all(begin(connectPhase))
	if err == nil && !c.NoStore {
		timer := time.AfterFunc(storeLimit, func() { stop.Store(true) })
		if err = all(begin(storePhase)); err != nil {
			err = fmt.Errorf("store the %d keys at %s: %w", c.Keys, c.Address, err)
		} else if !timer.Stop() {
			err = fmt.Errorf("store the %d keys at %s: not within %v", c.Keys, c.Address, storeLimit)
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return Result{}, errors.Join(err, finish())
	}
	var meter atomic.Pointer[meter]
	meter.Store(startMeter())
	load := begin(loadPhase)
	if c.Begin == nil {
		load.measureFrom(load.begin+int64(c.Warmup), c.Duration)
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		if !c.warmUp(over) {
			return
		}
		meter.Store(startMeter())
		if c.Begin != nil {
			load.measureFrom(threads[0].now(), c.Duration)
		}
	}()
	if err := all(load); err != nil {
		return Result{}, errors.Join(err, finish())
	}
	coresBusy := 0.0
	if !threads[0].transport.polls() {
		coresBusy = meter.Load().coresBusy(c.Cores)
	}
	if err := finish(); err != nil {
		return Result{}, fmt.Errorf("end the load of %s: %w", c.Address, err)
	}
	return p.result(threads, coresBusy), ctx.Err()
}

// measureFrom sets from when on, and for how long, requests count.
func (p *phase) measureFrom(at int64, span time.Duration) {
	p.end.Store(min(at, never-int64(span)) + int64(span))
	p.measured.Store(at)
}

// warmUp waits until the load is to be measured, and says whether it is before
// all is over.
func (c *Config) warmUp(over <-chan struct{}) bool {
	timer := time.NewTimer(c.Warmup)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-over:
		return false
	}
	if c.Begin != nil {
		select {
		case <-c.Begin:
		case <-over:
			return false
		}
	}
	return true
}
