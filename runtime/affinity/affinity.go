// Package affinity says on which cores a process may run, and keeps its threads on
// or off them: loops of both paths own a core each, and Go's own threads should
// not be on it.
package affinity

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Allowed lists the cores that the process may run on, in order. Do not call it
// from a thread that is pinned.
func Allowed() ([]int, error) {
	var set unix.CPUSet
	// Not of the main thread: one that a goroutine pinned for itself and left
	// behind stays there for ever, on that core (Go cannot end a main thread).
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read the cores that this process may use: %w", err)
	}
	held.Lock()
	if len(held.cores) > 0 {
		set = held.original
	}
	held.Unlock()
	var cores []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cores = append(cores, cpu)
		}
	}
	return cores, nil
}

// held is what loops of this process hold at present.
var held struct {
	sync.Mutex
	original unix.CPUSet // what the process could use before the first
	cores    map[int]int // how many hold each core
	pinned   map[int]int // the core of each thread that Pin bound
	// procs is what GOMAXPROCS was before it was raised to raised; 0 if it was not.
	procs, raised int
}

// Pin binds the calling thread to one core. The thread must be locked to its
// goroutine and end with it.
func Pin(cpu int) error {
	held.Lock()
	defer held.Unlock()
	set := only(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	if held.pinned == nil {
		held.pinned = map[int]int{}
	}
	held.pinned[unix.Gettid()] = cpu
	return nil
}

// only is the set of one core.
func only(cpu int) (set unix.CPUSet) {
	set.Set(cpu)
	return set
}

// isPinned reports whether Pin bound a thread and that one still lives: the kernel
// gives the number of one that has ended to another, which is not bound. It forgets
// those.
func isPinned(tid int) bool {
	cpu, ok := held.pinned[tid]
	if !ok {
		return false
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil || set != only(cpu) {
		delete(held.pinned, tid)
		return false
	}
	return true
}

// KeepOff moves the process's threads (collector, network poller and whatever else
// runs, but not those that are pinned) off the cores that loops will take, if
// there are others. Threads that Go starts later inherit that. Release lets them
// back, once nobody else holds the cores. If KeepOff fails nothing is held.
func KeepOff(taken []int) (release func() error, err error) {
	held.Lock()
	defer held.Unlock()
	if len(held.cores) == 0 {
		held.cores = map[int]int{}
		if err := unix.SchedGetaffinity(0, &held.original); err != nil {
			return nil, fmt.Errorf("read the cores that this process may use: %w", err)
		}
	}
	for _, core := range taken {
		held.cores[core]++
	}
	// A loop occupies one P for good; the rest of the program needs one more.
	if now, want := runtime.GOMAXPROCS(0), len(held.cores)+1; now < want {
		if held.procs == 0 {
			held.procs = now
		}
		held.raised = want
		runtime.GOMAXPROCS(want)
	}
	if err := shareOut(); err != nil {
		return nil, errors.Join(err, letGo(taken))
	}
	return sync.OnceValue(func() error {
		held.Lock()
		defer held.Unlock()
		return letGo(taken)
	}), nil
}

// letGo ends the hold on cores; held is locked.
func letGo(taken []int) error {
	for _, core := range taken {
		if held.cores[core]--; held.cores[core] == 0 {
			delete(held.cores, core)
		}
	}
	if len(held.cores) == 0 && held.procs > 0 {
		if runtime.GOMAXPROCS(0) == held.raised { // or somebody else has set it since
			runtime.GOMAXPROCS(held.procs)
		}
		held.procs = 0
	}
	return shareOut()
}

// shareOut moves the threads that are not pinned to the cores that nobody holds;
// held is locked.
func shareOut() error {
	rest := held.original
	for core := range held.cores {
		rest.Clear(core)
	}
	if rest.Count() == 0 {
		rest = held.original
	}
	for tid := range held.pinned {
		isPinned(tid) // forgets those that have ended
	}
	return moveThreads(&rest, isPinned)
}

// Confine moves all threads of the process to one core, and returns what puts
// them back where the calling thread may run now.
func Confine(core int) (restore func() error, err error) {
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("read the cores that this process may use: %w", err)
	}
	here := only(core)
	if err := moveThreads(&here, nil); err != nil {
		return nil, errors.Join(err, moveThreads(&before, nil))
	}
	return func() error { return moveThreads(&before, nil) }, nil
}

// moveThreads moves every thread that the process has, and those that they start
// meanwhile, which inherit the affinity of whoever starts them: it looks again
// until it finds no thread that it has not moved. But, if not nil, says which to
// leave out.
func moveThreads(to *unix.CPUSet, but func(tid int) bool) error {
	moved := map[int]bool{}
	for again := true; again; {
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list the process's threads: %w", err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || moved[tid] {
				continue
			}
			moved[tid], again = true, true
			if but != nil && but(tid) {
				continue
			}
			if err := unix.SchedSetaffinity(tid, to); err != nil && err != unix.ESRCH {
				return fmt.Errorf("move thread %d to other cores: %w", tid, err)
			}
		}
	}
	return nil
}
