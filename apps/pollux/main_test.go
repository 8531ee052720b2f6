package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is pollux itself if this is set, so that exit codes, signals
// and output are those of the real command.
const asPollux = "POLLUX_TEST_AS_POLLUX"

func TestMain(m *testing.M) {
	// The helper that puts a device's settings back is started by its name: it
	// must not be taken for a run of the tests.
	if os.Getenv(asPollux) != "" || len(os.Args) > 1 && os.Args[1] == restoreOnExit {
		os.Unsetenv(asPollux)
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func pollux(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// The race detector would wait a second at the end of every process.
	cmd.Env = append(os.Environ(), asPollux+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := pollux(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestErrorsArePrintedOnceAndExitIsNotZero(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense"`},
		{[]string{"lab", "up", "--queues", "0"}, "at least one"},
		{[]string{"lab", "up", "--path", "tunnel"}, `"tunnel" is not a path`},
		{[]string{"lab", "up", "--server-cores", "x"}, "--server-cores"},
		{[]string{"lab", "--name", "a/b", "down"}, "cannot name a lab"},
		{[]string{"lab", "--name", "absent", "status"}, "lab absent is down"},
		{[]string{"lab", "--name", "absent", "exec", "server", "--", "true"}, "not up"},
		{[]string{"lab", "exec", "middle", "--", "true"}, `"middle" is not a side`},
		{[]string{"lab", "exec", "server"}, "say on which side"},
		{[]string{"lab", "exec", "server", "--"}, "say on which side"},
		{[]string{"load", "nowhere"}, "HOST:PORT"},
		{[]string{"load"}, "accepts 1 arg"},
		{[]string{"load", "127.0.0.1:1", "--no-such-flag"}, "unknown flag"},
	} {
		stdout, stderr, code := run(t, c.args...)
		if code != 1 || stdout != "" || strings.Count(stderr, c.want) != 1 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "pollux: ") {
			t.Errorf("pollux %s: exit %d\n%s%s", strings.Join(c.args, " "), code, stdout, stderr)
		}
	}
}

func TestEveryCommandSaysWhatItIsFor(t *testing.T) {
	for _, args := range []string{"", "version", "doctor", "load", "lab", "lab up", "lab down", "lab status", "lab exec"} {
		stdout, stderr, code := run(t, append(strings.Fields(args), "--help")...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Usage:\n  pollux "+args) {
			t.Errorf("pollux %s --help: exit %d\n%s%s", args, code, stdout, stderr)
		}
	}
	if stdout, _, code := run(t, "version"); code != 0 || !strings.HasPrefix(stdout, "pollux ") || !strings.Contains(stdout, "go1.") {
		t.Errorf("version: exit %d\n%s", code, stdout)
	}
	if stdout, stderr, code := run(t, "doctor"); code != 0 || stderr != "" || !strings.Contains(stdout, "capabilities") || !strings.Contains(stdout, "receive interrupt") {
		t.Errorf("doctor: exit %d\n%s%s", code, stdout, stderr)
	}
}

func TestLabFromUpToDown(t *testing.T) {
	name := fmt.Sprintf("t%d-cli", os.Getpid())
	t.Cleanup(func() { run(t, "lab", "--name", name, "down") })
	for range 2 {
		stdout, stderr, code := run(t, "lab", "up", "--name", name, "--path", "kernel", "--queues", "2")
		if code != 0 || stderr != "" || !strings.Contains(stdout, "is up: path kernel, 2 queues, receive work on the server-core") {
			t.Fatalf("up: exit %d\n%s%s", code, stdout, stderr)
		}
	}
	stdout, stderr, code := run(t, "lab", "status", "--name", name)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "OK    server  pollux0 gro") || strings.Contains(stdout, "FAIL") {
		t.Errorf("status: exit %d\n%s%s", code, stdout, stderr)
	}
	for _, c := range []struct {
		args         []string
		code         int
		out, problem string
	}{
		{[]string{"client", "--", "ping", "-c", "1", "-W", "10", "10.99.0.1"}, 0, "1 received", ""},
		{[]string{"server", "ls", "/sys/class/net"}, 0, "lo\npollux0\n", ""},
		{[]string{"server", "--", "sh", "-c", "echo out; echo problem >&2; exit 42"}, 42, "out\n", "problem\n"},
		{[]string{"client", "--", "sh", "-c", "kill -TERM $$"}, -1, "", ""},
		{[]string{"client", "--", "no-such-command"}, 127, "", "no-such-command"},
		{[]string{"client", "--", "/etc/passwd"}, 126, "", "permission denied"},
	} {
		stdout, stderr, code := run(t, append([]string{"lab", "--name", name, "exec"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout, c.out) || !strings.Contains(stderr, c.problem) {
			t.Errorf("exec %s: exit %d\n%s%s", c.args, code, stdout, stderr)
		}
	}
	for range 2 {
		if stdout, stderr, code := run(t, "lab", "down", "--name", name); code != 0 || stderr != "" {
			t.Errorf("down: exit %d\n%s%s", code, stdout, stderr)
		}
	}
}

// A real client and a real server, over both families, across the lab.
func TestLoadAcrossTheLab(t *testing.T) {
	name := fmt.Sprintf("t%d-load", os.Getpid())
	t.Cleanup(func() { run(t, "lab", "--name", name, "down") })
	if _, stderr, code := run(t, "lab", "--name", name, "up", "--path", "kernel"); code != 0 {
		t.Fatal(stderr)
	}
	server := pollux("lab", "--name", name, "exec", "server", "--", "memcached", "-u", "root", "-U", "0", "-t", "1", "-l", "10.99.0.1,fd99::1")
	var output bytes.Buffer
	server.Stdout, server.Stderr = &output, &output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	for _, address := range []string{"10.99.0.1:11211", "[fd99::1]:11211"} {
		load := []string{"lab", "--name", name, "exec", "client", "--", "env", asPollux + "=1", os.Args[0], "load", address, "--connections", "4", "--json", "--requests"}
		var stderr string
		code := 1
		for attempt := 0; code != 0 && attempt < 200; attempt++ { // until the server listens
			time.Sleep(10 * time.Millisecond)
			_, stderr, code = run(t, append(load, "1")...)
		}
		if code != 0 {
			t.Fatalf("%s\n%s", stderr, output.String())
		}
		stdout, stderr, code := run(t, append(load, "2000")...)
		var result struct {
			Requests, Wrong, Errors uint64
			Rate                    float64 `json:"requests_per_second"`
		}
		if err := json.Unmarshal([]byte(stdout), &result); err != nil {
			t.Fatal(err, stdout)
		}
		if code != 0 || stderr != "" || result.Requests != 2000 || result.Wrong != 0 || result.Errors != 0 || result.Rate <= 0 {
			t.Errorf("%s: exit %d, %+v\n%s", address, code, result, stderr)
		}
	}
}

// A run that is interrupted says how far it came, and that it did not end.
func TestInterruptedLoadPrintsWhatItHas(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	server := exec.Command("memcached", "-u", "root", "-U", "0", "-t", "1", "-l", "127.0.0.1", "-p", port)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	for attempt := 0; ; attempt++ {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if attempt == 200 {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	var out, errs bytes.Buffer
	cmd := pollux("load", address, "--duration", "1h")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for attempt := 0; !served(t, address); attempt++ {
		if attempt == 2000 {
			t.Fatal("the server has seen no get")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "requests  ") || !strings.Contains(errs.String(), "ended early") {
		t.Errorf("exit %d\n%s%s", cmd.ProcessState.ExitCode(), out.String(), errs.String())
	}
}

// served says whether a memcached has answered a get.
func served(t *testing.T, address string) bool {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "stats\r\nquit\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return !strings.Contains(string(b), "STAT get_hits 0\r\n")
}
