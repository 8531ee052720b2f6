package forwarder

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pollux-net/pollux/stack"
)

// inside answers Prometheus on the box's own addresses: by the shards' own
// stacks, each with a listener of its own, since the kernel never sees what
// comes in by the ports.
type inside struct {
	port     int
	registry *prometheus.Registry
	http     http.Server
}

func newInside(port int) (*inside, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("--metrics-port %d: must be 1 to 65535", port)
	}
	i := &inside{port: port, registry: prometheus.NewRegistry()}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(i.registry, promhttp.HandlerOpts{}))
	i.http.Handler = mux
	i.http.ReadHeaderTimeout, i.http.IdleTimeout = 10*time.Second, time.Minute
	return i, nil
}

// serve answers on a shard's stack until that is closed. It is called on the
// stack's own goroutine, which must not wait for it.
func (i *inside) serve(shard int, s *stack.Stack) {
	go func() {
		l, err := s.Listen("tcp", fmt.Sprint(":", i.port))
		if err == nil {
			err = i.http.Serve(l)
		}
		// The stack goes when addresses change, and the next one has a listener.
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			slog.Error("metrics on the box's own addresses have stopped", "shard", shard, "error", err)
		}
	}()
}
