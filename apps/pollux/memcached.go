package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/apps/pollux/internal/serve"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

func newMemcachedCommand() *cobra.Command {
	var (
		config    serve.Config
		addresses []string
		gateways  []string
		path      string
		mode      string
		dispatch  string
		memory    string
		maxItem   string
		conns     int
		idle      time.Duration
		steer     bool
	)
	command := &cobra.Command{
		Use:   "memcached",
		Short: "Serve memcached",
		Long: `Serves memcached's text protocol, with one loop per core, on one of two paths.

On the user path this process drives a network device itself: DPDK, a TCP/IP
stack and the server in one loop. The device is a network device of the kernel
(through AF_XDP, unless --driver says otherwise), the address of a PCI device
that is bound to vfio-pci, or a DPDK virtual device with its arguments. The
addresses belong to this process alone: the kernel must not have them on the
same device.

On the kernel path the server binds to the kernel's addresses, all of them
unless --address says otherwise. With --device, connections go to the core that
owns the queue which receives them. The modes beyond vanilla need --device, set
it as they say, and set it back at the end.`,
		Example: `  pollux lab up
  pollux lab exec server -- pollux memcached --device pollux0 --address 10.99.0.1/24 --mode adaptive
  pollux memcached --device 0000:3b:00.0 --hugepages --address 192.0.2.10/24 --gateway 192.0.2.1 --cores 4 --memory 4g
  pollux memcached --path kernel
  pollux memcached --path kernel --mode kernel-polling --device eth1 --cores 4`,
		Args: cobra.NoArgs,
	}
	f := command.Flags()
	f.StringVar(&path, "path", string(runtime.User), "whose network stack to use: user or kernel")
	f.StringVar(&mode, "mode", "", "how loops wait; user path: poll, interrupt or adaptive (default); kernel path: vanilla (default), irq-packing, irq-suppression, busy-poll or kernel-polling")
	f.StringVar(&config.Device, "device", "", "the network device to serve on; on the user path also a PCI address or a DPDK virtual device")
	f.StringArrayVar(&addresses, "address", nil, "an address with its prefix length, like 10.99.0.1/24; repeat for more, of either family. The kernel path needs no prefix length")
	f.Uint16Var(&config.Port, "port", 11211, "TCP port")
	f.IntVar(&config.Cores, "cores", 0, "cores to take, one loop and one queue each (default: the device's queues, as far as the process's CPU limit goes)")
	f.StringVar(&memory, "memory", "64m", "memory for items")
	f.StringVar(&maxItem, "max-item-size", "1m", "the largest item")
	f.Uint16Var(&config.Datagrams, "udp-port", 0, "UDP port; 0 is none")
	f.DurationVar(&idle, "idle-timeout", 0, "close connections from which nothing has come for so long, like 5m; 0 is never")
	f.IntVar(&conns, "max-connections", memcached.DefaultMaxConns, "connections at a time")
	f.StringVar(&config.Metrics, "metrics", "", "answer Prometheus and pprof on this address of the kernel's, like 127.0.0.1:9100")
	f.StringVar(&config.Statistics, "statistics", "", "write what the loops counted to this file at the end, as JSON")
	f.StringVar(&config.Profile, "profile", "", "write a CPU profile of the whole run to this file")

	// Each path's own.
	u := pflag.NewFlagSet(string(runtime.User), pflag.ContinueOnError)
	u.StringVar(&config.User.Driver, "driver", "", "user path: how to drive a network device of the kernel: af_xdp (default), af_packet; or tap to make one")
	u.StringArrayVar(&gateways, "gateway", nil, "user path: the next hop of the default route; one a family")
	u.StringVar(&dispatch, "dispatch", string(stack.Inline), "user path: how segments reach TCP: inline, or handoff as netstack comes, to compare")
	u.StringVar(&config.User.Capture, "capture", "", "user path: write the frames that pass to this pcapng file")
	u.Uint64Var(&config.User.CapturePackets, "capture-packets", 1_000_000, "user path: stop the capture after so many frames; 0 is no limit")
	u.Uint64Var(&config.User.CaptureBytes, "capture-bytes", 1<<30, "user path: stop the capture at this file size; 0 is no limit")
	u.IntVar(&config.User.DPDKMemory, "dpdk-memory", 0, "user path: memory for DPDK's frames and rings in MiB (default 128, and 32 more for each core)")
	u.BoolVar(&config.User.HugePages, "hugepages", false, "user path: take DPDK's memory from hugepages")
	u.StringArrayVar(&config.User.EAL, "eal", nil, "user path: a further argument for DPDK's EAL; repeat for more")
	f.AddFlagSet(u)
	k := pflag.NewFlagSet(string(runtime.Kernel), pflag.ContinueOnError)
	k.BoolVar(&steer, "steer", true, "kernel path: have the core that owns the receiving queue serve a connection, instead of one by the kernel's hash")
	settings := addModeFlags(k)
	k.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "steer" {
			flag.Usage = "kernel path: " + flag.Usage
		}
	})
	f.AddFlagSet(k)

	command.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if config.Path, err = runtime.ParsePath(path); err != nil {
			return fmt.Errorf("--path %s: %w", path, err)
		}
		config.Mode = runtime.DefaultMode(config.Path)
		if mode != "" {
			if config.Mode, err = runtime.ParseMode(config.Path, mode); err != nil {
				return fmt.Errorf("--mode: %w", err)
			}
		}
		switch config.Path {
		case runtime.User:
			config.User.Stack.Dispatch = stack.Dispatch(dispatch)
			if err = notFor(config.Path, k); err == nil {
				err = userPath(&config, addresses, gateways)
			}
		case runtime.Kernel:
			config.Kernel.Unsteered = !steer
			if err = notFor(config.Path, u); err == nil {
				err = kernelPath(&config, addresses)
			}
			if err == nil {
				config.Kernel.Settings, err = settings(config.Mode)
			}
		}
		if err != nil {
			return err
		}
		options := memcached.Options{MaxConns: conns, IdleTimeout: idle, CPU: serve.CPU, Allocate: itemMemory}
		if options.Memory, err = parseSize("memory", memory); err != nil {
			return err
		}
		if options.MaxItem, err = parseSize("max-item-size", maxItem); err != nil {
			return err
		}
		return serve.Memcached(cmd.Context(), config, options)
	}
	return command
}

