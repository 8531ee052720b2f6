package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// patience is how long anything may take that must happen: on a machine that is
// busy with other things, with the race detector. Nothing waits as long unless
// it fails.
const patience = 60 * time.Second

// eventually fails the test unless ok becomes true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v have passed without: %s", patience, what)
		}
	}
}

// output collects what a process prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// A process runs on one side of a lab.
type process struct {
	cmd    *exec.Cmd
	stdout io.Writer
	stderr output
	done   chan struct{} // closed when it has ended
}

// start starts cmd, which ends with the test. Its races fail the test.
func start(t *testing.T, l *lab.Lab, side lab.Side, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		p.stdout = new(output)
		cmd.Stdout = p.stdout
	}
	cmd.Stderr = &p.stderr
	// A race is an exit code of its own; do not wait for the sake of others.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	if err := l.Start(side, cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if !p.ended() {
			cmd.Process.Kill()
			<-p.done
		}
		if strings.Contains(p.stderr.String(), "DATA RACE") || t.Failed() {
			t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), cmd.ProcessState, &p.stderr)
		}
	})
	return p
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits for the process to end and returns its exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s has not ended within %v", strings.Join(p.cmd.Args, " "), patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// terminate asks the process to end, which it must do in order, and returns how
// long that took.
func (p *process) terminate(t *testing.T) time.Duration {
	t.Helper()
	asked := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Fatalf("%s: exit code %d after SIGTERM", strings.Join(p.cmd.Args, " "), code)
	}
	return time.Since(asked)
}

// cpu is the time in which the process's threads have run.
func (p *process) cpu(t *testing.T) map[string]time.Duration {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/task/", p.cmd.Process.Pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]time.Duration{}
	for _, thread := range threads {
		// Nanoseconds on the processor, where stat counts ticks of 10 ms.
		b, err := os.ReadFile(dir + thread.Name() + "/schedstat")
		if fields := strings.Fields(string(b)); err == nil && len(fields) > 0 {
			ns, err := strconv.ParseInt(fields[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			times[thread.Name()] = time.Duration(ns)
		}
	}
	if len(times) == 0 {
		t.Fatal("no thread tells its time: is schedstat off in this kernel?")
	}
	return times
}

// share is how much of a core the process takes for a while.
func (p *process) share(t *testing.T, while time.Duration) float64 {
	t.Helper()
	was, began := p.cpu(t), time.Now()
	time.Sleep(while)
	var used time.Duration
	for thread, now := range p.cpu(t) {
		used += now - was[thread]
	}
	return float64(used) / float64(time.Since(began))
}

// memory is the process's resident memory in bytes.
func (p *process) memory(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

const (
	memcached4  = "10.99.0.1:11211"
	memcached6  = "[fd99::1]:11211"
	metricsPort = "127.0.0.1:9100" // in the server's namespace
)

// memcachedArgs is the command line of a server on both addresses.
func memcachedArgs(mode runtime.Mode, cores int, more ...string) []string {
	return append([]string{
		"memcached", "--device", lab.ServerInterface, "--address", lab.ServerIPv4.String(), "--address", lab.ServerIPv6.String(),
		"--mode", string(mode), "--cores", strconv.Itoa(cores), "--metrics", metricsPort,
	}, more...)
}

// serveMemcached starts a server and waits until it serves.
func serveMemcached(t *testing.T, l *lab.Lab, binary *program, args ...string) *process {
	t.Helper()
	p := start(t, l, lab.Server, exec.Command(binary.build(t), args...))
	p.awaitServing(t)
	return p
}

func (p *process) awaitServing(t *testing.T) {
	t.Helper()
	eventually(t, "the server serves", func() bool {
		if p.ended() {
			t.Fatalf("the server has ended: %v", p.cmd.ProcessState)
		}
		return strings.Contains(p.stderr.String(), "msg=metrics")
	})
}

// A stationProcess is a station that serves.
type stationProcess struct {
	*process
	in  io.WriteCloser
	out *json.Decoder
}

// serveStation starts a station and waits until it serves.
func serveStation(t *testing.T, l *lab.Lab, binary *program, args ...string) *stationProcess {
	t.Helper()
	args = append([]string{"-device", lab.ServerInterface, "-addresses", lab.ServerIPv4.String() + "," + lab.ServerIPv6.String()}, args...)
	cmd := exec.Command(binary.build(t), args...)
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = stdin, stdout
	s := &stationProcess{process: start(t, l, lab.Server, cmd), in: in, out: json.NewDecoder(out)}
	stdin.Close()
	stdout.Close()
	t.Cleanup(func() {
		in.Close()
		out.Close()
	})
	s.answer(t, new(string))
	return s
}

// ask sends a command.
func (s *stationProcess) ask(t *testing.T, command string, answer any) {
	t.Helper()
	if _, err := fmt.Fprintln(s.in, command); err != nil {
		t.Fatal(err)
	}
	s.answer(t, answer)
}

func (s *stationProcess) answer(t *testing.T, answer any) {
	t.Helper()
	if err := s.out.Decode(answer); err != nil {
		t.Fatalf("the station does not answer: %v", err)
	}
}

func (s *stationProcess) report(t *testing.T) *stream.Report {
	t.Helper()
	var r stream.Report
	s.ask(t, "report", &r)
	return &r
}

// stop ends the station, which must have all frames back then.
func (s *stationProcess) stop(t *testing.T) {
	t.Helper()
	var last stream.Report
	s.ask(t, "stop", &last)
	if last.FreeFrames != last.OpeningFrames {
		t.Errorf("%d frames are free at the end, %d were at the beginning", last.FreeFrames, last.OpeningFrames)
	}
	if code := s.wait(t); code != 0 {
		t.Fatalf("the station's exit code is %d", code)
	}
}
