// Package serve puts an application on a path: it opens the device or binds the
// sockets, builds the shards, and takes everything down again when it is told to
// stop. What the two paths have in common is here.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/apps/pollux/internal/metrics"
	"github.com/pollux-net/pollux/runtime"
)

// Config is where and how to serve.
type Config struct {
	Path   runtime.Path
	Device string
	Port   uint16
	// Datagrams is the UDP port, 0 for none.
	Datagrams uint16
	Mode      runtime.Mode
	// Cores is the number of cores, 0 for the device's queues.
	Cores int
	// Metrics is the address to answer on, empty for none.
	Metrics string
	// Statistics is the file that what the loops counted is written to at the
	// end, as JSON (user.Statistics or kernel.Statistics of each); empty for
	// none.
	Statistics string
	// Profile is the file for a CPU profile of the whole run; empty for none.
	Profile string

	User   User
	Kernel Kernel
}

// application is what is served: connections, and datagrams if they are wanted.
type application interface {
	runtime.Handler
	runtime.PacketHandler
}

// drainTimeout is how long a stopping server waits for its last replies.
const drainTimeout = 5 * time.Second

// service is an application on a path.
type service struct {
	runner
	// discard gives back what was taken, if the runner was never started.
	discard func() error
	// close does after the runner has ended, in the order of the slice.
	close []func() error
	// collector tells what the shards count, log and snapshot do at the end.
	collector prometheus.Collector
	snapshot  func(context.Context) (statistics any, err error)
	// about is what the log says of it.
	about []any
}

// runner is what the runtimes of both paths are.
type runner interface {
	Start() error
	Shutdown(context.Context) error
	Done() <-chan struct{}
}

// Memcached serves until the context ends or a signal asks to stop.
func Memcached(ctx context.Context, c Config, o memcached.Options) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cores, err := chooseCores(&c)
	if err != nil {
		return err
	}
	o.Shards = len(cores)
	server, err := memcached.New(o)
	if err != nil {
		return err
	}
	var answers *metrics.Server
	if c.Metrics != "" {
		if answers, err = metrics.Listen(c.Metrics); err != nil {
			return err
		}
		defer answers.Close()
	}
	put := onUser
	if c.Path == runtime.Kernel {
		put = onKernel
	}
	s, err := put(c, cores, server, server.Tick)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range s.close {
			err = errors.Join(err, f())
		}
	}()
	if answers != nil {
		if err := errors.Join(answers.Register(s.collector), answers.Register(&metrics.Memcached{Server: server})); err != nil {
			return errors.Join(err, s.discard())
		}
	}
	if c.Profile != "" {
		stopProfile, err := startProfile(c.Profile)
		if err != nil {
			return errors.Join(err, s.discard())
		}
		defer stopProfile()
	}
	if err := s.Start(); err != nil {
		return err
	}
	slog.Info("serving memcached", append(s.about, "port", c.Port, "path", c.Path, "mode", c.Mode, "cores", cores)...)
	if answers != nil {
		go answers.Serve()
		slog.Info("metrics", "url", fmt.Sprintf("http://%v/metrics", answers.Addr()))
	}
	select {
	case <-ctx.Done():
		stop() // a second signal ends the process at once
		slog.Info("stopping")
	case <-s.Done():
	}
	if e := s.report(c.Statistics); e != nil {
		slog.Error("statistics", "error", e)
	}
	deadline, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	return s.Shutdown(deadline)
}

// startProfile begins a CPU profile.
func startProfile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("CPU profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("CPU profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			slog.Error("CPU profile", "error", err)
		}
	}, nil
}

// everywhere is all addresses of both families.
func everywhere(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
}
