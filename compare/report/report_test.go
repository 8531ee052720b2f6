package report

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pollux-net/pollux/compare/result"
)

// keep is for looking at the pages in a browser.
var keep = flag.String("keep", "", "write the synthetic report into this directory, too")

const seed = 7

func node(n *html.Node, visit func(*html.Node)) {
	visit(n)
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		node(c, visit)
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func content(n *html.Node) string {
	var b strings.Builder
	node(n, func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
	})
	return strings.Join(strings.Fields(b.String()), " ")
}

// pageOf renders a comparison and parses what came out.
func pageOf(t *testing.T, r *result.Results) (*html.Node, string) {
	t.Helper()
	source, err := htmlPage(describe(r))
	if err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	return root, source
}

// rowOf finds a subject's row in a section's n-th table.
func rowOf(t *testing.T, d document, section string, n int, subject ...string) line {
	t.Helper()
	for _, s := range d.Sections {
		if s.ID != section {
			continue
		}
		if n >= len(s.Tables) {
			t.Fatalf("section %s has %d tables, not %d", section, len(s.Tables), n+1)
		}
	rows:
		for _, l := range s.Tables[n].Rows {
			for i, c := range subject {
				if l.Cells[i] != c {
					continue rows
				}
			}
			return l
		}
	}
	t.Fatalf("no row %v in table %d of section %s", subject, n, section)
	return line{}
}

