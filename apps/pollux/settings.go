package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// addModeFlags adds a flag for each value of a kernel mode. The function that it
// returns gives the mode's own settings, with what was set by flag instead.
func addModeFlags(f *pflag.FlagSet) func(runtime.Mode) (kernel.Settings, error) {
	var given kernel.Settings
	var interruptCores, spread string
	f.IntVar(&given.DeferHardIRQs, "defer-hard-irqs", 0, "empty polls before a queue's interrupt is turned on again (default: the mode's, as with all of these)")
	f.DurationVar(&given.GROFlushTimeout, "gro-flush-timeout", 0, "when the kernel polls a queue by itself while its interrupt is off, like 20us")
	f.DurationVar(&given.IRQSuspendTimeout, "irq-suspend-timeout", 0, fmt.Sprintf("how long the interrupt stays off after the last poll that found work; at most %v", kernel.MaxSuspend))
	f.DurationVar(&given.BusyPoll, "busy-poll-time", 0, "how long epoll_wait polls when nothing is ready, in whole microseconds")
	f.IntVar(&given.Budget, "busy-poll-budget", 0, "packets that epoll_wait takes from the queue at a time, at most 64")
	f.BoolVar(&given.Prefer, "prefer-busy-poll", false, "keep the interrupt off while the application polls")
	f.DurationVar(&given.Coalescing, "coalescing", 0, "how long the device waits with an interrupt (ethtool rx-usecs), in whole microseconds")
	f.StringVar(&interruptCores, "interrupt-cores", "", "processors for the queues' interrupts with irq-packing, like 4-7 (default: all that the application does not have)")
	f.StringVar(&spread, "spread", "", "processors to spread what the device receives over, by flow, like 0-3, if it has fewer queues than there are cores; connections then go to the core that receives them. Not in modes that poll")
	return func(mode runtime.Mode) (kernel.Settings, error) {
		s, err := kernel.SettingsOf(mode)
		if err != nil {
			return s, err
		}
		for name, take := range map[string]func(){
			"defer-hard-irqs":     func() { s.DeferHardIRQs = given.DeferHardIRQs },
			"gro-flush-timeout":   func() { s.GROFlushTimeout = given.GROFlushTimeout },
			"irq-suspend-timeout": func() { s.IRQSuspendTimeout = given.IRQSuspendTimeout },
			"busy-poll-time":      func() { s.BusyPoll = given.BusyPoll },
			"busy-poll-budget":    func() { s.Budget = given.Budget },
			"prefer-busy-poll":    func() { s.Prefer = given.Prefer },
			"coalescing":          func() { s.Coalescing = given.Coalescing },
		} {
			if f.Changed(name) {
				take()
			}
		}
		switch {
		case f.Changed("defer-hard-irqs"), f.Changed("gro-flush-timeout"):
			s.TimersStandIn = false // they are wanted for themselves
		case s.TimersStandIn && s.Coalescing > 0:
			s.GROFlushTimeout = s.Coalescing // for which they stand
		}
		if s.InterruptCores, err = napi.ParseCores(interruptCores); err != nil {
			return s, fmt.Errorf("--interrupt-cores: %w", err)
		}
		if s.Spread, err = napi.ParseCores(spread); err != nil {
			return s, fmt.Errorf("--spread: %w", err)
		}
		if err := s.Validate(); err != nil {
			return s, fmt.Errorf("mode %s: %w", mode, err)
		}
		return s, nil
	}
}

// restoreOnExit is the hidden subcommand that kernel.Applied.Watch starts.
const restoreOnExit = "restore-on-exit"

// watcher is the command that puts a device's settings back when this process
// has ended.
func watcher() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	return []string{self, restoreOnExit}, nil
}

// shortest is how long --interval may be at least.
const shortest = 10 * time.Millisecond
