package report

import (
	"strings"
	"testing"

	"github.com/pollux-net/pollux/compare/result"
)

// changedRow finds a row of the changes; those at offered loads are apart.
func changedRow(t *testing.T, s section, subject, load string) []string {
	t.Helper()
	n := 0
	if load != "closed loop" {
		n = 1
	}
	return rowOf(t, document{Sections: []section{s}}, s.ID, n, subject, load).Cells
}

func TestTheSameRunTwiceIsNoChange(t *testing.T) {
	out := Compare(synthetic(seed), synthetic(seed))
	for _, want := range []string{"same plan, seed, machine, versions and settings", "within 10 %", "as before"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, wrong := range []string{" changed", "noisy:  ", "Not compared"} {
		if strings.Contains(out, wrong) {
			t.Errorf("%q in\n%s", wrong, out)
		}
	}
}

func TestMoreThanTenPercentIsNoiseIfNothingElseDiffers(t *testing.T) {
	before, after := synthetic(seed), synthetic(seed)
	mustFind(after, "kernel/vanilla", 0).Median.Throughput *= 1.2
	s := changes(before, after)
	if c := changedRow(t, s, "kernel/vanilla", "closed loop"); c[4] != "+20 %" || c[11] != "changed" {
		t.Errorf("row %q", c)
	}
	if text := strings.Join(s.Text, "\n"); !strings.Contains(text, "The machine was too noisy") || !strings.Contains(text, "in 1 of ") {
		t.Errorf("text %s", text)
	}
	// With another version it is a change, which the noise does not explain.
	after.Machine.Versions["pollux"] = "v2"
	if text := strings.Join(changes(before, after).Text, "\n"); strings.Contains(text, "noisy") || !strings.Contains(text, "version of pollux (v1, now v2)") {
		t.Errorf("text %s", text)
	}
}

func TestNoisyAndClientBoundRowsAreNotCalledChanged(t *testing.T) {
	before, after := synthetic(seed), synthetic(seed)
	for _, name := range []string{"user/poll", "kernel/busy-poll"} {
		mustFind(after, name, 0).Median.Throughput *= 1.2
	}
	s := changes(before, after)
	if c := changedRow(t, s, "user/poll", "closed loop"); c[11] != "client-bound" {
		t.Errorf("row %q", c)
	}
	if c := changedRow(t, s, "kernel/busy-poll", "closed loop"); c[11] != "as before" {
		t.Errorf("a change of 20 %% in rounds that differ by 24 %%: %q", c)
	}
	if c := changedRow(t, s, "memcached+attach", "closed loop"); c[11] != "not comparable" || c[2] != "invalid" {
		t.Errorf("rows without figures: %q", c)
	}
}

func TestWhatTheRunsDifferInIsSaid(t *testing.T) {
	before, after := synthetic(seed), synthetic(seed)
	after.Seed = 8
	after.Schema = result.Schema + 1
	after.Plan.Workload.Depth = 16
	after.Plan.Subjects[9].Command = []string{"memcached-1.6.45"}
	after.Machine.Kernel = "7.0"
	after.Machine.Settings[0].Value = "off"
	after.Machine.Settings = append(after.Machine.Settings, result.Setting{Where: "w", Name: "new", Value: "1"})
	text := strings.Join(changes(before, after).Text, "\n")
	for _, want := range []string{"seed (7, now 8)", "schema", "workload", "what memcached is", "kernel (6.18.0, now 7.0)", "kernel path, server: pollux0 gro", "w: new"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestOfferedRatesAreMatchedWhereTheyAreNear(t *testing.T) {
	before, after := synthetic(seed), synthetic(seed)
	for i := range after.Rows {
		switch after.Rows[i].Rate {
		case 30e3:
			after.Rows[i].Rate = 31e3
		case 60e3:
			after.Rows[i].Rate = 75e3
		}
	}
	s := changes(before, after)
	changedRow(t, s, "kernel/vanilla", "31.0 k/s")
	text := strings.Join(s.Text, "\n")
	for _, want := range []string{"kernel/vanilla (75.0 k/s) is new", "kernel/vanilla (60.0 k/s) is no longer there"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}
