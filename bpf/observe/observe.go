// Package observe counts, in the kernel and while a measurement runs, what
// happens to processors and to chosen threads: hard interrupts, softirqs, NAPI
// polls by who polls and with what budget, context switches, and how often and
// for how long a thread was interrupted while it ran. Its cost is stated at
// Start. Programs hang on tracepoints and are gone when the process is.
package observe

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I../include" -type processor -type napi -type polls -type chosen observe observe.c

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// MaxThreads is how many threads one Observer can follow.
const MaxThreads = 64

// Config says what to observe. The zero value is all processors and no thread.
type Config struct {
	// Threads are the ids of threads to follow (gettid, /proc/PID/task), as the
	// initial PID namespace numbers them; at most MaxThreads. A thread is
	// followed on the observed processors only. An id is not let go of when its
	// thread ends: the kernel may give it to another.
	Threads []int
	// CPUs are the processors to observe; nil is all.
	CPUs []int
}

// Observer observes from Start to Close. Its methods may be called from several
// goroutines.
type Observer struct {
	threads []int
	cpus    []int

	mu      sync.Mutex // for Close
	objects *ebpf.Collection
	links   []link.Link
}

// Start begins to observe. It needs CAP_BPF and CAP_PERFMON, or root, and Linux
// 5.18 with its type information (CONFIG_DEBUG_INFO_BTF). On architectures other
// than x86 only interrupts of devices are seen; those of the timer and between
// processors count as the time of whom they interrupt. So do, everywhere, what no
// tracepoint tells: non-maskable interrupts, and time that a hypervisor takes.
//
// Cost: an event takes 0.05 to 0.2 µs of the processor on which it happens.
// Measured with BenchmarkCost (two-core VM, Linux 6.18): to send a datagram over
// loopback and read it, with a softirq and a poll, 3.4 µs unobserved and 4.0
// observed; to wake another thread and wait for it, with two context switches,
// 6.2 and 6.3, or 6.4 if the thread is followed. So 40,000 softirqs with a poll in
// each second take 2.4 % of a processor, and 100,000 context switches 1 %.
//
// Counts may be a little low: on that machine up to one timer interrupt in a
// hundred, more in a moment here and there, reached no program, not even one that
// did nothing but count. Entry and exit were missed together; the time of
// such an interrupt is with whom it interrupted.
func Start(c Config) (_ *Observer, err error) {
	possible, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("observe: count processors: %w", err)
	}
	o := &Observer{threads: slices.Clone(c.Threads), cpus: slices.Clone(c.CPUs)}
	if c.CPUs == nil {
		for cpu := range possible {
			o.cpus = append(o.cpus, cpu)
		}
	}
	slices.Sort(o.cpus)
	for i, cpu := range o.cpus {
		if cpu < 0 || cpu >= possible {
			return nil, fmt.Errorf("observe: no processor %d: there are at most %d, from 0", cpu, possible)
		}
		if i > 0 && o.cpus[i-1] == cpu {
			return nil, fmt.Errorf("observe: processor %d is named twice", cpu)
		}
	}
	if len(o.threads) > MaxThreads {
		return nil, fmt.Errorf("observe: %d threads: at most %d", len(o.threads), MaxThreads)
	}
	for i, thread := range o.threads {
		if thread <= 0 {
			return nil, fmt.Errorf("observe: %d is no thread", thread)
		}
		if slices.Contains(o.threads[:i], thread) {
			return nil, fmt.Errorf("observe: thread %d is named twice", thread)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if err := o.load(possible); err != nil {
		return nil, err
	}
	if err := o.attach(); err != nil {
		return nil, err
	}
	if err := o.begin(); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *Observer) load(possible int) error {
	spec, err := loadObserve()
	if err != nil {
		return fmt.Errorf("observe: read the embedded object: %w", err)
	}
	if err := removeMissing(spec); err != nil {
		return err
	}
	spec.Maps[observeMapProcessors].MaxEntries = uint32(possible)
	if err := spec.Variables[observeVarNthreads].Set(uint32(len(o.threads))); err != nil {
		return fmt.Errorf("observe: set the number of threads: %w", err)
	}
	o.objects, err = ebpf.NewCollection(spec)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("observe: load the programs: %w (needs root, or CAP_BPF and CAP_PERFMON)", err)
	}
	if err != nil {
		return fmt.Errorf("observe: load the programs: %w", err)
	}
	for slot, thread := range o.threads {
		if err := o.objects.Maps[observeMapThreads].Put(uint32(thread), observeChosen{Slot: uint32(slot)}); err != nil {
			return fmt.Errorf("observe: follow thread %d: %w", thread, err)
		}
	}
	for _, cpu := range o.cpus {
		if err := o.objects.Maps[observeMapProcessors].Put(uint32(cpu), &observeProcessor{On: 1}); err != nil {
			return fmt.Errorf("observe: observe processor %d: %w", cpu, err)
		}
	}
	return nil
}

