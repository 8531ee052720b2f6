// Package attach turns kernel polling on for servers that know nothing of it:
// it sets the device that they receive through and, from outside, the epoll
// instances of their processes, watches both, says whether each epoll instance
// waits for one NAPI only, and undoes it all at the end.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"golang.org/x/sys/unix"
)

// Config is what to attach to and how.
type Config struct {
	// PIDs are the processes, all of one network namespace.
	PIDs []int
	// Device is the one that their connections come through, in that namespace.
	Device   string
	Settings kernel.Settings
	// Interval is how often it looks for new epoll instances, and at the device;
	// default a second.
	Interval time.Duration
	// Watcher is the command of kernel.Applied.Watch; none if it is empty.
	Watcher []string
	// Out gets a line for whatever is found or changes.
	Out io.Writer
}

// Run attaches, and undoes it when the context ends or the last process does.
func Run(ctx context.Context, c Config) (err error) {
	if len(c.PIDs) == 0 {
		return errors.New("attach: no process is named")
	}
	if c.Interval <= 0 {
		c.Interval = time.Second
	}
	a := &attachment{Config: c, known: make(map[key]string)}
	defer func() {
		for _, p := range a.processes {
			p.Close()
		}
	}()
	for _, pid := range c.PIDs {
		p, err := napi.OpenProcess(pid)
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		a.processes = append(a.processes, p)
	}
	// Everything is looked at before anything is changed.
	if err := a.sameNamespace(); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := a.tryEpolls(); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := a.apply(); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer func() {
		if e := a.applied.Restore(); e != nil {
			err = errors.Join(err, fmt.Errorf("detach: %w; pollux doctor --restore tries again", e))
			return
		}
		a.say("detached from %s: its settings are as they were", c.Device)
	}()
	if len(c.Watcher) > 0 {
		if err := a.applied.Watch(c.Watcher...); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
	}
	a.describe()
	return a.watch(ctx)
}

type attachment struct {
	Config
	processes []*napi.Process
	applied   *kernel.Applied
	// known is the last line about each epoll instance, trouble that about the
	// device.
	known   map[key]string
	trouble string
}

type key struct{ pid, fd int }

func (a *attachment) say(format string, args ...any) {
	if a.Out != nil {
		fmt.Fprintf(a.Out, format+"\n", args...)
	}
}

// sameNamespace checks that one device can serve all processes.
func (a *attachment) sameNamespace() error {
	first := ""
	for _, p := range a.processes {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID))
		if err != nil {
			return fmt.Errorf("look at the network namespace of process %d: %w", p.PID, explain(err))
		}
		if first == "" {
			first = link
		}
		if link != first {
			return fmt.Errorf("processes %d and %d are in different network namespaces; attach to each by itself", a.processes[0].PID, p.PID)
		}
	}
	return nil
}

