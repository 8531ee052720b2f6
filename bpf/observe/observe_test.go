package observe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pollux-net/pollux/bpf/internal/testnet"
	"golang.org/x/sys/unix"
)

// TestMain is also the process that a test kills.
func TestMain(m *testing.M) {
	if os.Getenv("POLLUX_OBSERVE_AND_WAIT") != "" {
		o, err := Start(Config{Threads: []int{os.Getpid()}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(programs(o))
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// programs lists the identities of an observer's programs.
func programs(o *Observer) string {
	var ids []string
	for _, p := range o.objects.Programs {
		info, err := p.Info()
		if err != nil {
			return err.Error()
		}
		id, _ := info.ID()
		ids = append(ids, strconv.Itoa(int(id)))
	}
	return "programs " + strings.Join(ids, " ")
}

func start(t testing.TB, c Config) *Observer {
	t.Helper()
	testnet.NeedRoot(t)
	o, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func read(t testing.TB, o *Observer) Snapshot {
	t.Helper()
	s, err := o.Read()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A worker is a thread of its own on one processor that does what it is told.
type worker struct {
	tid  int
	work chan func()
	done chan struct{}
}

// newWorker starts one. With a priority above 0 nothing but the kernel's own
// business and higher priorities runs there while the worker does (SCHED_FIFO).
func newWorker(t testing.TB, cpu int, priority uint32) *worker {
	t.Helper()
	w := &worker{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		w.tid = unix.Gettid()
		var set unix.CPUSet
		set.Set(cpu)
		err := unix.SchedSetaffinity(0, &set)
		if priority > 0 {
			err = errors.Join(err, unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}, 0))
		}
		ready <- err
		for f := range w.work {
			f()
			w.done <- struct{}{}
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(w.work) })
	return w
}

func (w *worker) start(f func()) { w.work <- f }
func (w *worker) wait()          { <-w.done }
func (w *worker) do(f func())    { w.start(f); w.wait() }

// newSpinner starts a process that wants a processor for itself, at a real-time
// priority, and makes no system call. (A goroutine would not do: now and then the
// Go scheduler stops one that does not stop by itself.) It ends with the test, or
// by itself after some seconds.
func newSpinner(t *testing.T, cpu int, priority uint32) (tid int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 20000000 ]; do i=$((i+1)); done")
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	tid = cmd.Process.Pid
	var set unix.CPUSet
	set.Set(cpu)
	must(t, unix.SchedSetaffinity(tid, &set))
	must(t, unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}, 0))
	return tid
}

// undisturbed tries until the rest of the machine lets it: f returns what was
// wrong that others may be the cause of, or "". (The kernel gives threads that are
// not real-time their share now and then, and programs miss some events: see
// Start.)
func undisturbed(t *testing.T, f func() string) {
	t.Helper()
	var wrong string
	for range 10 {
		if wrong = f(); wrong == "" || t.Failed() {
			return
		}
		t.Log(wrong)
	}
	t.Errorf("ten times: %s", wrong)
}

func twoCPUs(t testing.TB) (a, b int) {
	t.Helper()
	cpus := testnet.Usable(t)
	if len(cpus) < 2 {
		t.Skip("needs two processors")
	}
	return cpus[0], cpus[1]
}

func TestEveryNanosecondIsCountedOnce(t *testing.T) {
	o := start(t, Config{})
	before := time.Now()
	first := read(t, o)
	begun := time.Now()
	for i := range 1000 { // something of everything
		if i%100 == 0 {
			time.Sleep(time.Millisecond)
		}
		runtime.Gosched()
	}
	ended := time.Now()
	second := read(t, o)
	after := time.Now()
	d := second.Sub(first)
	if len(d.CPUs) == 0 {
		t.Fatal("no processors")
	}
	for _, c := range d.CPUs {
		if first.CPUs[c.ID].Total() == 0 {
			continue // not online
		}
		// A read leaves the last stretch to the next.
		shortest, longest := ended.Sub(begun)-2*unsettled, after.Sub(before)+2*unsettled
		if c.Total() < shortest || c.Total() > longest {
			t.Errorf("processor %d: %v in all between reads %v to %v apart: %+v", c.ID, c.Total(), shortest, longest, c)
		}
	}
	if total := d.Total(); total.Switches == 0 || total.Thread == 0 || total.Interrupts[TimerInterrupt].Count == 0 && runtime.GOARCH == "amd64" {
		t.Errorf("a busy process, and nothing happened: %+v", total)
	}
}

// fallen returns what is less than nothing in a difference.
func fallen(d Snapshot) (wrong []string) {
	check := func(what string, n int64) {
		if n < 0 {
			wrong = append(wrong, fmt.Sprintf("%s fell by %d", what, -n))
		}
	}
	tally := func(what string, t Tally) {
		check(what+" count", int64(t.Count))
		check(what+" time", int64(t.Time))
	}
	for _, c := range d.CPUs {
		at := fmt.Sprintf("processor %d ", c.ID)
		check(at+"thread", int64(c.Thread))
		check(at+"hardirq", int64(c.HardIRQ))
		check(at+"softirq", int64(c.SoftIRQ))
		check(at+"idle", int64(c.Idle))
		check(at+"switches", int64(c.Switches))
		check(at+"preemptions", int64(c.Preemptions))
		for k, i := range c.Interrupts {
			tally(at+Interrupt(k).String(), i)
		}
		for k, i := range c.SoftIRQs {
			tally(at+SoftIRQ(k).String(), i)
		}
	}
	for _, th := range d.Threads {
		at := fmt.Sprintf("thread %d ", th.ID)
		check(at+"running", int64(th.Running))
		tally(at+"hardirq", th.HardIRQ)
		tally(at+"deferred", th.Deferred)
		tally(at+"own", th.Own)
		tally(at+"preempted", th.Preempted)
		check(at+"switches", int64(th.Switches))
	}
	for _, p := range d.Polls {
		check(fmt.Sprintf("polls %+v", p), int64(min(p.Count, p.Empty, p.Full, p.Packets)))
		if p.Empty+p.Full > p.Count || p.Packets < p.Full*uint64(p.Budget) {
			wrong = append(wrong, fmt.Sprintf("polls do not add up: %+v", p))
		}
	}
	return wrong
}

func TestNumbersNeverFall(t *testing.T) {
	testnet.NeedRoot(t)
	w := newWorker(t, testnet.Usable(t)[0], 0)
	o := start(t, Config{Threads: []int{w.tid}})
	var stop atomic.Bool
	w.start(func() { // sleeps, computes and sends over loopback
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return
		}
		defer c.Close()
		for !stop.Load() {
			_, _ = c.Write([]byte("pollux"))
			time.Sleep(10 * time.Microsecond)
		}
	})
	previous := read(t, o)
	for range 2000 {
		s := read(t, o)
		for _, wrong := range fallen(s.Sub(previous)) {
			t.Error(wrong)
		}
		previous = s
	}
	stop.Store(true)
	w.wait()
}

