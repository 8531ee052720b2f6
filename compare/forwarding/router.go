package forwarding

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// A Subject is who forwards.
type Subject string

// The kernel's own forwarding, and the packet service on both paths, on the user
// path in each mode.
const (
	IPForward Subject = "ip_forward"
	XDP       Subject = "kernel"
	Poll      Subject = "user/poll"
	Interrupt Subject = "user/interrupt"
	Adaptive  Subject = "user/adaptive"
)

// Subjects are all of them, the one that the others are compared with first.
var Subjects = []Subject{IPForward, XDP, Poll, Interrupt, Adaptive}

// mode is how a loop of the user path waits; false on the kernel path.
func (s Subject) mode() (string, bool) { return strings.CutPrefix(string(s), string(runtime.User)+"/") }

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second
	metrics      = "127.0.0.1:9100"
)

// A router is a subject at work in a network of its own.
type router struct {
	*network
	subject Subject
	process *exec.Cmd // of the packet service
	said    bytes.Buffer
	ended   chan struct{}
	threads []int // of the router's receive work
	sink    *sink
	source  *source
}

// startRouter has a subject forward on a processor; the server's end of the wire
// has its receive work on another.
func startRouter(s Subject, pollux string, core, other int) (r *router, err error) {
	_, user := s.mode()
	n, err := newNetwork(!user)
	if err != nil {
		return nil, err
	}
	r = &router{network: n, subject: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
			r = nil
		}
	}()
	if r.source, err = newSource(n); err != nil {
		return r, err
	}
	err = n.server.do(func() (err error) {
		if r.sink, err = newSink(n.to.index); err != nil {
			return err
		}
		_, err = receiveOn(n.to.name, other)
		return err
	})
	if err != nil {
		return r, err
	}
	if s != IPForward {
		if err := r.serve(pollux, core); err != nil {
			return r, err
		}
	}
	if !user {
		// On the user path it only does what a NIC would: put the frame into a
		// ring. It stays where the frame was sent.
		err = n.router.do(func() (err error) {
			if err := change(n.in.name, map[string]bool{"rx-gro": true}); err != nil { // else a veth has no NAPI
				return err
			}
			r.threads, err = receiveOn(n.in.name, core)
			return err
		})
		if err != nil {
			return r, err
		}
	}
	return r, r.await()
}

// await waits until frames get through.
func (r *router) await() error {
	for deadline := time.Now().Add(startTimeout); ; {
		err := r.answers()
		if err == nil {
			return nil
		}
		select {
		case <-r.ended: // which is nil, and never ready, where there is no process
			return errors.New("it ended at its start")
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server cannot be reached through the router within %v: %w", startTimeout, err)
		}
	}
}

// serve starts the packet service.
func (r *router) serve(pollux string, core int) error {
	argv := []string{"-c", strconv.Itoa(core), "nice", "-n", strconv.Itoa(highest), pollux, "packet", "--device", r.in.name, "--device", r.out.name, "--interval", "0"}
	if mode, user := r.subject.mode(); user {
		argv = append(argv, "--path", string(runtime.User), "--mode", mode, "--cores", "1", "--metrics", metrics)
	} else {
		argv = append(argv, "--path", string(runtime.Kernel))
	}
	cmd := exec.Command("taskset", argv...) // which turns into nice, and that into the service
	cmd.Stdout, cmd.Stderr = &r.said, &r.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt from the terminal is ours to handle
	if err := r.router.start(cmd); err != nil {
		return fmt.Errorf("start pollux packet: %w", err)
	}
	r.process, r.ended = cmd, make(chan struct{})
	go func() {
		cmd.Wait()
		close(r.ended)
	}()
	return nil
}

// loops is what the loop of the user path has counted.
func (r *router) loops() (l measure.Loops, err error) {
	err = r.router.do(func() error {
		l, err = measure.AskForwarder(metrics)
		return err
	})
	return l, err
}

// close ends the service and the network.
func (r *router) close() (err error) {
	if r.process != nil {
		r.process.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.ended:
		case <-time.After(stopTimeout):
			r.process.Process.Kill()
			<-r.ended
			err = fmt.Errorf("pollux packet did not end within %v of SIGTERM", stopTimeout)
		}
		if code := r.process.ProcessState.ExitCode(); err == nil && code != 0 {
			err = fmt.Errorf("pollux packet: exit code %d: %s", code, bytes.TrimSpace(r.said.Bytes()))
		}
	}
	if r.sink != nil {
		r.sink.close()
	}
	if r.source != nil {
		r.source.close()
	}
	r.network.close()
	return err
}

// receiveOn gives an interface's receive work threads of its own, on a processor.
func receiveOn(name string, core int) (threads []int, err error) {
	if err := threaded(name); err != nil {
		return nil, err
	}
	c, err := napi.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	d, err := c.Device(name)
	if err != nil {
		return nil, err
	}
	all, err := c.NAPIs(d)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.Thread == 0 {
			return nil, fmt.Errorf("the receive work of %s has no thread", name)
		}
		if err := errors.Join(pin(n.Thread, core), hurry(n.Thread)); err != nil {
			return nil, fmt.Errorf("place the receive work of %s: %w", name, err)
		}
		threads = append(threads, n.Thread)
	}
	if len(threads) == 0 {
		return nil, fmt.Errorf("%s has no receive work of its own", name)
	}
	return threads, nil
}

// tasks are the threads whose time is the router's.
func (r *router) tasks() ([]int, error) {
	list := slices.Clone(r.threads)
	if r.process == nil {
		return list, nil
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.process.Process.Pid))
	if err != nil {
		return nil, fmt.Errorf("list the threads of pollux packet: %w", err)
	}
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil && len(list) < observe.MaxThreads {
			list = append(list, id)
		}
	}
	return list, nil
}

// threaded asks for threads. The file is in the sysfs of the calling thread's
// network namespace.
func threaded(name string) error {
	dir, err := os.MkdirTemp("", "pollux-sys-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_SLAVE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("detach the mount namespace: %w", err)
	}
	if err := syscall.Mount("sysfs", dir, "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount the namespace's sysfs: %w", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	if err := os.WriteFile(dir+"/class/net/"+name+"/threaded", []byte("1"), 0); err != nil {
		return fmt.Errorf("give the receive work of %s threads: %w", name, err)
	}
	return nil
}
