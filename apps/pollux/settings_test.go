package main

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/vishvananda/netlink"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

func TestTimersThatAreGivenByFlagNeverGiveWayToCoalescing(t *testing.T) {
	for _, c := range []struct {
		args    []string
		standIn bool
		flush   time.Duration
	}{
		{nil, true, 200 * time.Microsecond},
		{[]string{"--coalescing=80us"}, true, 80 * time.Microsecond},
		{[]string{"--coalescing=0"}, true, 200 * time.Microsecond},
		{[]string{"--coalescing=80us", "--gro-flush-timeout=30us"}, false, 30 * time.Microsecond},
		{[]string{"--defer-hard-irqs=5"}, false, 200 * time.Microsecond},
	} {
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		settings := addModeFlags(f)
		if err := f.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		s, err := settings(runtime.IRQSuppression)
		if err != nil || s.TimersStandIn != c.standIn || s.GROFlushTimeout != c.flush {
			t.Errorf("%v: %+v, %v", c.args, s, err)
		}
	}
}

func TestASpreadDeviceIsFreeAgainHoweverTheServerEnds(t *testing.T) {
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-spread", os.Getpid()), Path: runtime.Kernel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	program := func() (attached bool) {
		err := l.Do(lab.Server, func() error {
			link, err := netlink.LinkByName(lab.ServerInterface)
			attached = err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return attached
	}
	for _, end := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) {
			before := deviceState(t, l)
			server := pollux("memcached", "--path", "kernel", "--mode", string(runtime.IRQSuppression), "--spread", "0", "--device", lab.ServerInterface, "--address", lab.ServerIPv4.Addr().String())
			var output bytes.Buffer
			server.Stderr = &output
			if err := l.Start(lab.Server, server); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Process.Kill(); server.Wait() })
			eventually(t, "the server listens", func() bool { return listens(t, server.Process.Pid) })
			if !program() {
				t.Error("no program is on the device")
			}
			server.Process.Signal(end)
			server.Wait()
			eventually(t, "the program is gone", func() bool { return !program() })
			eventually(t, "the settings are as they were", func() bool { return reflect.DeepEqual(deviceState(t, l), before) })
			if said := strings.Contains(output.String(), "dropped for want of room"); said != (end == syscall.SIGTERM) {
				t.Errorf("the log says %s", output.String())
			}
		})
	}
	_, stderr, code := run(t, "memcached", "--path", "kernel", "--mode", "kernel-polling", "--device", "lo", "--spread", "0-1")
	if code != 1 || !strings.Contains(stderr, "exclude each other") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
