package compare

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/measure"
)

// wrapped is a server that a shell has started, as --server may be.
func wrapped(t *testing.T, script string) (c *child, server int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pid")
	c, err := start((*exec.Cmd).Start, t.TempDir(), "server", 0, []string{"sh", "-c", strings.ReplaceAll(script, "FILE", file)}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(file)
		if server, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			return c, server
		}
		if time.Now().After(deadline) {
			t.Fatal(c.explain(os.ErrDeadlineExceeded))
		}
	}
}

func TestAServerThatAShellHasStartedEndsWithIt(t *testing.T) {
	for name, script := range map[string]string{
		"in the shell's group":     "sleep 1000 & echo $! > FILE; wait",
		"in a group of its own":    "set -m; sleep 1000 & echo $! > FILE; wait",
		"left behind by its shell": "sleep 1000 & echo $! > FILE",
	} {
		t.Run(name, func(t *testing.T) {
			c, server := wrapped(t, script)
			for range 2 {
				if err := c.stop(); err != nil {
					t.Error(err)
				}
			}
			if list, err := measure.Session(c.pid()); err != nil || len(list) > 0 {
				t.Errorf("left: %v, %v", list, err)
			}
			// A zombie, which whoever adopts it may not have seen yet, has ended.
			if b, err := os.ReadFile("/proc/" + strconv.Itoa(server) + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") && strings.Contains(string(b), "(sleep)") {
				t.Errorf("the server is left: %s", b)
			}
		})
	}
}

func TestTheNiceValueOfAllThatServesIsReadBack(t *testing.T) {
	c, _ := wrapped(t, "nice -n 7 sleep 1000 & echo $! > FILE; wait")
	want := strconv.Itoa(highest + 7)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := c.priority("kernel")
		if s.Value == want && s.Where == "kernel path, server" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want %s", s, want)
		}
	}
	if err := syscall.Kill(c.pid(), 0); err != nil {
		t.Error(err)
	}
}
