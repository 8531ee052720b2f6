package report

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"math"
	"regexp"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The widths of a chart, in points that become pixels of the page.
const (
	wideWidth   vg.Length = 920
	narrowWidth vg.Length = 360
)

// Colours are drawn as marks, which [theme] replaces by the page's own: those
// depend on whether it is read in light or in the dark.
var (
	ink   = color.RGBA{1, 1, 1, 255}
	muted = color.RGBA{2, 2, 2, 255}
	grid  = color.RGBA{3, 3, 3, 255}
	solid = map[family]color.RGBA{user: {4, 4, 4, 255}, kernel: {5, 5, 5, 255}, other: {6, 6, 6, 255}}
	faint = map[family]color.RGBA{user: {7, 7, 7, 255}, kernel: {8, 8, 8, 255}, other: {9, 9, 9, 255}}
	paper = color.RGBA{10, 10, 10, 255}
)

// variables of the page's style sheet, in the order of the marks.
var variables = []string{"ink", "muted", "grid", "user", "kernel", "other", "user-faint", "kernel-faint", "other-faint", "paper"}

var (
	markPattern = regexp.MustCompile(`\b(fill|stroke):#0([1-9A-Fa-f])0[1-9A-Fa-f]0[1-9A-Fa-f]`)
	fontPattern = regexp.MustCompile(`font-family:[^;"]*;font-variant:[^;"]*;font-weight:[^;"]*;font-style:[^;"]*;?`)
	textPattern = regexp.MustCompile(`(?s)<text ([^>]*)>(` + atEnd + `?)([^<` + aside + `]*)` + aside + `?([^<]*)</text>`)
	headPattern = regexp.MustCompile(`(?s)^.*?<svg[^>]*?viewBox="([^"]*)"[^>]*>`)
)

// A text is as wide as the reader's font makes it, not as the one that a drawing is
// measured with. So what ends at a point, and what follows a text on its line, is
// marked by characters that no text has, and left to the browser.
const (
	atEnd = "\uE001" // begins a text that ends at its point
	aside = "\uE002" // begins the part of a text that is muted
)

// canvas draws something of a size and returns it as SVG for a page.
func canvas(class, title string, w, h vg.Length, paint func(draw.Canvas)) string {
	c := vgsvg.New(w, h)
	paint(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "" // a buffer does not fail
	}
	return theme(b.String(), class, title)
}

// theme makes a drawing a part of a page: its size, colours and fonts are then
// the page's, and it names nothing outside.
func theme(svg, class, title string) string {
	head := headPattern.FindStringSubmatch(svg)
	if head == nil {
		return ""
	}
	svg = strings.TrimSpace(svg[len(head[0]):])
	svg = fontPattern.ReplaceAllString(svg, "")
	svg = markPattern.ReplaceAllStringFunc(svg, func(m string) string {
		part := markPattern.FindStringSubmatch(m)
		var n int
		if _, err := fmt.Sscanf(part[2], "%x", &n); err != nil || n > len(variables) {
			return m
		}
		return part[1] + ":var(--" + variables[n-1] + ")"
	})
	svg = textPattern.ReplaceAllStringFunc(svg, func(m string) string {
		part := textPattern.FindStringSubmatch(m)
		anchor, rest := "", ""
		if part[2] != "" {
			anchor = ` text-anchor="end"`
		}
		if part[4] != "" {
			rest = `<tspan dx="8" font-size="12" style="fill:var(--muted)">` + part[4] + `</tspan>`
		}
		return "<text" + anchor + " " + part[1] + ">" + part[3] + rest + "</text>"
	})
	return fmt.Sprintf(`<svg class="%s" viewBox="%s" role="img" aria-label="%s">`, class, head[1], html.EscapeString(title)) + "\n" + svg
}

// style is of text of a size. x and y say which point of the text is placed: 0
// is its left or lower end, -1 its right or upper.
func style(size vg.Length, c color.Color, x draw.XAlignment, y draw.YAlignment) draw.TextStyle {
	f := font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size)
	return draw.TextStyle{Color: c, Font: f, XAlign: x, YAlign: y, Handler: plot.DefaultTextHandler}
}

// twice draws a chart for wide and for narrow pages.
func twice(caption string, paint func(narrow bool) string) figure {
	return figure{Caption: caption, Wide: paint(false), Narrow: paint(true)}
}

// sized chooses a width and the class that shows it.
func sized(narrow bool) (class string, width vg.Length) {
	if narrow {
		return "chart narrow", narrowWidth
	}
	return "chart wide", wideWidth
}

// axes makes a plot with the look that all charts share: no lines but a grid.
func axes() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.LineStyle.Width, a.Tick.LineStyle.Width, a.Tick.Length, a.Padding = 0, 0, 4, 0
		a.Tick.Label = style(12, muted, a.Tick.Label.XAlign, a.Tick.Label.YAlign)
		a.Label.TextStyle = style(12, muted, a.Label.TextStyle.XAlign, a.Label.TextStyle.YAlign)
	}
	return p
}

// gridLines are drawn at the ticks that have a label, across the whole plot.
type gridLines struct{ x, y bool }

func (g gridLines) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	look := draw.LineStyle{Color: grid, Width: 1}
	if g.x {
		for _, t := range p.X.Tick.Marker.Ticks(p.X.Min, p.X.Max) {
			if t.Label != "" && t.Value >= p.X.Min && t.Value <= p.X.Max {
				c.StrokeLine2(look, toX(t.Value), c.Min.Y, toX(t.Value), c.Max.Y)
			}
		}
	}
	if g.y {
		for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
			if t.Label != "" && t.Value >= p.Y.Min && t.Value <= p.Y.Max {
				c.StrokeLine2(look, c.Min.X, toY(t.Value), c.Max.X, toY(t.Value))
			}
		}
	}
}

// ticks at round values, about as many as asked for.
func ticks(low, high float64, about int, label func(float64) string) plot.ConstantTicks {
	var list plot.ConstantTicks
	span := (high - low) / float64(max(about, 1))
	if !(span > 0) || math.IsInf(span, 0) {
		return list
	}
	step := math.Pow(10, math.Floor(math.Log10(span)))
	switch m := span / step; {
	case m > 5:
		step *= 10
	case m > 2:
		step *= 5
	case m > 1:
		step *= 2
	}
	for i := math.Ceil(low/step - 1e-9); i*step <= high*(1+1e-9) && len(list) < 100; i++ {
		v := i * step
		if v == 0 {
			v = 0 // not -0
		}
		list = append(list, plot.Tick{Value: v, Label: label(v)})
	}
	return list
}

// round is for ticks: 50 k, not 50.0 k.
func round(x float64) string {
	switch {
	case math.Abs(x) >= 1e6:
		return strconv.FormatFloat(x/1e6, 'g', 4, 64) + " M"
	case math.Abs(x) >= 1e3:
		return strconv.FormatFloat(x/1e3, 'g', 4, 64) + " k"
	}
	return strconv.FormatFloat(x, 'g', 4, 64)
}
