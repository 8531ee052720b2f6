package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/compare/load"
)

// serveLoad is an agent for "pollux compare" on another box: it takes orders over
// one connection after another until it is told to stop.
func serveLoad(ctx context.Context, config load.Config, where string, cmd *cobra.Command) error {
	if config.Engine == load.Reference {
		return fmt.Errorf("--serve: not with --engine %s", load.Reference)
	}
	if where == "-" {
		return load.Serve(ctx, struct {
			io.Reader
			io.Writer
		}{cmd.InOrStdin(), cmd.OutOrStdout()}, config)
	}
	// Whoever can connect can have a server loaded, so the network is named.
	switch host, _, err := net.SplitHostPort(where); {
	case err != nil:
		return fmt.Errorf("--serve %q is not HOST:PORT: %w", where, err)
	case host == "":
		return fmt.Errorf("--serve %s would listen on every network: name the address of the one that pollux compare comes by, like 192.168.1.2%[1]s", where)
	}
	listener, err := net.Listen("tcp", where)
	if err != nil {
		return fmt.Errorf("--serve: %w", err)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	fmt.Fprintf(cmd.OutOrStdout(), "waiting at %s for pollux compare, to load %s\n", listener.Addr(), config.Address)
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("--serve: %w", err)
		}
		from := conn.RemoteAddr()
		fmt.Fprintf(cmd.OutOrStdout(), "%s takes over\n", from)
		over := context.AfterFunc(ctx, func() { conn.Close() })
		err = load.Serve(ctx, conn, config)
		over()
		if err = errors.Join(err, conn.Close()); err != nil && ctx.Err() == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", from, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is gone\n", from)
	}
}
