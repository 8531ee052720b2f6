package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/apps/pollux/internal/demo"
	"github.com/pollux-net/pollux/runtime"
)

func newRunCommand() *cobra.Command {
	config := demo.Config{Modes: runtime.Modes(runtime.User)}
	var modes []string
	command := &cobra.Command{
		Use:   "run",
		Short: "Serve memcached in a lab, load it, say how it went, and clean up",
		Long: `Makes the lab, serves memcached there on the user path, loads it with a real
client from the other side, in each mode in turn, prints requests per second,
latencies and what the server's loop did, and removes the lab.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(modes) > 0 {
				config.Modes = nil
			}
			for _, s := range modes {
				m, err := runtime.ParseMode(runtime.User, s)
				if err != nil {
					return fmt.Errorf("--mode: %w", err)
				}
				config.Modes = append(config.Modes, m)
			}
			if config.Duration <= 0 || config.Connections <= 0 {
				return fmt.Errorf("--duration and --connections must be positive")
			}
			config.Out = cmd.OutOrStdout()
			return demo.Run(untilHangUp(cmd.Context()), config)
		},
	}
	f := command.Flags()
	f.StringSliceVar(&modes, "mode", nil, "modes to run, separated by commas (default: all)")
	f.DurationVar(&config.Duration, "duration", 5*time.Second, "how long to load in each mode")
	f.IntVar(&config.Connections, "connections", 16, "connections of the client")
	f.StringVar(&config.Profile, "profile", "", "write the server's CPU profile to this file")
	f.StringVar(&config.Lab, "name", "pollux-run", "the name of the lab to make")
	return command
}
