package endtoend

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// drainDeadline is how long a server that is told to stop waits for its clients.
const drainDeadline = 5 * time.Second

func TestAServerThatIsToldToStopLeavesTheDeviceForTheNext(t *testing.T) {
	l := newLab(t, 1)
	before := trace(t, l)
	for i, more := range [][]string{
		nil,
		{"--capture", filepath.Join(t.TempDir(), "a.pcapng")},
		{"--capture", filepath.Join(t.TempDir(), "b.pcapng")},
		{"--driver", "af_packet"},
		nil,
	} {
		t.Run(fmt.Sprintf("start %d %s", i, strings.Join(more, " ")), func(t *testing.T) {
			mode := runtime.Modes(runtime.User)[i%3]
			s := serveMemcached(t, l, plainPollux, memcachedArgs(mode, 1, more...)...)
			// With traffic to the very end: of clients that come and go, and of one
			// that stays and asks for nothing.
			idle := connect(t, l, memcached4)
			if got := exchange(t, idle, bufio.NewReader(idle), "version\r\n"); !strings.HasPrefix(got, "VERSION") {
				t.Fatalf("the reply is %q", got)
			}
			stop, done := make(chan struct{}), make(chan int)
			go func() { done <- pester(l, stop) }()
			eventually(t, "requests are answered", func() bool {
				return scrape(t, l).get(t, `memcached_commands_total{command="get",status="miss"}`) > 100
			})
			took := s.terminate(t)
			close(stop)
			if n := <-done; n == 0 {
				t.Error("no request was answered")
			}
			t.Logf("mode %s: ended within %v", mode, took)
			if took > drainDeadline+2*time.Second {
				t.Errorf("it took %v to end", took)
			}
			if log := s.stderr.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "pollux:") {
				t.Errorf("it ended with complaints:\n%s", log)
			}
			if after := trace(t, l); after != before {
				t.Fatalf("something was left behind:\n%s\nbefore:\n%s", after, before)
			}
			// The idle client has been told.
			idle.SetDeadline(time.Now().Add(patience))
			if n, err := idle.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("the idle client reads %d bytes, %v; want the end", n, err)
			}
		})
	}
}

// pester connects and asks until it is told to stop, and returns the number of
// replies.
func pester(l *lab.Lab, stop <-chan struct{}) (replies int) {
	for {
		select {
		case <-stop:
			return replies
		default:
		}
		c, err := dial(l, lab.Client, memcached4, 200*time.Millisecond)
		if err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(time.Second))
		in := bufio.NewReader(c)
		for range 20 {
			if _, err := io.WriteString(c, "get absent\r\n"); err != nil {
				break
			}
			if line, err := in.ReadString('\n'); err != nil || line != "END\r\n" {
				break
			}
			replies++
		}
		c.Close()
	}
}

func TestAReplyThatIsUnderWayArrivesAlthoughTheServerIsToldToStop(t *testing.T) {
	l := newLab(t, 1)
	s := serveMemcached(t, l, pollux, memcachedArgs(runtime.Adaptive, 1)...)
	value := make([]byte, 1<<20-512)
	stream.NewSource(1).Read(value)
	c := memcachedClient(t, l, memcached4)
	if err := c.Set(&memcache.Item{Key: "large", Value: value}); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, l, memcached4)
	// Little fits on this side, so that much is still the server's to send.
	if err := conn.(*net.TCPConn).SetReadBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "get large\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is served", func() bool {
		return scrape(t, l).get(t, `memcached_commands_total{command="get",status="hit"}`) == 1
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server stops", func() bool { return strings.Contains(s.stderr.String(), "msg=stopping") })
	conn.SetDeadline(time.Now().Add(patience))
	reply, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("after %d bytes: %v", len(reply), err)
	}
	want := fmt.Appendf(nil, "VALUE large 0 %d\r\n%s\r\nEND\r\n", len(value), value)
	if !bytes.Equal(reply, want) {
		t.Errorf("%d bytes arrived, want %d", len(reply), len(want))
	}
	if code := s.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestAServerCanBeStartedAfterOneThatWasKilled(t *testing.T) {
	l := newLab(t, 1)
	s := serveMemcached(t, l, plainPollux, memcachedArgs(runtime.Adaptive, 1)...)
	s.cmd.Process.Kill()
	<-s.done
	s = serveMemcached(t, l, plainPollux, memcachedArgs(runtime.Adaptive, 1)...)
	memccapable(t, l, "10.99.0.1", "-a")
	s.terminate(t)
}
