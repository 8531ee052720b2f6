package stack

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// What netstack has to say about single packets (a martian, a refused handshake)
// is rate-limited but still not for a server's log: it goes to slog's debug level.
func init() { log.SetTarget(emitter{}) }

type emitter struct{}

// Emit implements gVisor's log.Emitter.
func (emitter) Emit(_ int, level log.Level, _ time.Time, format string, args ...any) {
	if l := slog.Default(); l.Enabled(context.Background(), slog.LevelDebug) {
		l.Debug("netstack", "level", level, "message", fmt.Sprintf(format, args...))
	}
}
