package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/compare/forwarding"
)

func TestComparePacketMeasuresEverySubjectAndLeavesNothing(t *testing.T) {
	binary, file := build(t), filepath.Join(t.TempDir(), "rows.json")
	out, err := exec.Command(binary, "compare", "packet", "--rounds", "1", "--duration", "300ms", "--json", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "costs the least processor time") && !strings.Contains(string(out), "nothing costs less") {
		t.Errorf("no verdict:\n%s", out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []forwarding.Row
	if err := json.Unmarshal(b, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(forwarding.Subjects) {
		t.Fatalf("%d rows", len(rows))
	}
	for _, r := range rows {
		x := r.Rounds[0]
		t.Logf("%s: %+v", r.Subject, x)
		if x.Frames == 0 || x.CPU <= 0 || x.Offered < x.Frames*9/10 {
			t.Errorf("%s: %+v", r.Subject, x)
		}
		if r.Subject == forwarding.Poll && x.Sleeps > 0 {
			t.Errorf("%s slept %d times", r.Subject, x.Sleeps)
		}
	}
	if left, err := exec.Command("pgrep", "-f", binary).Output(); err == nil {
		t.Errorf("processes are left: %s", left)
	}
}

func TestComparePacketRefusesWhatItCannotDo(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--subject user", `subject "user"`},
		{"--rounds 0", "0 rounds"},
		{"--core 1", "processor 1"},
		{"--duration 1ms", "rounds of 1ms"},
	} {
		if _, errs, code := run(t, append([]string{"compare", "packet"}, strings.Fields(c.args)...)...); code == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit code %d, %s", c.args, code, errs)
		}
	}
}
