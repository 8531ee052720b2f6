package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/apps/pollux/internal/metrics"
	twin "github.com/pollux-net/pollux/bpf/forward"
	"github.com/pollux-net/pollux/runtime"
)

// Kernel forwards on the kernel path, by the twin in XDP, until the context ends
// or a signal asks to stop.
func Kernel(ctx context.Context, c Config) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)

	var interfaces []int
	for _, name := range c.Devices {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("--device %s: %w (the kernel path needs network devices of the kernel)", name, err)
		}
		interfaces = append(interfaces, i.Index)
	}
	f, err := twin.Load(twin.Config{Interfaces: interfaces})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	load := func() error { return loadKernelRules(f, c.Rules, c.Devices, interfaces) }
	if err := load(); err != nil {
		return err
	}
	if c.Metrics != "" {
		answers, err := metrics.Listen(c.Metrics)
		if err != nil {
			return err
		}
		defer answers.Close()
		if err := answers.Register(&twinCollector{f}); err != nil {
			return err
		}
		go answers.Serve()
		slog.Info("metrics", "url", fmt.Sprintf("http://%v/metrics", answers.Addr()))
	}
	slog.Info("forwarding", "path", runtime.Kernel, "devices", c.Devices)
	show := newTwinTable(c.Output, f)
	return watch(ctx, stop, reload, c.Interval, nil, load, show.print)
}

// loadKernelRules reads a file for the twin, which knows access rules only.
func loadKernelRules(f *twin.Forwarder, file string, names []string, interfaces []int) error {
	if file == "" {
		return nil
	}
	r, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read the rules: %w", err)
	}
	defer r.Close()
	set, err := rules.Parse(r, file, names)
	if err != nil {
		return fmt.Errorf("the rules stay as they were:\n%w", err)
	}
	if len(set.NAT) > 0 {
		return fmt.Errorf("%s:%d: the kernel path does not translate: use --path user", file, set.NAT[0].Line)
	}
	for port := range set.Rates {
		return fmt.Errorf("%s: the rate of %s: the kernel path has no rates: use --path user", file, port)
	}
	if len(set.Rules) > twin.MaxRules {
		return fmt.Errorf("%s: %d access rules: the kernel path takes at most %d: use --path user, which takes %d", file, len(set.Rules), twin.MaxRules, rules.MaxRules)
	}
	index := func(name string) int {
		for i, n := range names {
			if n == name {
				return interfaces[i]
			}
		}
		return 0
	}
	var list []twin.Rule
	for _, r := range set.Rules {
		list = append(list, twin.Rule{
			Deny: r.Deny, In: index(r.In), Out: index(r.Out), Protocol: r.Protocol, From: r.From, To: r.To,
			FromPorts: (*twin.Ports)(r.FromPorts), ToPorts: (*twin.Ports)(r.ToPorts),
		})
	}
	return f.SetRules(list, set.Deny)
}
