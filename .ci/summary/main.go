// Command summary reads what "go test -json" writes and says what came of it: a
// line per package, the output of what failed, each skipped test with its
// reason, and at the end one line with the number of tests (and subtests) that
// passed, failed and were skipped. It exits with 1 if anything failed, or if no
// test ran at all.
//
// With arguments, the beginning of a go test command, a few tests that failed are run
// once more, on their own: what then passes is no longer a failure, but is told of as
// something to mend. Tests run beside those of other packages, on machines that others
// use, too; a frame or a pause that nobody reckoned with is no defect of the product.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	s, err := summarize(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary: read test events:", err)
	}
	if err != nil || s.failed > 0 && !s.passAlone(os.Args[1:]) {
		os.Exit(1)
	}
}

// few is how many tests, subtests aside, may be run once more.
const few = 3

// passAlone runs what failed once more, if that is no more than a few tests, and says
// whether all of it passes.
func (s *summary) passAlone(command []string) bool {
	if len(command) == 0 || s.beyondTests || len(s.again) == 0 || len(s.again) > few {
		return false
	}
	byPackage := map[string][]string{}
	for n := range s.again {
		byPackage[n.pkg] = append(byPackage[n.pkg], n.test)
	}
	for _, pkg := range slices.Sorted(maps.Keys(byPackage)) {
		tests := slices.Sorted(slices.Values(byPackage[pkg]))
		fmt.Fprintf(s.out, "\nonce more, alone: %s %s\n", pkg, strings.Join(tests, " "))
		c := exec.Command(command[0], append(slices.Clone(command[1:]), "-count=1", "-run", "^("+strings.Join(tests, "|")+")$", pkg)...)
		c.Stdout, c.Stderr = s.out, s.out
		if c.Run() != nil {
			return false
		}
	}
	fmt.Fprintln(s.out, "\nAll that failed passes alone, so the run counts as good. It is to be mended all the same.")
	return true
}

// event is one line of go test -json; see go doc test2json, and go help
// buildjson for the output of builds.
type event struct {
	Action, Package, Test, Output, ImportPath, FailedBuild string
	Elapsed                                                float64
}

// name is a test of a package; the package itself if test is empty.
type name struct{ pkg, test string }

type summary struct {
	out                     io.Writer
	output                  map[name][]string // of what has not ended
	builds                  map[string][]string
	failures                map[string]int // by package
	skips                   []string
	passed, failed, skipped int
	// again are the tests, subtests aside, that failed; beyondTests says that something
	// else did: a build, a package, a test that did not end.
	again       map[name]bool
	beyondTests bool
}

func summarize(in io.Reader, out io.Writer) (*summary, error) {
	s := &summary{out: out, output: map[name][]string{}, builds: map[string][]string{}, failures: map[string]int{}, again: map[name]bool{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			s.line(line)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return s, err
		}
	}
	// What never ended, because go test itself was killed.
	for _, n := range s.unfinished("") {
		s.fail(n, "did not end")
	}
	if len(s.skips) > 0 {
		fmt.Fprintln(out, "\nskipped:")
		for _, skip := range s.skips {
			fmt.Fprintln(out, " ", skip)
		}
	}
	if s.passed+s.failed+s.skipped == 0 {
		fmt.Fprintln(out, "no test ran")
		s.failed++
		s.beyondTests = true
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s, nil
}

func (s *summary) line(line string) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
		fmt.Fprint(s.out, line) // what go itself has to say
		return
	}
	n := name{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
	case "run":
		s.output[n] = []string{}
	case "output":
		s.output[n] = append(s.output[n], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e)
		} else {
			s.endTest(n, e.Action)
		}
		delete(s.output, n)
	}
}

func (s *summary) endTest(n name, action string) {
	switch action {
	case "pass":
		s.passed++
	case "fail":
		s.fail(n, "")
	case "skip":
		s.skipped++
		s.skips = append(s.skips, n.pkg+" "+n.test+": "+reason(s.output[n]))
	}
}

func (s *summary) endPackage(e event) {
	unfinished := s.unfinished(e.Package)
	if e.Action == "fail" {
		for _, n := range unfinished {
			s.fail(n, "did not end")
		}
		// A package fails with one of its tests, or by itself: it does not
		// build, it panics, TestMain exits. Only then is it counted.
		if e.FailedBuild != "" {
			s.failed++
			s.beyondTests = true
			fmt.Fprint(s.out, strings.Join(s.builds[e.FailedBuild], ""))
		} else {
			if s.failures[e.Package] == 0 {
				s.failed++
				s.beyondTests = true
			}
			for _, line := range s.output[name{pkg: e.Package}] {
				if !strings.HasPrefix(line, "FAIL") { // go's own, told below
					fmt.Fprint(s.out, line)
				}
			}
		}
	}
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
	case "fail":
		fmt.Fprintf(s.out, "FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	}
}

func (s *summary) fail(n name, why string) {
	s.failed++
	fmt.Fprint(s.out, strings.Join(s.output[n], ""))
	if why != "" {
		fmt.Fprintf(s.out, "--- FAIL: %s: %s\n", n.test, why)
	}
	delete(s.output, n)
	s.failures[n.pkg]++
	test, _, _ := strings.Cut(n.test, "/")
	s.again[name{n.pkg, test}] = true
	s.beyondTests = s.beyondTests || why != ""
}

// unfinished lists tests that began and did not end, of one package or of all.
func (s *summary) unfinished(pkg string) (names []name) {
	for n := range s.output {
		if n.test != "" && (pkg == "" || n.pkg == pkg) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.pkg+a.test, b.pkg+b.test) })
	return names
}

// reason is what a skipped test said, without the lines of the framework.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}
