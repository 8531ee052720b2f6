package load

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

// wired is a memcached of a few lines on the user path, at the other end of a
// wire in memory.
type wired struct {
	mu     sync.Mutex
	items  map[string]string
	opened int
	// answer changes a reply.
	answer func(line, reply string) string
}

func (w *wired) Open(polluxruntime.Conn) {
	w.mu.Lock()
	w.opened++
	w.mu.Unlock()
}

func (w *wired) Close(polluxruntime.Conn, error) {}

func (w *wired) Data(c polluxruntime.Conn, in []byte) (used int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c.Buffered() < polluxruntime.OutputLimit {
		i := bytes.Index(in[used:], crlf)
		if i < 0 {
			return used
		}
		line := string(in[used : used+i])
		n := i + 2
		fields := strings.Fields(line)
		var reply string
		switch fields[0] {
		case "set":
			size, _ := strconv.Atoi(fields[4])
			if len(in) < used+n+size+2 {
				return used
			}
			w.items[fields[1]] = string(in[used+n : used+n+size])
			n += size + 2
			reply = "STORED\r\n"
		case "get":
			if v, ok := w.items[fields[1]]; ok {
				reply = fmt.Sprintf("VALUE %s 0 %d\r\n%s\r\n", fields[1], len(v), v)
			}
			reply += "END\r\n"
		case "quit":
			c.Close()
			return len(in)
		}
		if w.answer != nil {
			reply = w.answer(line, reply)
		}
		c.Write([]byte(reply))
		used += n
	}
	return used
}

// onWire serves w at one end of a wire and returns a configuration for the other.
// At the end no frame may be missing.
func onWire(t *testing.T, w *wired, faults wire.Faults) Config {
	t.Helper()
	w.items = make(map[string]string)
	link, err := wire.New(wire.Config{Interrupts: true, ReceiveChecksum: true, TransmitChecksum: true, Seed: 5, Faults: [2]wire.Faults{faults, faults}})
	if err != nil {
		t.Fatal(err)
	}
	free := link.FreeFrames()
	address := netip.MustParsePrefix("10.99.0.1/24")
	server, err := user.New(link.Port(wire.A), user.Config{Mode: polluxruntime.Adaptive, Stack: stack.Config{Addresses: []netip.Prefix{address}}})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(address.Addr(), 11211)
	if err := server.Listen(at, w); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		for _, s := range []wire.Side{wire.A, wire.B} {
			if err := link.Port(s).Close(); err != nil {
				t.Error(err)
			}
		}
		if n := link.FreeFrames(); n != free {
			t.Errorf("%d frames of the wire are missing", free-n)
		}
	})
	return Config{Engine: User, Address: at.String(), Port: link.Port(wire.B),
		Stack: stack.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}}}
}

func TestUserEngineCountsRightOverAWire(t *testing.T) {
	const requests, connections = 5003, 7
	for name, c := range map[string]Config{
		"closed loop":         {SetRatio: 0.3},
		"pipelines":           {SetRatio: 0.3, Depth: 16},
		"large values":        {SetRatio: 0.3, Depth: 4, ValueSize: "uniform:0,10000", Keys: 100},
		"etc in an open loop": {Workload: ETC, Rate: 20000},
		"churn":               {SetRatio: 0.1, Churn: 100},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wired{}
			on := onWire(t, w, wire.Faults{})
			c.Engine, c.Address, c.Port, c.Stack = on.Engine, on.Address, on.Port, on.Stack
			c.Requests, c.Connections = requests, connections
			r, err := Run(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Valid || r.Requests != requests || r.Misses != 0 || r.Latency.P50 <= 0 || r.Client.CoresBusy != 0 {
				t.Errorf("%v", r)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if uint64(w.opened) != connections+r.Reconnects || len(w.items) != r.Keys {
				t.Errorf("%d connections, %d items\n%v", w.opened, len(w.items), r)
			}
			if c.Churn == 0 && r.Reconnects != 0 || c.Churn > 0 && r.Reconnects != 7*7 {
				t.Errorf("%d reconnects", r.Reconnects)
			}
		})
	}
}

