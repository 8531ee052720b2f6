package affinity

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// affinities reads what each thread of the process may run on.
func affinities(t *testing.T) map[int]unix.CPUSet {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]unix.CPUSet{}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err == nil {
			all[tid] = set
		}
	}
	return all
}

func TestConfiningMovesEveryThreadAndBackAgain(t *testing.T) {
	cores, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	// Threads that come while others are moved.
	stop := make(chan struct{})
	var starters sync.WaitGroup
	starters.Add(1)
	go func() {
		defer starters.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			var one sync.WaitGroup
			one.Add(1)
			go func() { runtime.LockOSThread(); one.Done() }() // its thread ends with it
			one.Wait()
		}
	}()
	var one, all unix.CPUSet
	one.Set(cores[len(cores)-1])
	for _, core := range cores {
		all.Set(core)
	}
	for range 20 {
		restore, err := Confine(cores[len(cores)-1])
		if err != nil {
			t.Fatal(err)
		}
		for tid, set := range affinities(t) {
			if set != one {
				t.Errorf("thread %d may run on %d cores, confined to one", tid, set.Count())
			}
		}
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		for tid, set := range affinities(t) {
			if set != all {
				t.Errorf("thread %d may run on %d of %d cores again", tid, set.Count(), all.Count())
			}
		}
	}
	close(stop)
	starters.Wait()
}

// A goroutine that was pinned on the process's first thread leaves it behind there,
// bound: the cores of the process are the same as before.
func TestAThreadLeftBehindPinnedDoesNotNarrowTheProcess(t *testing.T) {
	before, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &all); err != nil {
		t.Fatal(err)
	}
	one.Set(before[len(before)-1])
	if err := unix.SchedSetaffinity(os.Getpid(), &one); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(os.Getpid(), &all)
	onAnotherThread(func() {
		if after, err := Allowed(); err != nil || len(after) != len(before) {
			t.Errorf("%v before, %v after, %v", before, after, err)
		}
	})
}

func TestCoresThatCannotBeTakenAreNotHeld(t *testing.T) {
	cores, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	runtime.GOMAXPROCS(1)
	// No thread can be moved to no core at all.
	const somebody = 1000
	held.Lock()
	held.cores, held.original = map[int]int{somebody: 1}, unix.CPUSet{}
	held.Unlock()
	if release, err := KeepOff(cores[:1]); err == nil || release != nil {
		t.Errorf("threads were moved to no core: %v", err)
	}
	held.Lock()
	delete(held.cores, somebody)
	left := len(held.cores)
	held.Unlock()
	if left > 0 {
		t.Errorf("%d cores are held after a failure", left)
	}
	release, err := KeepOff(cores[:1])
	if err != nil {
		t.Fatal(err)
	}
	if n := runtime.GOMAXPROCS(0); n < 2 {
		t.Errorf("GOMAXPROCS is %d with one core taken", n)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("GOMAXPROCS is %d after all cores were given back, was 1", n)
	}
}

func TestOnlyAThreadThatIsStillBoundCountsAsPinned(t *testing.T) {
	cores, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	release, err := KeepOff(cores[:1])
	if err != nil {
		t.Fatal(err)
	}
	var tid int
	pinned, end := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // its thread ends with it
		tid = unix.Gettid()
		pinned <- Pin(cores[0])
		<-end
	}()
	if err := <-pinned; err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil || set != only(cores[0]) {
		t.Errorf("a pinned thread was moved: %v, %v", set, err)
	}
	// Its number may go to another thread, which is not bound: as if this one had
	// been given it.
	if err := unix.SchedSetaffinity(tid, ptr(only(cores[len(cores)-1]))); err != nil {
		t.Fatal(err)
	}
	if release, err = KeepOff(cores[:1]); err != nil {
		t.Fatal(err)
	}
	held.Lock()
	if n := len(held.pinned); n != 0 {
		t.Errorf("%d threads are taken for pinned", n)
	}
	held.Unlock()
	if err := release(); err != nil {
		t.Fatal(err)
	}
	close(end)
}

func ptr[T any](v T) *T { return &v }

// onAnotherThread calls f, but not on the process's first thread.
func onAnotherThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if unix.Gettid() == os.Getpid() {
			onAnotherThread(f) // while this holds the first
			return
		}
		f()
	}()
	<-done
}
