package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/result"
)

// build makes the real program: a comparison starts itself as server and client.
func build(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pollux")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-pgo=off", "-o", file, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build pollux: %v\n%s", err, out)
	}
	return file
}

func compareCommand(t *testing.T, name string, args ...string) (command *exec.Cmd, out *bytes.Buffer, labName, dir string) {
	t.Helper()
	file := build(t)
	labName, dir = fmt.Sprintf("t%d-%s", os.Getpid(), name), t.TempDir()
	t.Cleanup(func() {
		if err := lab.Down(labName); err != nil {
			t.Error(err)
		}
	})
	out = new(bytes.Buffer)
	command = exec.Command(file, append([]string{"compare", "--name", labName, "--out", dir, "--warmup", "1500ms", "--duration", "1s", "--connections", "16", "--keys", "1000"}, args...)...)
	command.Stdout, command.Stderr = out, out
	return command, out, labName, dir
}

// running lists the processes of a program: a comparison starts itself, by its file,
// as server and client.
func running(t *testing.T, file string) []string {
	t.Helper()
	out, err := exec.Command("pgrep", "-f", regexp.QuoteMeta(file)).Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("look for the processes of %s: %v", file, err)
	}
	return strings.Fields(string(out))
}

func nothingIsLeft(t *testing.T, labName, file string) {
	t.Helper()
	state, err := lab.Status(labName)
	if err != nil || !state.Down {
		t.Errorf("the lab is not down afterwards: %+v, %v", state.Problem, err)
	}
	if left := running(t, file); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func TestCompareMeasuresBothPathsAndLeavesNothing(t *testing.T) {
	command, out, labName, dir := compareCommand(t, "compare", "--subject", "user/poll,kernel/kernel-polling", "--repetitions", "1")
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	nothingIsLeft(t, labName, command.Path)
	r, err := compare.ReadResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete || len(r.Rows) != 2 || len(r.Machine.Settings) == 0 || r.Plan.Placement == "" {
		t.Fatalf("complete %v, %d rows, %d settings, placement %q", r.Complete, len(r.Rows), len(r.Machine.Settings), r.Plan.Placement)
	}
	for _, row := range r.Rows {
		m := row.Median
		if len(row.Rounds) != 1 || row.Rounds[0].Invalid != "" {
			t.Fatalf("%s: %+v\n%s", row.Subject, row.Rounds, out)
		}
		if m.Requests == 0 || m.Wrong != 0 || m.Latency.P50 <= 0 || m.Server.CPU <= 0 || m.ServerBusy <= 0 {
			t.Errorf("%s: %+v", row.Subject, m)
		}
		// The cost is that of the observed interval, so it is held to the rate
		// of that interval, not to the throughput measured after it.
		if m.Observed <= 0 || m.Server.CPU*m.Observed > 1.2e9 {
			t.Errorf("%s: %.0f requests a second of %.0f ns are not what one core does", row.Subject, m.Observed, m.Server.CPU)
		}
		if m.Server.Syscalls <= 0 && row.Subject != "user/poll" {
			t.Errorf("%s: %v system calls a request: %s", row.Subject, m.Server.Syscalls, m.Server.SyscallsMissing)
		}
		if user := row.Subject == "user/poll"; (m.Server.EmptyPolls != nil) != user {
			t.Errorf("%s: polls in vain %v: the user path tells, the kernel's does not", row.Subject, m.Server.EmptyPolls)
		}
		if row.Idle == nil || row.Idle.FirstRequest <= 0 {
			t.Errorf("%s: idle %+v", row.Subject, row.Idle)
		}
		if !m.Proof.Active {
			t.Errorf("%s: not proven: %s", row.Subject, m.Proof.Why)
		}
		if !r.Machine.PMU && m.Server.Cycles != nil {
			t.Errorf("%s: %v cycles without hardware counters", row.Subject, *m.Server.Cycles)
		}
	}
	for _, where := range []string{"user path, server", "kernel path, server", "client"} {
		if !slices.Contains(r.Machine.Settings, result.Setting{Where: where, Name: "nice", Value: "-20"}) {
			t.Errorf("%s: no nice value of -20 was read back: %v", where, r.Machine.Settings)
		}
	}
	for _, want := range []string{"user/poll", "kernel/kernel-polling", r.Verdict, filepath.Join(dir, "results.json")} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not say %q:\n%s", want, out)
		}
	}
}

func TestAnInterruptedCompareCleansUpAndKeepsWhatItHas(t *testing.T) {
	t.Run("by a person", func(t *testing.T) {
		interruptCompare(t, "interrupted", func(p *os.Process) { p.Signal(os.Interrupt) })
	})
	// The shell and the kernel both tell.
	t.Run("by its terminal's end", func(t *testing.T) {
		// What runs without a terminal may have been told to ignore that, and its
		// children would, too; what is handled here has its default there.
		handled := make(chan os.Signal, 1)
		signal.Notify(handled, syscall.SIGHUP)
		defer signal.Stop(handled)
		interruptCompare(t, "hungup", func(p *os.Process) {
			p.Signal(syscall.SIGHUP)
			time.Sleep(20 * time.Millisecond)
			p.Signal(syscall.SIGHUP)
		})
	})
}

func interruptCompare(t *testing.T, name string, interrupt func(*os.Process)) {
	t.Helper()
	command, out, labName, dir := compareCommand(t, name, "--subject", "kernel/vanilla", "--repetitions", "50")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	deadline := time.After(time.Minute)
	for {
		if r, err := compare.ReadResults(dir); err == nil && len(r.Rows) == 1 && len(r.Rows[0].Rounds) >= 1 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("ended by itself: %v\n%s", err, out)
		case <-deadline:
			command.Process.Kill()
			t.Fatalf("no round within a minute\n%s", out)
		case <-time.After(50 * time.Millisecond):
		}
	}
	for len(running(t, command.Path)) < 3 { // itself, server and client
		select {
		case <-deadline:
			t.Fatalf("only %v run", running(t, command.Path))
		case <-time.After(10 * time.Millisecond):
		}
	}
	interrupt(command.Process)
	if err := <-ended; err == nil {
		t.Errorf("an interrupted run succeeded\n%s", out)
	}
	nothingIsLeft(t, labName, command.Path)
	r, err := compare.ReadResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Complete || len(r.Rows) != 1 || len(r.Rows[0].Rounds) == 0 || r.Verdict == "" {
		t.Errorf("complete %v, rows %+v, verdict %q", r.Complete, r.Rows, r.Verdict)
	}
}

func TestCompareRefusesWhatCannotBeRun(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--subject", "user/vanilla"}, "not a mode"},
		{[]string{"--quick", "--full"}, "none of the others can be"},
		{[]string{"--server", "x"}, "NAME=COMMAND"},
		{[]string{"--warmup", "1ms"}, "warm-up"},
		{[]string{"--workload", "get", "--set-ratio", "0.5"}, "--set-ratio is for --workload mixed"},
		{[]string{"--workload", "etc", "--set-ratio", "0.5"}, "--set-ratio is for --workload mixed"},
		{[]string{"--server-core", "0"}, "go together"},
		{[]string{"--against", "/nowhere.json"}, "--against"},
		{[]string{"--plan", "/nowhere.toml"}, "--plan"},
		{[]string{"--resume", "--out", t.TempDir()}, "nothing to resume"},
	} {
		_, stderr, code := run(t, append([]string{"compare"}, c.args...)...)
		if code != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("pollux compare %v: exit %d, %s", c.args, code, stderr)
		}
	}
}
