// Package metrics shows what a running server counts, as Prometheus metrics:
// shards with their queue, loop and stack, the memcached, and Go's own
// (collection pauses among them). Numbers are gathered when they are asked for,
// on the loops themselves; the data path keeps plain counters and nothing else.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server answers /metrics and /debug/pprof on a kernel socket.
type Server struct {
	http     http.Server
	listener net.Listener
	registry *prometheus.Registry
}

// Listen opens address; Serve answers there.
func Listen(address string) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w (choose another address with --metrics, or none with --metrics '')", err)
	}
	s := &Server{listener: listener, registry: prometheus.NewRegistry()}
	s.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s.http.Handler = mux
	s.http.ReadHeaderTimeout = 10 * time.Second
	return s, nil
}

// Register adds metrics.
func (s *Server) Register(c prometheus.Collector) error { return s.registry.Register(c) }

// Serve answers until Close.
func (s *Server) Serve() {
	if err := s.http.Serve(s.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		slog.Error("metrics stopped", "error", err)
	}
}

// Addr is the address that it answers on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close stops answering.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	return s.listener.Close()
}
