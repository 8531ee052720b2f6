package main

import (
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/apps/pollux/internal/attach"
	"github.com/pollux-net/pollux/runtime"
)

func newAttachCommand() *cobra.Command {
	var config attach.Config
	var mode string
	command := &cobra.Command{
		Use:   "attach",
		Short: "Turn kernel polling on for a server that knows nothing of it",
		Long: `Sets the device that a server receives through, and the server's epoll
instances from outside, so that the server polls its queue itself while it has
work instead of being interrupted. New epoll instances are found and set too,
and for each it is said whether its connections come through one queue, as they
should. The device is set again if something else changes it. At the end (an interrupt, or the end of the server) everything is put
back; after SIGKILL of this command a helper process does, else
"pollux doctor --restore".

The device is looked for in the server's network namespace. A server of several
processes is named with all their numbers.`,
		Example: `  pollux attach --pid "$(pidof memcached)" --device eth1
  pollux attach --pid 812,813 --device eth1 --mode busy-poll --busy-poll-time 50us`,
		Args: cobra.NoArgs,
	}
	f := command.Flags()
	f.IntSliceVar(&config.PIDs, "pid", nil, "the server's process, or several with commas between")
	f.StringVar(&config.Device, "device", "", "the network device that its connections come through")
	f.StringVar(&mode, "mode", string(runtime.KernelPolling), "irq-packing, irq-suppression, busy-poll or kernel-polling")
	f.DurationVar(&config.Interval, "interval", time.Second, "how often to look for new epoll instances, and at the device")
	settings := addModeFlags(f)
	command.MarkFlagRequired("pid")
	command.MarkFlagRequired("device")
	command.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := runtime.ParseMode(runtime.Kernel, mode)
		if err != nil {
			return fmt.Errorf("--mode: %w", err)
		}
		if m == runtime.Vanilla {
			return fmt.Errorf("--mode %s sets nothing: without pollux attach, that is what there is", m)
		}
		if config.Interval < shortest {
			return fmt.Errorf("--interval %v: it must be at least %v", config.Interval, shortest)
		}
		if config.Settings, err = settings(m); err != nil {
			return err
		}
		if config.Watcher, err = watcher(); err != nil {
			return err
		}
		config.Out = cmd.OutOrStdout()
		// A closed terminal is an orderly end too.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		return attach.Run(ctx, config)
	}
	return command
}
