package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/compare/forwarding"
)

func newComparePacketCommand() *cobra.Command {
	var config forwarding.Config
	var subjects []string
	var file string
	command := &cobra.Command{
		Use:   "packet",
		Short: "Measure who forwards packets at what cost: the kernel, XDP, or the packet service",
		Long: `Makes three network namespaces in a row, has the router between the other two be
the kernel's own forwarding (ip_forward), the packet service's XDP twin (kernel) and
the packet service in each mode (user/poll, user/interrupt, user/adaptive), and floods
it with the shortest frames from another core. Rounds are interleaved; nothing is
left behind.`,
		Example: `  pollux compare packet
  pollux compare packet --subject ip_forward,user/poll --rounds 5 --duration 2s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if config.Subjects, err = forwarding.ParseSubjects(subjects); err != nil {
				return fmt.Errorf("--subject: %w", err)
			}
			if config.Pollux, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program's file: %w", err)
			}
			config.Step = func(what string) { fmt.Fprintln(cmd.ErrOrStderr(), what) }
			rows, err := forwarding.Run(untilHangUp(cmd.Context()), config)
			if err != nil {
				return err
			}
			if err := forwarding.Table(cmd.OutOrStdout(), rows); err != nil {
				return err
			}
			return writeRows(cmd.OutOrStdout(), file, rows)
		},
	}
	f := command.Flags()
	f.StringSliceVar(&subjects, "subject", nil, "subjects to measure, separated by commas (default: all); the first is what others are compared with")
	f.IntVar(&config.Core, "core", 0, "the router's processor")
	f.IntVar(&config.Other, "other-core", 1, "the processor of the generator and the sink")
	f.IntVar(&config.Rounds, "rounds", 3, "rounds of each subject")
	f.DurationVar(&config.Duration, "duration", time.Second, "measured time in each round")
	f.StringVar(&file, "json", "", "also write every round to this file")
	return command
}

// writeRows keeps the rounds, if a file for them is named.
func writeRows(out io.Writer, file string, rows []forwarding.Row) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("--json: %w", err)
	}
	_, err = fmt.Fprintln(out, file)
	return err
}
