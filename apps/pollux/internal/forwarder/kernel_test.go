package forwarder

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	twin "github.com/pollux-net/pollux/bpf/forward"
)

func TestTheTwinsTableShowsEveryProcessorThatSawFramesAndWhatBecameOfThem(t *testing.T) {
	table := newTwinTable(io.Discard, nil)
	table.last = make([]twin.Counters, 3)
	all := make([]twin.Counters, 3)
	table.last[2][twin.Forwarded].Frames = 1000
	all[2][twin.Forwarded].Frames, all[2][twin.Denied].Frames, all[2][twin.Options].Frames, all[2][twin.QueueFull].Frames = 3000, 50, 6, 10
	for _, text := range []string{table.line(all, 2), table.screen(all, 2)} {
		words := strings.Join(strings.Fields(text), " ")
		for _, want := range []string{"1028", "1000", "denied 25/s, queue-full 5/s", "options 3/s"} {
			if !strings.Contains(words, want) {
				t.Errorf("%q is missing in:\n%s", want, text)
			}
		}
	}
	if text := table.screen(all, 2); strings.Contains(text, "\n0 ") || !strings.Contains(text, "\n2 ") {
		t.Errorf("not the one processor that saw frames:\n%s", text)
	}
}

func TestWhatTheKernelPathCannotDoIsRefusedWithThePathThatCan(t *testing.T) {
	for text, want := range map[string]string{
		strings.Repeat("deny proto tcp\n", twin.MaxRules+1): fmt.Sprint(twin.MaxRules),
		"nat out a to 192.0.2.1\n":                          "does not translate",
		"rate a 1mbit\n":                                    "no rates",
	} {
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := loadKernelRules(nil, file, []string{"a"}, []int{1})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--path user") {
			t.Errorf("%.40q: error %v, want one with %q and the path that can", text, err, want)
		}
	}
}