// table reads /proc/softirqs or /proc/interrupts: by name, then by processor.
func table(t *testing.T, name string) map[string]map[int]uint64 {
	t.Helper()
	text, err := os.ReadFile(name)
	must(t, err)
	lines := strings.Split(string(text), "\n")
	var cpus []int
	for _, f := range strings.Fields(lines[0]) {
		n, err := strconv.Atoi(strings.TrimPrefix(f, "CPU"))
		must(t, err)
		cpus = append(cpus, n)
	}
	all := map[string]map[int]uint64{}
	for _, line := range lines[1:] {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < len(cpus) {
			continue
		}
		row := map[int]uint64{}
		for i, cpu := range cpus {
			if row[cpu], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
				t.Fatalf("%s: %q: %v", name, line, err)
			}
		}
		all[strings.TrimSpace(name)] = row
	}
	return all
}

// TestTheKernelCountsTheSame takes the kernel's own counters just outside two
// reads and just inside them: what is read is in between.
func TestTheKernelCountsTheSame(t *testing.T) {
	o := start(t, Config{})
	undisturbed(t, func() string { return kernelCounts(t, o) })
}

func kernelCounts(t *testing.T, o *Observer) (missed string) {
	t.Helper()
	for _, c := range []struct {
		file  string
		names map[string]func(CPU) uint64
	}{
		{"/proc/softirqs", map[string]func(CPU) uint64{
			"NET_RX": func(c CPU) uint64 { return c.SoftIRQs[SoftIRQNetRX].Count },
			"TIMER":  func(c CPU) uint64 { return c.SoftIRQs[SoftIRQTimer].Count },
			"SCHED":  func(c CPU) uint64 { return c.SoftIRQs[SoftIRQSched].Count },
			"RCU":    func(c CPU) uint64 { return c.SoftIRQs[SoftIRQRCU].Count },
		}},
		{"/proc/interrupts", map[string]func(CPU) uint64{
			"LOC": func(c CPU) uint64 { return c.Interrupts[TimerInterrupt].Count },
			"RES": func(c CPU) uint64 { return c.Interrupts[RescheduleInterrupt].Count },
			"CAL": func(c CPU) uint64 { return c.Interrupts[CallInterrupt].Count },
		}},
	} {
		if runtime.GOARCH != "amd64" && c.file == "/proc/interrupts" {
			continue
		}
		kernel0 := table(t, c.file)
		read0 := read(t, o)
		kernel1 := table(t, c.file)
		for range 50 { // some of each
			out, err := exec.Command("true").CombinedOutput()
			if err != nil {
				t.Fatal(err, string(out))
			}
			l, err := net.ListenPacket("udp", "127.0.0.1:0")
			must(t, err)
			_, err = l.WriteTo([]byte("pollux"), l.LocalAddr())
			must(t, errors.Join(err, l.Close()))
		}
		kernel2 := table(t, c.file)
		read1 := read(t, o)
		kernel3 := table(t, c.file)
		for name, of := range c.names {
			counted := uint64(0)
			for _, cpu := range read1.Sub(read0).CPUs {
				n := of(cpu)
				counted += n
				least := kernel2[name][cpu.ID] - kernel1[name][cpu.ID]
				most := kernel3[name][cpu.ID] - kernel0[name][cpu.ID]
				// One that is just happening is in one of the two already.
				if n > most+1 {
					t.Errorf("%s on processor %d: counted %d, the kernel only %d", name, cpu.ID, n, most)
				}
				if n+1 < least {
					missed = fmt.Sprintf("%s on processor %d: counted %d, the kernel %d", name, cpu.ID, n, least)
				}
			}
			if counted == 0 && (name == "NET_RX" || name == "LOC") {
				t.Errorf("none of %s was counted", name)
			}
		}
	}
	return missed
}

