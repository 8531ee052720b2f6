package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/bradfitz/gomemcache/memcache"
)

// Latencies are recorded in nanoseconds from a microsecond to a minute, to three
// digits; several workers share a recorder when there are many of them.
const (
	lowest       = int64(time.Microsecond)
	highest      = int64(time.Minute)
	digits       = 3
	maxRecorders = 16
)

type recorder struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram
}

func (r *recorder) record(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Only a value above the highest is refused; it is at least that.
	_ = r.histogram.RecordValue(min(int64(d), highest))
}

// pauseAfterError keeps a worker from hammering a server that refuses.
const pauseAfterError = 10 * time.Millisecond

// A referenceWorker is one connection; its fields are its own goroutine's until the run
// has ended.
type referenceWorker struct {
	run      *reference
	index    int
	client   *memcache.Client
	recorder *recorder
	random   *rand.Rand

	gets, sets, misses, errors, wrong uint64
}

func (w *referenceWorker) loop(ctx context.Context) {
	r := w.run
	for now := time.Now(); r.take(now) && ctx.Err() == nil; {
		begin := now
		set := w.random.Float64() < r.config.SetRatio
		var err error
		if set {
			// One of its own: index, index+N, index+2N, …
			own := (len(r.keys) - w.index + len(r.workers) - 1) / len(r.workers)
			err = w.set(w.index + w.random.IntN(own)*len(r.workers))
		} else {
			err = w.get(w.random.IntN(len(r.keys)))
		}
		now = time.Now()
		if err != nil {
			if ctx.Err() != nil {
				return // it is the run that ended it
			}
			w.errors++
			r.fail(err)
			select {
			case <-ctx.Done():
			case <-time.After(pauseAfterError):
			}
			now = time.Now()
			continue
		}
		if set {
			w.sets++
		} else {
			w.gets++
		}
		w.recorder.record(now.Sub(begin))
	}
}

// set stores the next version of one of the worker's own keys.
func (w *referenceWorker) set(k int) error {
	key := &w.run.keys[k]
	version := key.begun.Add(1)
	err := w.client.Set(&memcache.Item{Key: key.name, Value: w.run.values.make(k, version)})
	if err != nil {
		key.uncertain.Store(true)
		return fmt.Errorf("set %s: %w", key.name, err)
	}
	key.acknowledged.Store(version)
	return nil
}

// get asks for any key and judges the reply.
func (w *referenceWorker) get(k int) error {
	r := w.run
	key := &r.keys[k]
	oldest := key.acknowledged.Load()
	item, err := w.client.Get(key.name)
	if errors.Is(err, memcache.ErrCacheMiss) {
		// The server may evict, so a miss is no wrong reply.
		w.misses++
		return nil
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", key.name, err)
	}
	if key.uncertain.Load() {
		oldest = 0
	}
	if err := r.judge(k, item, oldest, key.begun.Load()); err != nil {
		w.wrong++
		r.wrong(fmt.Errorf("get %s: %w", key.name, err))
	}
	return nil
}

func (r *reference) judge(k int, item *memcache.Item, oldest, newest uint64) error {
	if item.Key != r.keys[k].name {
		return fmt.Errorf("the reply is for %q", item.Key)
	}
	if item.Flags != 0 {
		return fmt.Errorf("the reply has flags %d, not 0", item.Flags)
	}
	version, err := r.values.check(k, item.Value)
	if err != nil {
		return err
	}
	if version < oldest || version > newest {
		return fmt.Errorf("the reply has version %d, not one of %d to %d", version, oldest, newest)
	}
	return nil
}
