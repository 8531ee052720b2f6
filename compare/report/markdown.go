package report

import (
	"fmt"
	"strings"
)

// escape keeps text from being taken for markup.
var escape = strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`, "`", "\\`", "\n", " ", "\r", " ")

// markdown writes a document for a terminal's reader, or a repository's.
func markdown(d document) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n**%s**\n\n", escape.Replace(d.Title), escape.Replace(d.Verdict))
	for _, f := range d.Facts {
		fmt.Fprintf(&b, "%s\n\n", escape.Replace(f))
	}
	if len(d.Notices) > 0 {
		b.WriteString("> **To doubt**\n")
	}
	for _, n := range d.Notices {
		fmt.Fprintf(&b, ">\n> ⚠ **%s**: %s\n", escape.Replace(n.Title), escape.Replace(n.Text))
	}
	for _, s := range d.Sections {
		fmt.Fprintf(&b, "\n## %s\n\n", escape.Replace(s.Title))
		if s.Folded {
			b.WriteString("<details><summary>show</summary>\n\n")
		}
		for _, p := range s.Text {
			fmt.Fprintf(&b, "%s\n\n", escape.Replace(p))
		}
		for _, t := range s.Tables {
			markdownTable(&b, t)
		}
		if s.Folded {
			b.WriteString("</details>\n")
		}
	}
	fmt.Fprintf(&b, "\nThe charts are in %s, the figures of every round in results.json.\n", HTMLName)
	return b.String()
}

func markdownTable(b *strings.Builder, t table) {
	columns, rows := withCaveats(t)
	if t.Folded {
		fmt.Fprintf(b, "<details><summary>%s</summary>\n\n", escape.Replace(t.Caption))
		defer b.WriteString("</details>\n\n")
	} else if t.Caption != "" {
		fmt.Fprintf(b, "%s\n\n", escape.Replace(t.Caption))
	}
	for _, c := range columns {
		fmt.Fprintf(b, "| %s ", escape.Replace(c.Name))
	}
	b.WriteString("|\n")
	for _, c := range columns {
		if c.Text {
			b.WriteString("|---")
		} else {
			b.WriteString("|--:")
		}
	}
	b.WriteString("|\n")
	for _, r := range rows {
		for _, cell := range r {
			fmt.Fprintf(b, "| %s ", escape.Replace(cell))
		}
		b.WriteString("|\n")
	}
	b.WriteString("\n")
}