// switches reads a thread's context switches as the kernel counts them.
func switches(t *testing.T, tid int) (total, involuntary uint64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.HasSuffix(name, "voluntary_ctxt_switches") {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		must(t, err)
		total += n
		if strings.HasPrefix(name, "non") {
			involuntary = n
		}
	}
	return total, involuntary
}

func TestAThreadsSwitchesAndTimeAreTheKernels(t *testing.T) {
	testnet.NeedRoot(t)
	w := newWorker(t, testnet.Usable(t)[0], 0)
	o := start(t, Config{Threads: []int{w.tid}})
	cpuTime := func() (at time.Duration) {
		w.do(func() {
			var ts unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
				t.Error(err)
			}
			at = time.Duration(ts.Nano())
		})
		return at
	}
	// The worker waits for a channel, in Go's way: parked. Give it time to.
	parked := func() (uint64, uint64) {
		total, involuntary := switches(t, w.tid)
		for {
			time.Sleep(20 * time.Millisecond)
			again, i := switches(t, w.tid)
			if again == total {
				return total, involuntary
			}
			total, involuntary = again, i
		}
	}
	undisturbed(t, func() string { return switchesAndTime(t, w, o, cpuTime, parked) })
}

func switchesAndTime(t *testing.T, w *worker, o *Observer, cpuTime func() time.Duration, parked func() (uint64, uint64)) string {
	t.Helper()
	time0 := cpuTime()
	total0, involuntary0 := parked()
	before := read(t, o)
	w.do(func() {
		for range 100 {
			time.Sleep(50 * time.Microsecond)
			ts := unix.Timespec{Nsec: 1000}
			_ = unix.Nanosleep(&ts, nil)
			for end := time.Now().Add(500 * time.Microsecond); time.Now().Before(end); {
			}
		}
	})
	total1, involuntary1 := parked()
	d := read(t, o).Sub(before).Threads[0]
	time1 := cpuTime()
	if d.ID != w.tid {
		t.Errorf("thread %d, want %d", d.ID, w.tid)
	}
	if d.Switches > total1-total0 {
		t.Errorf("%d switches, the kernel counts %d", d.Switches, total1-total0)
	}
	if d.Switches < total1-total0 {
		return fmt.Sprintf("%d switches, the kernel counts %d", d.Switches, total1-total0)
	}
	// A preemption just as a thread was going to sleep is voluntary to the kernel.
	if p := d.Preempted.Count; p < involuntary1-involuntary0 || p > d.Switches {
		return fmt.Sprintf("%d preemptions of %d switches, the kernel counts %d", p, d.Switches, involuntary1-involuntary0)
	}
	if (d.Preempted.Count == 0) != (d.Preempted.Time == 0) {
		t.Errorf("preempted %+v", d.Preempted)
	}
	// The kernel's time has that of interrupts in it, but not what a hypervisor
	// took; and the two readings above.
	ours, kernels := d.Running+d.HardIRQ.Time+d.Deferred.Time+d.Own.Time, time1-time0
	if ours < kernels*8/10-time.Millisecond {
		t.Errorf("%v on processors, the kernel says %v", ours, kernels)
	}
	if d.Running == 0 || d.Running > ours {
		t.Errorf("running %v of %v", d.Running, ours)
	}
	t.Logf("%v of the kernel's %v; %+v", ours, kernels, d)
	return ""
}

