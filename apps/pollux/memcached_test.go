package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime"
)

func TestFlagsOfTheOtherPathAreRefused(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--path", "tunnel"}, `"tunnel" is not a path`},
		{[]string{"--path", "kernel", "--driver", "af_packet"}, "--driver has no meaning with --path kernel"},
		{[]string{"--path", "kernel", "--mode", "poll"}, "use vanilla, irq-packing, irq-suppression, busy-poll, kernel-polling"},
		{[]string{"--path", "kernel", "--mode", "busy-poll"}, "--mode busy-poll needs --device"},
		{[]string{"--path", "kernel", "--address", "nowhere"}, `--address "nowhere"`},
		{[]string{"--path", "kernel", "--address", "192.0.2.1"}, "bind TCP to 192.0.2.1:11211"},
		{[]string{"--path", "kernel", "--mode", "kernel-polling", "--device", "lo"}, "no NAPI"},
		{[]string{"--path", "kernel", "--mode", "kernel-polling", "--device", "lo", "--irq-suspend-timeout", "1h"}, "IRQ suspend timeout of 1h"},
		{[]string{"--device", "lo", "--address", "127.0.0.1/8", "--irq-suspend-timeout", "1ms"}, "--irq-suspend-timeout has no meaning with --path user"},
		{[]string{"--device", "lo", "--address", "127.0.0.1/8", "--mode", "vanilla"}, "use poll, interrupt, adaptive"},
		{[]string{"--device", "lo"}, `"address" not set`},
	} {
		stdout, stderr, code := run(t, append([]string{"memcached"}, c.args...)...)
		if code != 1 || stdout != "" || strings.Count(stderr, c.want) != 1 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("pollux memcached %s: exit %d, want %q\n%s%s", strings.Join(c.args, " "), code, c.want, stdout, stderr)
		}
	}
}

// The same command serves on loopback, where nothing can be set, and on a device
// in every mode.
func TestTheKernelPathServesMemcachedInEveryMode(t *testing.T) {
	name := fmt.Sprintf("t%d-kernel", os.Getpid())
	t.Cleanup(func() { run(t, "lab", "--name", name, "down") })
	if _, stderr, code := run(t, "lab", "--name", name, "up", "--path", "kernel"); code != 0 {
		t.Fatal(stderr)
	}
	within := func(side string, args ...string) []string {
		return append([]string{"lab", "--name", name, "exec", side, "--", "env", asPollux + "=1", os.Args[0]}, args...)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()

	type test struct {
		name           string
		server, client []string
	}
	tests := []test{{"loopback", []string{"memcached", "--path", "kernel", "--address", "127.0.0.1", "--port", port}, []string{"load", "127.0.0.1:" + port}}}
	for _, mode := range runtime.Modes(runtime.Kernel) {
		tests = append(tests, test{string(mode),
			within("server", "memcached", "--path", "kernel", "--mode", string(mode), "--device", "pollux0", "--address", "10.99.0.1/24", "--address", "fd99::1"),
			within("client", "load", "10.99.0.1:11211")})
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "statistics.json")
			server := pollux(append(c.server, "--statistics", file)...)
			var output bytes.Buffer
			server.Stdout, server.Stderr = &output, &output
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Process.Kill(); server.Wait() })
			load := append(c.client, "--connections", "4", "--json", "--requests")
			code, stderr := 1, ""
			for attempt := 0; code != 0 && attempt < 200; attempt++ { // until the server listens
				time.Sleep(10 * time.Millisecond)
				_, stderr, code = run(t, append(load, "1")...)
			}
			if code != 0 {
				t.Fatalf("%s", stderr)
			}
			stdout, stderr, code := run(t, append(load, "2000")...)
			var result struct{ Requests, Wrong, Errors uint64 }
			if err := json.Unmarshal([]byte(stdout), &result); err != nil {
				t.Fatal(err, stdout)
			}
			if code != 0 || result.Requests != 2000 || result.Wrong+result.Errors != 0 {
				t.Errorf("exit %d, %+v\n%s", code, result, stderr)
			}
			if err := server.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := server.Wait(); err != nil {
				t.Fatalf("after SIGTERM: %v\n%s", err, output.String())
			}
			b, err := os.ReadFile(file)
			var counted []struct {
				Accepted, Deliveries, NAPIUnknown, NAPIForeign uint64
				Mode                                           string
			}
			if err = errors.Join(err, json.Unmarshal(b, &counted)); err != nil {
				t.Fatal(err)
			}
			if len(counted) != 1 || counted[0].Accepted < 4 || counted[0].Deliveries < 2000 || counted[0].NAPIForeign > 0 {
				t.Errorf("the loops counted %+v", counted)
			} else if onDevice := c.name != "loopback"; onDevice && (counted[0].NAPIUnknown > 0 || counted[0].Mode != c.name) {
				t.Errorf("on a device in mode %s: %+v", c.name, counted)
			}
		})
	}
	// Everything is as it was.
	if stdout, stderr, code := run(t, "lab", "--name", name, "status"); code != 0 {
		t.Errorf("the lab is not as it was:\n%s%s", stdout, stderr)
	}
}
