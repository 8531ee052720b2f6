package forward

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/bpf/trio"
	"golang.org/x/sys/unix"
)

// threaded gives a host's interface a kernel thread to receive with, and returns
// the thread.
func threaded(t *testing.T, h *trio.Host, device string) int {
	t.Helper()
	before, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, f := range before {
		known[f] = true
	}
	cmd := exec.Command("sh", "-c", "echo 1 > /sys/class/net/"+device+"/threaded")
	if err := errors.Join(h.Start(cmd), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	after, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range after {
		comm, err := os.ReadFile(f)
		if err == nil && !known[f] && strings.HasPrefix(string(comm), "napi/"+device) {
			id, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
	}
	t.Fatalf("%s has no thread", device)
	return 0
}

func TestFramesThatAnOutputHasNoRoomForAreCounted(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	receiver := threaded(t, n.Server, "server0")
	f := attach(t, n)
	server := n.ServerPort.V4.Addr()
	n.Client.Run(t, "ping", "-c", "2", "-i", "0.01", "-W", "5", server.String())
	before := counters(t, f)
	n.Client.Must(t, func() error {
		// The receiver may run when nobody else wants to, on this processor, which
		// somebody does.
		var here unix.CPUSet
		if err := unix.SchedGetaffinity(0, &here); err != nil {
			return err
		}
		var one unix.CPUSet
		for cpu := range runtime.NumCPU() * 64 {
			if here.IsSet(cpu) {
				one.Set(cpu)
				break
			}
		}
		if err := errors.Join(unix.SchedSetaffinity(0, &one), unix.SchedSetaffinity(receiver, &one),
			unix.SchedSetAttr(receiver, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)); err != nil {
			return err
		}
		out, err := socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		for range 20000 {
			if err := unix.Sendto(out, []byte("more"), 0, sockaddr(server, 9)); err != nil && err != unix.ECONNREFUSED {
				return err
			}
		}
		return nil
	})
	c := counters(t, f).since(before)
	t.Logf("%d sent:%s", c.Sent(), c)
	if c[QueueFull].Frames == 0 || c[QueueFull].Frames+c.Sent() != c[Forwarded].Frames {
		t.Errorf("%d sent:%s; want queue-full", c.Sent(), c)
	}
}