// TestInterruptionsOfAThreadAreCounted interrupts a thread that keeps its
// processor, from another, a known number of times.
func TestInterruptionsOfAThreadAreCounted(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("calls between processors are seen on x86 only")
	}
	testnet.NeedRoot(t)
	here, there := twoCPUs(t)
	const times = 500
	victim := newSpinner(t, there, 50)
	bystander, culprit := newWorker(t, here, 0), newWorker(t, here, 0)
	o := start(t, Config{Threads: []int{victim, bystander.tid}})
	undisturbed(t, func() string {
		before := read(t, o)
		culprit.do(func() {
			for range times {
				if _, err := o.objects.Programs[observeProgKick].Run(&ebpf.RunOptions{CPU: uint32(there), Flags: unix.BPF_F_TEST_RUN_ON_CPU}); err != nil {
					t.Error(err)
				}
			}
		})
		d := read(t, o).Sub(before)
		v, b, cpu := d.Threads[0], d.Threads[1], d.CPUs[there]
		if v.HardIRQ.Time > cpu.HardIRQ || v.HardIRQ.Count > sum(cpu.Interrupts) {
			t.Errorf("a thread %+v has more than its processor %+v", v, cpu)
		}
		if i := v.Interrupted(); i.Count != v.HardIRQ.Count || i.Time != v.HardIRQ.Time+v.Deferred.Time {
			t.Errorf("Interrupted %+v of %+v", i, v)
		}
		if b.Running != 0 || b.Switches != 0 || b.HardIRQ.Count != 0 {
			t.Errorf("a thread that did nothing: %+v", b)
		}
		if v.Switches != 0 || v.Running == 0 {
			return fmt.Sprintf("the thread did not keep its processor: %+v", v)
		}
		if calls := cpu.Interrupts[CallInterrupt]; calls.Count < times || calls.Time <= 0 {
			return fmt.Sprintf("%d calls to processor %d, counted %+v", times, there, calls)
		}
		if v.HardIRQ.Count < times || v.HardIRQ.Time <= 0 {
			return fmt.Sprintf("interrupted %d times, counted %+v", times, v)
		}
		// It had the processor throughout: all time is the thread's or was taken
		// from it.
		if all := v.Running + v.HardIRQ.Time + v.Deferred.Time + v.Own.Time; all != cpu.Total() || cpu.Idle != 0 {
			t.Errorf("thread %+v has %v of the %v of its processor %+v", v, all, cpu.Total(), cpu)
		}
		t.Logf("%+v", v)
		return ""
	})
}

