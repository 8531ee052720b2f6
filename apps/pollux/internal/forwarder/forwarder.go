// Package forwarder puts the packet service on its devices: it opens them,
// builds the service or loads its twin in the kernel, shows what happens, and
// takes everything down again when it is told to stop.
package forwarder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"syscall"
	"time"

	"github.com/safchain/ethtool"
	"go.uber.org/automaxprocs/maxprocs"

	"github.com/pollux-net/pollux/apps/packet"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/queue"
	"github.com/pollux-net/pollux/apps/pollux/internal/metrics"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// Config is what to forward between, and how.
type Config struct {
	// Devices are devices as dpdk.Config names them, each maybe with a driver and
	// a colon before it, and with @ and the interface of the kernel whose
	// addresses and routes are the port's behind it.
	Devices []string
	// Driver is how network devices of the kernel are driven that name no driver,
	// see dpdk.Config.
	Driver string
	Mode   runtime.Mode
	// Cores is the number of cores, 0 for the devices' queues.
	Cores int
	// Rules is the file of rules; empty for none.
	Rules string
	// Metrics is the address of the kernel's to answer on, empty for none.
	Metrics string
	// MetricsPort is the TCP port to answer on at the box's own addresses, by the
	// service's own stack; 0 is none.
	MetricsPort int
	// Interval is how often the table is shown; 0 is never.
	Interval time.Duration
	// Flows, Queue and Bindings are the sizes of the flow cache (negative is
	// none), of each output queue and of the translation table; 0 for defaults.
	Flows, Queue, Bindings int
	CoDel                  bool
	// DPDKMemory is in MiB, 0 for what ports and cores need.
	DPDKMemory int
	HugePages  bool
	EAL        []string
	// Output is where the table goes.
	Output io.Writer
}

// User forwards on the user path until the context ends or a signal asks to stop.
func User(ctx context.Context, c Config) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)

	var devices []device
	for _, text := range c.Devices {
		devices = append(devices, parseDevice(text, c.Driver))
	}
	cores, err := chooseCores(c.Cores, devices)
	if err != nil {
		return err
	}
	var answers *metrics.Server
	if c.Metrics != "" {
		if answers, err = metrics.Listen(c.Metrics); err != nil {
			return err
		}
		defer answers.Close()
	}
	ports, err := open(c, devices, len(cores))
	defer func() {
		for _, p := range ports {
			err = errors.Join(err, p.Close())
		}
	}()
	if err != nil {
		return err
	}
	var interfaces []string
	for i, p := range ports {
		interfaces = append(interfaces, cmp.Or(devices[i].inter, p.Name()))
	}
	config := packet.Config{
		Forward: forward.Config{
			Ports: ports, Interfaces: interfaces, Shards: len(cores), Flows: c.Flows, Bindings: c.Bindings,
			Output: queue.Config{Frames: c.Queue, CoDel: c.CoDel},
		},
		Mode: c.Mode, Cores: cores, Rules: c.Rules,
		EnterThread: func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() },
	}
	var own *inside
	if c.MetricsPort != 0 {
		if own, err = newInside(c.MetricsPort); err != nil {
			return err
		}
		config.Stack = own.serve
		config.Forward.Reserved = []uint16{uint16(c.MetricsPort)}
		defer own.http.Close()
	}
	s, err := packet.New(config)
	if err != nil {
		return err
	}
	if own != nil {
		if err := own.registry.Register(&collector{service: s, ports: ports}); err != nil {
			return err
		}
	}
	if err := s.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Shutdown(context.Background())) }()
	if answers != nil {
		if err := answers.Register(&collector{service: s, ports: ports}); err != nil {
			return err
		}
		go answers.Serve()
		slog.Info("metrics", "url", fmt.Sprintf("http://%v/metrics", answers.Addr()))
	}
	for i, p := range ports {
		caps := p.Capabilities()
		waiting := caps.Interrupt
		if waiting == "" {
			waiting = "none: idle loops nap for up to a millisecond"
		}
		slog.Info("port", "device", p.Name(), "interface", interfaces[i], "driver", caps.Driver, "receive interrupts", waiting)
		if caps.Driver == "net_af_packet" {
			slog.Warn("af_packet leaves frames to the kernel, too: keep its addresses on another interface (--device DEVICE@INTERFACE) and its forwarding off", "device", p.Name())
		}
	}
	slog.Info("forwarding", "path", runtime.User, "mode", c.Mode, "cores", cores, "routes", s.Forwarder().Control().Routes())

	show := newTable(c.Output, s, ports)
	return watch(ctx, stop, reload, c.Interval, s.Done(), s.LoadRules, show.print)
}

// watch shows the table and reloads rules until the end.
func watch(ctx context.Context, stop func(), reload <-chan os.Signal, interval time.Duration, done <-chan struct{}, load func() error, show func() error) error {
	var tick <-chan time.Time
	if interval > 0 {
		t := time.NewTicker(interval)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			stop() // a second signal ends the process at once
			slog.Info("stopping")
			return show()
		case <-done:
			return nil // Shutdown says why
		case <-reload:
			if err := load(); err != nil {
				slog.Error("rules", "error", err)
			} else {
				slog.Info("rules loaded")
			}
		case <-tick:
			if err := show(); err != nil {
				return err
			}
		}
	}
}

// chooseCores decides how many cores to take and which: the first ones that the
// process may use.
func chooseCores(n int, devices []device) ([]int, error) {
	if _, err := maxprocs.Set(); err != nil {
		slog.Warn("the cgroup's CPU limit cannot be read", "error", err)
	}
	allowed, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	limit := min(goruntime.GOMAXPROCS(0), len(allowed))
	switch {
	case n == 0:
		n = limit
		for _, d := range devices {
			n = min(n, queues(d.name))
		}
	case n < 0:
		return nil, fmt.Errorf("--cores %d: a forwarder needs at least one", n)
	case n > limit:
		return nil, fmt.Errorf("--cores %d: this process may use %d (CPU affinity and cgroup limit)", n, limit)
	}
	return allowed[:n], nil
}

// queues is the number of receive queues of a network device of the kernel, 1 if
// it does not say.
func queues(device string) int {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return 1
	}
	defer e.Close()
	channels, err := e.GetChannels(device)
	if err != nil {
		return 1
	}
	return max(1, int(channels.CombinedCount+channels.RxCount))
}

// open starts DPDK and opens the devices. What was opened is returned in any case.
func open(c Config, devices []device, queues int) (ports []driver.Port, err error) {
	options, configs := plan(c, devices, queues)
	if err := dpdk.Init(options); err != nil {
		return nil, err
	}
	for _, config := range configs {
		p, err := dpdk.Open(config)
		if err != nil {
			return ports, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}
