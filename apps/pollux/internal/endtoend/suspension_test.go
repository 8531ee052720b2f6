package endtoend

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// interrupts is how often the thread that stands for the server's interrupt was
// woken, and how many frames have arrived.
func interrupts(t *testing.T, l *lab.Lab) (woken, frames int) {
	t.Helper()
	err := l.Do(lab.Server, func() error {
		link, err := netlink.LinkByName(lab.ServerInterface)
		if err != nil {
			return err
		}
		frames = int(link.Attrs().Statistics.RxPackets)
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := c.Device(lab.ServerInterface)
		if err != nil {
			return err
		}
		all, err := c.NAPIs(d)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", all[0].Thread))
		if err != nil {
			return err
		}
		woken, err = strconv.Atoi(string(regexp.MustCompile(`\nvoluntary_ctxt_switches:\s*(\d+)`).FindSubmatch(b)[1]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return woken, frames
}

// After a second of silence the server has slept, and its interrupt is on again:
// it, and not the end of a suspension, brings the next request.
func TestKernelPollingSleepsWhenIdleAndIsInterruptedAgain(t *testing.T) {
	l := newLabFor(t, runtime.Kernel, 1)
	// Had the interrupt not come back, a request would wait as long as this.
	const suspend = time.Second
	s := serveMemcached(t, l, plainPollux, memcachedArgs(runtime.KernelPolling, 1, "--path", "kernel", "--irq-suspend-timeout", suspend.String())...)
	conn := connect(t, l, memcached4)
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func() time.Duration {
		asked := time.Now()
		conn.SetDeadline(asked.Add(patience))
		if got := exchange(t, conn, in, "get absent\r\n"); got != "END\r\n" {
			t.Fatalf("the reply is %q", got)
		}
		return time.Since(asked)
	}
	for range 1000 {
		ask()
	}
	time.Sleep(500 * time.Millisecond)
	wokenBefore, framesBefore := interrupts(t, l)
	share := s.share(t, time.Second)
	woken, frames := interrupts(t, l)
	idle, stray := woken-wokenBefore, frames-framesBefore
	t.Logf("idle: %.2f %% of a core, the interrupt came %d times, %d frames arrived", 100*share, idle, stray)
	if share >= 0.01 {
		t.Errorf("an idle server takes %.2f %% of a core, want less than 1", 100*share)
	}
	// A frame that nobody asked for, of neighbour discovery say, is followed by as
	// many polls as must find nothing before the interrupt is on again. A timer
	// that runs on would poll thousands of times.
	settings, err := kernel.SettingsOf(runtime.KernelPolling)
	if err != nil {
		t.Fatal(err)
	}
	if most := 10 + stray*(settings.DeferHardIRQs+1); idle > most {
		t.Errorf("the queue was polled %d times in a second, after %d frames at most %d: its timer runs on", idle, stray, most)
	}
	const requests = 20
	wokenBefore, _ = interrupts(t, l)
	var took []time.Duration
	for range requests {
		time.Sleep(50 * time.Millisecond)
		took = append(took, ask())
	}
	slices.Sort(took)
	// Not the longest: anything may be late on a busy machine.
	median := took[requests/2]
	woken, _ = interrupts(t, l)
	woken -= wokenBefore
	t.Logf("%d requests, the interrupt came %d times, the median took %v and the longest %v", requests, woken, median, took[requests-1])
	if woken < requests {
		t.Errorf("%d requests after a pause each, and the interrupt came %d times", requests, woken)
	}
	if median >= suspend/2 {
		t.Errorf("a request took %v: it waited for the end of the suspension", median)
	}
	s.terminate(t)
}
