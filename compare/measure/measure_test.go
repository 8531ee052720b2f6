package measure

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

const ms = time.Millisecond

// observed is a second of a server with two threads (10, 11) on core 0 and a
// receive thread (99) on the given cores.
func observed(receiver []int, loops *Loops) (*Observation, *Sample, observe.Snapshot) {
	o := &Observation{target: Target{Core: 0}, threads: []int{10, 11}, napis: []napi.NAPI{{ID: 7, Thread: 99}}, cores: [][]int{receiver}}
	d := observe.Snapshot{
		CPUs: []observe.CPU{
			{ID: 0, Thread: 800 * ms, SoftIRQ: 50 * ms, HardIRQ: 30 * ms, Idle: 120 * ms, Switches: 5000},
			{ID: 1, Thread: 900 * ms},
		},
		Threads: []observe.Thread{
			{ID: 10, Running: 500 * ms, HardIRQ: observe.Tally{Count: 3, Time: 2 * ms}, Deferred: observe.Tally{Count: 1, Time: ms}, Preempted: observe.Tally{Count: 4, Time: 7 * ms}},
			{ID: 11, Running: 20 * ms},
			{ID: 99, Running: 200 * ms, Own: observe.Tally{Time: 10 * ms}},
		},
		Polls: []observe.Polls{
			{NAPI: 7, Poller: observe.PollThread, Budget: 64, Count: 100, Packets: 300, Empty: 10},
			{NAPI: 7, Poller: observe.PollBusy, Budget: 63, Count: 50, Packets: 700},
			{NAPI: 8, Poller: observe.PollBusy, Budget: 63, Count: 9999, Packets: 9999}, // another device's
		},
	}
	return o, &Sample{Elapsed: time.Second, Loops: loops}, d
}

func TestServerPaysForItsThreadsItsReceiveWorkAndInterruptsAndForNobodyElses(t *testing.T) {
	o, s, d := observed([]int{0}, nil)
	o.account(s, d)
	// 800 ms of threads, of which 500+20 are the server's and 200 its receive work.
	if s.Foreign != 80*ms || s.CPU != 800*ms || s.Elsewhere != 0 {
		t.Errorf("foreign %v, CPU %v, elsewhere %v; want 80ms, 800ms, 0", s.Foreign, s.CPU, s.Elsewhere)
	}
	if s.Interruptions != 3+4 || s.Interrupted != (2+1+7)*ms {
		t.Errorf("%d interruptions, %v; want 7 and 10ms", s.Interruptions, s.Interrupted)
	}
	if s.Polls.Packets != 300 || s.BusyPolls.Packets != 700 || s.BusyPolls.Count != 50 {
		t.Errorf("polls %+v, busy %+v: want only those of the server's device", s.Polls, s.BusyPolls)
	}
	c := s.Cost(1000)
	if c.CPU != 800_000 || c.EmptyPolls != nil || c.PacketsPerPoll != 1000.0/150 || c.ContextSwitches != 5 || c.Cycles != nil {
		t.Errorf("cost %+v", c)
	}
}

func TestReceiveWorkOnAnotherCoreIsChargedToTheServerToo(t *testing.T) {
	o, s, d := observed([]int{1}, nil)
	o.account(s, d)
	if s.Foreign != 280*ms || s.Elsewhere != 210*ms || s.CPU != 600*ms+210*ms {
		t.Errorf("foreign %v, elsewhere %v, CPU %v; want 280ms, 210ms, 810ms", s.Foreign, s.Elsewhere, s.CPU)
	}
}

// A NIC whose receive work has no thread does it where it interrupts.
func TestReceiveWorkOfAnInterruptOnAnotherCoreIsChargedToTheServerToo(t *testing.T) {
	o, s, d := observed([]int{1}, nil)
	o.napis = []napi.NAPI{{ID: 7, IRQ: 40}}
	o.apart = []int{1}
	d.Threads = d.Threads[:2]
	d.CPUs[1].Interrupts[observe.DeviceInterrupt].Time = 30 * ms
	d.CPUs[1].Interrupts[observe.TimerInterrupt].Time = 500 * ms
	d.CPUs[1].SoftIRQs[observe.SoftIRQNetRX].Time = 90 * ms
	d.CPUs[1].SoftIRQs[observe.SoftIRQRCU].Time = 500 * ms
	o.account(s, d)
	if s.Foreign != 280*ms || s.Elsewhere != 120*ms || s.CPU != 600*ms+120*ms {
		t.Errorf("foreign %v, elsewhere %v, CPU %v; want 280ms, 120ms, 720ms", s.Foreign, s.Elsewhere, s.CPU)
	}
}

func TestAServerIsAllProcessesOfItsSession(t *testing.T) {
	leader := exec.Command("sh", "-c", "sleep 60 & sleep 60 & wait")
	leader.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-leader.Process.Pid, syscall.SIGKILL); leader.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * ms) {
		list, err := tasks(leader.Process.Pid)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("threads %v, %v; want three", list, err)
		}
		if len(list) == 3 && list[0] == leader.Process.Pid {
			break
		}
	}
	// One that leads no session is itself.
	list, err := tasks(os.Getpid())
	if own, _ := threads(os.Getpid()); err != nil || len(list) > len(own)+2 || len(list) == 0 {
		t.Errorf("threads of this process: %v, %v; want %v", list, err, own)
	}
}

