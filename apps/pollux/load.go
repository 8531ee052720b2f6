package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/spf13/cobra"
)

// loadFlags are those that need more than to be stored.
type loadFlags struct {
	device, driver string
	addresses      []string
	gateways       []string
	hugePages      bool
	dpdkMemory     int
	eal            []string
	cores          string
	histogram      string
	asJSON         bool
	serve          string
}

func newLoadCommand() *cobra.Command {
	var config load.Config
	var flags loadFlags
	command := &cobra.Command{
		Use:   "load HOST:PORT",
		Short: "Drive a memcached server, verify every reply, and say who was the limit",
		Long: `Stores every key once, then gets and sets keys over a number of connections.
Every reply is verified: the right key, the right length, the right bytes. Prints
requests per second, latencies, and how busy the client was: a figure of a client
that was the bottleneck says nothing about the server. The exit code is 0 only if
every request was answered, and rightly.

Without --rate the loop is closed: a connection sends its next request when a
reply makes room for it (--depth at a time). With --rate it is open: requests are
due at times that do not depend on the server, and latency counts from when a
request was due, so that a server that stalls cannot hide it.

Engines: kernel is sockets and epoll on pinned threads; user is our own stack on
a device of its own (--device, --address), which costs less per request; reference
is the client that Go programs use, one request at a time, which also notices a
value older than the last one stored.

Sizes are numbers or distributions: 100, uniform:10,50, normal:100,20,
exponential:100, pareto:LOCATION,SCALE,SHAPE, gev:LOCATION,SCALE,SHAPE, etc-key,
etc-value. --workload etc is Facebook's ETC pool (Atikoglu et al., SIGMETRICS
2012) as mutilate has it: sizes, times between requests, 3 % sets.`,
		Example: `  pollux load 10.99.0.1:11211
  pollux load 10.99.0.1:11211 --workload etc --keys 1000000 --rate 200000 --connections 64 --duration 30s
  pollux load 10.99.0.1:11211 --depth 16 --set-ratio 0.03 --zipf 0.99
  pollux load '[fd99::1]:11211' --requests 100000 --json
  pollux load 10.99.0.1:11211 --engine user --device pollux1 --address 10.99.0.2/24
  pollux load 10.0.0.1:11211 --serve 192.168.1.2:7070`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			config.Address = args[0]
			if cmd.Flags().Changed("set-ratio") && config.Workload != load.Mixed {
				return fmt.Errorf("--set-ratio is for --workload %s; %s has its own", load.Mixed, config.Workload)
			}
			if config.Cores, err = lab.ParseCores(flags.cores); err != nil {
				return fmt.Errorf("--cores: %w", err)
			}
			ctx := untilHangUp(cmd.Context())
			if config.Engine == load.User {
				closePort, err := flags.openPort(&config)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, closePort()) }()
			} else if flags.device != "" {
				return fmt.Errorf("--device %s is for --engine %s", flags.device, load.User)
			}
			if flags.serve != "" {
				return serveLoad(ctx, config, flags.serve, cmd)
			}
			result, err := load.Run(ctx, config)
			if err != nil && result.Requests == 0 {
				return err
			}
			if e := flags.print(cmd.OutOrStdout(), result); e != nil {
				return e
			}
			if err != nil {
				return fmt.Errorf("the run ended early: %w", err)
			}
			return result.Err()
		},
	}
	f := command.Flags()
	f.StringVar((*string)(&config.Engine), "engine", string(load.Kernel), "what carries the requests: kernel, user or reference")
	f.StringVar((*string)(&config.Workload), "workload", string(load.Mixed), "what is asked for: mixed, get, set or etc")
	f.Float64Var(&config.SetRatio, "set-ratio", 0.1, "share of sets among the requests of --workload mixed, 0 to 1")
	f.StringVar(&config.KeySize, "key-size", "", "bytes of a key, a number or a distribution (default 30, or etc-key); at least the prefix and the number")
	f.StringVar(&config.ValueSize, "value-size", "", "bytes of a value, a number or a distribution (default 100, or etc-value)")
	f.IntVar(&config.Keys, "keys", 0, "keys, at least one for each connection (default 1000, or as many as connections)")
	f.Float64Var(&config.Zipf, "zipf", 0, "exponent by which some keys are asked for more often; 0: all alike")
	f.StringVar(&config.Prefix, "prefix", "", `of every key (default "pollux-")`)
	f.IntVar(&config.Connections, "connections", 16, "connections")
	f.IntVar(&config.Depth, "depth", 1, "requests under way at a time on a connection")
	f.IntVar(&config.Churn, "churn", 0, "requests after which a connection is replaced; 0: never")
	f.Float64Var(&config.Rate, "rate", 0, "requests per second to offer (open loop); 0: as fast as replies come (closed loop)")
	f.StringVar(&config.Arrivals, "arrivals", "", "times between the requests of a connection, with --rate: poisson (default), etc, fixed or a distribution")
	f.DurationVar(&config.Duration, "duration", 0, "how long (default 10s, or 10m at most if --requests is given)")
	f.Uint64Var(&config.Requests, "requests", 0, "how many requests (default as many as there is time for)")
	f.DurationVar(&config.Warmup, "warmup", 0, "load that comes before and does not count")
	f.StringVar(&flags.serve, "serve", "", "load the server when, and as, pollux compare --client says, which connects to this address, HOST:PORT; - is standard input and output")
	f.DurationVar(&config.Timeout, "timeout", 0, "of a connection attempt and of each request (default 5s)")
	f.BoolVar(&config.NoStore, "no-store", false, "do not store the keys first: an earlier run with the same keys, sizes and seed has")
	f.Uint64Var(&config.Seed, "seed", 1, "of the choice of keys, operations, sizes and values")
	f.IntVar(&config.Threads, "threads", 1, "threads of the kernel engine")
	f.StringVar(&flags.cores, "cores", "", "processors to pin the threads to, like 2-3 (default: the last ones)")
	f.BoolVar(&config.Spin, "spin", false, "have the kernel engine poll instead of sleep: more punctual, and takes the whole core")
	f.StringVar(&flags.device, "device", "", "the device of the user engine: a network device, PCI address or DPDK virtual device")
	f.StringVar(&flags.driver, "driver", "", "how to drive a network device of the kernel: af_xdp (default), af_packet; or tap to make one")
	f.StringArrayVar(&flags.addresses, "address", nil, "the user engine's own address with its prefix length, like 10.99.0.2/24; repeat for more")
	f.StringArrayVar(&flags.gateways, "gateway", nil, "the next hop of the user engine's default route; one a family")
	f.BoolVar(&flags.hugePages, "hugepages", false, "take DPDK's memory from hugepages")
	f.IntVar(&flags.dpdkMemory, "dpdk-memory", 0, "memory for DPDK's frames and rings in MiB (default 128)")
	f.StringArrayVar(&flags.eal, "eal", nil, "a further argument for DPDK's EAL; repeat for more")
	f.BoolVar(&flags.asJSON, "json", false, "print the result as JSON, times in nanoseconds, with the histogram")
	f.StringVar(&flags.histogram, "histogram", "", "write the latencies by percentile to this file, in microseconds, as HdrHistogram's plotter reads them")
	// What is asked of the server, and how much, is told by who connects.
	for _, name := range []string{"workload", "set-ratio", "key-size", "value-size", "keys", "zipf", "connections", "depth", "churn",
		"rate", "arrivals", "duration", "requests", "warmup", "timeout", "no-store", "seed", "json", "histogram"} {
		command.MarkFlagsMutuallyExclusive("serve", name)
	}
	return command
}

