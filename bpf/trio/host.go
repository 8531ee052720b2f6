package trio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Host is a network namespace. It has no name in the system: only this process
// and its children hold it, so it vanishes with them, however they end.
type Host struct {
	Name      string
	namespace netns.NsHandle
}

// NewHost makes a host with nothing but a loopback interface. It ends with the
// test.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	h := &Host{Name: name, namespace: netns.None()}
	err := onSpareThread(func() (err error) {
		h.namespace, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make the network namespace of the %s: %v; that takes root", name, err)
	}
	t.Cleanup(func() { h.namespace.Close() })
	h.Run(t, "ip", "link", "set", "lo", "up")
	return h
}

// Do calls f on a thread in the host's network namespace, where sockets, netlink
// and /proc/sys/net are the host's. Goroutines that f starts are elsewhere. The
// thread ends with f.
func (h *Host) Do(f func() error) error {
	return onSpareThread(func() error {
		if err := netns.Set(h.namespace); err != nil {
			return fmt.Errorf("enter the network namespace of the %s: %w", h.Name, err)
		}
		return f()
	})
}

// Must is Do for a test that cannot go on if f fails.
func (h *Host) Must(t testing.TB, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatalf("on the %s: %v", h.Name, err)
	}
}

// Start starts a command on the host, with a /sys that shows the host's
// interfaces. The caller waits for it. Do not set Pdeathsig: the thread that
// starts the command ends at once, and the signal would be sent then.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("detach the mount namespace: %w", err)
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			return fmt.Errorf("mount the namespace's sysfs: %w", err)
		}
		return cmd.Start()
	})
}

// patience is how long a command of Try may take: a test is to fail rather than
// to hang.
const patience = 2 * time.Minute

// Try runs a command on the host and returns what it wrote.
func (h *Host) Try(name string, arguments ...string) (string, error) {
	var out strings.Builder
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("it took more than %v", patience))
	defer cancel()
	cmd := exec.CommandContext(ctx, name, arguments...)
	cmd.WaitDelay = time.Second
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), err
}

// Run runs a command on the host and returns what it wrote; the test ends if it
// fails.
func (h *Host) Run(t testing.TB, name string, arguments ...string) string {
	t.Helper()
	out, err := h.Try(name, arguments...)
	if err != nil {
		t.Fatalf("%s %s on the %s: %v\n%s", name, strings.Join(arguments, " "), h.Name, err, out)
	}
	return out
}

// Sysctl sets net/… parameters, each written as path=value.
func (h *Host) Sysctl(t testing.TB, settings ...string) {
	t.Helper()
	h.Must(t, func() error {
		for _, s := range settings {
			path, value, ok := strings.Cut(s, "=")
			if !ok {
				return fmt.Errorf("%q is not path=value", s)
			}
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
				return fmt.Errorf("set %s: %w", s, err)
			}
		}
		return nil
	})
}

// Take moves another host's interface to this one, as pulling a cable over does.
func (h *Host) Take(t testing.TB, from *Host, inter string) {
	t.Helper()
	from.Must(t, func() error {
		link, err := netlink.LinkByName(inter)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(link, int(h.namespace))
	})
}

// onSpareThread calls f on an operating-system thread of its own, which ends
// with f: whatever namespaces f entered, nobody else gets to see them.
func onSpareThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		returned := false
		defer func() {
			if !returned { // f ended the goroutine, as t.FailNow does
				result <- errors.New("the function did not return")
			}
		}()
		err := f()
		returned = true
		result <- err
	}()
	return <-result
}
