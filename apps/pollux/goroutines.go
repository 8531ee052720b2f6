package main

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/apps/pollux/internal/goroutines"
)

// newGoroutinesCommand is for comparison only, and hidden: the same memcached on
// net.Listen with a goroutine for each connection.
func newGoroutinesCommand() *cobra.Command {
	var address string
	command := &cobra.Command{
		Use:    "goroutines",
		Short:  "Serve memcached with net.Listen and a goroutine for each connection, to compare with",
		Hidden: true,
		Args:   cobra.NoArgs,
		Example: `  pollux goroutines --listen 127.0.0.1:11211
  pollux compare --server 'goroutines=pollux goroutines --listen {host}:{port}'`,
	}
	command.Flags().StringVar(&address, "listen", "127.0.0.1:11211", "address and port")
	command.RunE = func(cmd *cobra.Command, _ []string) error {
		server, err := memcached.New(memcached.Options{Shards: 1})
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		slog.Info("serving memcached", "address", l.Addr(), "path", "goroutines")
		return goroutines.New(server).Serve(cmd.Context(), l)
	}
	return command
}
