// Command summary reads what "go test -json" writes and says what came of it: a
// line per package, the output of what failed, each skipped test with its
// reason, and at the end one line with the number of tests (and subtests) that
// passed, failed and were skipped. It exits with 1 if anything failed, or if no
// test ran at all.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := summarize(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary: read test events:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
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
}

func summarize(in io.Reader, out io.Writer) (ok bool, err error) {
	s := summary{out: out, output: map[name][]string{}, builds: map[string][]string{}, failures: map[string]int{}}
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
			return false, err
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
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s.failed == 0, nil
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
			fmt.Fprint(s.out, strings.Join(s.builds[e.FailedBuild], ""))
		} else {
			if s.failures[e.Package] == 0 {
				s.failed++
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
