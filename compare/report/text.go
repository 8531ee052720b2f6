package report

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// writeText writes a section for a terminal.
func writeText(b *strings.Builder, s section) {
	for _, p := range s.Text {
		fmt.Fprintln(b, p)
	}
	for _, t := range s.Tables {
		b.WriteByte('\n')
		writeTable(b, t)
	}
}

// writeTable aligns a table for a terminal.
func writeTable(b *strings.Builder, t table) {
	columns, rows := withCaveats(t)
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.Name)
		for _, r := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	put := func(cells []string) {
		var l strings.Builder
		for i, cell := range cells {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				l.WriteString("  ")
			}
			if columns[i].Text {
				l.WriteString(cell + pad)
			} else {
				l.WriteString(pad + cell)
			}
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	head := make([]string, len(columns))
	for i, c := range columns {
		head[i] = c.Name
	}
	put(head)
	for _, r := range rows {
		put(r)
	}
	if t.Caption != "" {
		b.WriteString(t.Caption + "\n")
	}
}

// withCaveats gives a table's columns and cells, with a column for the rows'
// caveats if there are any.
func withCaveats(t table) (columns []column, rows [][]string) {
	columns = append(columns, t.Columns...)
	doubtful := t.doubtful()
	if doubtful {
		columns = append(columns, column{"caveats", true})
	}
	for _, l := range t.Rows {
		cells := make([]string, len(columns))
		copy(cells, l.Cells)
		if doubtful {
			var short []string
			for _, c := range l.Caveats {
				short = append(short, c.Short)
			}
			cells[len(cells)-1] = strings.Join(short, ", ")
		}
		for i := range cells { // a name with a line break must not break the table
			cells[i] = strings.Join(strings.Fields(cells[i]), " ")
		}
		rows = append(rows, cells)
	}
	return columns, rows
}