func TestPollsInVainAreKeptApart(t *testing.T) {
	// Of 800 ms awake the loop was busy for 200.
	o, s, d := observed([]int{0}, &Loops{Busy: 200 * ms, Slept: 200 * ms})
	o.account(s, d)
	if want := 390 * ms; s.Empty != want { // three quarters of the 520 ms that its threads ran
		t.Errorf("%v of polls in vain, want %v", s.Empty, want)
	}
	if c := s.Cost(1000); c.CPU != 410_000 || c.EmptyPolls == nil || *c.EmptyPolls != 390_000 {
		t.Errorf("cost %+v", c)
	}
	o, s, d = observed([]int{0}, &Loops{Kernel: true, Busy: 200 * ms})
	if o.account(s, d); s.Empty != 0 || s.Cost(1000).EmptyPolls != nil {
		t.Errorf("%v of polls in vain on the kernel path, which cannot tell", s.Empty)
	}
}

func TestWithoutRequestsThereIsNoCostPerRequest(t *testing.T) {
	o, s, d := observed([]int{0}, nil)
	o.account(s, d)
	if c := s.Cost(0); c.CPU != 0 {
		t.Errorf("cost %+v", c)
	}
}

func TestLoopsAreReadFromMetrics(t *testing.T) {
	const user = `# TYPE pollux_iterations_total counter
pollux_iterations_total{shard="0"} 1e6
pollux_iterations_total{shard="1"} 5
# TYPE pollux_empty_polls_total counter
pollux_empty_polls_total{shard="0"} 900000
# TYPE pollux_busy_seconds_total counter
pollux_busy_seconds_total{shard="0"} 1.5
# TYPE pollux_slept_seconds_total counter
pollux_slept_seconds_total{shard="0"} 0.25
# TYPE pollux_sleeps_total counter
pollux_sleeps_total{shard="0"} 12
# TYPE pollux_mode gauge
pollux_mode{mode="adaptive",shard="0"} 1
`
	const kernel = `# TYPE pollux_epoll_waits_total counter
pollux_epoll_waits_total{shard="0"} 10
# TYPE pollux_epoll_waits_blocking_total counter
pollux_epoll_waits_blocking_total{shard="0"} 4
# TYPE pollux_reads_total counter
pollux_reads_total{shard="0"} 20
# TYPE pollux_writes_total counter
pollux_writes_total{shard="0"} 30
`
	for text, want := range map[string]Loops{
		user:   {Mode: "adaptive", Iterations: 1_000_005, EmptyPolls: 900_000, Sleeps: 12, Busy: 1500 * ms, Slept: 250 * ms},
		kernel: {Kernel: true, Waits: 10, Blocking: 4, Calls: 60},
	} {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := loopsOf(families, "pollux_"); got != want {
			t.Errorf("read %+v, want %+v", got, want)
		}
	}
}

func TestBusyPollPacketsAreReadFromTheRightColumn(t *testing.T) {
	const text = "TcpExt: SyncookiesSent BusyPollRxPackets TCPAutoCorking\nTcpExt: 1 42 3\nIpExt: BusyPollRxPackets\nIpExt: 7\n"
	if n, err := counterOf(text, "TcpExt:", "BusyPollRxPackets"); err != nil || n != 42 {
		t.Errorf("read %d, %v; want 42", n, err)
	}
	if _, err := counterOf(text, "TcpExt:", "Nothing"); err == nil {
		t.Error("a counter that does not exist was read")
	}
	if _, err := busyPollPackets("/proc/net/netstat"); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}

func TestSystemCallsOfAProcessAreCountedAndNotOthers(t *testing.T) {
	asleep := exec.Command("sleep", "60")
	if err := asleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { asleep.Process.Kill(); asleep.Wait() }()
	stop, made := make(chan struct{}), make(chan uint64)
	go func() {
		n := uint64(0)
		for {
			select {
			case <-stop:
				made <- n
				return
			default:
				unix.Getppid()
				n++
			}
		}
	}()
	time.Sleep(50 * ms) // sleep has reached its sleep
	calls, elapsed, err := Syscalls(os.Getpid(), 50*ms)
	if err != nil || calls == 0 || elapsed < 50*ms {
		t.Errorf("%d calls of this process within %v, %v; want many", calls, elapsed, err)
	}
	calls, _, err = Syscalls(asleep.Process.Pid, 50*ms)
	close(stop)
	if n := <-made; err != nil || calls > 2 || n == 0 {
		t.Errorf("%d calls of a process asleep, %v; this one made %d", calls, err, n)
	}
}

func TestHardwareCountersCountOrSayWhyNot(t *testing.T) {
	err := Hardware(0)
	if err != nil {
		if !strings.Contains(err.Error(), "counter") {
			t.Errorf("no hardware counters, because: %v", err)
		}
		return
	}
	c, err := openCounters(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	before, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * ms)
	if after, err := c.read(); err != nil || after.Instructions < before.Instructions {
		t.Errorf("instructions %d, then %d, %v", before.Instructions, after.Instructions, err)
	}
}
