package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

func TestLoadRefusesFlagsThatDoNotFit(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--engine user", "needs a --device"},
		{"--engine user --device pollux1", "needs a --device and an --address"},
		{"--engine user --device pollux1 --address 10.99.0.2", "not an address with a prefix length"},
		{"--device pollux1", "--device pollux1 is for --engine user"},
		{"--workload get --set-ratio 0.5", "--set-ratio is for --workload mixed"},
		{"--workload nothing", "is not a workload"},
		{"--serve :7070", "would listen on every network"},
		{"--serve 7070", "is not HOST:PORT"},
		{"--serve 127.0.0.1:0 --rate 5", "[rate serve] were all set"},
		{"--cores x", "--cores"},
		{"--value-size big", "size of values"},
		{"--engine reference --depth 2", "knows nothing of"},
		{"--rate -1", "requests per second"},
	} {
		stdout, stderr, code := run(t, append([]string{"load", "127.0.0.1:1"}, strings.Fields(c.args)...)...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("pollux load %s: exit %d\n%s%s", c.args, code, stdout, stderr)
		}
	}
}

// Our own server and our own client, both on our own stack, over a wire in memory.
func TestUserEngineLoadsOurMemcached(t *testing.T) {
	link, err := wire.New(wire.Config{Interrupts: true, ReceiveChecksum: true, TransmitChecksum: true})
	if err != nil {
		t.Fatal(err)
	}
	server, err := memcached.New(memcached.Options{})
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParsePrefix("10.99.0.1/24")
	r, err := user.New(link.Port(wire.A), user.Config{Mode: runtime.Adaptive, Stack: stack.Config{Addresses: []netip.Prefix{address}}, Tick: server.Tick})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(address.Addr(), 11211)
	if err := r.Listen(at, server); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []load.Config{
		{Workload: load.ETC, Depth: 8, Zipf: 0.99, Keys: 5000},
		{Workload: load.Set, ValueSize: "uniform:0,20000", Keys: 100},
		{Workload: load.ETC, Rate: 20000, Churn: 200},
	} {
		c.Engine, c.Address, c.Port, c.Requests = load.User, at.String(), link.Port(wire.B), 5000
		c.Stack.Addresses = []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}
		result, err := load.Run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if !result.Valid || result.Requests != 5000 || result.Misses != 0 {
			t.Errorf("%v", result)
		}
	}
}

// The real command at both ends of a lab that is all in user space.
func TestLoadInUserSpaceAcrossTheLab(t *testing.T) {
	name := fmt.Sprintf("t%d-user", os.Getpid())
	t.Cleanup(func() { run(t, "lab", "--name", name, "down") })
	stdout, stderr, code := run(t, "lab", "--name", name, "up", "--path", "user", "--client-path", "user")
	if code != 0 || !strings.Contains(stdout, "with path user") {
		t.Fatalf("up: exit %d\n%s%s", code, stdout, stderr)
	}
	in := func(side string, args ...string) []string {
		return append([]string{"lab", "--name", name, "exec", side, "--", "env", asPollux + "=1", os.Args[0]}, args...)
	}
	server := pollux(in("server", "memcached", "--device", "pollux0", "--address", "10.99.0.1/24", "--mode", "adaptive", "--cores", "1")...)
	var output bytes.Buffer
	server.Stdout, server.Stderr = &output, &output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil {
			t.Errorf("the server ended with %v\n%s", err, output.String())
		}
	}()
	histogram := filepath.Join(t.TempDir(), "latency.hgrm")
	args := in("client", "load", "10.99.0.1:11211", "--engine", "user", "--device", "pollux1", "--address", "10.99.0.2/24", "--timeout", "1s",
		"--workload", "etc", "--depth", "4", "--requests", "3000", "--json", "--histogram", histogram)
	code = 1
	for attempt := 0; code != 0 && attempt < 30; attempt++ { // until the server listens
		stdout, stderr, code = run(t, args...)
	}
	var result load.Result
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if code != 0 || !result.Valid || result.Requests != 3000 || result.Misses != 0 || result.Engine != load.User {
		t.Errorf("exit %d\n%v\n%s", code, result, stderr)
	}
	if h, err := result.Latencies(); err != nil || h.TotalCount() != 3000 {
		t.Errorf("the histogram: %v", err)
	}
	if b, err := os.ReadFile(histogram); err != nil || !bytes.Contains(b, []byte("Percentile")) {
		t.Errorf("the histogram's file: %v\n%s", err, b)
	}
}
