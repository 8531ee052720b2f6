package report

import (
	"math"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// point is a latency at an offered rate.
type point struct {
	Rate    float64
	Latency time.Duration
	Hollow  bool // a figure in doubt
}

// series is a subject's line.
type series struct {
	Label  string
	Family family
	Points []point
}

// dashes and shapes tell the lines of a family apart; each is labelled, too.
var (
	dashes = [][]vg.Length{nil, {7, 3}, {2, 3}, {9, 3, 2, 3}, {5, 2, 1, 2, 1, 2}}
	shapes = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}
	rings  = []draw.GlyphDrawer{draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}}
)

// lineChart draws latencies, on a logarithmic axis, against offered rates; not
// ok without any.
func lineChart(caption string, all []series) (f figure, ok bool) {
	low, high, most := math.Inf(1), 0.0, 0.0
	var drawn []series
	for _, s := range all {
		s.Points = slices.DeleteFunc(slices.Clone(s.Points), func(p point) bool { return p.Latency <= 0 || !(p.Rate > 0) }) // no logarithm
		for _, p := range s.Points {
			low, high, most = min(low, float64(p.Latency)), max(high, float64(p.Latency)), max(most, p.Rate)
		}
		if len(s.Points) > 0 {
			drawn = append(drawn, s)
		}
	}
	if len(drawn) == 0 {
		return f, false
	}
	return twice(caption, func(narrow bool) string {
		class, width := sized(narrow)
		p := axes()
		p.X.Min, p.X.Max = 0, most
		p.Y.Scale = plot.LogScale{}
		p.Y.Min, p.Y.Max = low/1.3, high*1.3
		p.Y.Tick.Marker = decades(p.Y.Min, p.Y.Max)
		about, height, right := 6, vg.Length(400), vg.Length(170)
		if narrow {
			about, height, right = 3, max(300, vg.Length(len(drawn))*22+40), 140
		}
		p.X.Tick.Marker = ticks(0, most, about, round)
		p.X.Label.Text = "offered requests per second"
		p.Add(gridLines{y: true}, lines{drawn, narrow})
		return canvas(class, caption, width, height, func(c draw.Canvas) {
			p.Draw(draw.Crop(c, 2, -right, 0, -8))
		})
	}), true
}

// decades are ticks at 1, 2 and 5 times powers of ten, in nanoseconds.
func decades(low, high float64) plot.ConstantTicks {
	var list plot.ConstantTicks
	fine := high/low < 1000
	for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low && v <= high && (fine || m == 1) {
				list = append(list, plot.Tick{Value: v, Label: tickDuration(v)})
			}
		}
	}
	return list
}

func tickDuration(ns float64) string {
	switch {
	case ns >= 1e9:
		return round(ns/1e9) + " s"
	case ns >= 1e6:
		return round(ns/1e6) + " ms"
	case ns >= 1e3:
		return round(ns/1e3) + " µs"
	}
	return round(ns) + " ns"
}

type lines struct {
	series []series
	narrow bool
}

func (l lines) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	size, away := vg.Length(13), vg.Length(22)
	if l.narrow {
		size, away = 11, 16
	}
	type end struct {
		at    vg.Point
		y     vg.Length // of the label
		label string
		f     family
	}
	var ends []end
	count := make(map[family]int)
	for _, s := range l.series {
		n := count[s.Family]
		count[s.Family]++
		shape, ring := shapes[n%len(shapes)], rings[n%len(rings)]
		look := draw.LineStyle{Color: solid[s.Family], Width: 2, Dashes: dashes[n%len(dashes)]}
		var path []vg.Point
		for _, p := range s.Points {
			path = append(path, vg.Point{X: toX(p.Rate), Y: toY(float64(p.Latency))})
		}
		c.StrokeLines(look, path)
		for i, p := range s.Points {
			if p.Hollow {
				c.DrawGlyphNoClip(draw.GlyphStyle{Color: paper, Radius: 4, Shape: draw.CircleGlyph{}}, path[i])
				c.DrawGlyphNoClip(draw.GlyphStyle{Color: solid[s.Family], Radius: 4, Shape: ring}, path[i])
				continue
			}
			c.DrawGlyphNoClip(draw.GlyphStyle{Color: solid[s.Family], Radius: 3.5, Shape: shape}, path[i])
		}
		last := path[len(path)-1]
		ends = append(ends, end{last, last.Y, s.Label, s.Family})
	}
	// Labels are where the lines end, moved apart where they would overlap.
	slices.SortStableFunc(ends, func(a, b end) int { return int(math.Copysign(1, float64(a.y-b.y))) })
	ys := make([]vg.Length, len(ends))
	for i := range ends {
		ys[i] = ends[i].y
	}
	spread(ys, size+3, c.Min.Y, c.Max.Y)
	for i, e := range ends {
		x := c.Max.X + away
		c.StrokeLine2(draw.LineStyle{Color: muted, Width: 0.7}, e.at.X+6, e.at.Y, x-4, ys[i])
		c.FillText(style(size, solid[e.f], draw.XLeft, draw.YCenter), vg.Point{X: x, Y: ys[i]}, e.label)
	}
}

// spread moves ascending positions apart by at least gap, and keeps them between
// low and high as long as there is room.
func spread(y []vg.Length, gap, low, high vg.Length) {
	if n := len(y); n > 1 {
		gap = min(gap, (high-low)/vg.Length(n-1))
	}
	for i := range y {
		y[i] = max(y[i], low+gap*vg.Length(i))
		if i > 0 {
			y[i] = max(y[i], y[i-1]+gap)
		}
	}
	for i := len(y) - 1; i >= 0; i-- {
		y[i] = min(y[i], high-gap*vg.Length(len(y)-1-i))
	}
}