// openPort gives the user engine its device.
func (f *loadFlags) openPort(c *load.Config) (closePort func() error, err error) {
	if f.device == "" || len(f.addresses) == 0 {
		return nil, fmt.Errorf("--engine %s needs a --device and an --address of its own", load.User)
	}
	for _, s := range f.addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--address %q is not an address with a prefix length, like 10.99.0.2/24 or fd99::2/64", s)
		}
		c.Stack.Addresses = append(c.Stack.Addresses, p)
	}
	for _, s := range f.gateways {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--gateway: %w", err)
		}
		c.Stack.Gateways = append(c.Stack.Gateways, g)
	}
	options := dpdk.Options{Memory: f.dpdkMemory, HugePages: f.hugePages, Arguments: f.eal}
	if dpdk.IsPCI(f.device) {
		options.PCI = []string{f.device}
	}
	if err := dpdk.Init(options); err != nil {
		return nil, err
	}
	port, err := dpdk.Open(dpdk.Config{Device: f.device, Driver: f.driver})
	if err != nil {
		return nil, err
	}
	c.Port = port
	c.EnterThread = func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() }
	return port.Close, nil
}

// print writes the result where it was asked for.
func (f *loadFlags) print(out io.Writer, result load.Result) error {
	if f.histogram != "" {
		file, err := os.Create(f.histogram)
		if err != nil {
			return fmt.Errorf("--histogram: %w", err)
		}
		if err := errors.Join(result.WriteHistogram(file), file.Close()); err != nil {
			return fmt.Errorf("--histogram: %w", err)
		}
	}
	if !f.asJSON {
		_, err := fmt.Fprintln(out, result)
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(result); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
