// Package conformance shows that an application cannot tell the paths apart: one
// body of tests of how connections behave runs unchanged against the user path
// and the kernel path. The server is this test binary as another process, in one
// network namespace of a lab; the client is the Linux kernel, in the other.
package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(asServer); config != "" {
		if err := serve(config); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	sweep()
	os.Exit(m.Run())
}

const labPrefix = "conformance-"

// sweep removes the labs of test processes that were killed.
func sweep() {
	left, _ := filepath.Glob("/run/netns/" + labPrefix + "*-" + string(lab.Server))
	for _, path := range left {
		name := strings.TrimSuffix(filepath.Base(path), "-"+string(lab.Server))
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, labPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			lab.Down(name)
		}
	}
}

// paths are what the body is run against.
var paths = []serverConfig{
	{Path: runtime.User, Mode: runtime.Adaptive},
	{Path: runtime.Kernel, Mode: runtime.Vanilla},
	{Path: runtime.Kernel, Mode: runtime.KernelPolling},
}

func TestConnectionsBehaveTheSameOnEveryPath(t *testing.T) {
	for i, c := range paths {
		t.Run(fmt.Sprintf("%s/%s", c.Path, c.Mode), func(t *testing.T) {
			l, err := lab.Up(lab.Config{Name: fmt.Sprintf("%s%d-%d", labPrefix, os.Getpid(), i), Path: c.Path})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := lab.Down(l.Config().Name); err != nil {
					t.Error(err)
				}
			})
			s := start(t, l, c)
			for _, test := range body {
				t.Run(test.promise, func(t *testing.T) {
					before := s.report(t)
					test.holds(t, s)
					s.settled(t, before)
				})
			}
			s.stop(t)
		})
	}
}
