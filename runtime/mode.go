package runtime

import (
	"fmt"
	"strings"
)

// Path is how bytes travel: through a stack in this process or the kernel's.
type Path string

const (
	User   Path = "user"
	Kernel Path = "kernel"
)

// Paths lists both.
var Paths = []Path{User, Kernel}

// ParsePath checks that s names a path.
func ParsePath(s string) (Path, error) {
	switch p := Path(s); p {
	case User, Kernel:
		return p, nil
	}
	return "", fmt.Errorf("%q is not a path; use %s or %s", s, User, Kernel)
}

// Mode is how a path waits for work.
type Mode string

// The modes of the user path.
const (
	// Poll never sleeps.
	Poll Mode = "poll"
	// Interrupt sleeps as soon as nothing is left to do.
	Interrupt Mode = "interrupt"
	// Adaptive polls for a time that it learns from the traffic, then sleeps.
	Adaptive Mode = "adaptive"
)

// The modes of the kernel path.
const (
	// Vanilla sets nothing: the device interrupts as it did before.
	Vanilla Mode = "vanilla"
	// IRQPacking has the device's interrupts on cores of their own, apart from
	// the loops'.
	IRQPacking Mode = "irq-packing"
	// IRQSuppression has the device interrupt less often, at the price of
	// latency.
	IRQSuppression Mode = "irq-suppression"
	// BusyPoll has a loop that waits poll its queue for a time before it sleeps.
	BusyPoll Mode = "busy-poll"
	// KernelPolling keeps the device's interrupts off while a loop has work:
	// the loop polls its queue itself when it asks for events.
	KernelPolling Mode = "kernel-polling"
)

var modes = map[Path][]Mode{
	User:   {Poll, Interrupt, Adaptive},
	Kernel: {Vanilla, IRQPacking, IRQSuppression, BusyPoll, KernelPolling},
}

// Modes lists the modes of a path.
func Modes(p Path) []Mode { return modes[p] }

// DefaultMode is the mode of a path if none is asked for: one that works
// everywhere.
func DefaultMode(p Path) Mode {
	if p == Kernel {
		return Vanilla
	}
	return Adaptive
}

// ParseMode checks that s names a mode of path p.
func ParseMode(p Path, s string) (Mode, error) {
	names := make([]string, len(modes[p]))
	for i, m := range modes[p] {
		if string(m) == s {
			return m, nil
		}
		names[i] = string(m)
	}
	if len(names) == 0 {
		return "", fmt.Errorf("path %q has no modes; use --path %s or %s", p, User, Kernel)
	}
	return "", fmt.Errorf("%q is not a mode of the %s path; use %s", s, p, strings.Join(names, ", "))
}