func sum(tallies [interrupts]Tally) (n uint64) {
	for _, t := range tallies {
		n += t.Count
	}
	return n
}

func TestWhatASoftIRQCostsIsTheSendersOrTheInterrupteds(t *testing.T) {
	n := testnet.New(t, 1)
	here, there := twoCPUs(t)
	const datagrams = 400
	sender, victim := newWorker(t, here, 50), newSpinner(t, there, 50)
	o := start(t, Config{Threads: []int{sender.tid, victim}})
	_, port := testnet.Receiver(t, n.Server, unix.SOCK_DGRAM, netip.MustParseAddrPort("127.0.0.1:0"))
	c := testnet.Connect(t, n.Server, unix.SOCK_DGRAM, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	defer unix.Close(c)
	send := func() (d Snapshot, s, v Thread) {
		t.Helper()
		before := read(t, o)
		sender.do(func() {
			for range datagrams {
				if _, err := unix.Write(c, []byte("pollux")); err != nil {
					t.Error(err)
				}
				for end := time.Now().Add(20 * time.Microsecond); time.Now().Before(end); {
				}
			}
		})
		d = read(t, o).Sub(before)
		return d, d.Threads[0], d.Threads[1]
	}

	// Loopback hands a datagram over in a softirq at the end of the sender's own
	// system call.
	undisturbed(t, func() string {
		d, s, v := send()
		if s.Own.Count < datagrams*9/10 || s.Own.Time <= 0 || v.Own.Count+v.Deferred.Count >= datagrams/2 {
			return fmt.Sprintf("%d datagrams of a thread to itself, counted for it %+v and for another %+v", datagrams, s, v)
		}
		if got := d.CPUs[here].SoftIRQs[SoftIRQNetRX]; got.Count < datagrams || got.Time <= 0 {
			return fmt.Sprintf("sent %d datagrams, counted %+v", datagrams, got)
		}
		for _, p := range d.Polls {
			if p.NAPI == 0 && p.Device == "" && p.Budget == 64 && p.Poller == PollSoftIRQ && p.Packets >= datagrams && p.Count >= datagrams {
				return ""
			}
		}
		return fmt.Sprintf("sent %d datagrams, polled %+v", datagrams, d.Polls)
	})

	// Receive work sent elsewhere (RPS) interrupts whoever runs there. (The
	// sender's own softirq then only sends it there.)
	if runtime.GOARCH != "amd64" {
		return
	}
	if there >= 32 {
		t.Skip("needs a processor below 32")
	}
	testnet.Run(t, "ip netns exec %s sh %s %x", n.Server, script(t, "echo $1 > /sys/class/net/lo/queues/rx-0/rps_cpus"), 1<<there)
	undisturbed(t, func() string {
		_, s, v := send()
		if v.HardIRQ.Count < datagrams/2 || v.Deferred.Count < datagrams/2 || v.Interrupted().Time <= v.HardIRQ.Time {
			return fmt.Sprintf("%d datagrams for a processor that a thread keeps, counted for it %+v", datagrams, v)
		}
		t.Logf("sender %+v, victim %+v", s, v)
		return ""
	})
}

func script(t *testing.T, line string) string {
	t.Helper()
	name := t.TempDir() + "/script"
	must(t, os.WriteFile(name, []byte(line+"\n"), 0o600))
	return name
}

func TestPreemptionsAndTheirTimeAreCounted(t *testing.T) {
	testnet.NeedRoot(t)
	cpu := testnet.Usable(t)[0]
	const times = 50
	victim, culprit := newSpinner(t, cpu, 50), newWorker(t, cpu, 60)
	o := start(t, Config{Threads: []int{victim, culprit.tid}, CPUs: []int{cpu}})
	undisturbed(t, func() string {
		before := read(t, o)
		var taken time.Duration
		culprit.do(func() {
			for range times {
				ts := unix.Timespec{Nsec: 500_000}
				_ = unix.Nanosleep(&ts, nil)
				begin := time.Now()
				for time.Since(begin) < 100*time.Microsecond {
				}
				taken += time.Since(begin)
			}
		})
		// A wait counts when it is over: let the thread run again.
		ran := read(t, o).Sub(before).Threads[0].Running
		for range 1000 {
			if read(t, o).Sub(before).Threads[0].Running > ran {
				break
			}
			time.Sleep(time.Millisecond)
		}
		d := read(t, o).Sub(before)
		if len(d.CPUs) != 1 || d.CPUs[0].ID != cpu {
			t.Fatalf("observed %+v, want processor %d only", d.CPUs, cpu)
		}
		v, c, p := d.Threads[0], d.Threads[1], d.CPUs[0]
		if v.Switches < v.Preempted.Count || p.Preemptions < v.Preempted.Count || p.Switches < v.Switches+c.Switches {
			t.Errorf("does not add up: %+v, %+v, processor %+v", v, c, p)
		}
		if v.Preempted.Count < times || v.Preempted.Time < taken {
			return fmt.Sprintf("preempted %d times for %v, counted %+v", times, taken, v)
		}
		// And the other one went by itself.
		if c.Switches < times || c.Preempted.Count > c.Switches-times || c.Running == 0 {
			return fmt.Sprintf("slept %d times, counted %+v", times, c)
		}
		return ""
	})
}

func TestWhoPollsANAPIIsToldApart(t *testing.T) {
	n := testnet.New(t, 1)
	o := start(t, Config{})
	fd, port := testnet.Receiver(t, n.Server, unix.SOCK_DGRAM, netip.AddrPortFrom(testnet.ServerIPv4, 0))
	c := testnet.Connect(t, n.Client, unix.SOCK_DGRAM, netip.AddrPortFrom(testnet.ServerIPv4, port))
	defer unix.Close(c)
	var napi uint32
	exchange := func() {
		t.Helper()
		if _, err := unix.Write(c, []byte("pollux")); err != nil {
			t.Fatal(err)
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for i := 0; ; i++ {
			got, err := unix.Poll(p, 1000)
			if err != nil && err != unix.EINTR || i == 30 {
				t.Fatalf("no datagram within 30 s: %v", err)
			}
			if got == 1 {
				break
			}
		}
		if _, err := unix.Read(fd, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		id, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
		must(t, err)
		napi = uint32(id)
	}
	exchange() // ARP too
	of := func(d Snapshot, poller Poller, budget int) (total Polls) {
		for _, p := range d.Polls {
			if p.NAPI == napi && p.Poller == poller && p.Budget == budget {
				if p.Device != testnet.ServerDevice || p.Index == 0 {
					t.Errorf("NAPI %d is not one of %s: %+v", napi, testnet.ServerDevice, p)
				}
				return p
			}
		}
		return total
	}
	const datagrams = 100

	before := read(t, o)
	for range datagrams {
		exchange()
	}
	d := read(t, o).Sub(before)
	if p := of(d, PollSoftIRQ, 64); p.Packets < datagrams || p.Count == 0 || p.Count > p.Packets+p.Empty {
		t.Errorf("%d datagrams through softirqs: %+v", datagrams, d.Polls)
	}
	if p := of(d, PollThread, 64); p.Count != 0 {
		t.Errorf("polled by a thread that there is not: %+v", p)
	}

	testnet.Run(t, "ip netns exec %s sh %s", n.Server, script(t, "echo 1 > /sys/class/net/"+testnet.ServerDevice+"/threaded"))
	exchange() // the last one that a softirq may take
	before = read(t, o)
	for range datagrams {
		exchange()
	}
	d = read(t, o).Sub(before)
	if p := of(d, PollThread, 64); p.Packets < datagrams {
		t.Errorf("%d datagrams through the NAPI's own thread: %+v", datagrams, d.Polls)
	}
	if p := of(d, PollSoftIRQ, 64); p.Count != 0 {
		t.Errorf("polled by a softirq besides: %+v", p)
	}

	// A thread that polls busily, with a budget of its own.
	const budget = 7
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL, 2000))
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL_BUDGET, budget))
	before = read(t, o)
	w := newWorker(t, testnet.Usable(t)[0], 0)
	w.do(func() {
		// Nothing is there: so the read polls, until there is or it has been long
		// enough.
		must := func(err error) {
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Error(err)
			}
		}
		must(unix.SetNonblock(fd, false))
		must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
		_, err := unix.Read(fd, make([]byte, 16))
		must(err)
	})
	d = read(t, o).Sub(before)
	// A host may say something of its own meanwhile (it reports the groups that it
	// listens to); that is found by as many polls at most.
	if p := of(d, PollBusy, budget); p.Empty == 0 || p.Packets > 4 || p.Count > p.Empty+p.Packets {
		t.Errorf("a busy poll of nothing with a budget of %d: %+v", budget, d.Polls)
	}
	if p := d.PolledBy(PollBusy); p.Count < of(d, PollBusy, budget).Count {
		t.Errorf("all busy polls %+v, of %+v", p, d.Polls)
	}
}

