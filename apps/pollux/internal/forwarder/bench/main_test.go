// Package bench measures the packet service against the limit of its wire, DPDK's
// testpmd, in one run (make bench-packet; pollux compare packet has the kernel to
// compare with). Every contestant is a process of its own with one core for the data
// path; the other core has the generator. The order of the contestants changes from
// round to round, and medians are reported.
package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// This binary plays the parts that need an EAL of their own. Such a process says on its standard output that it is ready, and then, for
// every line of its standard input, what it measured; it ends with that. While it
// is not its turn it is stopped, so that nothing has to be set up twice.
const roleVariable = "POLLUX_BENCH_ROLE"

const (
	dutCore       = 0 // the device under test's
	generatorCore = 1
)

// part is what a process is told, as JSON in the environment.
type part struct {
	Role    string
	Variant string        // of variants
	Devices []string      // DPDK's
	Stamp   bool          // the first device gives empty frames: fill them in
	Measure time.Duration // how long to measure, after a quarter of it to warm up
}

func TestMain(m *testing.M) {
	text := os.Getenv(roleVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var p part
	err := json.Unmarshal([]byte(text), &p)
	if err == nil {
		switch p.Role {
		case "forwarder":
			err = forwarderPart(p)
		case "generator":
			err = generatorPart(p)
		default:
			err = fmt.Errorf("no such role: %q", p.Role)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// say writes a line for the process that started this one.
func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// serve says that the part is ready, and measures whenever it is told to.
func serve(measure func(order string) (rate, error)) error {
	if err := say("ready"); err != nil {
		return err
	}
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		r, err := measure(orders.Text())
		if err != nil {
			return err
		}
		if err := say(r); err != nil {
			return err
		}
	}
	return nil
}

// actor is a started process.
type actor struct {
	what string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	errs strings.Builder
}

// perform starts this binary in a role and waits until the part is ready.
func perform(b testing.TB, p part) *actor {
	b.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	a := &actor{what: p.Role + " " + p.Variant, cmd: exec.Command(self)}
	a.cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	a.cmd.Stderr = &a.errs
	in, err := a.cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	a.in, a.out = in, json.NewDecoder(out)
	if err := a.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.cmd.Process.Kill() }) // if it failed; SIGKILL also ends what is stopped
	var ready string
	a.hear(b, &ready)
	return a
}

// Orders.
const (
	goOn = "go"   // measure
	stop = "stop" // send and receive no more
)

// tell orders the part something and hears what came of it.
func (a *actor) tell(b testing.TB, order string) (r rate) {
	b.Helper()
	if _, err := io.WriteString(a.in, order+"\n"); err != nil {
		b.Fatalf("%s: %v\n%s", a.what, err, a.errs.String())
	}
	a.hear(b, &r)
	return r
}

// pause stops a process until resume.
func pause(p *os.Process)  { p.Signal(syscall.SIGSTOP) }
func resume(p *os.Process) { p.Signal(syscall.SIGCONT) }

// patience is how long a part may take for its next word.
const patience = time.Minute

// hear takes what the actor says next.
func (a *actor) hear(b testing.TB, v any) {
	b.Helper()
	heard := make(chan error, 1)
	go func() { heard <- a.out.Decode(v) }()
	var err error
	select {
	case err = <-heard:
	case <-time.After(patience):
		err = errors.New("it is silent")
	}
	if err != nil {
		a.cmd.Process.Kill()
		a.cmd.Wait()
		b.Fatalf("%s: %v\n%s", a.what, err, a.errs.String())
	}
}

// leave ends the part.
func (a *actor) leave(b testing.TB) {
	b.Helper()
	a.in.Close()
	left := make(chan error, 1)
	go func() { left <- a.cmd.Wait() }()
	select {
	case err := <-left:
		if err != nil {
			b.Fatalf("%s: %v\n%s", a.what, err, a.errs.String())
		}
	case <-time.After(patience):
		a.cmd.Process.Kill()
		b.Fatalf("%s does not end\n%s", a.what, a.errs.String())
	}
}
