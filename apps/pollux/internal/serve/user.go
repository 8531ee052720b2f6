package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/metrics"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/capture"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

// User is what only the user path needs.
type User struct {
	Driver string
	Stack  stack.Config
	// Capture is the file to write, empty for none, up to the limits.
	Capture                      string
	CapturePackets, CaptureBytes uint64
	// DPDKMemory is in MiB, 0 for what the cores need.
	DPDKMemory int
	HugePages  bool
	EAL        []string
}

// onUser opens the device and puts the application on a stack of its own.
func onUser(c Config, cores []int, h application, tick func(time.Time)) (_ *service, err error) {
	port, err := openPort(c, len(cores))
	if err != nil {
		return nil, err
	}
	s := &service{close: []func() error{port.Close}}
	defer func() {
		if err != nil {
			for _, f := range s.close {
				err = errors.Join(err, f())
			}
		}
	}()
	served := port
	if c.User.Capture != "" {
		file, err := capture.Create(c.User.Capture, capture.Config{Bytes: c.User.CaptureBytes, Packets: c.User.CapturePackets, Now: time.Now})
		if err != nil {
			return nil, err
		}
		s.close = []func() error{func() error { endCapture(c.User.Capture, file); return nil }, port.Close}
		if served, err = file.Port(port); err != nil {
			return nil, err
		}
	}
	r, err := user.New(served, user.Config{
		Mode: c.Mode, Stack: c.User.Stack, Cores: cores, Tick: tick,
		EnterThread: func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() },
	})
	if err != nil {
		return nil, err
	}
	err = r.Listen(everywhere(c.Port), h)
	if err == nil && c.Datagrams != 0 {
		err = r.ListenPacket(everywhere(c.Datagrams), h)
	}
	if err != nil {
		r.Discard()
		return nil, err
	}
	caps := port.Capabilities()
	waiting := caps.Interrupt
	if waiting == "" {
		waiting = "none: idle loops nap for up to a millisecond"
	}
	s.runner = r
	s.discard = func() error { r.Discard(); return nil }
	s.collector = &metrics.Shards{Runtime: r, Port: port}
	s.snapshot = func(ctx context.Context) (any, error) { return userStatistics(ctx, r) }
	s.about = []any{"device", port.Name(), "driver", caps.Driver, "addresses", c.User.Stack.Addresses, "receive interrupts", waiting}
	return s, nil
}

func endCapture(name string, file *capture.Capture) {
	written, skipped := file.Counts()
	slog.Info("capture ended", "file", name, "frames", written, "left out", skipped)
	if err := file.Close(); err != nil {
		slog.Error("capture", "error", err)
	}
}

// userStatistics takes what the loops counted, and logs the most telling of it.
func userStatistics(ctx context.Context, r *user.Runtime) (any, error) {
	all, err := r.Statistics(ctx)
	for _, s := range all {
		slog.Info("loop", "shard", s.Shard, "iterations", s.Iterations, "empty polls", s.Counters.EmptyPolls,
			"busy", percent(s.Busy, s.Elapsed), "asleep", percent(s.Slept, s.Elapsed), "sleeps", s.Sleeps,
			"woken by frames", s.WokenByFrame, "connections", s.Accepted, "frames in", s.Queue.ReceivedFrames, "frames out", s.Queue.TransmittedFrames)
	}
	return all, err
}

// openPort starts DPDK and opens the device.
func openPort(c Config, queues int) (driver.Port, error) {
	if err := checkKernel(c); err != nil {
		return nil, err
	}
	enough := dpdk.DefaultMemory + 32*(queues-1)
	options := dpdk.Options{Memory: c.User.DPDKMemory, HugePages: c.User.HugePages, Arguments: c.User.EAL}
	if options.Memory == 0 {
		options.Memory = enough
	}
	if dpdk.IsPCI(c.Device) {
		options.PCI = []string{c.Device}
	}
	if err := dpdk.Init(options); err != nil {
		return nil, err
	}
	port, err := dpdk.Open(dpdk.Config{Device: c.Device, Driver: c.User.Driver, Queues: queues, Interrupts: true})
	if err == nil {
		return port, nil
	}
	if options.Memory < enough {
		err = fmt.Errorf("%w (it was given --dpdk-memory %d; the default is %d)", err, options.Memory, enough)
	}
	return nil, err
}

// checkKernel refuses addresses that the kernel has on the device as well: where
// it sees the frames too, it would answer them with resets.
func checkKernel(c Config) error {
	device, err := net.InterfaceByName(c.Device)
	if err != nil {
		return nil // no device of the kernel, or none at all, which Open tells
	}
	addresses, err := device.Addrs()
	if err != nil {
		return fmt.Errorf("list the kernel's addresses on %s: %w", c.Device, err)
	}
	for _, a := range addresses {
		has, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		for _, p := range c.User.Stack.Addresses {
			if p.Addr().Unmap() == has.Addr().Unmap() {
				return fmt.Errorf("the kernel has %v on %s as well, and would answer beside this process; take it away: ip addr del %v dev %s", has, c.Device, has, c.Device)
			}
		}
	}
	return nil
}