func TestAProcessorThatIsNotObservedIsNotThere(t *testing.T) {
	testnet.NeedRoot(t)
	here, there := twoCPUs(t)
	w := newWorker(t, there, 0)
	o := start(t, Config{CPUs: []int{here}, Threads: []int{w.tid}})
	w.do(func() {
		for end := time.Now().Add(5 * time.Millisecond); time.Now().Before(end); {
		}
	})
	s := read(t, o)
	if len(s.CPUs) != 1 || s.CPUs[0].ID != here {
		t.Errorf("observed %+v, want processor %d only", s.CPUs, here)
	}
	if th := s.Threads[0]; th.Running != 0 || th.Switches != 0 {
		t.Errorf("a thread on a processor that is not observed: %+v", th)
	}
}

func TestStartRefusesWhatCannotBe(t *testing.T) {
	testnet.NeedRoot(t)
	many := make([]int, MaxThreads+1)
	for i := range many {
		many[i] = i + 1
	}
	for _, c := range []struct {
		what, want string
		Config
	}{
		{"processor -1", "no processor -1", Config{CPUs: []int{-1}}},
		{"processor 2^20", "no processor", Config{CPUs: []int{1 << 20}}},
		{"a processor twice", "named twice", Config{CPUs: []int{0, 0}}},
		{"thread 0", "0 is no thread", Config{Threads: []int{0}}},
		{"a thread twice", "named twice", Config{Threads: []int{1, 2, 1}}},
		{"too many threads", "at most 64", Config{Threads: many}},
	} {
		o, err := Start(c.Config)
		if err == nil {
			t.Errorf("%s: no error", c.what)
			_ = o.Close()
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", c.what, err, c.want)
		}
	}
}

