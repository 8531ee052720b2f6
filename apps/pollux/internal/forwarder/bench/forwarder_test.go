package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/apps/packet"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/runtime"
)

// rate is what a process did in a time.
type rate struct {
	Frames  uint64        // that came out at the end
	Offered uint64        // to the device, whether or not it took them
	Elapsed time.Duration // by the clock
	Busy    time.Duration // processor time of the thread that forwards
}

func (r rate) mpps() float64 { return float64(r.Frames) / r.Elapsed.Seconds() / 1e6 }

// stamped fills in the empty frames of a device that makes them for nothing.
type stamped struct {
	driver.Queue
	frames []frame
	at     int
	on     atomic.Bool
}

func (q *stamped) Receive(f []driver.Frame) int {
	if !q.on.Load() {
		return 0
	}
	n := q.Queue.Receive(f)
	for i := range f[:n] {
		q.frames[q.at].put(&f[i])
		if q.at++; q.at == len(q.frames) {
			q.at = 0
		}
	}
	return n
}

// deaf is a queue that only sends.
type deaf struct{ driver.Queue }

func (deaf) Receive([]driver.Frame) int { return 0 }

// forwarderPart is the packet service itself on one core.
func forwarderPart(p part) error {
	v, err := variantOf(p.Variant)
	if err != nil {
		return err
	}
	if err := dpdk.Init(dpdk.Options{Memory: 256}); err != nil {
		return err
	}
	c := packet.Config{
		Forward: forward.Config{Names: []string{"p0", "p1"}, Flows: v.flowCache()},
		Mode:    runtime.Poll, Cores: []int{dutCore},
		EnterThread: func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() },
	}
	var queues []driver.Queue
	for _, d := range p.Devices {
		port, err := dpdk.Open(dpdk.Config{Device: d})
		if err != nil {
			return err
		}
		defer port.Close()
		c.Forward.Ports, queues = append(c.Forward.Ports, port), append(queues, port.Queue(0))
	}
	u := v.update()
	c.Follow = func(ctx context.Context, deliver func(routes.Update)) error {
		deliver(u)
		<-ctx.Done()
		return ctx.Err()
	}
	var source *stamped
	if p.Stamp {
		c.Forward.Ports[0] = addressed{c.Forward.Ports[0]}
		source = &stamped{Queue: queues[0], frames: v.frames()}
		queues = []driver.Queue{source, deaf{queues[1]}}
	}
	c.Forward.Queue = func(port, _ int) driver.Queue { return queues[port] }
	s, err := packet.New(c)
	if err != nil {
		return err
	}
	set, err := v.set()
	if err != nil {
		return err
	}
	s.Forwarder().Control().SetRules(set)
	if err := s.Start(); err != nil {
		return err
	}
	defer s.Shutdown(context.Background())
	if source != nil {
		for control := s.Forwarder().Control(); !control.Acknowledged(control.Generation()); {
			time.Sleep(time.Millisecond)
		}
		source.on.Store(true) // now that the loop has the routes
	}
	if err := serve(func(string) (rate, error) {
		time.Sleep(p.Measure / 4)
		return watchService(s, p.Measure)
	}); err != nil {
		return err
	}
	all, err := s.Statistics(context.Background())
	if err != nil {
		return err
	}
	if drops := unwanted(&all[0].Counters); len(drops) > 0 {
		return fmt.Errorf("%s: dropped %v", v.name, drops)
	}
	return nil
}

// addressed gives a device the Ethernet address that the frames are for.
type addressed struct{ driver.Port }

func (addressed) Address() [6]byte { return mac(0, 1) }

func watchService(s *packet.Service, d time.Duration) (r rate, err error) {
	take := func() (packet.Statistics, time.Duration, error) {
		all, err := s.Statistics(context.Background())
		if err != nil {
			return packet.Statistics{}, 0, err
		}
		busy, err := busiest(os.Getpid())
		return all[0], busy, err
	}
	before, busy, err := take()
	if err != nil {
		return r, err
	}
	time.Sleep(d)
	after, busyNow, err := take()
	if err != nil {
		return r, err
	}
	out := len(after.Queues) - 1
	return rate{
		Frames:  after.Queues[out].TransmittedFrames - before.Queues[out].TransmittedFrames,
		Elapsed: after.Elapsed - before.Elapsed, Busy: busyNow - busy,
	}, nil
}

// busiest is the processor time of that thread of a process which has used most.
func busiest(pid int) (most time.Duration, err error) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range files {
		d, err := processorTime(file)
		if err == nil {
			most = max(most, d)
		}
	}
	if most == 0 {
		return 0, fmt.Errorf("process %d: no processor time is known", pid)
	}
	return most, nil
}

func processorTime(file string) (time.Duration, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	n, err := strconv.ParseInt(first, 10, 64)
	return time.Duration(n), err
}
