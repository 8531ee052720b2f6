package steer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// spreadMaxCPUs is how many processors one Spreader can choose from
// (CPUS_MAX in spread.c).
const spreadMaxCPUs = 1024

// spreadRoom is how many frames wait for a processor before more are dropped:
// that of a large receive ring, and some milliseconds of work.
const spreadRoom = 2048

// Spreader hands the frames that a device receives to processors, by flow: an
// XDP program hashes each frame and a kernel thread on the chosen processor
// takes it through the kernel's stack. A frame of TCP or UDP, over IPv4 or IPv6
// (behind up to two VLAN tags and four extension headers), goes by addresses and
// ports, the same for both directions; a fragment by addresses alone, so that
// all of a datagram meet; all else stays where it is.
//
// It is for a device with fewer queues than there are processors for its work.
// It is no good together with kernel polling: what went through it has lost its
// NAPI instance, its queue and its checksum verdict. For that reason the other
// end of a veth must not leave checksums to be computed by hardware
// (ethtool -K PEER tx off).
type Spreader struct {
	objects spreadObjects
	cpus    []int
	xdp     link.Link
	tracing link.Link
}

// SpreadCounts are frames since Spread.
type SpreadCounts struct {
	// CPUs are those given to Spread.
	CPUs []int
	// Frames were sent to CPUs[i], among them Dropped, for which there was no
	// room.
	Frames, Dropped []uint64
	// Stayed were left on the processor that received them.
	Stayed uint64
}

// Spread spreads what the device receives over the processors, which must be
// online and differ. The interface index is one of the calling thread's network
// namespace. The device must have native XDP and no program on it yet. The
// program leaves the device on Close, or with the process, however that ends.
func Spread(ifindex int, cpus []int) (*Spreader, error) {
	return spread(ifindex, cpus, rand.Uint32())
}

func spread(ifindex int, cpus []int, seed uint32) (_ *Spreader, err error) {
	s := &Spreader{cpus: slices.Clone(cpus)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if _, err := net.InterfaceByIndex(ifindex); err != nil {
		return nil, fmt.Errorf("spread: find interface %d in this network namespace: %w", ifindex, err)
	}
	if err := s.load(seed); err != nil {
		return nil, err
	}
	if s.tracing, err = link.AttachTracing(link.TracingOptions{Program: s.objects.Dropped, AttachType: ebpf.AttachTraceRawTp}); err != nil {
		return nil, fmt.Errorf("spread: count what is dropped: %w", err)
	}
	if s.xdp, err = link.AttachXDP(link.XDPOptions{Program: s.objects.Spread, Interface: ifindex, Flags: link.XDPDriverMode}); err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
			hint = " (it has an XDP program already)"
		case errors.Is(err, unix.EOPNOTSUPP):
			hint = " (its driver has no native XDP)"
		}
		return nil, fmt.Errorf("spread: attach to interface %d: %w%s", ifindex, err, hint)
	}
	return s, nil
}

// load loads the programs and makes the queues, attached to nothing.
func (s *Spreader) load(seed uint32) error {
	possible, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("spread: count processors: %w", err)
	}
	if len(s.cpus) == 0 || len(s.cpus) > spreadMaxCPUs {
		return fmt.Errorf("spread: over %d processors: must be 1 to %d", len(s.cpus), spreadMaxCPUs)
	}
	for i, cpu := range s.cpus {
		if cpu < 0 || cpu >= possible {
			return fmt.Errorf("spread: no processor %d: there are at most %d, from 0", cpu, possible)
		}
		if slices.Contains(s.cpus[:i], cpu) {
			return fmt.Errorf("spread: processor %d is named twice", cpu)
		}
	}
	spec, err := loadSpread()
	if err != nil {
		return fmt.Errorf("spread: read the embedded object: %w", err)
	}
	spec.Maps[spreadMapQueues].MaxEntries = uint32(possible)
	spec.Maps[spreadMapDrops].MaxEntries = uint32(possible)
	// Made before the programs, which must know it by its identity.
	queues, err := ebpf.NewMap(spec.Maps[spreadMapQueues])
	if err != nil {
		return loading("spread", err)
	}
	defer queues.Close()
	info, err := queues.Info()
	if err != nil {
		return fmt.Errorf("spread: identify the queues: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return fmt.Errorf("spread: identify the queues: %w", ebpf.ErrNotSupported)
	}
	err = errors.Join(
		spec.Variables[spreadVarQueuesId].Set(uint32(id)),
		spec.Variables[spreadVarNtargets].Set(uint32(len(s.cpus))),
		spec.Variables[spreadVarSeed].Set(seed),
	)
	if err != nil {
		return fmt.Errorf("spread: set the constants: %w", err)
	}
	options := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{spreadMapQueues: queues}}
	if err := spec.LoadAndAssign(&s.objects, options); err != nil {
		return loading("spread", err)
	}
	for i, cpu := range s.cpus {
		if err := s.objects.Queues.Put(uint32(cpu), uint32(spreadRoom)); err != nil {
			return fmt.Errorf("spread: make a queue for processor %d: %w (is it online?)", cpu, err)
		}
		if err := s.objects.Targets.Put(uint32(i), uint32(cpu)); err != nil {
			return fmt.Errorf("spread: choose processor %d: %w", cpu, err)
		}
	}
	return nil
}

// Counts reads the counts so far.
func (s *Spreader) Counts() (SpreadCounts, error) {
	c := SpreadCounts{CPUs: slices.Clone(s.cpus)}
	sum := func(m *ebpf.Map, key int) (total uint64, err error) {
		var each []uint64
		if err := m.Lookup(uint32(key), &each); err != nil {
			return 0, fmt.Errorf("spread: read the counts: %w", err)
		}
		for _, n := range each {
			total += n
		}
		return total, nil
	}
	for i, cpu := range s.cpus {
		frames, err := sum(s.objects.Frames, i)
		if err != nil {
			return SpreadCounts{}, err
		}
		dropped, err := sum(s.objects.Drops, cpu)
		if err != nil {
			return SpreadCounts{}, err
		}
		c.Frames = append(c.Frames, frames)
		c.Dropped = append(c.Dropped, dropped)
	}
	var err error
	c.Stayed, err = sum(s.objects.Frames, len(s.cpus))
	return c, err
}

// Close takes the program off the device; frames that wait for a processor are
// still delivered.
func (s *Spreader) Close() error {
	var errs []error
	for _, l := range []link.Link{s.xdp, s.tracing} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	s.xdp, s.tracing = nil, nil
	if s.objects.Spread != nil {
		errs = append(errs, s.objects.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("spread: close: %w", err)
	}
	return nil
}
