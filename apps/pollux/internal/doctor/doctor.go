// Package doctor looks at a machine and says what Pollux finds there: what is as
// it should be, what will be slower or missing, what stands in the way, and how
// to mend each. It only reads files below a root and judges what AskKernel was
// told, so that it changes nothing and a test can give it any machine.
package doctor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Level says how bad a finding is.
type Level string

const (
	OK   Level = "OK"
	Warn Level = "WARN" // something will be slower or missing
	Fail Level = "FAIL" // Pollux cannot work
)

// A Finding is one thing that was looked at.
type Finding struct {
	Level   Level
	Subject string
	// Found is what there is, Mend what to do about it, if anything.
	Found, Mend string
}

// A Machine is what is found below Root ("/" for this one).
type Machine struct {
	Root string
	// Cores are the processors that a server would have; all that this process
	// may use if there are none.
	Cores []int
	// Network is what AskKernel returned, with its error; nil to leave that out.
	Network      *Network
	NetworkError error
}

// Examine looks at everything, in a fixed order.
func (m Machine) Examine() []Finding {
	var findings []Finding
	for _, check := range []func() []Finding{
		m.processors,
		m.memory,
		m.hugepages,
		m.capabilities,
		m.lockedMemory,
		m.kernel,
		m.interfaces,
		m.kernelPath,
		m.pciDevices,
		m.iommu,
		m.dpdk,
	} {
		findings = append(findings, check()...)
	}
	return findings
}

// Failures counts what stands in the way.
func Failures(findings []Finding) int {
	n := 0
	for _, f := range findings {
		if f.Level == Fail {
			n++
		}
	}
	return n
}

// Print writes one line for each finding, and below it how to mend it.
func Print(w io.Writer, findings []Finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "%-4s  %-16s  %s\n", f.Level, f.Subject, f.Found)
		if f.Mend != "" {
			fmt.Fprintf(w, "%-4s  %-16s  -> %s\n", "", "", f.Mend)
		}
	}
}

func (m Machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.Root}, elem...)...)
}

// read returns a file's text without white space around it, or "".
func (m Machine) read(elem ...string) string {
	b, err := os.ReadFile(m.path(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// list returns the names in a directory, or nothing.
func (m Machine) list(elem ...string) []string {
	entries, err := os.ReadDir(m.path(elem...))
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// link returns the last element of what a symbolic link points to, or "".
func (m Machine) link(elem ...string) string {
	target, err := os.Readlink(m.path(elem...))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// field returns the value of "key: value" in a file like /proc/self/status.
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
