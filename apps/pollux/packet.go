package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/apps/pollux/internal/forwarder"
	"github.com/pollux-net/pollux/runtime"
)

func newPacketCommand() *cobra.Command {
	var (
		config forwarder.Config
		path   string
		mode   string
	)
	command := &cobra.Command{
		Use:   "packet",
		Short: "Forward packets between devices",
		Long: `Forwards IPv4 and IPv6 between network devices that this process drives itself,
by the routes of the kernel: whatever programs those (ip route, FRR, BIRD) is
the control plane. With --path kernel the same is done by an XDP program.

A device is a network device of the kernel (through AF_XDP, unless --driver says
otherwise), the address of a PCI device that is bound to vfio-pci, or a DPDK
virtual device with its arguments. Addresses and routes are those of the
kernel's interface of the same name; a device without one, or whose frames the
kernel sees too, borrows another's (a dummy's, say): DEVICE@INTERFACE. Devices
may be driven differently: af_packet:eth1@lan0, tap:pollux0@lan1.

The file of rules has one rule a line; SIGHUP reads it again, and a file with an
error changes nothing:

  permit|deny [in PORT] [out PORT] [proto tcp|udp|sctp|icmp|icmp6|NUMBER]
              [from PREFIX] [from-port N[-M]] [to PREFIX] [to-port N[-M]]
  default permit|deny
  nat out PORT [from PREFIX] to ADDRESS[-ADDRESS] [ports N-M]
  rate PORT RATE`,
		Example: `  pollux packet --device eth1 --device eth2 --mode adaptive --rules edge.rules
  pollux packet --device 0000:3b:00.0@lan0 --device 0000:3b:00.1@wan0 --hugepages --cores 4
  pollux packet --path kernel --device eth1 --device eth2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Output = cmd.OutOrStdout()
			switch runtime.Path(path) {
			case runtime.User:
				var err error
				if config.Mode, err = runtime.ParseMode(runtime.User, mode); err != nil {
					return fmt.Errorf("--mode: %w", err)
				}
				return forwarder.User(cmd.Context(), config)
			case runtime.Kernel:
				for _, name := range []string{"driver", "metrics-port", "mode", "cores", "flows", "queue", "codel", "bindings", "dpdk-memory", "hugepages", "eal"} {
					if cmd.Flags().Changed(name) {
						return fmt.Errorf("--%s has no meaning with --path kernel", name)
					}
				}
				return forwarder.Kernel(cmd.Context(), config)
			}
			return fmt.Errorf("--path %q: use %s or %s", path, runtime.User, runtime.Kernel)
		},
	}
	f := command.Flags()
	f.StringArrayVar(&config.Devices, "device", nil, "a device to forward between, maybe as DRIVER:DEVICE@INTERFACE; repeat for more")
	f.StringVar(&config.Driver, "driver", "", "how to drive network devices of the kernel: af_xdp (default), af_packet; or tap to make them")
	f.StringVar(&path, "path", string(runtime.User), "who forwards: user, or the kernel by XDP")
	f.StringVar(&mode, "mode", string(runtime.Adaptive), "how loops wait: poll, interrupt or adaptive")
	f.IntVar(&config.Cores, "cores", 0, "cores to take, one loop and one queue of each device each (default: the devices' queues, as far as the process's CPU limit goes)")
	f.StringVar(&config.Rules, "rules", "", "a file of rules: access, translation and rates")
	f.StringVar(&config.Metrics, "metrics", "", "answer Prometheus and pprof on this address of the kernel's, like 127.0.0.1:9100")
	f.IntVar(&config.MetricsPort, "metrics-port", 0, "answer Prometheus on this TCP port of the box's own addresses, by the service's own stack")
	f.DurationVar(&config.Interval, "interval", time.Second, "how often to show what happens; 0 is never")
	f.IntVar(&config.Flows, "flows", 0, "flows that each core remembers, of each family; -1 for none (default 65536)")
	f.IntVar(&config.Queue, "queue", 0, "frames that may wait for an output on each core (default 1024)")
	f.BoolVar(&config.CoDel, "codel", false, "drop from flows whose frames wait too long (RFC 8289)")
	f.IntVar(&config.Bindings, "bindings", 0, "translations on each core at a time (default 65536)")
	f.IntVar(&config.DPDKMemory, "dpdk-memory", 0, "memory for DPDK's frames and rings in MiB (default: what the ports and cores need)")
	f.BoolVar(&config.HugePages, "hugepages", false, "take DPDK's memory from hugepages")
	f.StringArrayVar(&config.EAL, "eal", nil, "a further argument for DPDK's EAL; repeat for more")
	command.MarkFlagRequired("device")
	return command
}
