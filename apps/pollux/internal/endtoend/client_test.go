package endtoend

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/pollux-net/pollux/compare/lab"
)

// dial connects from one side of the lab, over the kernel's stack.
func dial(l *lab.Lab, side lab.Side, address string, timeout time.Duration) (conn net.Conn, err error) {
	// A literal address is dialled on this goroutine, which is in the namespace.
	err = l.Do(side, func() error {
		conn, err = net.DialTimeout("tcp", address, timeout)
		return err
	})
	return conn, err
}

// connect dials from the client's side and ends the connection with the test.
func connect(t *testing.T, l *lab.Lab, address string) net.Conn {
	t.Helper()
	conn, err := dial(l, lab.Client, address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(5 * patience))
	return conn
}

// memcachedClient is the client that Go programs use.
func memcachedClient(t *testing.T, l *lab.Lab, address string) *memcache.Client {
	c := memcache.New(address)
	c.Timeout = patience
	c.DialContext = func(context.Context, string, string) (net.Conn, error) { return dial(l, lab.Client, address, patience) }
	t.Cleanup(func() { c.Close() })
	return c
}

// metrics are the samples of a scrape, by name and labels.
type metrics map[string]float64

// scrape asks the server for its metrics.
func scrape(t *testing.T, l *lab.Lab) metrics {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dial(l, lab.Server, metricsPort, patience)
		},
	}}
	reply, err := client.Get("http://" + metricsPort + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s", reply.Status)
	}
	m := metrics{}
	for lines := bufio.NewScanner(reply.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if m[name], err = strconv.ParseFloat(value, 64); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// get is a metric, which must be there.
func (m metrics) get(t *testing.T, name string) float64 {
	t.Helper()
	v, ok := m[name]
	if !ok {
		t.Fatalf("no metric %s", name)
	}
	return v
}

// rise is by how much the metrics whose names begin with prefix have risen.
func (m metrics) rise(since metrics, prefix string) metrics {
	risen := metrics{}
	for name, v := range m {
		if strings.HasPrefix(name, prefix) && v > since[name] {
			risen[name] = v - since[name]
		}
	}
	return risen
}

// command runs a command on one side of the lab and returns what it prints.
func command(t *testing.T, l *lab.Lab, side lab.Side, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.Start(side, cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	return out.String(), err
}

// must is command, for one that must not fail.
func must(t *testing.T, l *lab.Lab, side lab.Side, args ...string) string {
	t.Helper()
	out, err := command(t, l, side, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// exchange sends a line and returns the one that comes back.
func exchange(t *testing.T, conn net.Conn, in *bufio.Reader, line string) string {
	t.Helper()
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	reply, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return reply
}
