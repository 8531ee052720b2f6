package observe

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// unsettled is the last stretch before a Read that is left for the next, in ns: an
// event that has read its clock may not have been written down yet, and numbers
// must not fall when it is.
const unsettled = 10_000

// Read returns what happened since Start. It takes about 7 µs
// for each processor, and stops no processor for more than the copying of a few kilobytes.
func (o *Observer) Read() (Snapshot, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.objects == nil {
		return Snapshot{}, fmt.Errorf("observe: read: %w", os.ErrClosed)
	}
	s := Snapshot{Threads: make([]Thread, len(o.threads))}
	for i, id := range o.threads {
		s.Threads[i].ID = id
	}
	for _, cpu := range o.cpus {
		// The clock first: what the processor did between its last event and now
		// is then known, whatever happens between now and the copy.
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return Snapshot{}, fmt.Errorf("observe: read the clock: %w", err)
		}
		var p observeProcessor
		if err := o.objects.Maps[observeMapProcessors].LookupWithFlags(uint32(cpu), &p, ebpf.LookupLock); err != nil {
			return Snapshot{}, fmt.Errorf("observe: read processor %d: %w", cpu, err)
		}
		settle(&p, uint64(now.Nano()-unsettled))
		s.CPUs = append(s.CPUs, processor(cpu, &p))
		s.LostPolls += p.LostPolls
		for slot := range s.Threads {
			addThread(&s.Threads[slot], &p, slot)
		}
	}
	polls, err := o.polls()
	s.Polls = polls
	return s, err
}

// settle accounts for the time since the processor's last event, as the function
// of this name in observe.c does at the next.
func settle(p *observeProcessor, now uint64) {
	if p.Last == 0 || now <= p.Last {
		return
	}
	ns := now - p.Last
	p.Last = now
	chosen := p.Slot != 0
	t := &p.Threads[max(p.Slot, 1)-1]
	switch {
	case p.Depth != 0:
		p.Hard[p.Kind].Ns += ns
		if chosen {
			t.Hard.Ns += ns
		}
	case p.Vector != 0:
		p.Soft[p.Vector-1].Ns += ns
		if chosen && p.IsDeferred != 0 {
			t.Deferred.Ns += ns
		} else if chosen {
			t.Own.Ns += ns
		}
	case p.Pid != 0:
		p.ThreadNs += ns
		if chosen {
			t.RunningNs += ns
		}
	default:
		p.IdleNs += ns
	}
}

func processor(id int, p *observeProcessor) CPU {
	c := CPU{
		ID:          id,
		Thread:      time.Duration(p.ThreadNs),
		Idle:        time.Duration(p.IdleNs),
		Switches:    p.Switches,
		Preemptions: p.Preemptions,
	}
	for k := range c.Interrupts {
		c.Interrupts[k] = Tally{p.Hard[k].Count, time.Duration(p.Hard[k].Ns)}
		c.HardIRQ += c.Interrupts[k].Time
	}
	for k := range c.SoftIRQs {
		c.SoftIRQs[k] = Tally{p.Soft[k].Count, time.Duration(p.Soft[k].Ns)}
		c.SoftIRQ += c.SoftIRQs[k].Time
	}
	return c
}

// addThread adds what a thread did on one processor.
func addThread(t *Thread, p *observeProcessor, slot int) {
	here := &p.Threads[slot]
	t.Running += time.Duration(here.RunningNs)
	t.HardIRQ = t.HardIRQ.add(Tally{here.Hard.Count, time.Duration(here.Hard.Ns)})
	t.Deferred = t.Deferred.add(Tally{here.Deferred.Count, time.Duration(here.Deferred.Ns)})
	t.Own = t.Own.add(Tally{here.Own.Count, time.Duration(here.Own.Ns)})
	t.Switches += here.Switches
	t.Preempted = t.Preempted.add(Tally{here.Preempted.Count, time.Duration(here.Preempted.Ns)})
}

func (o *Observer) polls() ([]Polls, error) {
	var all []Polls
	var key observeNapi
	var each []observePolls
	entries := o.objects.Maps[observeMapNapis].Iterate()
	for entries.Next(&key, &each) {
		p := Polls{NAPI: key.Id, Index: int(key.Ifindex), Budget: int(key.Budget), Poller: Poller(key.Poller)}
		for i := range each {
			p.Count += each[i].Count
			p.Packets += each[i].Packets
			p.Empty += each[i].Empty
			p.Full += each[i].Full
			if p.Device == "" {
				p.Device = text(each[i].Device[:])
			}
		}
		all = append(all, p)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("observe: read the polls: %w", err)
	}
	slices.SortFunc(all, func(a, b Polls) int {
		return cmp.Or(cmp.Compare(a.NAPI, b.NAPI), cmp.Compare(a.Index, b.Index),
			cmp.Compare(a.Budget, b.Budget), cmp.Compare(a.Poller, b.Poller))
	})
	return all, nil
}

// text reads a C string.
func text(c []int8) string {
	b := make([]byte, 0, len(c))
	for _, x := range c {
		if x == 0 {
			break
		}
		b = append(b, byte(x))
	}
	return string(b)
}
