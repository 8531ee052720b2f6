package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

// describe makes the document of a comparison.
func describe(r *result.Results) document {
	v := newView(r)
	return document{
		Title:   "The user path and the kernel path, compared",
		Verdict: cmp.Or(r.Verdict, "No verdict: too little was measured to give one."),
		Facts:   facts(v),
		Notices: notices(v),
		Sections: []section{
			saturation(v),
			latency(v),
			idle(v),
			interruptions(v),
			hardware(v),
			rounds(v),
			published(v),
			settings(v),
		},
	}
}

func facts(v view) []string {
	m, p, w := v.Machine, v.Plan, v.Plan.Workload
	where := "In the lab (a veth between two namespaces)"
	if p.Device != "" {
		where = "On " + p.Device
	}
	size := "distributed sizes"
	if w.ValueSize > 0 {
		size = fmt.Sprintf("values of %s bytes", thousands(float64(w.ValueSize)))
	}
	virtual := ""
	if m.Virtual != "" && m.Virtual != "none" {
		virtual = ", virtual (" + m.Virtual + ")"
	}
	list := []string{
		fmt.Sprintf("%s: %s, kernel %s%s, %s.", where, cmp.Or(m.CPU, "an unknown processor"), cmp.Or(m.Kernel, "unknown"), virtual, plural(m.Cores, "core")),
		fmt.Sprintf("Workload %s: %s, depth %d, %s keys, %s, %s sets. Plan %s: %s of %v after %v of warm-up, seed %d.",
			w.Kind, plural(w.Connections, "connection"), w.Depth, thousands(float64(w.Keys)), size, percent(w.SetRatio),
			p.Name, plural(p.Repetitions, "round"), p.Duration, p.Warmup, v.Seed),
	}
	if p.Placement != "" {
		list = append(list, p.Placement)
	}
	if !v.Started.IsZero() {
		list = append(list, fmt.Sprintf("Measured %s, in %v.", v.Started.UTC().Format("2 January 2006 15:04 MST"), v.Finished.Sub(v.Started).Round(time.Second)))
	}
	return list
}

func saturation(v view) section {
	s := section{
		ID: "saturation", Title: "At saturation",
		Text:   []string{"The closed loop: each connection asks again as soon as it is answered. CPU time is all that the server's side costs, softirqs and interrupts included; polls that found nothing are kept apart where the server can tell: not on the kernel's path, where they are in the CPU time."},
		Tables: append([]table{saturationTable(v, false)}, searchedTable(v)...),
	}
	var throughput, cpu []bar
	for _, subject := range v.subjects {
		row := v.row(subject.Name, 0)
		doubts := v.caveats(row)
		b := bar{Label: subject.Name, Family: v.family(subject.Name), Hollow: hollow(doubts)}
		if !usable(row) {
			b.Value = doubts[0].Short
			throughput, cpu = append(throughput, b), append(cpu, b)
			continue
		}
		c := b
		b.X, b.Value = row.Median.Throughput, rate(row.Median.Throughput)
		var notes []string
		for _, d := range doubts {
			switch d.Kind {
			case clientBound:
				b.Value = "≥ " + b.Value
				notes = append(notes, d.Short)
			case notProven, wrong, noisyRounds, noLimit:
				notes = append(notes, d.Short)
			}
		}
		b.Note = strings.Join(notes, ", ")
		throughput = append(throughput, b)
		// What the client could not ask for does not change what an answer costs.
		c.Hollow = slices.ContainsFunc(doubts, func(d caveat) bool { return d.Kind == notProven || d.Kind == wrong })
		c.X, c.Value = row.Median.Server.CPU, nanoseconds(row.Median.Server.CPU)
		if empty := row.Median.Server.EmptyPolls; c.X > 0 && empty != nil && *empty >= 0.5 {
			c.Extra = *empty
			c.Note = "+ " + thousands(c.Extra) + " in empty polls"
		}
		for _, d := range doubts {
			if d.Kind == notProven || d.Kind == upperBound {
				c.Note = strings.TrimPrefix(c.Note+", "+d.Short, ", ")
			}
		}
		cpu = append(cpu, c)
	}
	if len(throughput) > 0 {
		s.Figures = []figure{
			barChart("Requests per second, longer is better. Outlined bars are bounds or in doubt, see beside them.", "requests per second", throughput),
			barChart("Server CPU nanoseconds per request, shorter is better. The pale part went into polls that found nothing.", "CPU ns per request", cpu),
		}
	}
	return s
}