// tryEpolls checks that the processes have epoll instances, and that this one
// may set them and the kernel can.
func (a *attachment) tryEpolls() error {
	if a.Settings.Epoll().Budget == 0 {
		return nil // nothing to be set on them
	}
	for _, p := range a.processes {
		fds, err := epolls(p.PID)
		if err != nil {
			return err
		}
		if len(fds) == 0 {
			return fmt.Errorf("process %d has no epoll instance: it waits in another way (poll, select, io_uring), or has not begun to", p.PID)
		}
		fd, err := p.Borrow(fds[0])
		if err != nil {
			return err
		}
		_, err = napi.Epoll(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// apply sets the device, on a thread in the processes' network namespace.
func (a *attachment) apply() error {
	cores, err := a.cores()
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	var attempt func()
	attempt = func() {
		// A thread that is not unlocked ends with its goroutine. The main thread
		// cannot end, so it is only held meanwhile.
		goruntime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			inner := make(chan struct{})
			go func() { defer close(inner); attempt() }()
			<-inner
			goruntime.UnlockOSThread()
			return
		}
		if err := unix.Setns(a.processes[0].FD(), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter the network namespace of process %d: %w", a.processes[0].PID, explain(err))
			return
		}
		var err error
		a.applied, err = kernel.Apply(a.Device, cores, a.Settings)
		result <- err
	}
	go attempt()
	return <-result
}

// cores are those on which the processes may run.
func (a *attachment) cores() ([]int, error) {
	var all []int
	for _, p := range a.processes {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID))
		if err != nil {
			return nil, fmt.Errorf("look at the threads of process %d: %w", p.PID, explain(err))
		}
		for _, t := range tasks {
			tid := 0
			if _, err := fmt.Sscan(t.Name(), &tid); err != nil {
				continue
			}
			cores, err := napi.ThreadCores(tid)
			if errors.Is(err, napi.ErrGone) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, cores...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (a *attachment) describe() {
	for _, n := range a.applied.NAPIs() {
		line := fmt.Sprintf("NAPI %d serves %s", n.ID, a.Device)
		if n.Queue >= 0 {
			line += fmt.Sprintf(" queue %d", n.Queue)
		}
		switch {
		case n.IRQ > 0:
			line += fmt.Sprintf(", interrupt %d", n.IRQ)
		case n.Thread > 0:
			line += fmt.Sprintf(", thread %d stands for its interrupt", n.Thread)
		default:
			line += ", no interrupt that the kernel knows of"
		}
		a.say("%s", line)
	}
}

// watch looks again and again until it is told to stop or nobody is left.
func (a *attachment) watch(ctx context.Context) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("attach: make an eventfd: %w", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		close(woken)
	})
	defer func() {
		if !stop() {
			<-woken
		}
		unix.Close(wake)
	}()
	for {
		if err := a.look(); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}
		for _, p := range a.processes {
			fds = append(fds, unix.PollFd{Fd: int32(p.FD()), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(fds, int(a.Interval.Milliseconds())); err != nil && err != unix.EINTR {
			return fmt.Errorf("attach: wait for the processes: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		for i, p := range slices.Backward(a.processes) {
			if fds[i+1].Revents != 0 {
				a.say("process %d has ended", p.PID)
				p.Close()
				a.processes = slices.Delete(a.processes, i, i+1)
			}
		}
		if len(a.processes) == 0 {
			return nil
		}
	}
}

// renew sets the device again where something else has changed it: it may have
// new NAPI instances.
func (a *attachment) renew() {
	changed, err := a.applied.Renew()
	if len(changed) > 0 {
		a.say("%s was not as it had been set any more, and is set again: %s", a.Device, strings.Join(changed, ", "))
		a.describe()
	}
	trouble := ""
	if err != nil {
		trouble = err.Error()
		if trouble != a.trouble {
			a.say("%s cannot be set again: %v", a.Device, err)
		}
	}
	a.trouble = trouble
}

// look sets the device and epoll instances where they are not, or not any more,
// and reports what is new.
func (a *attachment) look() error {
	a.renew()
	for _, p := range a.processes {
		fds, err := epolls(p.PID)
		if errors.Is(err, napi.ErrGone) {
			continue // it ends
		}
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		for _, fd := range fds {
			if err := a.lookAt(p, fd); err != nil && !errors.Is(err, napi.ErrGone) {
				return fmt.Errorf("attach: %w", err)
			}
		}
		for k := range a.known {
			if k.pid == p.PID && !slices.Contains(fds, k.fd) {
				delete(a.known, k)
			}
		}
	}
	return nil
}

func (a *attachment) lookAt(p *napi.Process, fd int) error {
	state := ""
	if a.applied.Polls() {
		set, err := a.applied.SetEpoll(p, fd)
		if err != nil {
			return err
		}
		if set {
			e := a.applied.Epoll()
			state = fmt.Sprintf("polls now (%d µs, %d packets, prefer %v); ", e.BusyPoll.Microseconds(), e.Budget, e.Prefer)
		}
	}
	if len(a.Settings.Spread) > 0 {
		return nil // what was spread has no NAPI any more
	}
	w, err := waitingFor(p, fd)
	if err != nil {
		return err
	}
	line := w.verdict(a.applied.NAPIs())
	k := key{p.PID, fd}
	if state != "" || a.known[k] != line {
		a.say("process %d epoll %d: %s%s", p.PID, fd, state, line)
		a.known[k] = line
	}
	return nil
}
