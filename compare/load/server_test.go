package load

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memcached starts Debian's on a free port of the loopback and ends it with the
// test.
func memcached(t *testing.T) string {
	t.Helper()
	address, _ := startMemcached(t)
	return address
}

func startMemcached(t *testing.T) (string, *os.Process) {
	t.Helper()
	for range 5 { // between choosing a port and using it, someone else may
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		_, port, _ := net.SplitHostPort(address)
		var output bytes.Buffer
		cmd := exec.Command("memcached", "-u", "root", "-l", "127.0.0.1", "-p", port, "-U", "0", "-t", "1", "-m", "64", "-I", "2m")
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			t.Fatalf("start memcached (make deps installs it): %v", err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		t.Cleanup(func() { cmd.Process.Kill(); <-ended })
		for {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
				break
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Millisecond):
				continue
			}
			break
		}
		select {
		case <-ended:
			t.Logf("memcached on %s ended: %s", address, output.String())
			continue
		default:
			return address, cmd.Process
		}
	}
	t.Fatal("memcached does not start")
	return "", nil
}

func stats(t *testing.T, address string) map[string]uint64 {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "stats\r\nquit\r\n"); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]uint64)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 {
			if n, err := strconv.ParseUint(f[2], 10, 64); err == nil {
				values[f[1]] = n
			}
		}
	}
	return values
}

// A liar is a memcached that can be made to answer wrongly.
type liar struct {
	mu    sync.Mutex
	items map[string][]byte
	// lie changes a reply to get: the key and the value that it names.
	lie func(l *liar, key string, value []byte) (string, []byte)
	// hangUp, if it says true, closes the connection instead of answering.
	hangUp func() bool
	// silent servers take requests and never answer.
	silent atomic.Bool
	flags  int
	// drop, if it says true, leaves a request without an answer.
	drop func() bool
	// delay of every answer.
	delay time.Duration
	// log, if not nil, is told of every request.
	log func(conn net.Conn, line string)
}

func (l *liar) serve(t *testing.T) string {
	t.Helper()
	l.items = make(map[string][]byte)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.answer(conn)
		}
	}()
	return listener.Addr().String()
}

func (l *liar) answer(conn net.Conn) {
	defer conn.Close()
	for in := bufio.NewReader(conn); ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		fields := strings.Fields(line)
		if fields[0] == "quit" {
			return
		}
		l.mu.Lock()
		if l.log != nil {
			l.log(conn, line)
		}
		var reply string
		switch fields[0] {
		case "set":
			size, _ := strconv.Atoi(fields[4])
			value := make([]byte, size+2)
			io.ReadFull(in, value)
			l.items[fields[1]] = value[:size]
			reply = "STORED\r\n"
		case "get", "gets":
			key, value := fields[1], l.items[fields[1]]
			if l.lie != nil {
				key, value = l.lie(l, key, bytes.Clone(value))
			}
			if value != nil {
				cas := ""
				if fields[0] == "gets" {
					cas = " 1"
				}
				reply = fmt.Sprintf("VALUE %s %d %d%s\r\n%s\r\n", key, l.flags, len(value), cas, value)
			}
			reply += "END\r\n"
		}
		if l.drop != nil && l.drop() {
			reply = ""
		}
		closing := l.hangUp != nil && l.hangUp()
		l.mu.Unlock()
		if closing {
			return
		}
		time.Sleep(l.delay)
		if !l.silent.Load() {
			io.WriteString(conn, reply)
		}
	}
}
