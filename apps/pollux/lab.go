package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
	"github.com/spf13/cobra"
)

func newLabCommand() *cobra.Command {
	name := lab.DefaultName
	command := &cobra.Command{
		Use:   "lab",
		Short: "Make, look at and remove the test network",
		Long: `The lab is two network namespaces joined by a veth: pollux0 at 10.99.0.1 and
fd99::1 on the server's side, pollux1 at .2 and ::2 on the client's, with the
settings that make a comparison on one machine fair. Nothing of the machine's
own network is touched.`,
	}
	command.PersistentFlags().StringVar(&name, "name", name, "the lab's name; its namespaces are NAME-server and NAME-client")
	command.AddCommand(newLabUpCommand(&name), newLabDownCommand(&name), newLabStatusCommand(&name), newLabExecCommand(&name))
	return command
}

func newLabUpCommand(name *string) *cobra.Command {
	var path, clientPath, placement, serverCores, clientCores string
	var queues int
	command := &cobra.Command{
		Use:   "up",
		Short: "Make the lab, or turn it into what is asked for",
		Long: `Makes the lab and reads every setting back. If it is up already, what is right
is left alone and what is not is mended.

With --path user, the kernel on the server's side has no address and answers
nothing: the stack in user space does. With --path kernel, it has both.`,
		Example: `  pollux lab up
  pollux lab up --path kernel --queues 2
  pollux lab up --path user --placement server-core`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := lab.Config{Name: *name, Path: runtime.Path(path), ClientPath: runtime.Path(clientPath), Queues: queues, Placement: lab.Placement(placement)}
			var err error
			if config.ServerCores, err = lab.ParseCores(serverCores); err != nil {
				return fmt.Errorf("--server-cores: %w", err)
			}
			if config.ClientCores, err = lab.ParseCores(clientCores); err != nil {
				return fmt.Errorf("--client-cores: %w", err)
			}
			if queues < 1 {
				return fmt.Errorf("--queues %d: a lab needs at least one", queues)
			}
			l, err := lab.Up(config)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), describe(l.Config()))
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&path, "path", string(runtime.User), "whose stack the server has: user or kernel")
	flags.StringVar(&clientPath, "client-path", string(runtime.Kernel), "whose stack the client has: kernel, or user for pollux load --engine user")
	flags.IntVar(&queues, "queues", 1, "receive and transmit queues at both ends; one for each shard")
	flags.StringVar(&placement, "placement", "", "where the server end's receive work runs: server-core (as a NIC's interrupt would; default with --path kernel) or client-core (as a NIC's DMA would cost the server nothing; default with --path user)")
	flags.StringVar(&serverCores, "server-cores", "", "the server's processors, like 0-3,8 (default: the first, one for each queue)")
	flags.StringVar(&clientCores, "client-cores", "", "the client's processors (default: the rest)")
	return command
}

func describe(c lab.Config) string {
	s := fmt.Sprintf("lab %s is up: path %s, %d queues, receive work on the %s, server on %s, client on %s",
		c.Name, c.Path, c.Queues, c.Placement, lab.FormatCores(c.ServerCores), lab.FormatCores(c.ClientCores))
	if c.ClientPath == runtime.User {
		s += fmt.Sprintf(" with path %s", c.ClientPath)
	}
	return s
}

func newLabDownCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove the lab, or what there is of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.Down(*name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lab %s is down\n", *name)
			return nil
		},
	}
}

func newLabStatusCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the lab is up and every setting as it should be",
		Long:  "Reads every setting back and prints it. The exit code is 0 only if all are as they should be.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, err := lab.Status(*name)
			if err != nil {
				return err
			}
			for _, s := range state.Settings {
				fmt.Fprintln(cmd.OutOrStdout(), s)
			}
			if state.Down {
				return fmt.Errorf("lab %s is down; use pollux lab up", *name)
			}
			if !state.Up {
				return state.Problem
			}
			fmt.Fprintln(cmd.OutOrStdout(), describe(state.Config))
			return nil
		},
	}
}

func newLabExecCommand(name *string) *cobra.Command {
	command := &cobra.Command{
		Use:   "exec server|client -- COMMAND [ARGUMENT...]",
		Short: "Run a command on one side of the lab",
		Long: `Runs a command in the server's or the client's network namespace, in place of
this process: input, output, signals and the exit code are the command's own.
It is 127 if there is no such command, and 126 if it could not be started.`,
		Example: `  pollux lab exec client -- ping -c 3 10.99.0.1
  pollux lab exec server -- ip addr`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || args[1] == "--" && len(args) < 3 {
				return errors.New("say on which side to run what: pollux lab exec client -- ping 10.99.0.1")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			side, err := lab.ParseSide(args[0])
			if err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			err = l.Replace(side, argv)
			code := 126
			if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
				code = 127
			}
			return exitError{err, code}
		},
	}
	// What follows the side belongs to the command, also without "--".
	command.Flags().SetInterspersed(false)
	return command
}
