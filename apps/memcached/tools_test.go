package memcached_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/apps/memcached"
)

// listen is listenOn with a server that ends with the test.
func listen(t *testing.T) (host, port string, server *memcached.Server) {
	t.Helper()
	server, err := memcached.New(memcached.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	r, address := listenOn(t, server)
	t.Cleanup(func() {
		if err := r.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return address.Addr().String(), fmt.Sprint(address.Port()), server
}

func TestPythonsClientsAreServed(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's, which has Debian's packages
	host, port, server := listen(t)
	out, err := exec.Command(python, filepath.Join("testdata", "clients.py"), host, port).CombinedOutput()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("%v: %s\nif a module is missing: apt-get install python3-pymemcache python3-pylibmc", err, out)
	}
	if stats := server.Statistics(); stats.Datagrams < 100 || stats.DatagramsIgnored != 0 {
		t.Errorf("%d datagrams, %d of them ignored", stats.Datagrams, stats.DatagramsIgnored)
	}
}

func TestMemccapablePassesOnTheKernelPath(t *testing.T) {
	host, port, _ := listen(t)
	for _, protocol := range []string{"-a", "-b"} {
		out, err := exec.Command("memccapable", "-h", host, "-p", port, protocol, "-t", "10").CombinedOutput()
		if passed := strings.Count(string(out), "[pass]"); err != nil || passed != 27 {
			t.Errorf("%s: %d of 27 tests passed (%v):\n%s", protocol, passed, err, out)
		}
	}
}

// The tools of libmemcached, in both protocols.
func TestLibmemcachedsToolsAreServed(t *testing.T) {
	host, port, server := listen(t)
	servers := "--servers=" + net.JoinHostPort(host, port)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	content := strings.Repeat("a file's content\n", 5000)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(fails bool, program string, arguments ...string) string {
		t.Helper()
		out, err := exec.Command(program, append([]string{servers}, arguments...)...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !(fails && errors.As(err, &exit)) || err == nil && fails {
			t.Errorf("%s %v: %v: %.300s", program, arguments, err, out)
		}
		return string(out)
	}
	for _, protocol := range [][]string{nil, {"--binary"}} {
		with := func(arguments ...string) []string { return append(append([]string(nil), protocol...), arguments...) }
		run(false, "memcping")
		run(false, "memcflush", protocol...)
		run(false, "memccp", with(file)...)
		if got := run(false, "memccat", with("file")...); strings.TrimRight(got, "\n") != strings.TrimRight(content, "\n") {
			t.Errorf("%v: memccat gave %d bytes, want %d", protocol, len(got), len(content))
		}
		run(false, "memcexist", with("file")...)
		run(false, "memctouch", with("--expire=100", "file")...)
		run(false, "memcrm", with("file")...)
		run(true, "memcexist", with("file")...)
		if got := run(false, "memcstat", protocol...); !strings.Contains(got, "delete_hits: ") || !strings.Contains(got, "version: 1.6.18") {
			t.Errorf("%v: memcstat gave %.500s", protocol, got)
		}
		run(false, "memcslap", with("--concurrency=4", "--execute-number=200", "--test=mget")...)
		run(false, "memcslap", with("--concurrency=4", "--execute-number=200", "--test=set")...)
	}
	before := server.Statistics().Datagrams
	run(false, "memcslap", "--udp", "--concurrency=2", "--execute-number=100", "--test=set")
	if stats := server.Statistics(); stats.Datagrams == before || stats.DatagramsIgnored != 0 {
		t.Errorf("memcslap over UDP: %d datagrams, %d of them ignored", stats.Datagrams-before, stats.DatagramsIgnored)
	}
}