func TestWriteLeavesTwoFilesAndReplacesThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "write")
	for range 2 {
		paths, err := Write(dir, synthetic(seed))
		if err != nil {
			t.Fatal(err)
		}
		if len(paths) != 2 || filepath.Base(paths[0]) != MarkdownName || filepath.Base(paths[1]) != HTMLName {
			t.Fatalf("paths %q", paths)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 2 {
			t.Errorf("%d files, want the two and nothing half-written", len(entries))
		}
	}
	if *keep != "" {
		later := synthetic(seed)
		for i := range later.Rows {
			if row := &later.Rows[i]; row.Rate == 0 {
				row.Median.Throughput *= 1.2
				for n := range row.Rounds {
					row.Rounds[n].Throughput *= 1.2
				}
			}
		}
		if _, err := WriteAgainst(*keep, synthetic(seed), later); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThePageIsWellFormedAndNeedsNothingElse(t *testing.T) {
	r := synthetic(seed)
	r.Warnings = append(r.Warnings, `<script src="http://evil.example/x.js"></script>`)
	r.Plan.Subjects[0].Name = `<img src=x onerror=alert(1)>|&"`
	for i := range r.Rows {
		if r.Rows[i].Subject == "user/poll" {
			r.Rows[i].Subject = r.Plan.Subjects[0].Name
		}
	}
	root, source := pageOf(t, r)
	ids := make(map[string]bool)
	charts := 0
	node(root, func(n *html.Node) {
		if n.Type != html.ElementNode {
			return
		}
		switch n.Data {
		case "script", "link", "img", "iframe", "object", "embed", "image", "use", "base", "form":
			t.Errorf("an element <%s>", n.Data)
		case "svg":
			charts++
		case "style":
			if css := content(n); strings.Contains(css, "@import") || strings.Contains(css, "url(") {
				t.Error("the style sheet refers to something")
			}
		}
		if id := attribute(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("two elements with the id %q", id)
			}
			ids[id] = true
		}
		for _, a := range n.Attr {
			if a.Key == "src" || a.Key == "srcset" || strings.HasPrefix(a.Key, "on") || strings.Contains(a.Val, "url(") ||
				a.Key == "href" && !strings.HasPrefix(a.Val, "#") {
				t.Errorf("<%s %s=%q> refers to something outside", n.Data, a.Key, a.Val)
			}
		}
	})
	node(root, func(n *html.Node) {
		if h := attribute(n, "href"); n.Type == html.ElementNode && h != "" && !ids[strings.TrimPrefix(h, "#")] {
			t.Errorf("a link to %s, which is not there", h)
		}
	})
	if charts != 2*5 {
		t.Errorf("%d drawings, want 5 charts, each for wide and narrow pages", charts)
	}
	// What the parser mends silently: every element that is opened is closed.
	var open []string
	for z := html.NewTokenizer(strings.NewReader(source)); ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			break
		}
		name, _ := z.TagName()
		switch tag := string(name); {
		case kind == html.StartTagToken && tag != "meta":
			open = append(open, tag)
		case kind == html.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != tag {
				t.Fatalf("</%s> closes %v", tag, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("not closed: %v", open)
	}
	if !strings.Contains(content(root), r.Plan.Subjects[0].Name) {
		t.Error("a subject's name is not shown as it is")
	}
}

func TestChartsTakeThePagesColours(t *testing.T) {
	root, source := pageOf(t, synthetic(seed))
	declared := make(map[string]int)
	for _, m := range regexp.MustCompile(`--([a-z-]+):`).FindAllStringSubmatch(source, -1) {
		declared[m[1]]++
	}
	used := 0
	node(root, func(n *html.Node) {
		s := attribute(n, "style")
		for _, m := range regexp.MustCompile(`var\(--([a-z-]+)\)`).FindAllStringSubmatch(s, -1) {
			used++
			if declared[m[1]] != 2 {
				t.Errorf("colour %s is declared %d times, want once for light and once for dark", m[1], declared[m[1]])
			}
		}
		if regexp.MustCompile(`(fill|stroke):#`).MatchString(s) || strings.Contains(s, "font-family") {
			t.Errorf("<%s> has a colour or font of its own: %s", n.Data, s)
		}
		// Black by default is unreadable in the dark.
		if n.Type == html.ElementNode && (n.Data == "path" || n.Data == "text") && !strings.Contains(s, "fill:") {
			t.Errorf("<%s> without a fill", n.Data)
		}
	})
	if used < 100 {
		t.Errorf("%d uses of the page's colours: are there charts?", used)
	}
}

func TestWhatIsNotToBeTrustedIsSaidFirstAndBesideItsRow(t *testing.T) {
	r := synthetic(seed)
	d := describe(r)
	notice := func(title string) string {
		for _, n := range d.Notices {
			if n.Title == title {
				return n.Text
			}
		}
		t.Errorf("no notice %q among %v", title, d.Notices)
		return ""
	}
	for _, c := range []struct {
		subject, title, beside string
	}{
		{"user/poll", "Client-bound", "client-bound"},
		{"user/interrupt", "Mode not proven active", "mode not proven"},
		{"kernel/busy-poll", "Noisy", "noisy: 24 %"},
		{"kernel/busy-poll", "CPU time is an upper bound", "CPU: upper bound"},
		{"kernel/irq-packing", "Rounds that do not count", "1 of 3 rounds invalid"},
		{"memcached+attach", "No figures", "invalid"},
	} {
		if text := notice(c.title); !strings.Contains(text, c.subject+" (") || strings.Contains(text, "kernel/vanilla") {
			t.Errorf("notice %s: %q, want it on %s", c.title, text, c.subject)
		}
		l := rowOf(t, d, "saturation", 0, c.subject)
		found := false
		for _, x := range l.Caveats {
			found = found || x.Short == c.beside
		}
		if !found {
			t.Errorf("%s has the caveats %v, want %q", c.subject, l.Caveats, c.beside)
		}
	}
	if l := rowOf(t, d, "saturation", 0, "kernel/vanilla"); len(l.Caveats) > 0 {
		t.Errorf("kernel/vanilla has the caveats %v, there is nothing to doubt", l.Caveats)
	}
	if text := notice("Incomplete"); !strings.Contains(text, "5 rows of the plan not measured") {
		t.Errorf("incomplete: %q", text)
	}
	if text := notice("Warning"); text != r.Warnings[1] {
		t.Errorf("the run's own warning is %q", text)
	}
	if l := rowOf(t, d, "saturation", 0, "user/poll"); !strings.HasPrefix(l.Cells[1], "≥ ") {
		t.Errorf("client-bound throughput %q is shown as a limit", l.Cells[1])
	}
	if l := rowOf(t, d, "latency", 0, "kernel/vanilla", "90.0 k/s"); len(l.Caveats) == 0 || l.Caveats[0].Short != "load not served" {
		t.Errorf("twice the load that vanilla can serve has the caveats %v", l.Caveats)
	}
	// The notices stand before the first figure.
	_, source := pageOf(t, r)
	md := markdown(d)
	for name, at := range map[string][2]int{
		"html":     {strings.Index(source, "client-bound"), strings.Index(source, "<svg")},
		"markdown": {strings.Index(md, "**Client-bound**"), strings.Index(md, "| subject")},
	} {
		if at[0] < 0 || name == "markdown" && at[0] > at[1] {
			t.Errorf("%s: notices at %d, figures at %d", name, at[0], at[1])
		}
	}
	if a, b := strings.Index(source, `class="notices"`), strings.Index(source, "<svg"); a < 0 || a > b {
		t.Error("html: the notices are not before the charts")
	}
}

func TestWhatWasNotMeasuredIsNotZero(t *testing.T) {
	r := synthetic(seed)
	d := describe(r)
	l := rowOf(t, d, "hardware", 0, "kernel/vanilla")
	for _, c := range l.Cells[1:] {
		if c != noPMU {
			t.Errorf("without counters: %q", c)
		}
	}
	if md := markdown(d); !strings.Contains(md, "the hypervisor offers none") {
		t.Error("why there are no counters is not said")
	}
	for _, name := range []string{"memcached+attach", "user/poll/handoff"} {
		for _, c := range rowOf(t, d, "saturation", 0, name).Cells[1:] {
			if c != notMeasured {
				t.Errorf("%s without a round that counts has a figure: %q", name, c)
			}
		}
	}
	if c := rowOf(t, d, "proof", 1, "memcached").Cells[7]; c != notMeasured {
		t.Errorf("unknown system calls are %q", c)
	}
	if c := rowOf(t, d, "proof", 1, "kernel/vanilla").Cells[7]; c != "2.03" {
		t.Errorf("known system calls are %q", c)
	}
	if c := rowOf(t, d, "idle", 0, "user/poll/handoff").Cells[1]; c != notMeasured {
		t.Errorf("idle cost of what was not run is %q", c)
	}

	cycles, instructions := 12000.0, 18000.0
	row := mustFind(r, "kernel/vanilla", 0)
	row.Median.Server.Cycles, row.Median.Server.Instructions = &cycles, &instructions
	r.Machine.PMU = true
	d = describe(r)
	if got := strings.Join(rowOf(t, d, "hardware", 0, "kernel/vanilla").Cells, " "); got != "kernel/vanilla 12,000 18,000 1.50 base base base" {
		t.Errorf("with counters: %s", got)
	}
	if got := rowOf(t, d, "saturation", 0, "kernel/vanilla").Cells[5]; got != notMeasured {
		t.Errorf("polls in vain that nobody can tell from work are %q", got)
	}
	if c := rowOf(t, d, "hardware", 0, "memcached").Cells[1]; c != notMeasured {
		t.Errorf("counters that failed for one subject are %q", c)
	}
}

func TestWhatASearchFoundIsReportedWithWhoseLimitItWas(t *testing.T) {
	r := synthetic(seed)
	mustFind(r, "kernel/vanilla", 0).Saturation = &result.Saturation{Rate: 90_000, Beyond: 95_000, ServerBound: true, Latency: result.Latency{Average: 200_000, P95: 400_000, P99: 900_000}}
	mustFind(r, "user/poll", 0).Saturation = &result.Saturation{Rate: 150_000, Beyond: 155_000, ClientBound: true}
	mustFind(r, "user/adaptive", 0).Saturation = &result.Saturation{Why: "the server went away"}
	d := describe(r)
	if l := rowOf(t, d, "saturation", 1, "kernel/vanilla"); strings.Join(l.Cells[1:], ", ") != "90.0 k, 200 µs, 400 µs, 900 µs, 95.0 k, the server's limit" {
		t.Errorf("found: %q", l.Cells)
	}
	if l := rowOf(t, d, "saturation", 1, "user/poll"); !strings.Contains(l.Cells[6], "the client's limit") {
		t.Errorf("the client's: %q", l.Cells)
	}
	if l := rowOf(t, d, "saturation", 1, "user/adaptive"); l.Cells[1] != notMeasured || l.Cells[6] != "the server went away" {
		t.Errorf("not found: %q", l.Cells)
	}
}

func TestAGainIsAttributedToFewerOrToBetterInstructions(t *testing.T) {
	r := synthetic(seed)
	r.Machine.PMU = true
	count := func(subject string, cycles, instructions float64) {
		c := &mustFind(r, subject, 0).Median.Server
		c.Cycles, c.Instructions = &cycles, &instructions
	}
	count("kernel/vanilla", 20_000, 20_000)
	count("kernel/kernel-polling", 10_000, 20_000) // the same instructions, twice as fast
	count("user/adaptive", 5_000, 8_000)
	d := describe(r)
	for subject, want := range map[string]string{
		"kernel/vanilla":        "base base base",
		"kernel/kernel-polling": "1.00× 2.00× 2.00×",
		"user/adaptive":         "2.50× 1.60× 4.00×",
		"memcached":             "n/a n/a n/a",
	} {
		if got := strings.Join(rowOf(t, d, "hardware", 0, subject).Cells[4:], " "); got != want {
			t.Errorf("%s: %s, want %s", subject, got, want)
		}
	}
}

func TestAverageAndP95StandAtSaturation(t *testing.T) {
	d := describe(synthetic(seed))
	m := mustFind(synthetic(seed), "kernel/vanilla", 0).Median.Latency
	for _, s := range d.Sections {
		if s.ID != "saturation" {
			continue
		}
		for i, c := range s.Tables[0].Columns {
			want := map[string]time.Duration{"average": m.Average, "p50": m.P50, "p95": m.P95, "p99": m.P99, "p99.9": m.P999}[c.Name]
			if got := rowOf(t, d, "saturation", 0, "kernel/vanilla").Cells[i]; want > 0 && got != duration(want) {
				t.Errorf("%s is %s, want %s", c.Name, got, duration(want))
			}
		}
		names := fmt.Sprint(s.Tables[0].Columns)
		if !strings.Contains(names, "average") || !strings.Contains(names, "p95") {
			t.Errorf("columns %s", names)
		}
	}
}

func titled(d document, title string) string {
	for _, n := range d.Notices {
		if n.Title == title {
			return n.Text
		}
	}
	return ""
}

func TestMissesAreSaidBesideTheirRow(t *testing.T) {
	r := synthetic(seed)
	row := mustFind(r, "kernel/vanilla", 0)
	row.Rounds[1].Misses = row.Rounds[1].Requests / 100
	d := describe(r)
	if text := titled(d, "Misses"); !strings.Contains(text, "kernel/vanilla (closed loop)") {
		t.Errorf("notice: %q", text)
	}
	if l := rowOf(t, d, "saturation", 0, "kernel/vanilla"); len(l.Caveats) != 1 || !strings.HasPrefix(l.Caveats[0].Short, "misses: 0.3 %") {
		t.Errorf("caveats %v", l.Caveats)
	}
}

func TestDebiansMemcachedIsCalledAWeakBaselineForPipelines(t *testing.T) {
	r := synthetic(seed)
	if text := titled(describe(r), "A weak baseline"); text != "" {
		t.Errorf("at depth 1: %s", text)
	}
	r.Plan.Workload.Depth = 16
	if text := titled(describe(r), "A weak baseline"); !strings.Contains(text, "depth 16") || !strings.Contains(text, "memcached, memcached+attach") {
		t.Errorf("at depth 16: %q", text)
	}
	r.Plan.Subjects = r.Plan.Subjects[:9]
	r.Rows = slices.DeleteFunc(r.Rows, func(row result.Row) bool { return strings.HasPrefix(row.Subject, "memcached") })
	if text := titled(describe(r), "A weak baseline"); text != "" {
		t.Errorf("without it: %s", text)
	}
}

func TestALoadThatThePlanLeavesOutIsNotMissing(t *testing.T) {
	r := synthetic(seed)
	r.Complete = true
	r.Plan.Subjects = []result.Subject{{Name: "user/adaptive"}, {Name: "kernel/vanilla"}}
	r.Rows = slices.DeleteFunc(r.Rows, func(row result.Row) bool {
		return row.Subject != "user/adaptive" && (row.Subject != "kernel/vanilla" || row.Rate > 60e3)
	})
	if text := titled(describe(r), "Incomplete"); text == "" {
		t.Error("a row of a plan of fixed rates is not missed")
	}
	// The rate is a fraction of what user/adaptive can do, twice what vanilla can.
	r.Plan.Fractions = []float64{0.5}
	if text := titled(describe(r), "Incomplete"); text != "" {
		t.Errorf("incomplete: %s", text)
	}
}

func TestOthersFiguresAreLabelledAsTheirs(t *testing.T) {
	r := synthetic(seed)
	d := describe(r)
	l := rowOf(t, d, "others", 0, "kernel polling")
	if l.Cells[1] != "+30 %, with the best tail" || l.Cells[2] != "1.30×" || !strings.HasSuffix(l.Cells[3], " k/s") || !strings.HasPrefix(l.Cells[4], "1.8") {
		t.Errorf("kernel polling: %q", l.Cells)
	}
	if l := rowOf(t, d, "others", 0, "NUMA placement"); l.Cells[3] != notMeasured {
		t.Errorf("a figure for what we have no mode for: %q", l.Cells)
	}
	if l := rowOf(t, d, "others", 2, "interrupts suspended"); l.Cells[1] != "226 µs" || l.Cells[2] != "0.04×" || l.Cells[3] == notMeasured {
		t.Errorf("tail: %q", l.Cells)
	}
	for _, s := range d.Sections {
		for _, tb := range s.Tables {
			if s.ID == "others" && !strings.Contains(tb.Caption, "Theirs: ") {
				t.Errorf("a table without a source: %q", tb.Caption)
			}
		}
	}
	// No gain in throughput is claimed where the client was the limit.
	mustFind(r, "kernel/vanilla", 0).Median.ClientBound = true
	if l := rowOf(t, describe(r), "others", 0, "kernel polling"); l.Cells[4] != "n/a (client-bound)" {
		t.Errorf("against a client-bound base: %q", l.Cells)
	}
}

func TestRoundsThatDoNotCountAreShownAsSuch(t *testing.T) {
	d := describe(synthetic(seed))
	l := rowOf(t, d, "rounds", 0, "kernel/irq-packing", "closed loop")
	if !strings.HasPrefix(l.Cells[5], "(") || strings.HasPrefix(l.Cells[4], "(") {
		t.Errorf("rounds: %q", l.Cells)
	}
	if l := rowOf(t, d, "rounds", 1, "kernel/irq-packing", "closed loop", "2"); l.Cells[3] != "2 replies were wrong" {
		t.Errorf("the reason: %q", l.Cells)
	}
}

func TestTheTerminalGetsTheVerdictAndTheDoubts(t *testing.T) {
	r := synthetic(seed)
	var b strings.Builder
	if err := Table(&b, r); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{r.Verdict, "Client-bound: ", "not run", "≥ 18", "base", "Better"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.ContainsAny(out, "\x1b<") {
		t.Error("markup on a terminal")
	}
}

func TestAnyResultsCanBeReported(t *testing.T) {
	invalid := synthetic(seed)
	for i := range invalid.Rows {
		for n := range invalid.Rows[i].Rounds {
			invalid.Rows[i].Rounds[n].Invalid = "no"
		}
		summarize(&invalid.Rows[i])
	}
	closed := synthetic(seed)
	closed.Rows = nil
	for _, row := range synthetic(seed).Rows {
		if row.Rate == 0 {
			closed.Rows = append(closed.Rows, row)
		}
	}
	zero := synthetic(seed)
	for i := range zero.Rows {
		zero.Rows[i].Median = result.Round{Throughput: 1}
	}
	single := synthetic(seed)
	single.Plan.Repetitions = 1
	for i := range single.Rows {
		single.Rows[i].Rounds = single.Rows[i].Rounds[:1]
		summarize(&single.Rows[i])
	}
	stranger := &result.Results{Rows: []result.Row{{Subject: "not planned", Rounds: []result.Round{{Throughput: 5}}, Median: result.Round{Throughput: 5, Latency: result.Latency{P50: time.Second}}}}}
	for name, r := range map[string]*result.Results{
		"empty": {}, "no row": {Plan: synthetic(seed).Plan}, "all invalid": invalid, "closed loop only": closed, "zeroes": zero, "one round": single, "not planned": stranger,
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := pageOf(t, r)
			if r.Verdict == "" && !strings.Contains(content(root), "No verdict") {
				t.Error("no verdict, and not said")
			}
			dir := t.TempDir()
			if _, err := WriteAgainst(dir, synthetic(seed), r); err != nil {
				t.Error(err)
			}
			if _, err := WriteAgainst(dir, r, synthetic(seed)); err != nil {
				t.Error(err)
			}
			if text := strings.ToLower(content(root)) + markdown(describe(r)) + Compare(r, r); regexp.MustCompile(`\b(NaN|nan|\+?Inf|inf|%!)\b`).MatchString(text) {
				t.Errorf("not a figure: %s", regexp.MustCompile(`.{0,40}\b(NaN|nan|\+?Inf|inf|%!)\b.{0,20}`).FindString(text))
			}
		})
	}
}

func TestMarkdownTablesKeepTheirColumns(t *testing.T) {
	r := synthetic(seed)
	r.Plan.Subjects[4].Name = "a|b\nc"
	for i := range r.Rows {
		if r.Rows[i].Subject == "kernel/vanilla" {
			r.Rows[i].Subject = "a|b\nc"
		}
	}
	md := markdown(describe(r))
	columns, tables := 0, 0
	for _, l := range strings.Split(md, "\n") {
		if !strings.HasPrefix(l, "|") {
			columns = 0
			continue
		}
		n := strings.Count(strings.ReplaceAll(l, `\|`, ""), "|")
		if columns == 0 {
			columns = n
			tables++
		}
		if n != columns {
			t.Errorf("%d bars in a table of %d: %s", n, columns, l)
		}
	}
	if tables < 10 {
		t.Errorf("%d tables", tables)
	}
	if !strings.Contains(md, `a\|b c`) {
		t.Error("a name with a bar is gone")
	}
}
