package forwarder

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	twin "github.com/pollux-net/pollux/bpf/forward"
)

// twinCollector shows what the twin counts, by the names of the service's metrics
// where they mean the same: a shard is one processor's share there, too.
type twinCollector struct{ twin *twin.Forwarder }

var (
	receivedDesc  = counter("received_total", "Frames received.", nil).desc
	forwardedDesc = counter("forwarded_total", "Frames forwarded to an output's queue.", nil).desc
	passedDesc    = prometheus.NewDesc("pollux_packet_passed_total", "Frames left to the kernel's own stack, by cause.", []string{"shard", "cause"}, nil)
	bytesDesc     = prometheus.NewDesc("pollux_packet_twin_bytes_total", "Bytes, by what became of the frames.", []string{"shard", "cause"}, nil)
)

// Describe implements prometheus.Collector.
func (c *twinCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{receivedDesc, forwardedDesc, passedDesc, droppedDesc, bytesDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *twinCollector) Collect(out chan<- prometheus.Metric) {
	all, err := c.twin.Processors()
	if err != nil {
		slog.Warn("metrics: no counters from the twin", "error", err)
		return
	}
	for i := range all {
		n := &all[i]
		if i > 0 && *n == (twin.Counters{}) {
			continue // most processors of a large machine never see a frame
		}
		shard := strconv.Itoa(i)
		total := func(d *prometheus.Desc, value uint64, more ...string) {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), append([]string{shard}, more...)...)
		}
		total(receivedDesc, n.Received())
		total(forwardedDesc, n[twin.Forwarded].Frames)
		for _, cause := range twin.Causes() {
			switch {
			case cause.Passed():
				total(passedDesc, n[cause].Frames, cause.String())
			case cause.Dropped():
				total(droppedDesc, n[cause].Frames, cause.String())
			}
			total(bytesDesc, n[cause].Bytes, cause.String())
		}
	}
}

// twinTable shows what the twin does, as table does for a service.
type twinTable struct {
	display
	twin *twin.Forwarder
	last []twin.Counters
	at   time.Time
}

func newTwinTable(out io.Writer, f *twin.Forwarder) *twinTable {
	return &twinTable{display: newDisplay(out), twin: f, at: time.Now()}
}

// print takes a snapshot and shows it, with rates since the last one.
func (t *twinTable) print() error {
	all, err := t.twin.Processors()
	if err != nil {
		return err
	}
	if t.last == nil {
		t.last = make([]twin.Counters, len(all))
	}
	now := time.Now()
	elapsed := now.Sub(t.at).Seconds()
	text := t.line(all, elapsed)
	if t.terminal {
		text = t.screen(all, elapsed)
	}
	t.last, t.at = all, now
	return t.show(text)
}

// twinSum is what a table shows, over processors.
type twinSum struct {
	received, forwarded, passed, dropped uint64
	passes, drops                        map[string]uint64
}

func (t *twinTable) sum(all, last []twin.Counters) twinSum {
	s := twinSum{passes: map[string]uint64{}, drops: map[string]uint64{}}
	for i := range all {
		s.received += all[i].Received() - last[i].Received()
		for _, c := range twin.Causes() {
			n := all[i][c].Frames - last[i][c].Frames
			switch {
			case n == 0:
			case c == twin.Forwarded:
				s.forwarded += n
			case c.Passed():
				s.passed += n
				s.passes[c.String()] += n
			default:
				s.dropped += n
				s.drops[c.String()] += n
			}
		}
	}
	return s
}

func (t *twinTable) line(all []twin.Counters, elapsed float64) string {
	s := t.sum(all, t.last)
	line := fmt.Sprintf("received %s/s forwarded %s/s passed %s/s dropped %s/s",
		rate(s.received, elapsed), rate(s.forwarded, elapsed), rate(s.passed, elapsed), rate(s.dropped, elapsed))
	if s.passed > 0 {
		line += " (passed: " + most(s.passes, elapsed) + ")"
	}
	if s.dropped > 0 {
		line += " (" + most(s.drops, elapsed) + ")"
	}
	return line + "\n"
}

func (t *twinTable) screen(all []twin.Counters, elapsed float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-16s %10s %10s %10s %10s\n", "core", "received/s", "forward/s", "passed/s", "dropped/s")
	for i := range all {
		if all[i] == (twin.Counters{}) {
			continue
		}
		s := t.sum(all[i:i+1], t.last[i:i+1])
		fmt.Fprintf(&b, "%-16d %10s %10s %10s %10s\n", i, rate(s.received, elapsed), rate(s.forwarded, elapsed), rate(s.passed, elapsed), rate(s.dropped, elapsed))
	}
	s := t.sum(all, t.last)
	fmt.Fprintf(&b, "\npassed to the kernel's stack: %s\ndropped: %s\n", most(s.passes, elapsed), most(s.drops, elapsed))
	return b.String()
}
