package napi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nameInterrupts finds the interrupts of instances by their names where the
// driver does not tell (virtio_net is one). What it cannot find stays 0.
func (c *Conn) nameInterrupts(d Device, list []NAPI) {
	if c.sysfsError != nil || slices.ContainsFunc(list, func(n NAPI) bool { return n.IRQ > 0 }) {
		return
	}
	var target [256]byte
	n, err := unix.Readlinkat(c.sysfs, path.Join("class/net", d.Name, "device"), target[:])
	if err != nil {
		return // a virtual device
	}
	text, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return
	}
	found := receiveInterrupts(string(text), d.Name, path.Base(string(target[:n])))
	for i := range list {
		list[i].IRQ = found[list[i].Queue]
	}
}

// receiveName is what drivers call the interrupt of a receive queue after the
// name of the interface or of the device: eth0-rx-1, eth0-TxRx-1,
// virtio2-input.1, ice-eth0-TxRx-1.
var receiveName = regexp.MustCompile(`(?i)^[-.](?:rx|txrx|input|fp)[-.]?([0-9]+)$`)

// receiveInterrupts finds the interrupt of each receive queue in
// /proc/interrupts.
func receiveInterrupts(text string, names ...string) map[int]int {
	found := make(map[int]int)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		irq, err := strconv.Atoi(strings.TrimSuffix(fields[0], ":"))
		if err != nil {
			continue
		}
		action := fields[len(fields)-1]
		for _, name := range names {
			at := strings.Index(action, name)
			if name == "" || at < 0 || at > 0 && action[at-1] != '-' {
				continue
			}
			if m := receiveName.FindStringSubmatch(action[at+len(name):]); m != nil {
				if queue, err := strconv.Atoi(m[1]); err == nil {
					found[queue] = irq
				}
			}
		}
	}
	return found
}

// InterruptCores reads on which processors an interrupt may be handled.
func InterruptCores(irq int) ([]int, error) {
	b, err := os.ReadFile(affinityFile(irq))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read where interrupt %d is handled: %w", irq, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("read where interrupt %d is handled: %w", irq, err)
	}
	cores, err := ParseCores(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("read where interrupt %d is handled: %w", irq, err)
	}
	return cores, nil
}

// SetInterruptCores moves an interrupt. Some are the kernel's own to place
// ("managed"), which is an error.
func SetInterruptCores(irq int, cores []int) error {
	err := os.WriteFile(affinityFile(irq), []byte(FormatCores(cores)), 0)
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: the kernel places this one itself, or root is needed: %w", ErrUnsupported, err)
	case errors.Is(err, fs.ErrNotExist):
		err = ErrGone
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: root is needed: %w", ErrPrivilege, err)
	}
	if err != nil {
		return fmt.Errorf("place interrupt %d on processors %s: %w", irq, FormatCores(cores), err)
	}
	return nil
}

func affinityFile(irq int) string { return fmt.Sprintf("/proc/irq/%d/smp_affinity_list", irq) }

// ThreadCores reads on which processors a thread may run, a NAPI's for one.
func ThreadCores(pid int) ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		return nil, fmt.Errorf("ask where thread %d may run: %w", pid, thread(err))
	}
	var cores []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores, nil
}

// SetThreadCores moves a thread.
func SetThreadCores(pid int, cores []int) error {
	var set unix.CPUSet
	for _, c := range cores {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(pid, &set); err != nil {
		return fmt.Errorf("place thread %d on processors %s: %w", pid, FormatCores(cores), thread(err))
	}
	return nil
}

func thread(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w (or outside this PID namespace): %w", ErrGone, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: CAP_SYS_NICE is needed: %w", ErrPrivilege, err)
	}
	return err
}

// FormatCores writes processor numbers as the kernel does: 0-3,8.
func FormatCores(cores []int) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(cores)))
	var b strings.Builder
	for i := 0; i < len(sorted); {
		last := i
		for last+1 < len(sorted) && sorted[last+1] == sorted[last]+1 {
			last++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(sorted[i]))
		if last > i {
			fmt.Fprintf(&b, "-%d", sorted[last])
		}
		i = last + 1
	}
	return b.String()
}

// maxCores bounds what a list of processors can hold.
const maxCores = 1 << 14

// ParseCores reads what FormatCores writes. An empty string is no processor.
func ParseCores(s string) ([]int, error) {
	var cores []int
	if s == "" {
		return cores, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		last := first
		if err == nil && isRange {
			last, err = strconv.Atoi(to)
		}
		if err != nil || first < 0 || last < first || last >= maxCores {
			return nil, fmt.Errorf("%q is not a list of processors; write it like 0-3,8", s)
		}
		for c := first; c <= last; c++ {
			cores = append(cores, c)
		}
	}
	return cores, nil
}
