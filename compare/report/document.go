package report

import "slices"

// document is a report before it has a form.
type document struct {
	Title   string
	Verdict string
	// Facts are the run's: when, where, with what load.
	Facts []string
	// Notices are what a reader must know before any figure.
	Notices  []notice
	Sections []section
}

// notice is a reason for doubt and what it concerns.
type notice struct{ Title, Text string }

type section struct {
	ID, Title string
	Text      []string
	Figures   []figure
	Tables    []table
	// Folded sections are closed at first.
	Folded bool
}

// figure is a chart, drawn once for a wide and once for a narrow page: a wide one
// that is shrunk cannot be read.
type figure struct {
	Caption      string
	Wide, Narrow string // SVG
}

type table struct {
	Caption string
	// Folded tables are closed at first: they need a caption to be opened by.
	Folded  bool
	Columns []column
	Rows    []line
}

type column struct {
	Name string
	// Text is aligned to the left, figures are to the right.
	Text bool
}

type line struct {
	Cells   []string
	Family  family
	Caveats []caveat
}

// insert puts a section after the first.
func (d *document) insert(s section) {
	d.Sections = slices.Insert(d.Sections, min(1, len(d.Sections)), s)
}

func (t *table) add(f family, caveats []caveat, cells ...string) {
	t.Rows = append(t.Rows, line{Cells: cells, Family: f, Caveats: caveats})
}

// doubtful says whether any row has a caveat.
func (t *table) doubtful() bool {
	return slices.ContainsFunc(t.Rows, func(l line) bool { return len(l.Caveats) > 0 })
}

// text and figures make columns.
func text(names ...string) (c []column) {
	for _, n := range names {
		c = append(c, column{Name: n, Text: true})
	}
	return c
}

func figures(names ...string) (c []column) {
	for _, n := range names {
		c = append(c, column{Name: n})
	}
	return c
}
