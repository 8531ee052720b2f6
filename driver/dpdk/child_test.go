package dpdk

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// What the EAL does only once per process is tested in processes of its own:
// this binary, with a role.
const (
	childRole      = "POLLUX_TEST_ROLE"
	childDevice    = "POLLUX_TEST_DEVICE"
	childNamespace = "POLLUX_TEST_NAMESPACE"
)

// child plays a role and prints what came of it.
func child(role string) {
	if err := play(role); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("done")
}

func play(role string) error {
	switch role {
	case "before": // What needs the EAL says so.
		_, err := Open(Config{Device: "lo"})
		return errors.Join(err, RegisterThread())
	case "memory": // More than there is.
		err := Init(Options{Memory: 1 << 30})
		if again := Init(Options{}); !errors.Is(again, ErrStarted) {
			return fmt.Errorf("and again: %w", again)
		}
		return err
	case "argument":
		return Init(Options{Arguments: []string{"--nonesuch"}})
	case "zero": // Nothing configured.
		if err := Init(Options{}); err != nil {
			return err
		}
		return pinned()
	case "hold": // Opens a device and is killed.
		if err := Init(Options{}); err != nil {
			return err
		}
		file, err := os.Open("/run/netns/" + os.Getenv(childNamespace))
		if err != nil {
			return err
		}
		if err := inNamespace(file.Fd(), func() error {
			_, err := Open(Config{Device: os.Getenv(childDevice)})
			return err
		}); err != nil {
			return err
		}
		fmt.Println("open")
		select {}
	}
	return fmt.Errorf("no such role: %s", role)
}

// pinned fails unless the EAL pinned its own thread and no other.
func pinned() error {
	// Threads that Go makes now must not inherit the EAL's core.
	wait := make(chan struct{})
	defer close(wait)
	for range 8 {
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			<-wait
		}()
		<-started
	}
	list, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	const key = "Cpus_allowed_list:"
	all := ""
	count := map[string]int{}
	for _, path := range append([]string{"/proc/1/status"}, list...) {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, v, _ := strings.Cut(string(b), key)
		v, _, _ = strings.Cut(strings.TrimSpace(v), "\n")
		if path == "/proc/1/status" {
			all = v
			continue
		}
		count[v]++
	}
	for v, n := range count {
		// The EAL keeps its helpers off the core of its main thread.
		if v != all && n > 4 {
			return fmt.Errorf("%d threads may run on %s only, of %s: %v", n, v, all, count)
		}
	}
	if count[all] < 8 {
		return fmt.Errorf("only %d threads may run anywhere: %v", count[all], count)
	}
	return nil
}

// start starts this binary in a role.
func startChild(t *testing.T, role string, environment ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(append(os.Environ(), childRole+"="+role), environment...)
	return c
}

// TestStartSaysWhatIsWrong: a failing start names the cause, in the EAL's words
// where it has any.
func TestStartSaysWhatIsWrong(t *testing.T) {
	for role, words := range map[string][]string{
		"before":   {"call Init first", "registering a thread"},
		"memory":   {"starting the EAL", "1073741824", "memory"},
		"argument": {"starting the EAL", "--nonesuch", "invalid argument"},
	} {
		t.Run(role, func(t *testing.T) {
			out, err := startChild(t, role).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("%v\n%s", err, out)
			}
			check(t, errors.New(string(out)), words...)
			if n := strings.Count(string(out), "\n"); n > 3 && role != "argument" { // Of that the EAL prints its manual.
				t.Errorf("%d lines were written:\n%s", n, out)
			}
		})
	}
}

// TestStartNeedsNoConfiguration: zero options start, say nothing, and pin no
// thread but the EAL's own.
func TestStartNeedsNoConfiguration(t *testing.T) {
	out, err := startChild(t, "zero").CombinedOutput()
	if err != nil || string(out) != "done\n" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestOpensAfterACrash: a device whose holder was killed serves the kernel again,
// and can be opened.
func TestOpensAfterACrash(t *testing.T) {
	v := newVeth(t, 1)
	c := startChild(t, "hold", childDevice+"="+v.device, childNamespace+"="+v.server)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "open\n" {
		t.Errorf("%q, %v", line, err)
	}
	fails(t, v.server, Config{Device: v.device}, "in use")
	c.Process.Signal(syscall.SIGKILL)
	c.Wait()
	local, buf := rawSocket(t, v.server, v.device), make([]byte, 2048)
	syscall.SetNonblock(local, true)
	within(t, "the kernel to receive again", func() bool {
		syscall.Write(v.socket, numbered(60, 4))
		n, err := syscall.Read(local, buf)
		return err == nil && number(buf[:n]) == 4
	})
	p := openIn(t, v.server, Config{Device: v.device})
	if _, err := syscall.Write(v.socket, numbered(60, 5)); err != nil {
		t.Fatal(err)
	}
	receive(t, p.Queue(0), 1, func(_ int, f driver.Frame) {
		if number(f.Data) != 5 {
			t.Errorf("received %d", number(f.Data))
		}
	})
}
