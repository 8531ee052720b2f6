package report

import (
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// bar is a subject's in a bar chart. Value and Note are written at its end.
type bar struct {
	Label, Value, Note string
	Family             family
	X, Extra           float64 // Extra is stacked on X, paler
	Hollow             bool    // outlined: a bound, or in doubt
}

// barChart draws bars from left to right, the first on top.
func barChart(caption, unit string, bars []bar) figure {
	return twice(caption, func(narrow bool) string {
		class, width := sized(narrow)
		row := vg.Length(30)
		if narrow {
			row = 42
			if slices.ContainsFunc(bars, func(b bar) bool { return b.Note != "" }) {
				row = 58
			}
		}
		high := 0.0
		for _, b := range bars {
			high = max(high, b.X+b.Extra)
		}
		if high <= 0 {
			high = 1
		}
		p := axes()
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, high, 0, float64(len(bars))
		p.X.Tick.Marker = ticks(0, high, 5, round)
		p.X.Label.Text = unit
		p.HideY()
		p.Add(gridLines{x: true}, barRows{bars, narrow})
		return canvas(class, caption, width, row*vg.Length(len(bars))+44, func(c draw.Canvas) {
			left, right := vg.Length(180), vg.Length(250)
			if narrow {
				left, right = 2, 16
			}
			p.Draw(draw.Crop(c, left, -right, 0, -2))
		})
	})
}

type barRows struct {
	bars   []bar
	narrow bool
}

func (b barRows) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	for i, x := range b.bars {
		top, bottom := toY(float64(len(b.bars)-i)), toY(float64(len(b.bars)-i-1))
		middle, half := (top+bottom)/2, vg.Length(9)
		if b.narrow { // texts are above and below a bar, there is no room beside
			half = 6
			middle = top - 30
			c.FillText(style(13, ink, draw.XLeft, draw.YBottom), vg.Point{X: c.Min.X, Y: middle + half + 4}, x.Label+aside+x.Value)
			c.FillText(style(12, muted, draw.XLeft, draw.YTop), vg.Point{X: c.Min.X, Y: middle - half - 2}, x.Note)
		} else {
			c.FillText(style(13, ink, draw.XLeft, draw.YCenter), vg.Point{X: c.Min.X - 10, Y: middle}, atEnd+x.Label)
		}
		end := toX(x.X)
		box := func(from, to vg.Length) []vg.Point {
			return []vg.Point{{X: from, Y: middle - half}, {X: to, Y: middle - half}, {X: to, Y: middle + half}, {X: from, Y: middle + half}, {X: from, Y: middle - half}}
		}
		if x.X > 0 {
			if x.Hollow {
				c.FillPolygon(paper, box(c.Min.X, end))
				c.StrokeLines(draw.LineStyle{Color: solid[x.Family], Width: 1.5, Dashes: []vg.Length{4, 3}}, box(c.Min.X, end))
			} else {
				c.FillPolygon(solid[x.Family], box(c.Min.X, end))
			}
		}
		if x.Extra > 0 {
			c.FillPolygon(faint[x.Family], box(end, toX(x.X+x.Extra)))
			end = toX(x.X + x.Extra)
		}
		if !b.narrow {
			c.FillText(style(13, ink, draw.XLeft, draw.YCenter), vg.Point{X: end + 8, Y: middle}, x.Value+aside+x.Note)
		}
	}
}

// strip is one subject's values as dots on a line.
type strip struct {
	Label, Value string
	Family       family
	X            []float64
}

// stripChart draws values around zero, in percent.
func stripChart(caption string, strips []strip) figure {
	return twice(caption, func(narrow bool) string {
		class, width := sized(narrow)
		row := vg.Length(24)
		if narrow {
			row = 36
		}
		far := 5.0
		for _, s := range strips {
			for _, x := range s.X {
				far = max(far, x, -x)
			}
		}
		p := axes()
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -far*1.05, far*1.05, 0, float64(len(strips))
		p.X.Tick.Marker = ticks(-far, far, 4, func(x float64) string {
			if x > 0 {
				return "+" + round(x) + " %"
			}
			return round(x) + " %"
		})
		p.HideY()
		p.Add(gridLines{x: true}, stripRows{strips, narrow})
		return canvas(class, caption, width, row*vg.Length(len(strips))+30, func(c draw.Canvas) {
			left, right := vg.Length(180), vg.Length(80)
			if narrow {
				left, right = 8, 16
			}
			p.Draw(draw.Crop(c, left, -right, 0, -2))
		})
	})
}

type stripRows struct {
	strips []strip
	narrow bool
}

func (s stripRows) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	for i, x := range s.strips {
		top, bottom := toY(float64(len(s.strips)-i)), toY(float64(len(s.strips)-i-1))
		middle := (top + bottom) / 2
		if s.narrow {
			middle = bottom + 8
			c.FillText(style(13, ink, draw.XLeft, draw.YBottom), vg.Point{X: c.Min.X, Y: middle + 8}, x.Label+aside+x.Value)
		} else {
			c.FillText(style(13, ink, draw.XLeft, draw.YCenter), vg.Point{X: c.Min.X - 10, Y: middle}, atEnd+x.Label)
			c.FillText(style(12, muted, draw.XLeft, draw.YCenter), vg.Point{X: c.Max.X + 10, Y: middle}, x.Value)
		}
		for _, v := range x.X {
			c.DrawGlyphNoClip(draw.GlyphStyle{Color: solid[x.Family], Radius: 4, Shape: draw.CircleGlyph{}}, vg.Point{X: toX(v), Y: middle})
		}
	}
}
