package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
)

// patience is how long anything may take that must happen: on a busy machine,
// with the race detector. Nothing waits as long unless it fails.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v have passed without: %s", patience, what)
		}
	}
}

// server is the process under test, as a client sees it.
type server struct {
	lab    *lab.Lab
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr lockedBuffer
	dialed []connection // by the test that is running
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *lockedBuffer) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *lockedBuffer) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a server and waits until it serves. Its races fail the test.
func start(t *testing.T, l *lab.Lab, c serverConfig) *server {
	t.Helper()
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{lab: l, cmd: exec.Command(os.Args[0])}
	// A race is an exit code of its own; do not wait for the sake of others.
	s.cmd.Env = append(os.Environ(), asServer+"="+string(config), "GORACE=atexit_sleep_ms=0")
	s.cmd.Stderr = &s.stderr
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stdin, s.cmd.Stdout, s.in, s.out = stdin, stdout, in, json.NewDecoder(out)
	err = l.Start(lab.Server, s.cmd)
	stdin.Close()
	stdout.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		out.Close()
		if s.cmd.ProcessState == nil {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
		if t.Failed() || strings.Contains(s.stderr.String(), "DATA RACE") {
			t.Errorf("the server: %v\n%s", s.cmd.ProcessState, &s.stderr)
		}
	})
	s.answer(t)
	return s
}

func (s *server) answer(t *testing.T) (r record) {
	t.Helper()
	if err := s.out.Decode(&r); err != nil {
		t.Fatalf("the server does not answer: %v", err)
	}
	return r
}

func (s *server) report(t *testing.T) record {
	t.Helper()
	if _, err := fmt.Fprintln(s.in, "report"); err != nil {
		t.Fatal(err)
	}
	return s.answer(t)
}

// settled closes what a test dialled, waits until every connection has ended,
// and shows that the handlers were called as promised.
func (s *server) settled(t *testing.T, before record) record {
	t.Helper()
	for _, c := range s.dialed {
		c.Close()
	}
	s.dialed = nil
	var r record
	eventually(t, "the handlers hear of every connection's end", func() bool { r = s.report(t); return r.Opened == r.Closed })
	for _, v := range r.Violations[len(before.Violations):] {
		t.Error("violation: ", v)
	}
	return r
}

// ended waits until n more connections have ended, and says how by class.
func (s *server) ended(t *testing.T, before record, n int) map[string]int {
	t.Helper()
	var r record
	eventually(t, "connections end", func() bool { r = s.report(t); return r.Closed-before.Closed >= n })
	how := map[string]int{}
	for class, m := range r.Ended {
		if m -= before.Ended[class]; m > 0 {
			how[class] = m
		}
	}
	return how
}

// stop ends the server, in order.
func (s *server) stop(t *testing.T) {
	t.Helper()
	c := s.dial(t, echoPort)
	c.echoes(t, []byte("the last"))
	if _, err := fmt.Fprintln(s.in, "stop"); err != nil {
		t.Fatal(err)
	}
	c.ends(t, nil)
	if r := s.answer(t); r.Opened != r.Closed {
		t.Errorf("%d connections were opened and %d ended", r.Opened, r.Closed)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the server's end: %v", err)
	}
}

// connection is a client's, over the kernel's stack.
type connection struct{ *net.TCPConn }

func (s *server) dial(t *testing.T, port uint16) connection {
	t.Helper()
	return s.dialTo(t, lab.ServerIPv4.Addr(), port)
}

func (s *server) dialTo(t *testing.T, a netip.Addr, port uint16) connection {
	t.Helper()
	c, err := s.connect(a, port)
	if err != nil {
		t.Fatal(err)
	}
	s.dialed = append(s.dialed, c)
	return c
}

// connect is dial for any goroutine; the caller closes.
func (s *server) connect(a netip.Addr, port uint16) (c connection, err error) {
	// A literal address is dialled on this goroutine, which is in the namespace.
	err = s.lab.Do(lab.Client, func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, port).String(), patience)
		if err == nil {
			c.TCPConn = conn.(*net.TCPConn)
			err = c.SetDeadline(time.Now().Add(patience))
		}
		return err
	})
	return c, err
}

// send sends all of p.
func (c connection) send(t *testing.T, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly want.
func (c connection) expect(want []byte) error {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("%d of %d bytes came: %w", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		return fmt.Errorf("byte %d of %d is %q, want %q", i, len(want), got[i], want[i])
	}
	return nil
}

// echoes sends p and expects it back.
func (c connection) echoes(t *testing.T, p []byte) {
	t.Helper()
	c.send(t, p)
	if err := c.expect(p); err != nil {
		t.Error(err)
	}
}

// ends expects the end of the stream, in order or by an error, and nothing before.
func (c connection) ends(t *testing.T, want error) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); n > 0 || !errors.Is(err, want) {
		t.Errorf("%d bytes more and then %v, want %v", n, err, want)
	}
}

// reset ends the connection with a reset.
func (c connection) reset(t *testing.T) {
	t.Helper()
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
}
