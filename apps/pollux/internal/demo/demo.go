// Package demo is the main job in one go: it makes the lab, serves memcached on
// the user path, loads it with a real client from the other side, says what came
// out and what the loop did for it, and takes everything down again.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/user"
)

// Config says what to run.
type Config struct {
	// Modes are run one after the other.
	Modes []runtime.Mode
	// Duration of the load in each mode.
	Duration time.Duration
	// Connections of the client.
	Connections int
	// Lab is the lab's name. It must not be up.
	Lab string
	// Profile is the file that the server's CPU profile is written to (of the
	// last mode, if there are several); empty for none.
	Profile string
	Out     io.Writer
}

const (
	port = 11211
	// startTimeout is how long the server may take to answer at first.
	startTimeout = 15 * time.Second
	// stopTimeout is how long it may take to end.
	stopTimeout = 10 * time.Second
)

// Run does it. It ends early, and cleanly, when the context does.
func Run(ctx context.Context, c Config) (err error) {
	if l, err := lab.Open(c.Lab); err == nil {
		return fmt.Errorf("lab %s is up already, somebody may be using it: pollux lab down --name %s, or choose another with --name", l.Config().Name, c.Lab)
	}
	l, err := lab.Up(lab.Config{Name: c.Lab, Path: runtime.User})
	if err != nil {
		return err
	}
	defer func() {
		if e := lab.Down(c.Lab); e != nil {
			err = errors.Join(err, e)
			return
		}
		fmt.Fprintln(c.Out, "The lab is down; nothing is left behind.")
	}()
	lc := l.Config()
	fmt.Fprintf(c.Out, "Lab up: server on core %s, client on core %s, joined by a veth. No hugepages, no NIC.\n",
		lab.FormatCores(lc.ServerCores), lab.FormatCores(lc.ClientCores))
	fmt.Fprintf(c.Out, "Serving memcached at %v:%d: DPDK (af_xdp), netstack and the server in one loop on one core.\n", lab.ServerIPv4.Addr(), port)
	fmt.Fprintf(c.Out, "Loading it with gomemcache on the kernel's stack: %d connections, 100-byte values, 3 %% sets, %v in each mode.\n\n", c.Connections, c.Duration)

	table := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "mode\trequests/s\tp50\tp95\tp99\tp99.9\twrong\tpolls\tempty\tsleeps\tbusy\tasleep\t")
	for _, mode := range c.Modes {
		fmt.Fprintf(os.Stderr, "running mode %s …\n", mode)
		result, loop, err := measure(ctx, l, c, mode)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
		t := result.Latency
		fmt.Fprintf(table, "%s\t%.0f\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\t%s\t%s\t\n", mode, result.PerSecond,
			micro(t.P50), micro(t.P95), micro(t.P99), micro(t.P999), result.Wrong+result.Errors,
			count(loop.Iterations), count(loop.Counters.EmptyPolls), loop.Sleeps, share(loop.Busy, loop.Elapsed), share(loop.Slept, loop.Elapsed))
		if err := result.Err(); err != nil {
			table.Flush()
			return fmt.Errorf("mode %s: %w", mode, err)
		}
	}
	table.Flush()
	fmt.Fprintf(c.Out, `
Latency is the client's. At this load the client, not the server, is the
bottleneck: see the busy share. Polls, sleeps and shares are of the server's loop
over its whole life, about two seconds longer than the load.

`)
	return nil
}

// measure serves and loads in one mode.
func measure(ctx context.Context, l *lab.Lab, c Config, mode runtime.Mode) (result load.Result, loop user.Statistics, err error) {
	dir, err := os.MkdirTemp("", "pollux-run-")
	if err != nil {
		return result, loop, err
	}
	defer os.RemoveAll(dir)
	statistics := filepath.Join(dir, "statistics.json")
	server, err := start(l, lab.Server, "memcached", "--profile", c.Profile,
		"--device", lab.ServerInterface, "--address", lab.ServerIPv4.String(), "--address", lab.ServerIPv6.String(),
		"--port", strconv.Itoa(port), "--mode", string(mode), "--cores", "1", "--statistics", statistics)
	if err != nil {
		return result, loop, err
	}
	defer func() {
		if e := server.stop(); err == nil {
			err = server.explain(e)
		}
	}()
	if err := awaitServer(ctx, l, server); err != nil {
		return result, loop, errors.Join(err, server.explain(server.stop()))
	}
	client, err := start(l, lab.Client, "load", fmt.Sprintf("%v:%d", lab.ServerIPv4.Addr(), port),
		"--engine", "reference", "--connections", strconv.Itoa(c.Connections), "--duration", c.Duration.String(), "--set-ratio", "0.03", "--json")
	if err != nil {
		return result, loop, err
	}
	if err := client.run(ctx); err != nil {
		return result, loop, client.explain(err)
	}
	if err := json.Unmarshal(client.out.Bytes(), &result); err != nil {
		return result, loop, fmt.Errorf("read the client's result: %w", err)
	}
	if err := server.stop(); err != nil {
		return result, loop, server.explain(err)
	}
	b, err := os.ReadFile(statistics)
	if err != nil {
		return result, loop, err
	}
	var all []user.Statistics
	if err := json.Unmarshal(b, &all); err != nil || len(all) != 1 {
		return result, loop, fmt.Errorf("read the server's statistics (%d shards): %v", len(all), err)
	}
	return result, all[0], nil
}

func micro(d time.Duration) string { return fmt.Sprintf("%dµs", d.Microseconds()) }

func share(part, whole time.Duration) string {
	return fmt.Sprintf("%.0f%%", 100*part.Seconds()/whole.Seconds())
}

func count(n uint64) string {
	switch {
	case n >= 10_000_000:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n >= 10_000:
		return fmt.Sprintf("%dk", n/1_000)
	}
	return strconv.FormatUint(n, 10)
}
