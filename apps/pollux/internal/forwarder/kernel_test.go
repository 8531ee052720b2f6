package forwarder

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	twin "github.com/pollux-net/pollux/bpf/forward"
)

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
