package forwarder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/apps/packet"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/driver"
)

// table shows what a service does: on a terminal in place, else a line each time.
type table struct {
	display
	service *packet.Service
	ports   []driver.Port
	last    []packet.Statistics
	at      time.Time
}

func newTable(out io.Writer, s *packet.Service, ports []driver.Port) *table {
	return &table{display: newDisplay(out), service: s, ports: ports}
}

// display is where a table goes.
type display struct {
	out      io.Writer
	terminal bool
	rows     int // of what a terminal shows
}

func newDisplay(out io.Writer) display { return display{out: out, terminal: isTerminal(out)} }

// show shows a text, on a terminal in the place of the last one.
func (d *display) show(text string) error {
	rows := strings.Count(text, "\n")
	if d.terminal && d.rows > 0 {
		text = fmt.Sprintf("\x1b[%dA\x1b[J", d.rows) + text
	}
	d.rows = rows
	_, err := io.WriteString(d.out, text)
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// print takes a snapshot and shows it, with rates since the last one.
func (t *table) print() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	now := time.Now()
	all, err := t.service.Statistics(ctx)
	if errors.Is(err, packet.ErrStopped) {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		// A machine that is busy elsewhere is no reason to forward no more.
		slog.Warn("a loop does not answer: no figures this time")
		return nil
	}
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	elapsed := now.Sub(t.at).Seconds()
	if t.last == nil {
		t.last, elapsed = make([]packet.Statistics, len(all)), all[0].Elapsed.Seconds()
	}
	text := t.line(all, elapsed)
	if t.terminal {
		text = t.screen(all, elapsed)
	}
	t.last, t.at = all, now
	return t.show(text)
}

// sum is what a table shows, over shards.
type sum struct {
	received, forwarded, delivered, hits, misses, drops uint64
	queued, held, bindings                              int
	busy                                                time.Duration
	causes                                              map[string]uint64
}

func (t *table) sum(all []packet.Statistics) (s sum) {
	s.causes = map[string]uint64{}
	for i := range all {
		a, b := &all[i], &t.last[i]
		s.received += a.Received - b.Received
		s.forwarded += a.Forwarded - b.Forwarded
		s.delivered += a.Delivered - b.Delivered
		s.hits += a.CacheHits - b.CacheHits
		s.misses += a.CacheMisses - b.CacheMisses
		s.drops += a.Drops() - b.Drops()
		s.busy += a.Busy - b.Busy
		s.held += a.Held
		s.bindings += a.Bindings
		for _, o := range a.Outputs {
			s.queued += o.Frames
		}
		for _, c := range forward.Causes() {
			if n := a.Dropped[c] - b.Dropped[c]; n > 0 {
				s.causes[c.String()] += n
			}
		}
	}
	return s
}

func (s *sum) hitRatio() string {
	if s.hits+s.misses == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(s.hits)/float64(s.hits+s.misses))
}

// worst lists the causes with the most drops first.
func (s *sum) worst(elapsed float64) string { return most(s.causes, elapsed) }

// most lists causes with their rates, the most frequent first.
func most(causes map[string]uint64, elapsed float64) string {
	names := make([]string, 0, len(causes))
	for name := range causes {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := names[i], names[j]
		return causes[a] > causes[b] || causes[a] == causes[b] && a < b
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %s/s", name, rate(causes[name], elapsed))
	}
	return strings.Join(names, ", ")
}

// rate is a number per second, readable.
func rate(n uint64, elapsed float64) string {
	r := float64(n) / elapsed
	switch {
	case r >= 1e6:
		return fmt.Sprintf("%.2fM", r/1e6)
	case r >= 1e4:
		return fmt.Sprintf("%.1fk", r/1e3)
	}
	return fmt.Sprintf("%.0f", r)
}

func (t *table) line(all []packet.Statistics, elapsed float64) string {
	s := t.sum(all)
	line := fmt.Sprintf("received %s/s forwarded %s/s local %s/s dropped %s/s cache %s queued %d held %d bindings %d",
		rate(s.received, elapsed), rate(s.forwarded, elapsed), rate(s.delivered, elapsed), rate(s.drops, elapsed), s.hitRatio(), s.queued, s.held, s.bindings)
	if s.drops > 0 {
		line += " (" + s.worst(elapsed) + ")"
	}
	return line + "\n"
}

func (t *table) screen(all []packet.Statistics, elapsed float64) string {
	var b strings.Builder
	control := t.service.Forwarder().Control()
	fmt.Fprintf(&b, "%d routes, %d neighbours, mode %s\n\n", control.Routes(), control.Neighbours(), all[0].Mode)
	fmt.Fprintf(&b, "%-16s %10s %10s %10s %10s %8s\n", "port", "in/s", "in Mbit/s", "out/s", "out Mbit/s", "queued")
	for k, p := range t.ports {
		var q, l driver.QueueStatistics
		queued := 0
		for i := range all {
			add(&q, all[i].Queues[k])
			if t.last[i].Queues != nil {
				add(&l, t.last[i].Queues[k])
			}
			queued += all[i].Outputs[k].Frames
		}
		fmt.Fprintf(&b, "%-16s %10s %10.1f %10s %10.1f %8d\n", p.Name(),
			rate(q.ReceivedFrames-l.ReceivedFrames, elapsed), 8e-6*float64(q.ReceivedBytes-l.ReceivedBytes)/elapsed,
			rate(q.TransmittedFrames-l.TransmittedFrames, elapsed), 8e-6*float64(q.TransmittedBytes-l.TransmittedBytes)/elapsed, queued)
	}
	fmt.Fprintf(&b, "\n%-16s %10s %10s %10s %10s %8s %8s\n", "core", "received/s", "forward/s", "local/s", "dropped/s", "cache", "busy")
	last := t.last
	for i := range all {
		t.last = last[i : i+1]
		s := t.sum(all[i : i+1])
		fmt.Fprintf(&b, "%-16d %10s %10s %10s %10s %8s %7.1f%%\n", i, rate(s.received, elapsed), rate(s.forwarded, elapsed),
			rate(s.delivered, elapsed), rate(s.drops, elapsed), s.hitRatio(), 100*s.busy.Seconds()/elapsed)
	}
	t.last = last
	s := t.sum(all)
	fmt.Fprintf(&b, "\nheld for neighbours %d, translations %d\ndropped: %s\n", s.held, s.bindings, s.worst(elapsed))
	return b.String()
}

func add(to *driver.QueueStatistics, s driver.QueueStatistics) {
	to.ReceivedFrames += s.ReceivedFrames
	to.ReceivedBytes += s.ReceivedBytes
	to.TransmittedFrames += s.TransmittedFrames
	to.TransmittedBytes += s.TransmittedBytes
}