// gone waits until none of some programs is loaded: the kernel lets go of one
// some time after its last user did.
func gone(t *testing.T, line string) {
	t.Helper()
	names := strings.Fields(line)
	if len(names) < 10 || names[0] != "programs" {
		t.Fatalf("these are no programs: %q", line)
	}
	for _, name := range names[1:] {
		id, err := strconv.Atoi(name)
		must(t, err)
		for range 1000 {
			var p *ebpf.Program
			if p, err = ebpf.NewProgramFromID(ebpf.ProgramID(id)); err != nil {
				break
			}
			must(t, p.Close())
			time.Sleep(10 * time.Millisecond)
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("program %d is still loaded (%v)", id, err)
		}
	}
}

func TestNothingStaysAfterClose(t *testing.T) {
	testnet.NeedRoot(t)
	o, err := Start(Config{})
	must(t, err)
	loaded := programs(o)
	must(t, o.Close())
	must(t, o.Close()) // again is no harm
	if _, err := o.Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	gone(t, loaded)
}

func TestNothingStaysOfAKilledProcess(t *testing.T) {
	testnet.NeedRoot(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "POLLUX_OBSERVE_AND_WAIT=1")
	// Never written to: the process waits until it is killed, or this one dies.
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	must(t, err)
	gone(t, line)
}
