package bpf_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	directive = regexp.MustCompile(`(?m)^//go:generate go tool bpf2go (.*)$`)
	word      = regexp.MustCompile(`"[^"]*"|\S+`)
)

// TestTheCommittedProgramsAreWhatTheSourcesCompileTo runs every generator line
// of this room again, into an empty directory, and compares. If it fails:
// make generate.
func TestTheCommittedProgramsAreWhatTheSourcesCompileTo(t *testing.T) {
	lines := 0
	fresh := map[string]bool{} // files of this room that were made again
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		// The C files too, although the compiler is a process of its own: only
		// of files that the test opened does go test know that they changed.
		source, err := os.ReadFile(name)
		if err != nil || filepath.Ext(name) != ".go" {
			return err
		}
		for _, found := range directive.FindAllSubmatch(source, -1) {
			lines++
			dir, made := filepath.Dir(name), t.TempDir()
			argv := []string{"tool", "bpf2go", "-output-dir", made}
			for _, w := range word.FindAllString(string(found[1]), -1) {
				argv = append(argv, strings.Trim(w, `"`))
			}
			cmd := exec.Command("go", argv...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOPACKAGE="+filepath.Base(dir))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: go %s: %v\n%s", name, strings.Join(argv, " "), err, out)
				continue
			}
			results, err := os.ReadDir(made)
			if err != nil {
				return err
			}
			if len(results) == 0 {
				t.Errorf("%s: a generator line that generates nothing: %s", name, found[0])
			}
			for _, r := range results {
				committed := filepath.Join(dir, r.Name())
				fresh[committed] = true
				want, err := os.ReadFile(filepath.Join(made, r.Name()))
				if err != nil {
					return err
				}
				got, err := os.ReadFile(committed)
				if err != nil {
					t.Errorf("generated, but not there: %v (make generate)", err)
				} else if !bytes.Equal(got, want) {
					t.Errorf("%s (%d bytes) is not what its source compiles to (%d bytes): make generate", committed, len(got), len(want))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if lines == 0 {
		t.Fatal("no generator line found: then this shows nothing")
	}

	// And nothing is there that no source makes.
	for _, pattern := range []string{"*/*.o", "*/*_bpfel.go", "*/*_bpfeb.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !fresh[name] {
				t.Errorf("%s: no generator line makes it", name)
			}
		}
	}
}
