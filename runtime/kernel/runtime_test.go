package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

func TestBothFamiliesAreServedFromOneSocket(t *testing.T) {
	h := &echo{}
	r := serve(t, Config{}, anywhere, h)
	bound := r.Addresses()[0]
	for _, host := range []string{"127.0.0.1", "::1"} {
		c := dialTo(t, netip.AddrPortFrom(netip.MustParseAddr(host), bound.Port()))
		if err := ask(c, "hello "+host); err != nil {
			t.Error(err)
		}
	}
}

func TestConnectionsKnowTheirAddresses(t *testing.T) {
	for _, address := range []netip.AddrPort{loopback4, loopback6, anywhere, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)} {
		h := function(func(c polluxruntime.Conn, in []byte) int {
			fmt.Fprintf(writer{c}, "%v %v\n", c.LocalAddr(), c.RemoteAddr())
			return len(in)
		})
		r := serve(t, Config{}, address, h)
		c := dial(t, r)
		c.Write([]byte("?"))
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%v %v\n", c.RemoteAddr(), c.LocalAddr()); err != nil || string(got) != want {
			t.Errorf("on %v: the server says %q, the client %q: %v", address, got, want, err)
		}
	}
}

type writer struct{ polluxruntime.Conn }

func TestShardsShareThePortAndKeepTheirConnections(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	h := &echo{}
	r := serve(t, Config{Cores: []int{cores[0], cores[len(cores)-1]}}, anywhere, h)
	for i := range 64 {
		c := dial(t, r)
		for n := range 3 {
			if err := ask(c, fmt.Sprintf("connection %d, request %d", i, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.perShard[0] == 0 || h.perShard[1] == 0 {
		t.Errorf("64 connections spread as %v over two shards", h.perShard)
	}
	if h.moved > 0 {
		t.Errorf("%d requests were served by another shard than their connection's", h.moved)
	}
	for _, s := range statistics(t, r) {
		if s.Connections != h.perShard[s.Shard] || s.Accepted != uint64(s.Connections) {
			t.Errorf("shard %d says %d connections, %d accepted; the handler says %d", s.Shard, s.Connections, s.Accepted, h.perShard[s.Shard])
		}
	}
}

// flood answers one byte with 64 KiB.
type flood struct {
	echo
	most atomic.Int64
}

func (f *flood) Data(c polluxruntime.Conn, in []byte) int {
	n := 0
	for n < len(in) && c.Buffered() < polluxruntime.OutputLimit {
		c.Write(make([]byte, 64<<10))
		n++
	}
	f.most.Store(max(f.most.Load(), int64(c.Buffered())))
	return n
}

func TestASlowReaderDoesNotMakeTheServerGrow(t *testing.T) {
	h := &flood{}
	r := serve(t, Config{}, loopback4, h)
	c := dial(t, r)
	const requests = 1000 // 64 MB of replies
	if _, err := c.Write(make([]byte, requests)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the socket is full", func() bool {
		return statistics(t, r)[0].WritesRefused > 0 || h.most.Load() >= polluxruntime.OutputLimit
	})
	waits := statistics(t, r)[0].Waits
	time.Sleep(50 * time.Millisecond)
	if more := statistics(t, r)[0].Waits - waits; more > 20 {
		t.Errorf("the loop turned %d times while it could do nothing", more)
	}
	if n, err := io.CopyN(io.Discard, c, requests*64<<10); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if limit := polluxruntime.OutputLimit + 64<<10; h.most.Load() > int64(limit) {
		t.Errorf("%d bytes were buffered, at most %d should be", h.most.Load(), limit)
	}
}

func TestAPeerThatOnlySendsIsHeldBack(t *testing.T) {
	r := serve(t, Config{}, loopback4, &echo{})
	c := dial(t, r)
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	sent, err := io.Copy(c, zeros{})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes went: %v", sent, err)
	}
	// What was taken comes back, whole.
	c.CloseWrite()
	if n, err := io.Copy(io.Discard, c); n != sent || err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, sent, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestWhatAHandlerLeavesIsHandedOverAgain(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	h := function(func(c polluxruntime.Conn, in []byte) int {
		if len(in) < 7 {
			return 0
		}
		mu.Lock()
		defer mu.Unlock()
		got.Write(in[:7])
		c.Write([]byte{'.'})
		return 7
	})
	r := serve(t, Config{}, loopback4, h)
	c := dial(t, r)
	var sent bytes.Buffer
	const seed = 3
	rng := rand.New(rand.NewPCG(seed, 0))
	for sent.Len() < 70000 {
		piece := make([]byte, 1+rng.IntN(20))
		for i := range piece {
			piece[i] = byte(sent.Len() + i)
		}
		piece = piece[:min(len(piece), 70000-sent.Len())]
		sent.Write(piece)
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(c, make([]byte, 10000)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !bytes.Equal(got.Bytes(), sent.Bytes()) {
		t.Errorf("seed %d: the handler was given other bytes than were sent", seed)
	}
}

func TestAReplyLargerThanAnyBufferArrivesWhole(t *testing.T) {
	big := make([]byte, 48<<20)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	h := function(func(c polluxruntime.Conn, in []byte) int {
		c.Write(big)
		c.Close()
		return len(in)
	})
	r := serve(t, Config{}, loopback4, h)
	c := dial(t, r)
	c.Write([]byte("x"))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
		t.Errorf("got %d of %d bytes: %v", len(got), len(big), err)
	}
}

func TestHalfClosedConnectionsGetTheirReplies(t *testing.T) {
	h := &echo{}
	r := serve(t, Config{}, loopback4, h)
	c := dial(t, r)
	big := bytes.Repeat([]byte("half"), 2_000_000)
	go func() {
		c.Write(big)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("got %d of %d bytes back: %v", len(got), len(big), err)
	}
	eventually(t, "the handler hears of the end", func() bool { return h.closed.Load() == 1 })
	if h.reasons[0] != nil {
		t.Errorf("the handler was told %v, not that the peer closed", h.reasons[0])
	}
}

func TestTheEndOfAConnectionIsToldWithItsReason(t *testing.T) {
	for _, c := range []struct {
		name string
		data function
		end  func(*testing.T, *tcp)
		want error
	}{
		{"the client closes, having sent nothing", nil, func(t *testing.T, c *tcp) { c.Close() }, nil},
		{"the client half-closes", nil, func(t *testing.T, c *tcp) { c.CloseWrite(); c.ends(t, nil) }, nil},
		{"the client resets", nil, func(t *testing.T, c *tcp) { c.SetLinger(0); c.Close() }, syscall.ECONNRESET},
		{"the server closes, with input unread", func(c polluxruntime.Conn, in []byte) int {
			c.Write([]byte("bye"))
			c.Close()
			if _, err := c.Write([]byte("more")); err == nil {
				c.Abort()
			}
			return 0
		}, func(t *testing.T, c *tcp) {
			c.Write(make([]byte, 100))
			if err := c.says("bye"); err != nil {
				t.Error(err)
			}
			c.ends(t, nil)
		}, nil},
		{"the server resets", func(c polluxruntime.Conn, in []byte) int {
			c.Write([]byte("never sent"))
			c.Abort()
			return len(in)
		}, func(t *testing.T, c *tcp) {
			c.Write([]byte("x"))
			c.ends(t, syscall.ECONNRESET)
		}, errAborted},
		{"the client resets a server that is held back", (&flood{}).Data, func(t *testing.T, c *tcp) {
			c.Write(make([]byte, 1000))
			time.Sleep(20 * time.Millisecond)
			c.SetLinger(0)
			c.Close()
		}, syscall.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &ending{data: c.data}
			r := serve(t, Config{}, loopback4, h)
			c.end(t, &tcp{dial(t, r)})
			eventually(t, "the handler hears of the end", func() bool { return h.closed.Load() == 1 })
			if got := h.reasons[0]; !errors.Is(got, c.want) {
				t.Errorf("the handler was told %v, want %v", got, c.want)
			}
			eventually(t, "the connection is gone", func() bool { return statistics(t, r)[0].Connections == 0 })
		})
	}
}

type ending struct {
	echo
	data function
}

func (e *ending) Data(c polluxruntime.Conn, in []byte) int {
	if e.data == nil {
		return e.echo.Data(c, in)
	}
	return e.data(c, in)
}

func TestAStormOfConnectionsIsServed(t *testing.T) {
	h := &echo{}
	r := serve(t, Config{}, loopback4, h)
	const clients, each = 20, 100
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range each {
				c := dial(t, r)
				if err := ask(c, "x"); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	all.Wait()
	eventually(t, "all are closed", func() bool { return h.closed.Load() == clients*each })
	if s := statistics(t, r)[0]; s.Accepted != clients*each || s.Connections != 0 {
		t.Errorf("%d accepted, %d open", s.Accepted, s.Connections)
	}
}

// capture collects what is logged during a test.
func capture(t *testing.T) func() string {
	var mu sync.Mutex
	var b bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(locked{&mu, &b}, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return b.String()
	}
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestWithoutDescriptorsTheConnectionsThatAreThereAreServedAndOthersLater(t *testing.T) {
	logged := capture(t)
	h := &echo{}
	r := open(t, Config{}, loopback4, h)
	// Established by the kernel, and not yet accepted.
	const connections = 40
	var clients []*tcp
	for range connections {
		clients = append(clients, &tcp{dial(t, r)})
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &before) }
	defer restore()
	// Descriptors are given from the lowest: the next is the number in use.
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next + 10), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	start(t, r)
	eventually(t, "some are accepted, and then no more", func() bool { return statistics(t, r)[0].AcceptsRefused > 0 })
	s := statistics(t, r)[0]
	if s.Connections == 0 || s.Connections > 10 {
		t.Fatalf("%d connections are open", s.Connections)
	}
	eventually(t, "it is tried again", func() bool { s = statistics(t, r)[0]; return s.AcceptsRefused >= 4 })
	if most := uint64(s.Elapsed/retryAccept) + 2; s.AcceptsRefused > most {
		t.Errorf("refused %d times in %v, at most %d expected", s.AcceptsRefused, s.Elapsed, most)
	}
	// All are served in turn, as those before them leave.
	for i, c := range clients {
		if err := ask(c, "hello"); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		c.Close()
	}
	restore()
	eventually(t, "all have ended", func() bool { return h.closed.Load() == connections })
	if n := strings.Count(logged(), "none can be accepted"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, logged())
	}
}

// room is a handler that passes on what one connection says to another.
type room struct {
	echo
	members []polluxruntime.Conn
}

func (r *room) Open(c polluxruntime.Conn) { r.members = append(r.members, c); r.opened.Add(1) }

func (r *room) Data(c polluxruntime.Conn, in []byte) int {
	for _, m := range r.members {
		if m != c {
			m.Write(in)
		}
	}
	return len(in)
}

func TestAHandlerMayWriteToOthersAndCloseThem(t *testing.T) {
	h := &room{}
	r := serve(t, Config{}, loopback4, h)
	a, b := &tcp{dial(t, r)}, &tcp{dial(t, r)}
	eventually(t, "both are there", func() bool { return h.opened.Load() == 2 })
	a.Write([]byte("from a"))
	if err := b.says("from a"); err != nil {
		t.Fatal(err)
	}
	// Posts run on the loop, where a connection may be closed.
	ran := make(chan bool)
	if !r.Post(0, func() {
		for _, m := range h.members {
			m.Write([]byte("good bye"))
			m.Close()
		}
		close(ran)
	}) {
		t.Fatal("the post was refused")
	}
	<-ran
	for _, c := range []*tcp{a, b} {
		if err := c.says("good bye"); err != nil {
			t.Error(err)
		}
		c.ends(t, nil)
	}
}

func TestShutdownEndsConnectionsAndTellsTheHandler(t *testing.T) {
	h := &echo{}
	r := open(t, Config{}, loopback4, h)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	var clients []*tcp
	for range 10 {
		c := &tcp{dial(t, r)}
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if err := shutdown(r, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.ends(t, nil)
	}
	if h.opened.Load() != 10 || h.closed.Load() != 10 {
		t.Errorf("%d connections opened, %d closed", h.opened.Load(), h.closed.Load())
	}
	if r.Post(0, func() {}) {
		t.Error("a stopped shard still takes posts")
	}
	if _, err := r.Statistics(context.Background()); !errors.Is(err, ErrStopped) {
		t.Errorf("statistics of stopped loops: %v", err)
	}
	if err := shutdown(r, time.Second); err != nil {
		t.Errorf("the second shutdown: %v", err)
	}
}

func TestShutdownDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	h := &flood{}
	r := open(t, Config{}, loopback4, h)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	c := &tcp{dial(t, r)}
	c.Write(make([]byte, 1000))
	eventually(t, "the output is over the limit", func() bool { return h.most.Load() >= polluxruntime.OutputLimit })
	asked := time.Now()
	if err := shutdown(r, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(asked); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if h.closed.Load() != 1 || !errors.Is(h.reasons[0], errAborted) {
		t.Errorf("the handler was told %v", h.reasons)
	}
}

func TestALoopThatIsHeldUpLongerThanTheDeviceWaitsSaysSoOnce(t *testing.T) {
	logged := capture(t)
	h := function(func(c polluxruntime.Conn, in []byte) int {
		time.Sleep(15 * time.Millisecond)
		c.Write(in)
		return len(in)
	})
	r := open(t, Config{}, loopback4, h)
	r.loops[0].suspend = 10 * time.Millisecond
	start(t, r)
	c := dial(t, r)
	for range 3 {
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "each time was noted", func() bool { s := statistics(t, r)[0]; return s.Overdue >= 3 && s.Longest >= 15*time.Millisecond })
	if n := strings.Count(logged(), "irq-suspend-timeout"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, logged())
	}
}

func TestALoopSleepsWhenThereIsNothingToDo(t *testing.T) {
	r := serve(t, Config{}, loopback4, &echo{})
	c := dial(t, r)
	if err := ask(c, "x"); err != nil {
		t.Fatal(err)
	}
	before := statistics(t, r)[0]
	time.Sleep(200 * time.Millisecond)
	after := statistics(t, r)[0]
	if n := after.Iterations - before.Iterations; n > 5 {
		t.Errorf("%d iterations while nothing happened", n)
	}
	if slept := after.Waited - before.Waited; slept < 150*time.Millisecond {
		t.Errorf("slept %v of 200 ms", slept)
	}
}

func TestTicksTellTheTime(t *testing.T) {
	var last atomic.Int64
	r := serve(t, Config{Tick: func(now time.Time) { last.Store(now.UnixNano()) }}, loopback4, &echo{})
	c := dial(t, r)
	for range 3 {
		time.Sleep(tickInterval + 10*time.Millisecond)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		statistics(t, r) // the iteration of the request is over
		if age := time.Since(time.Unix(0, last.Load())); age > 10*tickInterval || age < 0 {
			t.Errorf("the last tick was %v ago", age)
		}
	}
}

func TestAnAddressThatIsNotOursIsRefusedByName(t *testing.T) {
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	for _, a := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "[fe80::1%nosuchif0]:80"} {
		if err := r.Listen(netip.MustParseAddrPort(a), &echo{}); err == nil || !strings.Contains(err.Error(), a) {
			t.Errorf("listen on %s: %v", a, err)
		}
	}
	if _, err := New(Config{Mode: polluxruntime.Poll}); err == nil || !strings.Contains(err.Error(), "kernel-polling") {
		t.Errorf("a mode of the other path: %v", err)
	}
}

func TestAPortThatAnotherServerHasIsRefusedByName(t *testing.T) {
	packets := func(r *Runtime, at netip.AddrPort) error { return r.ListenPacket(at, nil) }
	streams := func(r *Runtime, at netip.AddrPort) error { return r.Listen(at, &echo{}) }
	for name, listen := range map[string]func(*Runtime, netip.AddrPort) error{"TCP": streams, "UDP": packets} {
		for first := 1; first <= 2; first++ {
			for second := 1; second <= 2; second++ {
				t.Run(fmt.Sprintf("%s/%d beside %d", name, second, first), func(t *testing.T) {
					with := func(shards int) *Runtime {
						r, err := New(Config{Cores: make([]int, shards)})
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { r.Discard() })
						return r
					}
					a, b := with(first), with(second)
					if err := listen(a, anywhere); err != nil {
						t.Fatal(err)
					}
					for _, to := range []netip.AddrPort{a.Addresses()[0], reachable(a.Addresses()[0])} {
						if err := listen(b, to); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "address already in use") {
							t.Errorf("%v: %v", to, err)
						}
					}
				})
			}
		}
	}
}
