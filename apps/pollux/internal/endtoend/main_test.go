// Package endtoend shows that the whole holds what it promises: the real binary,
// or a station that serves streams on the same path, in one network namespace;
// the Linux kernel's stack and real clients in another; a veth between them.
// Every test makes a lab of its own and leaves nothing behind. With the race
// detector on, the servers run with it too, but for those that must carry bulk.
package endtoend

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// programs is where the programs under test are built.
var programs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	sweep()
	var err error
	if programs, err = os.MkdirTemp("", "pollux-endtoend-"); err == nil {
		defer os.RemoveAll(programs)
		err = os.Chmod(programs, 0o755) // one test runs its program as nobody
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

const labPrefix = "endtoend-"

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

var serial int

// newLab makes a lab for the user path that ends with the test.
func newLab(t *testing.T, queues int) *lab.Lab {
	t.Helper()
	return newLabFor(t, runtime.User, queues)
}

// newLabFor makes a lab that ends with the test.
func newLabFor(t *testing.T, path runtime.Path, queues int) *lab.Lab {
	t.Helper()
	serial++
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("%s%d-%d", labPrefix, os.Getpid(), serial), Path: path, Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	return l
}

// A program under test, built when a test first asks for it.
type program struct {
	pkg  string
	race bool
	once sync.Once
	path string
	err  error
}

var (
	pollux  = &program{pkg: "apps/pollux", race: raceEnabled}
	station = &program{pkg: "apps/pollux/internal/endtoend/station", race: raceEnabled}
	// The same without the race detector, which costs ten times the time and
	// the memory: for bulk, and where time or memory is what is asserted.
	plainPollux  = &program{pkg: pollux.pkg}
	plainStation = &program{pkg: station.pkg}
)

func (p *program) build(t *testing.T) string {
	t.Helper()
	if !p.race && raceEnabled == false {
		// One build serves both.
		switch p {
		case plainPollux:
			p = pollux
		case plainStation:
			p = station
		}
	}
	p.once.Do(func() {
		p.path = filepath.Join(programs, filepath.Base(p.pkg))
		args := []string{"build", "-buildvcs=false"}
		if p.race {
			p.path += "-race"
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "-o", p.path, "github.com/pollux-net/pollux/"+p.pkg)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
		}
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.path
}