// removeMissing removes the programs for tracepoints that only x86 has, if this
// is another.
func removeMissing(spec *ebpf.CollectionSpec) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("observe: read the kernel's type information: %w (needs CONFIG_DEBUG_INFO_BTF)", err)
	}
	for _, name := range []string{"local_timer", "reschedule", "call_function", "call_function_single", "irq_work"} {
		var t *btf.Typedef
		err := kernel.TypeByName("btf_trace_"+name+"_entry", &t)
		if errors.Is(err, btf.ErrNotFound) {
			delete(spec.Programs, name+"_entry")
			delete(spec.Programs, name+"_exit")
		} else if err != nil {
			return fmt.Errorf("observe: look for tracepoint %s_entry: %w", name, err)
		}
	}
	return nil
}

// attach attaches all programs: those for the end of something first, since an
// end without a beginning is ignored, but not a beginning without its end.
func (o *Observer) attach() error {
	var names []string
	for name := range o.objects.Programs {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if x, y := strings.HasSuffix(a, "_exit"), strings.HasSuffix(b, "_exit"); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		if name == observeProgKick {
			continue
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: o.objects.Programs[name], AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return fmt.Errorf("observe: attach to tracepoint %s: %w", name, err)
		}
		o.links = append(o.links, l)
	}
	return nil
}

// begin makes something happen on every processor, since its time counts from the
// first event on, and an idle one may have none for long. Where calls between
// processors are no events, it is left to the next one.
func (o *Observer) begin() error {
	waiting := slices.Clone(o.cpus)
	for range 20 {
		for _, cpu := range waiting {
			_, err := o.objects.Programs[observeProgKick].Run(&ebpf.RunOptions{CPU: uint32(cpu), Flags: unix.BPF_F_TEST_RUN_ON_CPU})
			if err != nil && !errors.Is(err, unix.ENXIO) { // not online
				return fmt.Errorf("observe: begin on processor %d: %w", cpu, err)
			}
		}
		var err error
		waiting = slices.DeleteFunc(waiting, func(cpu int) bool {
			var p observeProcessor
			if e := o.objects.Maps[observeMapProcessors].LookupWithFlags(uint32(cpu), &p, ebpf.LookupLock); e != nil {
				err = fmt.Errorf("observe: read processor %d: %w", cpu, e)
			}
			return p.Last != 0
		})
		if err != nil || len(waiting) == 0 {
			return err
		}
		time.Sleep(time.Millisecond) // an event on this processor itself
	}
	return nil
}

// Close ends the observation. Nothing of it stays in the kernel.
func (o *Observer) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, l := range slices.Backward(o.links) {
		errs = append(errs, l.Close())
	}
	o.links = nil
	if o.objects != nil {
		o.objects.Close()
		o.objects = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("observe: close: %w", err)
	}
	return nil
}
