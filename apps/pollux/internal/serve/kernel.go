package serve

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/metrics"
	"github.com/pollux-net/pollux/runtime/kernel"
)

// Kernel is what only the kernel path needs.
type Kernel struct {
	// Addresses to bind to; none is all of the kernel's.
	Addresses []netip.Addr
	// Settings are the mode's, or what was chosen instead.
	Settings kernel.Settings
	// Unsteered leaves it to the kernel's hash which core serves a connection.
	Unsteered bool
	// Watcher is the command that puts the device's settings back when this
	// process was killed; see kernel.Applied.Watch.
	Watcher []string
}

// onKernel binds sockets and puts the application on the kernel's stack.
func onKernel(c Config, cores []int, h application, tick func(time.Time)) (*service, error) {
	r, err := kernel.New(kernel.Config{
		Mode: c.Mode, Cores: cores, Device: c.Device, Settings: &c.Kernel.Settings, Unsteered: c.Kernel.Unsteered, Tick: tick,
	})
	if err != nil {
		return nil, err
	}
	if len(c.Kernel.Watcher) > 0 {
		if err := r.Applied().Watch(c.Kernel.Watcher...); err != nil {
			return nil, errors.Join(err, r.Discard())
		}
	}
	addresses := c.Kernel.Addresses
	if len(addresses) == 0 {
		addresses = []netip.Addr{everywhere(c.Port).Addr()}
	}
	for _, a := range addresses {
		err := r.Listen(netip.AddrPortFrom(a, c.Port), h)
		if err == nil && c.Datagrams != 0 {
			err = r.ListenPacket(netip.AddrPortFrom(a, c.Datagrams), h)
		}
		if err != nil {
			return nil, errors.Join(err, r.Discard())
		}
	}
	device := c.Device
	if device == "" {
		device = "any"
	}
	return &service{
		runner: r, discard: r.Discard, collector: &metrics.KernelShards{Runtime: r},
		snapshot: func(ctx context.Context) (any, error) { return kernelStatistics(ctx, r) },
		about:    []any{"device", device, "addresses", r.Addresses()},
	}, nil
}

// kernelStatistics takes what the loops counted, and logs the most telling of it.
func kernelStatistics(ctx context.Context, r *kernel.Runtime) (any, error) {
	all, err := r.Statistics(ctx)
	for _, s := range all {
		slog.Info("loop", "shard", s.Shard, "iterations", s.Iterations, "epoll waits", s.Waits, "empty", s.EmptyWaits, "events", s.Events,
			"busy", percent(s.Busy, s.Elapsed), "waiting", percent(s.Waited, s.Elapsed), "connections", s.Accepted,
			"of other queues", s.NAPIForeign, "reads", s.Reads, "writes", s.Writes)
	}
	if c, spread, e := r.Applied().SpreadCounts(); e != nil {
		err = errors.Join(err, e)
	} else if spread {
		slog.Info("spread", "processors", c.CPUs, "frames", c.Frames, "dropped for want of room", c.Dropped, "stayed where they arrived", c.Stayed)
	}
	return all, err
}
