package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-net/pollux/apps/pollux/internal/doctor"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

func newDoctorCommand() *cobra.Command {
	restore := false
	cores := ""
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine has, what it lacks, and how to mend it",
		Long: `Looks at processors, memory, privileges, kernel, network devices and DPDK, and
prints one line for each: OK, WARN (something will be slower or missing) or FAIL
(Pollux cannot work), with how to mend it. It changes nothing. The exit code is 0
unless something is FAIL.

With --restore it looks at nothing but puts back the settings of devices and
interrupts that a process on the kernel path changed and, because it was killed,
left so. Those of processes that live are left alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if restore {
				return putBack(out)
			}
			machine := doctor.Machine{Root: "/"}
			var err error
			if machine.Cores, err = napi.ParseCores(cores); err != nil {
				return fmt.Errorf("--cores: %w", err)
			}
			machine.Network, machine.NetworkError = doctor.AskKernel(machine.Cores)
			findings := machine.Examine()
			doctor.Print(out, findings)
			fmt.Fprintln(out)
			machine.PrintDrivers(out)
			if n := doctor.Failures(findings); n > 0 {
				return fmt.Errorf("%d of %d checks failed", n, len(findings))
			}
			return nil
		},
	}
	command.Flags().BoolVar(&restore, "restore", false, "put back the settings of devices that killed processes left")
	command.Flags().StringVar(&cores, "cores", "", "the processors that a server would have, like 0-3,8 (default: for each device as many as it has queues, of those that this process may use)")
	command.MarkFlagsMutuallyExclusive("restore", "cores")
	return command
}

func putBack(out io.Writer) error {
	list, err := kernel.RestoreDead()
	if err != nil {
		return err
	}
	if len(list) == 0 {
		fmt.Fprintln(out, "nothing was left by processes that ended")
	}
	failed := 0
	for _, r := range list {
		switch {
		case r.Err != nil:
			failed++
			fmt.Fprintf(out, "%s: %v\n", r.File, r.Err)
		case len(r.Changed) == 0:
			fmt.Fprintf(out, "%s, left by process %d (%s): nothing to put back\n", r.Device, r.PID, r.Command)
		default:
			fmt.Fprintf(out, "%s, left by process %d (%s): put back %s\n", r.Device, r.PID, r.Command, strings.Join(r.Changed, ", "))
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d devices could not be put back; their files remain in %s", failed, len(list), kernel.Directory)
	}
	return nil
}

// newRestoreOnExitCommand is what a server on the kernel path starts beside
// itself, so that even SIGKILL leaves nothing set.
func newRestoreOnExitCommand() *cobra.Command {
	return &cobra.Command{
		Use:    restoreOnExit + " FILE",
		Short:  "Put a device's settings back once the process that wrote the file has ended",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return kernel.RestoreWhenDead(args[0]) },
	}
}
