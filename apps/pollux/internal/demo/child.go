package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
)

// child is this program as another process, in a namespace of the lab. It is in
// a process group of its own: an interrupt from the terminal is the parent's to
// handle, which ends its children in order.
type child struct {
	cmd      *exec.Cmd
	done     chan error
	out, err bytes.Buffer // to be read after the end
}

func start(l *lab.Lab, side lab.Side, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	c := &child{cmd: exec.Command(self, args...), done: make(chan error, 1)}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.Start(side, c.cmd); err != nil {
		return nil, fmt.Errorf("start pollux %s: %w", args[0], err)
	}
	go func() { c.done <- c.cmd.Wait() }()
	return c, nil
}

// stop asks the process to end and waits for it; it may be called again.
func (c *child) stop() error {
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-c.done:
		c.done <- err
		return err
	case <-time.After(stopTimeout):
		c.cmd.Process.Kill()
		err := <-c.done
		c.done <- err
		return errors.Join(fmt.Errorf("did not end within %v of SIGTERM", stopTimeout), err)
	}
}

// run waits for the process to end by itself, or ends it with the context.
func (c *child) run(ctx context.Context) error {
	select {
	case err := <-c.done:
		c.done <- err
		return err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.stop())
	}
}

// explain adds what the process printed to why it failed.
func (c *child) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", c.cmd.Args[1], err, bytes.TrimSpace(c.err.Bytes()))
}

// awaitServer waits until the server answers a connection attempt.
func awaitServer(ctx context.Context, l *lab.Lab, server *child) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	address := netip.AddrPortFrom(lab.ServerIPv4.Addr(), port).String()
	for {
		err := l.Do(lab.Client, func() error {
			conn, err := net.DialTimeout("tcp4", address, time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case e := <-server.done:
			server.done <- e
			return fmt.Errorf("the server ended at its start: %w", e)
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer at %s: %w", address, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
