package report

import (
	_ "embed"
	"html/template"
	"strings"
)

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	// The charts are our own drawings, their texts are escaped there.
	"svg": func(s string) template.HTML { return template.HTML(s) },
	"cell": func(columns []column, i int) column {
		if i < len(columns) {
			return columns[i]
		}
		return column{Text: true}
	},
}).Parse(pageSource))

// htmlPage writes a document as one page that refers to nothing else.
func htmlPage(d document) (string, error) {
	var b strings.Builder
	if err := page.Execute(&b, d); err != nil {
		return "", err
	}
	return b.String(), nil
}