// notFor refuses flags that were given but are the other path's.
func notFor(p runtime.Path, others *pflag.FlagSet) (err error) {
	others.VisitAll(func(f *pflag.Flag) {
		if f.Changed && err == nil {
			err = fmt.Errorf("--%s has no meaning with --path %s", f.Name, p)
		}
	})
	return err
}

// userPath reads what the user path is told of the network.
func userPath(config *serve.Config, addresses, gateways []string) error {
	// The words are cobra's, which knows nothing of paths.
	if config.Device == "" {
		return errors.New(`required flag(s) "device" not set: the user path drives a device of its own`)
	}
	if len(addresses) == 0 {
		return errors.New(`required flag(s) "address" not set: the user path answers for addresses of its own`)
	}
	for _, s := range addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("--address %q is not an address with a prefix length, like 10.99.0.1/24 or fd99::1/64", s)
		}
		config.User.Stack.Addresses = append(config.User.Stack.Addresses, p)
	}
	for _, s := range gateways {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--gateway: %w", err)
		}
		config.User.Stack.Gateways = append(config.User.Stack.Gateways, g)
	}
	return nil
}

// kernelPath reads what the kernel path is told of the network.
func kernelPath(config *serve.Config, addresses []string) error {
	for _, s := range addresses {
		a, err := netip.ParseAddr(s)
		if p, e := netip.ParsePrefix(s); e == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return fmt.Errorf("--address %q is not an address, like 10.99.0.1 or fd99::1", s)
		}
		config.Kernel.Addresses = append(config.Kernel.Addresses, a)
	}
	if config.Device == "" {
		if config.Mode != runtime.Vanilla {
			return fmt.Errorf("--mode %s needs --device: the network device that connections come from", config.Mode)
		}
		return nil
	}
	var err error
	config.Kernel.Watcher, err = watcher()
	return err
}

// parseSize reads a number of bytes; k, m and g are powers of 1,024.
func parseSize(flag, s string) (int, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--%s %q is not a size, like 64m or 4g", flag, s)
	}
	return int(n), nil
}
