// Package report tells people what a comparison came to: a table on the
// terminal, report.md, and report.html, one page that needs nothing but itself.
// All three are made from one document, so that none says more than another. A
// figure that is not to be trusted is shown with the reason beside it, and one
// that was not measured is "n/a", never zero.
package report

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pollux-net/pollux/compare/result"
)

// The names of the files that [Write] makes.
const (
	MarkdownName = "report.md"
	HTMLName     = "report.html"
)

// Write writes report.md and report.html into dir, which it makes if it must,
// and returns their paths. Files of these names are replaced as a whole.
func Write(dir string, r *result.Results) (paths []string, err error) {
	return write(dir, describe(r))
}

// WriteAgainst writes the same with a section on what changed since an earlier
// run.
func WriteAgainst(dir string, earlier, r *result.Results) (paths []string, err error) {
	d := describe(r)
	d.insert(changes(earlier, r))
	return write(dir, d)
}

// Compare says what changed from one run to another, as text for a terminal: in
// what the runs differ, then row by row, then whether it is more than noise.
func Compare(earlier, r *result.Results) string {
	s := changes(earlier, r)
	var b strings.Builder
	writeText(&b, s)
	return b.String()
}

// Table prints the figures at saturation, the verdict and what to doubt.
func Table(w io.Writer, r *result.Results) error {
	d := describe(r)
	var b strings.Builder
	writeTable(&b, saturationTable(newView(r), true))
	fmt.Fprintf(&b, "\n%s\n", d.Verdict)
	if len(d.Notices) > 0 {
		b.WriteString("\nTo doubt:\n")
	}
	for _, n := range d.Notices {
		fmt.Fprintf(&b, "  %s: %s\n", n.Title, n.Text)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return nil
}

func write(dir string, d document) (paths []string, err error) {
	page, err := htmlPage(d)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", HTMLName, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("write the report: %w", err)
	}
	for _, f := range []struct{ name, text string }{{MarkdownName, markdown(d)}, {HTMLName, page}} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path+".new", []byte(f.text), 0o644); err != nil {
			return paths, fmt.Errorf("write the report: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return paths, fmt.Errorf("write the report: %w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
