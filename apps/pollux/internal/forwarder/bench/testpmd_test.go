package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testpmd is DPDK's own forwarder in macswap mode: it reads and writes the
// Ethernet header of each frame and does nothing else, in C, with the bursts that
// we use. What it does is the limit of the wire.
type testpmd struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	all   []string
}

func startTestpmd(b testing.TB, topology string, devices ...string) *testpmd {
	b.Helper()
	// Into a pipe it would write some KiB at a time only.
	arguments := []string{"-oL", "dpdk-testpmd", "-l", fmt.Sprintf("%d,%d", dutCore, generatorCore), "--main-lcore", strconv.Itoa(generatorCore),
		"--no-huge", "-m", "256", "--no-shconf", "--no-pci", "--no-telemetry"}
	for _, d := range devices {
		arguments = append(arguments, "--vdev", d)
	}
	arguments = append(arguments, "--", "-i", "--auto-start", "--forward-mode=macswap", "--burst=64", "--nb-cores=1", "--port-topology="+topology,
		"--disable-link-check", "--no-mlockall", "--total-num-mbufs=16384")
	t := &testpmd{cmd: exec.Command("stdbuf", arguments...), lines: make(chan string, 1000)}
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := t.cmd.Start(); err != nil {
		b.Fatalf("testpmd (Debian: dpdk-dev): %v", err)
	}
	b.Cleanup(func() { t.cmd.Process.Kill() })
	go func() {
		defer close(t.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			t.lines <- s.Text()
		}
	}()
	if _, err := t.sent(len(devices)); err != nil { // it is ready when it answers
		t.kill()
		b.Fatal(err)
	}
	return t
}

// sent asks for the number of frames that were transmitted.
func (t *testpmd) sent(ports int) (total uint64, err error) {
	if _, err := io.WriteString(t.in, "show port stats all\n"); err != nil {
		return 0, fmt.Errorf("ask testpmd: %w", err)
	}
	for late := time.After(patience); ports > 0; {
		select {
		case line, ok := <-t.lines:
			if !ok {
				return 0, errors.New("testpmd has ended:\n" + strings.Join(t.all, "\n"))
			}
			t.all = append(t.all, line)
			_, text, found := strings.Cut(line, "TX-packets:")
			if !found || !strings.Contains(line, "TX-errors") {
				continue
			}
			n, err := strconv.ParseUint(strings.Fields(text)[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("testpmd says %q: %w", line, err)
			}
			total += n
			ports--
		case <-late:
			return 0, errors.New("testpmd does not answer:\n" + strings.Join(t.all, "\n"))
		}
	}
	return total, nil
}

// watch measures what it transmits.
func (t *testpmd) watch(b testing.TB, ports int, d time.Duration) (r rate) {
	b.Helper()
	time.Sleep(d / 4)
	busy, err1 := busiest(t.cmd.Process.Pid)
	before, err2 := t.sent(ports)
	begin := time.Now()
	time.Sleep(d)
	after, err3 := t.sent(ports)
	r.Elapsed = time.Since(begin)
	now, err4 := busiest(t.cmd.Process.Pid)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.kill()
		b.Fatal(err)
	}
	r.Frames, r.Busy = after-before, now-busy
	return r
}

func (t *testpmd) quit(b testing.TB) {
	b.Helper()
	io.WriteString(t.in, "quit\n")
	t.in.Close()
	late := time.AfterFunc(patience, func() { t.cmd.Process.Kill() })
	defer late.Stop()
	for line := range t.lines {
		t.all = append(t.all, line)
	}
	if err := t.cmd.Wait(); err != nil {
		b.Fatalf("testpmd: %v\n%s", err, strings.Join(t.all, "\n"))
	}
}

func (t *testpmd) kill() {
	t.cmd.Process.Kill()
	t.cmd.Wait()
}
