package bench

import (
	"errors"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// generatorPart sends on the first device as fast as it is taken and counts what
// comes back by the second.
func generatorPart(p part) error {
	v, err := variantOf(p.Variant)
	if err != nil {
		return err
	}
	if err := dpdk.Init(dpdk.Options{Memory: 256}); err != nil {
		return err
	}
	var ports []*dpdk.Port
	for _, d := range p.Devices {
		port, err := dpdk.Open(dpdk.Config{Device: d})
		if err != nil {
			return err
		}
		defer port.Close()
		ports = append(ports, port)
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		one, err1 := ports[0].Link()
		other, err2 := ports[1].Link()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if one.Up && other.Up {
			break
		}
		if time.Since(begin) > 20*time.Second {
			return errors.New("the wire does not come up")
		}
	}
	release, err := affinity.KeepOff([]int{generatorCore})
	if err != nil {
		return err
	}
	defer release()
	frames := v.frames()
	var end atomic.Bool
	var received, offered atomic.Uint64
	done := make(chan error, 1)
	go func() { done <- sendAndCount(ports, frames, &end, &received, &offered) }()
	halt := sync.OnceValue(func() error {
		end.Store(true)
		return <-done
	})
	err = serve(func(order string) (rate, error) {
		if order == stop { // memif's driver does not survive that a wire goes which is in use
			return rate{}, halt()
		}
		time.Sleep(p.Measure / 4)
		r := rate{Frames: received.Load(), Offered: offered.Load()}
		begin := time.Now()
		time.Sleep(p.Measure)
		r.Frames, r.Offered, r.Elapsed = received.Load()-r.Frames, offered.Load()-r.Offered, time.Since(begin)
		return r, nil
	})
	return errors.Join(err, halt())
}

func sendAndCount(ports []*dpdk.Port, frames []frame, end *atomic.Bool, received, offered *atomic.Uint64) error {
	goruntime.LockOSThread() // and never unlocked, as it is pinned
	if err := affinity.Pin(generatorCore); err != nil {
		return err
	}
	if err := dpdk.RegisterThread(); err != nil {
		return err
	}
	defer dpdk.UnregisterThread()
	source, sink := ports[0].Queue(0), ports[1].Queue(0)
	var out, in [64]driver.Frame
	at, ready := 0, 0
	for !end.Load() {
		back := sink.Receive(in[:])
		driver.Free(in[:back])
		received.Add(uint64(back))
		n := source.Allocate(out[ready:], 64)
		for i := ready; i < ready+n; i++ {
			frames[at].put(&out[i])
			if at++; at == len(frames) {
				at = 0
			}
		}
		ready += n
		sent := source.Transmit(out[:ready])
		offered.Add(uint64(ready))
		copy(out[:], out[sent:ready])
		clear(out[ready-sent : ready])
		ready -= sent
	}
	driver.Free(out[:ready])
	return nil
}
