package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
)

const (
	// startTimeout is how long a server may take until it answers.
	startTimeout = 20 * time.Second
	// stopTimeout is how long a process may take to end after SIGTERM.
	stopTimeout = 10 * time.Second
	stopPoll    = 5 * time.Millisecond
)

// child is a program in a namespace of the lab, on chosen processors. It is in a
// session of its own: an interrupt from the terminal is the parent's to
// handle, which ends its children in order. What it prints goes to files.
type child struct {
	cmd      *exec.Cmd
	name     string
	done     chan struct{}
	err      error // once done is closed
	out, log string
	// With pipes: its standard input and output.
	stdin, stdout *os.File
	// stopped: nothing is left of it, and its number may soon be another's.
	stopped bool
}

// start runs argv, by a function that puts it into its namespace. Both sides of a
// measurement run at the highest priority that is not real time, so that other
// programs on the machine matter less. With pipes, the caller speaks with it.
func start(begin func(*exec.Cmd) error, dir, name string, core int, argv []string, pipes bool) (_ *child, err error) {
	c := &child{name: name, done: make(chan struct{}), out: filepath.Join(dir, name+".out"), log: filepath.Join(dir, name+".log")}
	fail := func(err error) (*child, error) { return nil, fmt.Errorf("start %s: %w", name, err) }
	// Both are part of every Debian, and turn into the program itself.
	full := append([]string{"taskset", "-c", strconv.Itoa(core), "nice", "-n", strconv.Itoa(highest)}, argv...)
	c.cmd = exec.Command(full[0], full[1:]...)
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			c.stdin.Close() // of nil it is an error, no more
			c.stdout.Close()
		}
	}()
	log, err := os.Create(c.log)
	if err != nil {
		return fail(err)
	}
	theirs = append(theirs, log)
	c.cmd.Stderr = log
	if pipes {
		in, stdin, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		c.stdin, theirs = stdin, append(theirs, in)
		stdout, out, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		c.stdout, theirs = stdout, append(theirs, out)
		c.cmd.Stdin, c.cmd.Stdout = in, out
	} else {
		out, err := os.Create(c.out)
		if err != nil {
			return fail(err)
		}
		theirs = append(theirs, out)
		c.cmd.Stdout = out
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := begin(c.cmd); err != nil {
		return fail(err)
	}
	// Where the kernel groups sessions (sched_autogroup_enabled), a nice value
	// counts only within its own; this one counts between them.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", c.cmd.Process.Pid), []byte(strconv.Itoa(highest)), 0)
	go func() {
		c.err = c.cmd.Wait()
		if pipes {
			c.stdin.Close()
		}
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// priority is the nice value of the process and those that it has started, the worst
// of them, as the kernel has it.
func (c *child) priority(path string) result.Setting {
	s := result.Setting{Where: path + " path, " + c.name, Name: "nice", Value: "unknown"}
	if list, err := measure.Session(c.pid()); err == nil && len(list) > 0 {
		worst := slices.MaxFunc(list, func(a, b measure.Process) int { return a.Nice - b.Nice })
		s.Value = strconv.Itoa(worst.Nice)
	}
	return s
}

// signal tells all that is left of the process and those that it has started, and
// says whether anything is.
func (c *child) signal(s syscall.Signal) (left bool) {
	list, err := measure.Session(c.pid())
	if err != nil { // then those of its group have to do
		return syscall.Kill(-c.pid(), s) == nil
	}
	for _, p := range list {
		_ = syscall.Kill(p.PID, s) // it may have ended meanwhile
	}
	return len(list) > 0
}

// stop asks the process to end, with all that it has started (a shell that was told to
// run a server leaves it behind), and waits for them; it may be called again.
func (c *child) stop() error {
	if !c.stopped {
		c.signal(syscall.SIGTERM)
		for deadline := time.Now().Add(stopTimeout); !c.ended() || c.signal(0); {
			if time.Now().After(deadline) {
				for c.signal(syscall.SIGKILL) { // until nothing is left that could start more
					time.Sleep(stopPoll)
				}
				<-c.done
				c.stopped = true
				return c.explain(fmt.Errorf("did not end within %v of SIGTERM", stopTimeout))
			}
			time.Sleep(stopPoll)
		}
		c.stopped = true
	}
	if exit := (*exec.ExitError)(nil); errors.As(c.err, &exit) && exit.ExitCode() == 128+int(syscall.SIGTERM) {
		return nil // as asked, in the words of a shell
	}
	if exit := (*exec.ExitError)(nil); errors.As(c.err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGTERM {
			return nil // as asked
		}
	}
	return c.explain(c.err)
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// explain adds what the process printed to why it failed.
func (c *child) explain(err error) error {
	if err == nil {
		return nil
	}
	log, _ := os.ReadFile(c.log)
	text := strings.TrimSpace(string(log))
	const most = 1000
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	if text == "" {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return fmt.Errorf("%s: %w: %s", c.name, err, text)
}

// awaitOutput waits until the process has printed a text.
func (c *child) awaitOutput(ctx context.Context, text string) error {
	deadline := time.Now().Add(startTimeout)
	for {
		b, err := os.ReadFile(c.out)
		if err != nil {
			return err
		}
		switch {
		case bytes.Contains(b, []byte(text)):
			return nil
		case c.ended():
			return c.explain(errors.Join(errors.New("it ended at its start"), c.err))
		case time.Now().After(deadline):
			return c.explain(fmt.Errorf("it did not say %q within %v", text, startTimeout))
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