// searchedTable is of what a search has found, nil if there was none.
func searchedTable(v view) []table {
	t := table{
		Caption: "Offered load that does not wait for replies, raised until it was not followed: each step tried once.",
		Columns: append(append(text("subject"), figures("followed, requests/s", "average there", "p95", "p99", "not followed")...), text("whose limit")...),
	}
	for _, subject := range v.subjects {
		row := v.row(subject.Name, 0)
		if row == nil || row.Saturation == nil {
			continue
		}
		s := row.Saturation
		if s.Rate == 0 {
			t.add(v.family(subject.Name), nil, subject.Name, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, cmp.Or(s.Why, "no load that was offered was followed"))
			continue
		}
		beyond := notMeasured
		if s.Beyond > 0 {
			beyond = rate(s.Beyond)
		}
		t.add(v.family(subject.Name), nil, subject.Name, rate(s.Rate), duration(s.Latency.Average), duration(s.Latency.P95), duration(s.Latency.P99), beyond, s.Whose())
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return []table{t}
}

// saturationTable is also the terminal's, which has room for less.
func saturationTable(v view, short bool) table {
	t := table{Columns: append(text("subject"), figures("requests/s", "spread", "better", "CPU ns/request", "in empty polls")...)}
	if short {
		t.Columns = append(t.Columns, figures("p50", "p99", "idle")...)
	} else {
		t.Columns = append(t.Columns, figures("average", "p50", "p95", "p99", "p99.9", "server busy", "client busy")...)
	}
	metric := ""
	for _, s := range v.subjects {
		row := v.row(s.Name, 0)
		doubts := v.caveats(row)
		if !usable(row) {
			cells := []string{s.Name}
			for range len(t.Columns) - 1 {
				cells = append(cells, notMeasured)
			}
			t.add(v.family(s.Name), doubts, cells...)
			continue
		}
		m := row.Median
		better := notMeasured
		if c := v.comparison(s.Name); c != nil && c.Invalid == "" {
			better = times(c.Ratio)
			if !short && c.Low < c.High {
				better += fmt.Sprintf(" (%.2f–%.2f)", c.Low, c.High)
			}
			metric = c.Metric
		} else if s.Name == v.base {
			better = "base"
		}
		throughput := rate(m.Throughput)
		if bounded(doubts) {
			throughput = "≥ " + throughput
		}
		spread := percent(row.Spread)
		if counted(row) < 2 {
			spread = notMeasured
		}
		empty := notMeasured
		if m.Server.CPU > 0 && m.Server.EmptyPolls != nil {
			empty = thousands(*m.Server.EmptyPolls)
		}
		l := m.Latency
		cells := []string{s.Name, throughput, spread, better, nanoseconds(m.Server.CPU), empty}
		if short {
			spent := notMeasured
			if row.Idle != nil {
				spent = percent(row.Idle.CPU)
			}
			cells = append(cells, duration(l.P50), duration(l.P99), spent)
		} else {
			cells = append(cells, duration(l.Average), duration(l.P50), duration(l.P95), duration(l.P99), duration(l.P999), percent(m.ServerBusy), percent(m.ClientBusy))
		}
		t.add(v.family(s.Name), doubts, cells...)
	}
	switch metric {
	case "cpu":
		t.Caption = "“Better” is in requests per second of the server's CPU time, against " + v.base + ": the client was the limit of some, so throughput does not compare."
	case "throughput":
		t.Caption = "“Better” is in requests per second of one core, against " + v.base + "."
	}
	if metric != "" && !short {
		t.Caption += " In brackets: single rounds, each against the same round."
	}
	return t
}

func latency(v view) section {
	s := section{ID: "latency", Title: "Latency against offered load"}
	if !v.hasOffered() {
		s.Text = []string{"No load was offered at a rate in this plan: only the closed loop was measured, in which a slow server slows its client down too. The full plan offers rates."}
		return s
	}
	s.Text = []string{"Requests are sent when they are due, whether or not earlier ones were answered, and latency counts from then: a stall shows in every request that it delayed."}
	var half, tail []series
	t := table{Folded: true, Caption: "Every latency, as figures", Columns: append(text("subject"), figures("offered", "served/s", "average", "p50", "p95", "p99", "p99.9", "max", "CPU ns/request")...)}
	for _, subject := range v.subjects {
		a := series{Label: subject.Name, Family: v.family(subject.Name)}
		b := a
		for _, row := range v.offeredRows(subject.Name) {
			doubts := v.caveats(row)
			if !usable(row) {
				t.add(a.Family, doubts, subject.Name, offered(row.Rate), notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured, notMeasured)
				continue
			}
			l := row.Median.Latency
			a.Points = append(a.Points, point{row.Rate, l.P50, hollow(doubts)})
			b.Points = append(b.Points, point{row.Rate, l.P99, hollow(doubts)})
			t.add(a.Family, doubts, subject.Name, offered(row.Rate), rate(row.Median.Throughput), duration(l.Average), duration(l.P50), duration(l.P95),
				duration(l.P99), duration(l.P999), duration(l.Max), nanoseconds(row.Median.Server.CPU))
		}
		half, tail = append(half, a), append(tail, b)
	}
	const note = " Hollow points: the load was not served, the client was the limit, or the mode is not proven."
	for _, f := range []struct {
		caption string
		data    []series
	}{{"p99 latency against offered requests per second, lower is better." + note, tail}, {"p50 latency against offered requests per second, lower is better.", half}} {
		if c, ok := lineChart(f.caption, f.data); ok {
			s.Figures = append(s.Figures, c)
		}
	}
	s.Tables = []table{t}
	return s
}

func idle(v view) section {
	s := section{ID: "idle", Title: "Waiting", Text: []string{"The price of waiting: the share of a core that a server takes without any traffic, and how long the first request takes after a second of silence."}}
	t := table{Columns: append(text("subject"), figures("idle CPU (of one core)", "first request after idle")...)}
	for _, subject := range v.subjects {
		var found *result.Idle
		for _, row := range v.allRows(subject.Name) {
			if found == nil {
				found = row.Idle
			}
		}
		if found == nil {
			t.add(v.family(subject.Name), nil, subject.Name, notMeasured, notMeasured)
			continue
		}
		t.add(v.family(subject.Name), nil, subject.Name, percent(found.CPU), duration(found.FirstRequest))
	}
	s.Tables = []table{t}
	return s
}

func interruptions(v view) section {
	s := section{ID: "proof", Title: "Interruptions, and proof of the mode", Text: []string{
		"Who takes packets from the device, and how often the server is interrupted for it. A NAPI poll by softirq (or by the thread that stands for an interrupt in the lab) is the interrupt's way, a busy one the application's."}}
	perSecond := table{Caption: "Per second, at saturation", Columns: append(text("subject"), figures("softirq NAPI polls", "busy NAPI polls", "packets by busy polls", "packets per NAPI poll", "loop polls", "sleeps")...)}
	perRequest := table{Caption: "Per request, at saturation", Columns: append(text("subject"), figures("interrupts", "softirqs", "NAPI polls", "interruptions", "ns lost to them", "context switches", "system calls")...)}
	proof := table{Caption: "Evidence", Columns: text("subject", "load", "in force", "evidence")}
	more := table{Folded: true, Caption: "Evidence at offered loads", Columns: proof.Columns}
	var reasons []string
	for _, subject := range v.subjects {
		f := v.family(subject.Name)
		for _, row := range v.allRows(subject.Name) {
			if !usable(row) {
				continue
			}
			c, p := row.Median.Server, row.Median.Proof
			doubts := v.caveats(row)
			active := slices.IndexFunc(doubts, func(d caveat) bool { return d.Kind == notProven })
			evidence := &proof
			if row.Rate > 0 && active < 0 {
				evidence = &more
			}
			if active < 0 {
				evidence.add(f, nil, subject.Name, offered(row.Rate), "yes", cmp.Or(p.Why, "not said"))
			} else {
				evidence.add(f, doubts[active:active+1], subject.Name, offered(row.Rate), "not proven", doubts[active].Long)
			}
			if row.Rate > 0 {
				continue
			}
			packets := notMeasured
			if c.NAPIPolls > 0 || c.PacketsPerPoll > 0 {
				packets = digits(c.PacketsPerPoll)
			}
			perSecond.add(f, doubts, subject.Name, count(p.SoftirqPolls), count(p.BusyPolls), count(p.BusyPollPackets), packets, count(p.Polls), count(p.Sleeps))
			syscalls := count(c.Syscalls)
			if c.SyscallsMissing != "" {
				syscalls = notMeasured
				if why := "System calls are not known of some: " + c.SyscallsMissing + "."; !slices.Contains(reasons, why) {
					reasons = append(reasons, why)
				}
			}
			perRequest.add(f, doubts, subject.Name, count(c.Interrupts), count(c.Softirqs), count(c.NAPIPolls), count(c.Interruptions), thousands(c.Interrupted), count(c.ContextSwitches), syscalls)
		}
	}
	s.Tables = []table{perSecond, perRequest, proof}
	if len(more.Rows) > 0 {
		s.Tables = append(s.Tables, more)
	}
	s.Text = append(s.Text, reasons...)
	return s
}

// The paper's model: with cores and frequency alike, a gain is of fewer instructions
// for a request, or of better ones.
func hardware(v view) section {
	s := section{ID: "hardware", Title: "Instructions and cycles", Text: []string{
		"Throughput = cores × frequency × instructions per cycle ÷ instructions per request: fewer instructions and better ones are different gains. The two factors against the baseline multiply to that of cycles. Counted is all of the server's core, polls in vain included."}}
	if !v.Machine.PMU {
		s.Text = append(s.Text, "This machine has no hardware counters (no PMU): "+cmp.Or(v.Machine.PMUMissing, "it did not say why")+".")
	}
	t := table{Caption: "At saturation", Columns: append(text("subject"), figures("cycles/request", "instructions/request", "instructions/cycle", "gain by fewer instructions", "by better ones", "together")...)}
	base := workOf(v.row(v.base, 0))
	for _, subject := range v.subjects {
		row := v.row(subject.Name, 0)
		if !usable(row) {
			continue
		}
		missing := notMeasured
		if !v.Machine.PMU {
			missing = noPMU
		}
		cells := []string{subject.Name, missing, missing, missing, missing, missing, missing}
		if c := row.Median.Server.Cycles; c != nil {
			cells[1] = thousands(*c)
		}
		if n := row.Median.Server.Instructions; n != nil {
			cells[2] = thousands(*n)
		}
		if c := workOf(row); c.known() {
			cells[3] = fmt.Sprintf("%.2f", c.perCycle())
			if subject.Name == v.base {
				cells[4], cells[5], cells[6] = "base", "base", "base"
			} else if base.known() {
				fewer, better := base.instructions/c.instructions, c.perCycle()/base.perCycle()
				cells[4], cells[5], cells[6] = times(fewer), times(better), times(fewer*better)
			}
		}
		t.add(v.family(subject.Name), v.caveats(row), cells...)
	}
	s.Tables = []table{t}
	return s
}

// work is what hardware counters say of a request.
type work struct{ cycles, instructions float64 }

func workOf(row *result.Row) (w work) {
	if usable(row) && row.Median.Server.Cycles != nil && row.Median.Server.Instructions != nil {
		w = work{*row.Median.Server.Cycles, *row.Median.Server.Instructions}
	}
	return w
}

func (w work) known() bool { return w.cycles > 0 && w.instructions > 0 }

func (w work) perCycle() float64 { return w.instructions / w.cycles }

func rounds(v view) section {
	s := section{ID: "rounds", Title: "Round by round", Text: []string{
		"Rounds are interleaved, so that what drifts hits every subject alike. Medians are over the rounds that count; the spread is the distance of the highest from the lowest, by the median. A figure in brackets does not count."}}
	most := 0
	for _, row := range v.Rows {
		for _, r := range row.Rounds {
			most = max(most, r.Number)
		}
		most = max(most, len(row.Rounds))
	}
	columns := append(text("subject", "load"), figures("median", "spread")...)
	for n := range min(most, 50) {
		columns = append(columns, column{Name: fmt.Sprintf("round %d", n+1)})
	}
	t := table{Caption: "Requests per second", Columns: columns}
	loads := table{Folded: true, Caption: "Requests per second, at offered loads", Columns: columns}
	why := table{Caption: "Rounds that do not count", Columns: text("subject", "load", "round", "why")}
	var dots []strip
	for _, subject := range v.subjects {
		f := v.family(subject.Name)
		for _, row := range v.allRows(subject.Name) {
			cells := []string{subject.Name, offered(row.Rate), notMeasured, notMeasured}
			if usable(row) {
				cells[2] = rate(row.Median.Throughput)
				if counted(row) > 1 {
					cells[3] = percent(row.Spread)
				}
			}
			single := make([]string, len(columns)-4)
			d := strip{Label: subject.Name, Family: f}
			for i, r := range row.Rounds {
				at := r.Number - 1
				if at < 0 {
					at = i
				}
				figure := rate(r.Throughput)
				if r.Invalid != "" {
					figure = "(" + figure + ")"
					why.add(f, nil, subject.Name, offered(row.Rate), fmt.Sprint(at+1), r.Invalid)
				} else if usable(row) {
					d.X = append(d.X, 100*(r.Throughput/row.Median.Throughput-1))
				}
				if at < len(single) {
					single[at] = figure
				}
			}
			for i := range single {
				single[i] = cmp.Or(single[i], "–")
			}
			to := &t
			if row.Rate > 0 {
				to = &loads
			}
			to.add(f, v.caveats(row), append(cells, single...)...)
			if row.Rate == 0 && len(d.X) > 1 {
				d.Value = percent(row.Spread)
				dots = append(dots, d)
			}
		}
	}
	if len(dots) > 0 {
		s.Figures = []figure{stripChart("Each round's throughput at saturation, in percent of the subject's median.", dots)}
	}
	s.Tables = []table{t}
	for _, x := range []table{why, loads} {
		if len(x.Rows) > 0 {
			s.Tables = append(s.Tables, x)
		}
	}
	return s
}

func settings(v view) section {
	s := section{ID: "settings", Title: "Every setting and version", Folded: true}
	m, p := v.Machine, v.Plan
	machine := table{Caption: "Machine and versions", Columns: text("what", "value")}
	put := func(name, value string) { machine.add("", nil, name, cmp.Or(value, "unknown")) }
	put("processor", m.CPU)
	put("cores", fmt.Sprint(m.Cores))
	put("memory", memory(m.Memory))
	put("kernel", m.Kernel)
	put("virtual", cmp.Or(m.Virtual, "none"))
	if m.PMU {
		put("hardware counters", "yes")
	} else {
		put("hardware counters", noPMU+": "+cmp.Or(m.PMUMissing, "no reason given"))
	}
	for _, name := range sortedKeys(m.Versions) {
		put(name, m.Versions[name])
	}
	plan := table{Caption: "Plan", Columns: text("what", "value")}
	set := func(name, format string, args ...any) { plan.add("", nil, name, fmt.Sprintf(format, args...)) }
	set("name", "%s", p.Name)
	set("device", "%s", cmp.Or(p.Device, "the lab"))
	set("placement", "%s", cmp.Or(p.Placement, "not said"))
	set("workload", "%s", p.Workload.Kind)
	set("client engine", "%s", p.Workload.Engine)
	set("connections", "%d", p.Workload.Connections)
	set("depth", "%d", p.Workload.Depth)
	set("keys", "%d", p.Workload.Keys)
	if p.Workload.ValueSize > 0 {
		set("value size", "%d bytes", p.Workload.ValueSize)
	} else {
		set("value size", "distributed")
	}
	set("sets", "%s", percent(p.Workload.SetRatio))
	var loads []string
	for _, r := range p.Rates {
		loads = append(loads, offered(r))
	}
	set("loads", "%s", strings.Join(loads, ", "))
	if len(p.Fractions) > 0 {
		set("of them fractions of saturation", "%v", p.Fractions)
	}
	set("rounds", "%d", p.Repetitions)
	set("warm-up", "%v", p.Warmup)
	set("duration", "%v", p.Duration)
	set("seed", "%d", v.Seed)
	set("schema of results.json", "%d", v.Schema)
	subjects := table{Caption: "Subjects", Columns: text("subject", "path", "mode", "dispatch", "command")}
	for _, x := range v.subjects {
		command := strings.Join(x.Command, " ")
		if x.Attach {
			command = "pollux attach: " + command
		}
		subjects.add(v.family(x.Name), nil, x.Name, cmp.Or(x.Path, "–"), cmp.Or(x.Mode, "–"), cmp.Or(x.Dispatch, "–"), cmp.Or(command, "pollux"))
	}
	verified := table{Caption: "Settings, as read back", Columns: text("where", "setting", "value")}
	for _, x := range m.Settings {
		verified.add("", nil, x.Where, x.Name, cmp.Or(x.Value, "(empty)"))
	}
	warnings := table{Caption: "All warnings, as the run gave them", Columns: text("warning")}
	for _, w := range v.Warnings {
		warnings.add("", nil, strings.TrimPrefix(w, "row "))
	}
	for _, t := range []table{machine, plan, subjects, verified, warnings} {
		if len(t.Rows) > 0 {
			s.Tables = append(s.Tables, t)
		}
	}
	return s
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
