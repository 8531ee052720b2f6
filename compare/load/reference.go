package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/bradfitz/gomemcache/memcache"
)

// The reference engine drives the server with the client that Go programs use,
// gomemcache over the kernel's sockets, one connection and one request at a time
// per worker, and also notices a value that is older than the last one stored.
// It is a check on the other engines, of correctness and of what they measure;
// written as it is, it is as likely to be the bottleneck as the server.

// runReference is Run for this engine.
func runReference(ctx context.Context, c Config, size int) (Result, error) {
	r := newReference(c, size)
	defer r.closeAll()
	stop := context.AfterFunc(ctx, r.closeAll)
	defer stop()

	if err := r.store(ctx); err != nil {
		return Result{}, fmt.Errorf("store the %d keys at %s: %w", c.Keys, c.Address, err)
	}
	meter := startMeter()
	begin := time.Now()
	r.deadline = begin.Add(c.Duration)
	var group sync.WaitGroup
	for _, w := range r.workers {
		group.Go(func() { w.loop(ctx) })
	}
	group.Wait()
	result := r.result(time.Since(begin))
	result.Client = meter.ofProcess(result.Requests)
	result.conclude()
	return result, ctx.Err()
}

// reference is the state that the workers share.
type reference struct {
	config   Config
	values   values
	keys     []key
	workers  []*referenceWorker
	deadline time.Time
	// begun counts the requests that workers have taken on.
	begun atomic.Uint64

	mu          sync.Mutex
	closed      bool
	connections map[net.Conn]struct{}
	dials       uint64
	firstError  error
	firstWrong  error
}

// A key has one writer: worker i sets the keys i, i+N, i+2N, …, and everyone
// gets them all. So any reply can be judged: the version in it was at least
// begun when it came, and nothing older than what had been acknowledged when it
// was asked for.
type key struct {
	name                string
	begun, acknowledged atomic.Uint64
	// uncertain: a set failed half-way and may be carried out late, so that an
	// older version can come back.
	uncertain atomic.Bool
}

func newReference(c Config, size int) *reference {
	r := &reference{config: c, values: newValues(c.Seed, size), keys: make([]key, c.Keys), connections: make(map[net.Conn]struct{})}
	for i := range r.keys {
		r.keys[i].name = c.Prefix + strconv.Itoa(i)
	}
	histograms := make([]*recorder, min(c.Connections, maxRecorders))
	for i := range histograms {
		histograms[i] = &recorder{histogram: hdrhistogram.New(lowest, highest, digits)}
	}
	for i := range c.Connections {
		client := memcache.NewFromSelector(fixedServer(c.Address))
		client.Timeout = c.Timeout
		client.MaxIdleConns = 1
		client.DialContext = r.dial
		r.workers = append(r.workers, &referenceWorker{
			run: r, index: i, client: client,
			recorder: histograms[i%len(histograms)],
			random:   rand.New(rand.NewPCG(c.Seed, uint64(i))),
		})
	}
	return r
}

// dial opens a connection that the end of the run closes.
func (r *reference) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	r.dials++
	tracked := &trackedConn{Conn: conn, reference: r}
	r.connections[tracked] = struct{}{}
	return tracked, nil
}

// trackedConn forgets itself when it is closed.
type trackedConn struct {
	net.Conn
	reference *reference
}

func (c *trackedConn) Close() error {
	c.reference.mu.Lock()
	delete(c.reference.connections, c)
	c.reference.mu.Unlock()
	return c.Conn.Close()
}

func (r *reference) closeAll() {
	r.mu.Lock()
	r.closed = true
	connections := r.connections
	r.connections = nil
	r.mu.Unlock()
	for conn := range connections {
		conn.Close()
	}
}

// store sets every key for the first time. One failure ends it.
func (r *reference) store(ctx context.Context) error {
	var failed atomic.Bool
	var group sync.WaitGroup
	for _, w := range r.workers {
		group.Go(func() {
			for k := w.index; k < len(r.keys) && !failed.Load() && ctx.Err() == nil; k += len(r.workers) {
				if err := w.set(k); err != nil {
					failed.Store(true)
					r.fail(err)
				}
			}
		})
	}
	group.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.firstError
}

func (r *reference) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.firstError == nil {
		r.firstError = err
	}
}

func (r *reference) wrong(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.firstWrong == nil {
		r.firstWrong = err
	}
}

// take claims one more request, unless the bounds are reached.
func (r *reference) take(now time.Time) bool {
	if !now.Before(r.deadline) {
		return false
	}
	return r.begun.Add(1) <= r.config.Requests || r.config.Requests == 0
}

// fixedServer is the one server of a run. It resolves nothing in advance, so
// that a name is looked up by the dialer, and its errors name it.
type fixedServer string

func (s fixedServer) PickServer(string) (net.Addr, error) { return s, nil }
func (s fixedServer) Each(f func(net.Addr) error) error   { return f(s) }
func (s fixedServer) Network() string                     { return "tcp" }
func (s fixedServer) String() string                      { return string(s) }
