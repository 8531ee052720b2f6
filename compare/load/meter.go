package load

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Client says what the client spent, so that its limit is not taken for the
// server's. Shares are of the measured time, 0 to 1.
type Client struct {
	// Threads of the client, 0 for the reference engine's many goroutines, and
	// the processors that they were pinned to.
	Threads int   `json:"threads"`
	Cores   []int `json:"cores,omitempty"`
	// Busy is how much of its time the busiest thread did something, rather
	// than wait or look in vain, by its own account, with what others took of a
	// thread that polls; for the reference engine the process's CPU time per
	// processor.
	Busy float64 `json:"busy"`
	// CPU is the CPU time of the threads per request, as the scheduler counts
	// it: nanoseconds, with the looking in vain of threads that poll.
	CPU float64 `json:"cpu_ns_per_request"`
	// Stolen is how much of its time the worst off of threads that poll had to
	// leave its processor to others: interrupts, receive work, other programs.
	Stolen float64 `json:"stolen"`
	// CoresBusy is how much of its time the busiest of the client's processors
	// was not idle, whoever used it. It includes the kernel's network work,
	// which no thread is charged for. 0 with threads that poll, where it
	// would be 1.
	CoresBusy float64 `json:"cores_busy"`
	// Bound says that the client had no more to give: the run shows its limit.
	Bound bool `json:"client_bound"`
}

// boundAbove is the share of time from which a client counts as the limit: what
// is left of a processor is then lost to the gaps between requests.
const boundAbove = 0.85

func (c *Client) judge() {
	c.Bound = c.Busy > boundAbove || c.CoresBusy > boundAbove
}

// meter takes the time of processors and of the process.
type meter struct {
	begin   time.Time
	process time.Duration
	idle    map[int]time.Duration // by processor
}

func startMeter() *meter {
	return &meter{begin: time.Now(), process: processTime(), idle: idleTimes()}
}

// coresBusy is how much of the time since the start the busiest of the
// processors was not idle.
func (m *meter) coresBusy(cores []int) (busiest float64) {
	wall := time.Since(m.begin)
	after := idleTimes()
	for _, core := range cores {
		before, ok := m.idle[core]
		if !ok || wall < 100*time.Millisecond {
			continue // the kernel counts in ticks of 10 ms
		}
		busiest = max(busiest, 1-float64(after[core]-before)/float64(wall))
	}
	return max(busiest, 0)
}

// ofProcess is the account of a client without threads of its own.
func (m *meter) ofProcess(requests uint64) Client {
	wall := time.Since(m.begin)
	used := processTime() - m.process
	c := Client{Busy: min(float64(used)/float64(wall)/float64(runtime.GOMAXPROCS(0)), 1)}
	if requests > 0 {
		c.CPU = float64(used) / float64(requests)
	}
	c.judge()
	return c
}

func processTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// idleTimes reads how long each processor has been idle, from /proc/stat
// (proc(5): user, nice, system, idle, iowait, in ticks of 1/100 s).
func idleTimes() map[int]time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil
	}
	const tick = 10 * time.Millisecond
	times := make(map[int]time.Duration)
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) < 6 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		core, err := strconv.Atoi(fields[0][len("cpu"):])
		if err != nil {
			continue // the sum of all
		}
		idle, _ := strconv.ParseInt(fields[4], 10, 64)
		waiting, _ := strconv.ParseInt(fields[5], 10, 64)
		times[core] = time.Duration(idle+waiting) * tick
	}
	return times
}
