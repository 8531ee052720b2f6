package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

// newRootCommand lists the subcommands; each is one file with one constructor.
func newRootCommand() *cobra.Command {
	verbose := false
	root := &cobra.Command{
		Use:   "pollux",
		Short: "Two twin network paths for one application: in user space, and the kernel's own",
		Long: `Pollux serves the same application over two paths, a TCP/IP stack in user space
on a poll-mode driver and the Linux kernel's stack when it polls, and measures
them against each other on the same NIC.

Begin with "pollux doctor", which says what this machine has and lacks, and
"pollux lab up", which makes a network to try things on.`,
		Example: `  pollux doctor
  pollux lab up --path kernel
  pollux lab exec server -- memcached -u root -l 10.99.0.1 &
  pollux lab exec client -- pollux load 10.99.0.1:11211
  pollux lab down`,
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
		},
	}
	root.PersistentFlags().BoolVarP(&verbose, "verbose", "v", false, "log more, to standard error")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newAttachCommand(),
		newCompareCommand(), newGoroutinesCommand(),
		newRestoreOnExitCommand(),
		newDoctorCommand(),
		newLabCommand(),
		newLoadCommand(),
		newMemcachedCommand(),
		newPacketCommand(),
		newRunCommand(),
		newVersionCommand(),
	)
	return root
}