func TestUserEngineCatchesALyingServer(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*wired) func(line, reply string) string
		want   string
	}{
		"drops one reply in a thousand": {func(*wired) func(string, string) string {
			n := 0
			return func(_, reply string) string {
				if n++; n > 100 && n%1000 == 0 {
					return ""
				}
				return reply
			}
		}, "no reply"},
		"swaps two values": {func(w *wired) func(string, string) string {
			return func(line, reply string) string {
				key, get := strings.CutPrefix(line, "get ")
				if !get || !strings.HasSuffix(key, "01") && !strings.HasSuffix(key, "02") {
					return reply
				}
				other := key[:len(key)-1] + map[byte]string{'1': "2", '2': "1"}[key[len(key)-1]]
				return strings.Replace(reply, w.items[key], w.items[other], 1)
			}
		}, "differs from what was stored"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wired{}
			on := onWire(t, w, wire.Faults{})
			w.answer = c.answer(w)
			on.Requests, on.Connections, on.Depth, on.Keys, on.Timeout = 4000, 3, 4, 100, time.Second
			r, err := Run(t.Context(), on)
			if err != nil {
				t.Fatal(err)
			}
			if r.Valid || !strings.Contains(r.Invalid, c.want) {
				t.Errorf("want %q, got\n%v", c.want, r)
			}
		})
	}
}

func TestUserEngineSaysThatNobodyAnswers(t *testing.T) {
	on := onWire(t, &wired{}, wire.Faults{})
	on.Address, on.Timeout = "10.99.0.1:9", time.Second
	if _, err := Run(t.Context(), on); err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), on.Address) {
		t.Errorf("a closed port: %v", err)
	}
	on = onWire(t, &wired{}, wire.Faults{Loss: 1})
	on.Timeout = 50 * time.Millisecond
	if _, err := Run(t.Context(), on); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a dead wire: %v", err)
	}
	on.Stack.Addresses = nil
	if _, err := Run(t.Context(), on); err == nil || !strings.Contains(err.Error(), "address of its own") {
		t.Errorf("no address: %v", err)
	}
}

// The client's end of a lab in user space, the server a memcached on the kernel.
func TestUserEngineLoadsAKernelsServerAcrossTheLab(t *testing.T) {
	if err := dpdk.Init(dpdk.Options{}); err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-load", os.Getpid()), Path: polluxruntime.Kernel, ClientPath: polluxruntime.User})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	var output bytes.Buffer
	server := exec.Command("memcached", "-u", "root", "-U", "0", "-t", "1", "-l", "10.99.0.1,fd99::1")
	server.Stdout, server.Stderr = &output, &output
	if err := l.Start(lab.Server, server); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })

	var port driver.Port
	err = l.Do(lab.Client, func() (err error) {
		port, err = dpdk.Open(dpdk.Config{Device: lab.ClientInterface})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, host := range []string{"10.99.0.1:11211", "[fd99::1]:11211"} {
		for _, c := range []Config{{SetRatio: 0.1}, {Workload: ETC, Depth: 8}, {Workload: ETC, Rate: 5000}} {
			c.Address, c.Engine, c.Port = host, User, port
			c.Requests, c.Cores = 5000, l.Config().ClientCores[:1]
			c.Stack.Addresses = lab.Addresses(lab.Client)
			c.EnterThread = func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() }
			var r Result
			for attempt := range 200 { // until the server listens
				if r, err = Run(t.Context(), c); err == nil || attempt == 199 || !strings.Contains(err.Error(), "refused") {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", host, err, output.String())
			}
			if !r.Valid || r.Requests != 5000 || r.Misses != 0 {
				t.Errorf("%v", r)
			}
			t.Logf("%v", r)
		}
	}
}
