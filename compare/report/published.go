package report

import (
	"fmt"
	"time"

	"github.com/pollux-net/pollux/compare/result"
)

// theirs is a figure that others published.
type theirs struct {
	what   string
	mode   string  // ours that it is to be held against, or empty
	figure string  // as they give it
	gain   float64 // over their own base; 0 if they give none
}

// The paper: Cai and Karsten, Kernel vs. User-Level Networking: Don't
// Throw Out the Stack with the Interrupts, SIGMETRICS 2024: memcached on 8 cores.
var caiKarsten = []theirs{
	{"vanilla", vanilla, "724 k/s", 1},
	{"IRQ packing", "irq-packing", "+17 %", 1.17},
	{"IRQ suppression", "irq-suppression", "+33 %, with a bad tail", 1.33},
	{"kernel polling", "kernel-polling", "+30 %, with the best tail", 1.30},
	{"NUMA placement", "", "+45 %", 1.45},
}

// The kernel's series on suspending NAPI interrupts: EPYC 7662, ConnectX-5,
// memcached with 8 queues.
var suspension = []struct {
	theirs
	p99 time.Duration // at a million requests per second offered
}{
	{theirs{"base", vanilla, "132 k/s per core", 1}, 6283 * time.Microsecond},
	{theirs{"interrupts suspended", "kernel-polling", "153 k/s per core", 153.0 / 132}, 226 * time.Microsecond},
	{theirs{"full busy polling", "busy-poll", "156 k/s per core", 156.0 / 132}, 213 * time.Microsecond},
}

// published holds others' figures against ours.
func published(v view) section {
	s := section{ID: "others", Title: "What others published", Text: []string{
		"Others' figures are from their machines, NICs and workloads, and none of them was measured here: compare the gain over each one's own base, not the absolute figures. Ours are at saturation unless a load is named; gains in throughput are left out where the client was the limit."}}
	columns := append(text("configuration", "theirs"), figures("gain, theirs", "ours", "gain, ours", "CPU/request, ours")...)
	base := v.closed(vanilla)

	t := table{Caption: "Theirs: Cai & Karsten, Kernel vs. User-Level Networking: Don't Throw Out the Stack with the Interrupts (SIGMETRICS 2024); memcached, 8 cores. Ours: one server core.", Columns: columns}
	for _, x := range caiKarsten {
		t.add(v.beside(x, base))
	}
	u := table{Caption: "Theirs: the kernel's interrupt suspension series; memcached, 8 queues, EPYC 7662, ConnectX-5. Ours: one server core; our busy-poll, which stands beside full busy polling, polls for shorter.", Columns: columns}
	for _, x := range suspension {
		u.add(v.beside(x.theirs, base))
	}
	s.Tables = []table{t, u}

	at := v.sharedRate()
	ours := "p99, ours (no load was offered)"
	if at > 0 {
		ours = "p99, ours at " + rate(at) + "/s"
	}
	w := table{Caption: "Tail latency. Theirs: the same series, at 1,000 k/s offered to 8 queues.", Columns: append(text("configuration"), figures("p99, theirs", "of their base", ours, "of our base")...)}
	for _, x := range suspension {
		mine, part, doubts := notMeasured, notMeasured, []caveat(nil)
		subject, found := v.ofMode(x.mode)
		if row := v.row(subject.Name, at); found && at > 0 && usable(row) {
			mine, doubts = duration(row.Median.Latency.P99), caveats(row)
			if b, _ := v.ofMode(vanilla); usable(v.row(b.Name, at)) {
				part = ratioOf(float64(row.Median.Latency.P99), float64(v.row(b.Name, at).Median.Latency.P99))
			}
		}
		w.add(kernel, doubts, x.what, duration(x.p99), ratioOf(float64(x.p99), float64(suspension[0].p99)), mine, part)
	}
	s.Tables = append(s.Tables, w)
	return s
}

// closed is our own kernel path's row in a mode at saturation, or nil.
func (v view) closed(mode string) *result.Row {
	if s, ok := v.ofMode(mode); ok {
		if row := v.row(s.Name, 0); usable(row) {
			return row
		}
	}
	return nil
}

// beside gives a row of a table: their figure and, if we have one, ours.
func (v view) beside(x theirs, base *result.Row) (family, []caveat, string, string, string, string, string, string) {
	mine, gain, cpu := notMeasured, notMeasured, notMeasured
	var doubts []caveat
	var row *result.Row
	if x.mode != "" {
		row = v.closed(x.mode)
	}
	if row != nil {
		doubts = caveats(row)
		mine = rate(row.Median.Throughput) + "/s"
		if bounded(doubts) {
			mine = "≥ " + mine
		}
		if base != nil {
			cpu = ratioOf(row.Median.Server.CPU, base.Median.Server.CPU)
			if bounded(doubts) || bounded(caveats(base)) {
				gain = "n/a (client-bound)"
			} else {
				gain = times(row.Median.Throughput / base.Median.Throughput)
			}
		}
	}
	return kernel, doubts, x.what, x.figure, times(x.gain), mine, gain, cpu
}

// sharedRate is the highest at which our base was measured.
func (v view) sharedRate() (highest float64) {
	b, ok := v.ofMode(vanilla)
	if !ok {
		return 0
	}
	for _, row := range v.offeredRows(b.Name) {
		if usable(row) {
			highest = row.Rate
		}
	}
	return highest
}

func ratioOf(x, base float64) string {
	if x <= 0 || base <= 0 {
		return notMeasured
	}
	return fmt.Sprintf("%.2f×", x/base)
}
