package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"syscall"
	"time"
)

// report says what the loops did, and writes it to a file if one is named.
func (s *service) report(file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := s.snapshot(ctx)
	if err != nil || file == "" {
		return err
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func percent(part, whole time.Duration) string {
	return fmt.Sprintf("%.1f%%", 100*part.Seconds()/whole.Seconds())
}

// CPU is the time that this process has used, for a server that tells.
func CPU() (user, system time.Duration) {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0, 0
	}
	return time.Duration(u.Utime.Nano()), time.Duration(u.Stime.Nano())
}
