package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// deviceState reads every NAPI, interrupt and coalescing setting of the
// server's device.
func deviceState(t *testing.T, l *lab.Lab) (s napi.State) {
	t.Helper()
	err := l.Do(lab.Server, func() error {
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := c.Device(lab.ServerInterface)
		if err != nil {
			return err
		}
		s, err = c.Save(d)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// watcherOf finds the process that would put back what a server's file holds.
func watcherOf(file string) int {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if args := strings.Split(string(b), "\x00"); err == nil && len(args) > 2 && args[1] == restoreOnExit && args[2] == file {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

// Settings are restored after SIGKILL of the server in each mode: at once by its
// watcher, or by doctor if that was killed too.
func TestSIGKILLOfTheServerLeavesNothingSetInAnyMode(t *testing.T) {
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-restore", os.Getpid()), Path: runtime.Kernel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	before := deviceState(t, l)
	for _, mode := range runtime.Modes(runtime.Kernel) {
		for _, watched := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/watched=%v", mode, watched), func(t *testing.T) {
				server := pollux("memcached", "--path", "kernel", "--mode", string(mode), "--device", lab.ServerInterface, "--address", lab.ServerIPv4.Addr().String())
				var output bytes.Buffer
				server.Stderr = &output
				if err := l.Start(lab.Server, server); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { server.Process.Kill(); server.Wait() })
				eventually(t, "the server listens", func() bool { return listens(t, server.Process.Pid) })
				file := ""
				if mode != runtime.Vanilla {
					if reflect.DeepEqual(deviceState(t, l), before) {
						t.Error("nothing is set")
					}
					files, err := filepath.Glob(filepath.Join(kernel.Directory, fmt.Sprintf("restore-%s-*-%d.json", lab.ServerInterface, server.Process.Pid)))
					if err != nil || len(files) != 1 {
						t.Fatalf("%v, %v\n", files, err)
					}
					file = files[0]
					watcher := 0
					eventually(t, "the watcher runs", func() bool { watcher = watcherOf(file); return watcher != 0 })
					if !watched {
						p, err := os.FindProcess(watcher)
						if err == nil {
							err = p.Kill()
						}
						if err != nil {
							t.Fatal(err)
						}
						eventually(t, "the watcher ends", func() bool { return watcherOf(file) == 0 })
					}
				}
				server.Process.Kill()
				server.Wait()
				if !watched {
					stdout, stderr, code := run(t, "doctor", "--restore")
					want := fmt.Sprintf("left by process %d", server.Process.Pid)
					if code != 0 || stderr != "" || strings.Contains(stdout, want) != (mode != runtime.Vanilla) {
						t.Errorf("exit %d\n%s%s", code, stdout, stderr)
					}
				}
				if file != "" {
					eventually(t, "the file is gone", func() bool { _, err := os.Stat(file); return os.IsNotExist(err) })
				}
				if after := deviceState(t, l); !reflect.DeepEqual(after, before) {
					t.Errorf("was %+v\nis  %+v", before, after)
				}
			})
		}
	}
}

// listens says whether anything in a process's network namespace does so on
// memcached's port.
func listens(t *testing.T, pid int) bool {
	t.Helper()
	const port, listening = ":2BCB", "0A"
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], port) && f[3] == listening {
			return true
		}
	}
	return false
}

func TestAttachRefusesWhatItCannotDo(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, `required flag(s) "device", "pid" not set`},
		{[]string{"--pid", "4194304", "--device", "lo"}, "find process 4194304: not there"},
		{[]string{"--pid", "x", "--device", "lo"}, "--pid"},
		{[]string{"--pid", "1", "--device", "lo", "--mode", "vanilla"}, "sets nothing"},
		{[]string{"--pid", "1", "--device", "lo", "--mode", "poll"}, "kernel-polling"},
		{[]string{"--pid", "1", "--device", "lo", "--irq-suspend-timeout", "2s"}, "it must be 0 to 1s"},
		{[]string{"--pid", "1", "--device", "lo", "--interval", "1us"}, "at least 10ms"},
		{[]string{"--pid", "1", "--device", "lo", "--interrupt-cores", "x"}, "--interrupt-cores"},
	} {
		stdout, stderr, code := run(t, append([]string{"attach"}, c.args...)...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("pollux attach %s: exit %d, want %q\n%s%s", strings.Join(c.args, " "), code, c.want, stdout, stderr)
		}
	}
	if _, stderr, code := run(t, "doctor", "--restore", "--cores", "0"); code != 1 || !strings.Contains(stderr, "cores restore") {
		t.Errorf("doctor: exit %d\n%s", code, stderr)
	}
}
