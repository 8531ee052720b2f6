package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run lets the real go test run a module of these files, and summarizes.
func run(t *testing.T, files map[string]string) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.com/m\n\ngo 1.26\n"
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "-timeout", "20s", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	events, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		var ok bool
		if exit, ok = err.(*exec.ExitError); !ok {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	ok, err := summarize(strings.NewReader(string(events)), &out)
	if err != nil {
		t.Fatal(err)
	}
	if ok != (exit == nil) {
		t.Errorf("the summary says %v, go test says %v", ok, exit)
	}
	return out.String(), ok
}

func last(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestEveryOutcomeIsCountedAndExplained(t *testing.T) {
	out, ok := run(t, map[string]string{
		"good/a_test.go": `package good
import "testing"
func TestOne(t *testing.T) { t.Run("sub", func(t *testing.T) {}) }
func TestNeedsMoon(t *testing.T) { t.Skip("no moon") }
`,
		"bad/a_test.go": `package bad
import "testing"
func TestWrong(t *testing.T) { t.Error("got 1, want 2") }
func TestRight(t *testing.T) {}
`,
		"broken/a_test.go": `package broken
import "testing"
func TestX(t *testing.T) { undefined() }
`,
		"panics/a_test.go": `package panics
import "testing"
func TestBefore(t *testing.T) {}
func TestBoom(t *testing.T) { panic("boom") }
`,
		"exits/a_test.go": `package exits
import ("os"; "testing"; "fmt")
func TestMain(m *testing.M) { fmt.Println("no lab"); os.Exit(3) }
`,
		"none/a.go": "package none\n",
	})
	if ok {
		t.Error("failures were reported as success")
	}
	if got, want := last(out), "4 passed, 4 failed, 1 skipped"; got != want {
		t.Errorf("closing line %q, want %q", got, want)
	}
	for _, want := range []string{
		"got 1, want 2", "undefined: undefined", "boom", "no lab",
		"example.com/m/good TestNeedsMoon: a_test.go:4: no moon",
		"ok    example.com/m/good", "FAIL  example.com/m/bad",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestSuccessIsOneLinePerPackageAndTheClosingLine(t *testing.T) {
	out, ok := run(t, map[string]string{"a_test.go": `package a
import ("testing"; "fmt")
func TestOne(t *testing.T) { fmt.Println("chatter") }
`})
	if lines := strings.Count(out, "\n"); !ok || lines != 3 || last(out) != "1 passed, 0 failed, 0 skipped" {
		t.Fatalf("%v:\n%s", ok, out)
	}
}

func TestNoTestAtAllIsAFailure(t *testing.T) {
	var out strings.Builder
	if ok, err := summarize(strings.NewReader(""), &out); ok || err != nil {
		t.Fatalf("%v, %v:\n%s", ok, err, &out)
	}
	if got := last(out.String()); got != "0 passed, 1 failed, 0 skipped" {
		t.Fatalf("closing line %q", got)
	}
}

func TestATestCutOffIsAFailure(t *testing.T) {
	const events = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"half a li"}
`
	var out strings.Builder
	if ok, _ := summarize(strings.NewReader(events), &out); ok || !strings.Contains(out.String(), "TestA: did not end") {
		t.Fatalf("%v:\n%s", ok, &out)
	}
}
