package forwarding

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The packet service itself takes part in apps/pollux's tests, which build it.
func TestTheKernelForwardsAndIsMeasured(t *testing.T) {
	before := namespaces(t)
	rows, err := Run(context.Background(), Config{Subjects: []Subject{IPForward}, Core: 0, Other: 1, Rounds: 1, Duration: leastDuration})
	if err != nil {
		t.Fatal(err)
	}
	r := rows[0].Rounds[0]
	t.Logf("%+v", r)
	if r.Frames == 0 || r.Frames > r.Offered+r.Offered/10 {
		t.Errorf("%d of %d frames arrived", r.Frames, r.Offered)
	}
	if r.CPU <= 0 || r.CPU > r.Elapsed+r.Elapsed/50 {
		t.Errorf("the router took %v of %v", r.CPU, r.Elapsed)
	}
	if r.Idle > 0.5 {
		t.Errorf("a kernel with nothing to forward took %.0f %% of its core", 100*r.Idle)
	}
	if after := namespaces(t); after != before {
		t.Errorf("left behind: network namespaces of\n%s\nbefore:\n%s", after, before)
	}
}

// namespaces are the network namespaces that this process holds.
func namespaces(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, "net:") {
			list = append(list, to)
		}
	}
	return strings.Join(list, "\n")
}

func TestAnInterruptedComparisonEndsInOrder(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	rows, err := Run(ctx, Config{Subjects: []Subject{IPForward}, Core: 0, Other: 1, Rounds: 1000, Duration: leastDuration})
	if err == nil || ctx.Err() == nil {
		t.Fatalf("it ended by itself, with %d rounds: %v", len(rows[0].Rounds), err)
	}
}

func TestBadPlansOfForwardingAreRefused(t *testing.T) {
	good := Config{Core: 0, Other: 1, Rounds: 1, Duration: time.Second}
	for what, spoil := range map[string]func(*Config){
		"no rounds": func(c *Config) { c.Rounds = 0 }, "short rounds": func(c *Config) { c.Duration = time.Millisecond }, "one core": func(c *Config) { c.Other = 0 },
	} {
		c := good
		spoil(&c)
		if _, err := Run(context.Background(), c); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	for _, names := range [][]string{{"user"}, {"ip_forward", "ip_forward"}} {
		if _, err := ParseSubjects(names); err == nil {
			t.Errorf("subjects %v: accepted", names)
		}
	}
}

func TestTheVerdictIsOfWhatCostsLeast(t *testing.T) {
	row := func(s Subject, frames ...uint64) Row {
		r := Row{Subject: s}
		for _, n := range frames {
			r.Rounds = append(r.Rounds, Round{Frames: n, Offered: 2_000_000, Elapsed: time.Second, CPU: time.Second})
		}
		return r
	}
	rows := []Row{row(IPForward, 500_000, 500_000, 510_000), row(XDP, 1_000_000, 1_010_000, 1_000_000), row(Poll, 1_500_000, 1_000_000, 1_490_000), {Subject: Adaptive}}
	got := Verdict(rows)
	if !strings.Contains(got, "user/poll costs the least") || !strings.Contains(got, "2.98 times") || !strings.Contains(got, "noisy") {
		t.Errorf("the verdict is %q", got)
	}
	var out strings.Builder
	if err := Table(&out, rows); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"base", "2.00×", "2.98×", "34 %", fmt.Sprint(2000)} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, &out)
		}
	}
	if got := Verdict(nil); !strings.HasPrefix(got, "No verdict") {
		t.Errorf("the verdict on nothing is %q", got)
	}
}
