package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// body is what holds on every path. Nothing in it knows which one it is.
var body = []struct {
	promise string
	holds   func(*testing.T, *server)
}{
	{"both families are served and a handler knows the addresses", bothFamilies},
	{"a handler may speak first", speaksFirst},
	{"a half-closed connection gets its replies", halfClosed},
	{"a client that says nothing ends in order", saysNothing},
	{"bytes may come one by one", oneByOne},
	{"what a handler leaves is handed over again", leftOver},
	{"Close sends what was written before it", closeSends},
	{"nothing is handled after Close", nothingAfterClose},
	{"Abort resets", abortResets},
	{"a client's reset is told", clientResets},
	{"clients may vanish in the middle of a reply", vanish},
	{"a slow reader does not make the server grow and gets everything", slowReader},
	{"a client that only sends is held back and loses nothing", onlySends},
	{"others are served while one does not read", othersServed},
	{"a giant pipeline is answered whole and in order", giantPipeline},
	{"values of every size survive", bigValues},
	{"a thousand connections are served at once", manyAtOnce},
	{"datagrams of every size are answered from where they were sent to", datagrams},
	{"ten thousand short connections are served", shortConnections},
}

func bothFamilies(t *testing.T, s *server) {
	for _, a := range []netip.Addr{lab.ServerIPv4.Addr(), lab.ServerIPv6.Addr()} {
		c := s.dialTo(t, a, linesPort)
		c.send(t, []byte("addresses\n"))
		if err := c.expect(fmt.Appendf(nil, "%v %v\n", c.RemoteAddr(), c.LocalAddr())); err != nil {
			t.Errorf("over %v: %v", a, err)
		}
		c = s.dialTo(t, a, echoPort)
		c.echoes(t, bytes.Repeat([]byte(a.String()), 10_000))
	}
}

func speaksFirst(t *testing.T, s *server) {
	c := s.dial(t, greeterPort)
	if err := c.expect([]byte("hello\n")); err != nil {
		t.Error(err)
	}
	c.send(t, []byte("hello yourself\n"))
	if err := c.expect([]byte("good bye\n")); err != nil {
		t.Error(err)
	}
	c.ends(t, nil)
}

func halfClosed(t *testing.T, s *server) {
	before := s.report(t)
	for _, size := range []int{0, 1, 8 << 20} {
		c := s.dial(t, echoPort)
		sent := pattern(size)
		failed := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			failed <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err = errors.Join(err, <-failed); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came back, the same: %v; %v", len(got), size, bytes.HasPrefix(sent, got), err)
		}
	}
	if how := s.ended(t, before, 3); how[inOrder] != 3 {
		t.Errorf("the connections ended so: %v", how)
	}
	// The client has closed its side before the handler could say anything.
	c := s.dial(t, linesPort)
	c.send(t, []byte("one\ntwo\nhalf a line"))
	c.CloseWrite()
	if err := c.expect([]byte("one\ntwo\n")); err != nil {
		t.Error(err)
	}
	c.ends(t, nil)
}

// pattern is size bytes of which none is like its neighbours for long.
func pattern(size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}

func saysNothing(t *testing.T, s *server) {
	before := s.report(t)
	const each = 20
	for i := range 2 * each {
		c := s.dial(t, echoPort)
		if n, err := c.Write(nil); n != 0 || err != nil { // no segment comes of it
			t.Fatal(n, err)
		}
		if i%2 == 0 {
			c.CloseWrite()
			c.ends(t, nil)
		}
		c.Close()
	}
	if how := s.ended(t, before, 2*each); how[inOrder] != 2*each {
		t.Errorf("the connections ended so: %v", how)
	}
}

func oneByOne(t *testing.T, s *server) {
	c := s.dial(t, linesPort)
	for n := range 20 {
		line := fmt.Sprintf("line %d\n", n)
		for i := range line {
			c.send(t, []byte(line[i:i+1])) // TCP_NODELAY is Go's default
		}
		if err := c.expect([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
}

func leftOver(t *testing.T, s *server) {
	const seed, size = 3, 70_000
	c := s.dial(t, sevensPort)
	rng := rand.New(rand.NewPCG(seed, 0))
	for p := pattern(size); len(p) > 0; {
		n := min(1+rng.IntN(3000), len(p))
		c.send(t, p[:n])
		p = p[n:]
	}
	if err := c.expect(bytes.Repeat([]byte("."), size/7)); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	c.CloseWrite()
	c.ends(t, nil)
}

func closeSends(t *testing.T, s *server) {
	before := s.report(t)
	for _, size := range []int{1, 20 << 20} {
		c := s.dial(t, linesPort)
		c.send(t, fmt.Appendf(nil, "big %d\n", size))
		time.Sleep(20 * time.Millisecond) // Close has been called, and not all is sent
		if err := c.expect(bytes.Repeat([]byte("b"), size)); err != nil {
			t.Error(err)
		}
		c.ends(t, nil)
	}
	if how := s.ended(t, before, 2); how[inOrder] != 2 {
		t.Errorf("the connections ended so: %v", how)
	}
}

func nothingAfterClose(t *testing.T, s *server) {
	before := s.report(t)
	// The lines behind "bye" are not for the handler, in the same segment or not.
	c := s.dial(t, linesPort)
	c.send(t, []byte("one\nbye\ntwo\nthree\n"))
	if err := c.expect([]byte("one\nbye\n")); err != nil {
		t.Error(err)
	}
	c.ends(t, nil)
	// Also while Close waits for what is unsent.
	const size = 20 << 20
	c = s.dial(t, linesPort)
	c.send(t, fmt.Appendf(nil, "big %d\n", size))
	time.Sleep(20 * time.Millisecond)
	c.send(t, []byte("one\ntwo\n"))
	if n, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Errorf("%d of %d bytes, then %v", n, size, err)
	}
	if how := s.ended(t, before, 2); how[inOrder] != 2 {
		t.Errorf("the connections ended so: %v", how)
	}
}

func abortResets(t *testing.T, s *server) {
	before := s.report(t)
	c := s.dial(t, linesPort)
	c.send(t, []byte("one\n"))
	if err := c.expect([]byte("one\n")); err != nil {
		t.Error(err)
	}
	c.send(t, []byte("abort\ntwo\n"))
	c.ends(t, syscall.ECONNRESET)
	if how := s.ended(t, before, 1); how[other] != 1 {
		t.Errorf("the connection ended so: %v", how)
	}
}

func clientResets(t *testing.T, s *server) {
	before := s.report(t)
	idle := s.dial(t, echoPort)
	idle.echoes(t, []byte("x"))
	idle.reset(t)
	// One that is held back, so that nothing is read of it.
	held := s.dial(t, floodPort)
	held.send(t, make([]byte, 1000))
	if _, err := io.ReadFull(held, make([]byte, floodSize)); err != nil {
		t.Fatal(err)
	}
	held.reset(t)
	if how := s.ended(t, before, 2); how[reset] != 2 {
		t.Errorf("the connections ended so: %v", how)
	}
}

func vanish(t *testing.T, s *server) {
	const seed = 11
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		c := s.dial(t, floodPort)
		c.send(t, bytes.Repeat([]byte("v"), 1+rng.IntN(40)))
		if n := rng.IntN(3 * floodSize); n < floodSize {
			io.CopyN(io.Discard, c, int64(n))
		}
		if rng.IntN(2) == 0 {
			c.reset(t)
		} else {
			c.Close() // with unread bytes: a reset, too
		}
	}
	c := s.dial(t, echoPort)
	c.echoes(t, []byte("still there"))
}

func slowReader(t *testing.T, s *server) {
	const requests = 400 // 26 MB of replies
	c := s.dial(t, floodPort)
	if err := c.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	sent := pattern(requests)
	c.send(t, sent)
	eventually(t, "the output reaches the limit", func() bool { return s.report(t).Most >= runtime.OutputLimit })
	for i := range requests {
		if err := c.expect(bytes.Repeat(sent[i:i+1], floodSize)); err != nil {
			t.Fatalf("reply %d: %v", i, err)
		}
		if i%40 == 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
	if most := s.report(t).Most; most > runtime.OutputLimit+floodSize {
		t.Errorf("%d bytes were buffered, the limit is %d", most, runtime.OutputLimit)
	}
}

func onlySends(t *testing.T, s *server) {
	c := s.dial(t, echoPort)
	if err := c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent, err := io.Copy(c, &endless{})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes went, then %v", sent, err)
	}
	if sent > 64<<20 {
		t.Errorf("%d bytes were taken from a client that reads nothing", sent)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// What was taken is handled and comes back.
	want := &endless{}
	got, buffer, expected := int64(0), make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := c.Read(buffer)
		want.Read(expected[:n])
		if !bytes.Equal(buffer[:n], expected[:n]) {
			t.Fatalf("other bytes than were sent, after %d", got)
		}
		got += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got != sent {
		t.Errorf("%d bytes of %d came back", got, sent)
	}
}

// endless is a stream in which bytes differ from those 256 and 65536 before.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e.n ^ e.n>>8 ^ e.n>>16)
		e.n++
	}
	return len(p), nil
}

func othersServed(t *testing.T, s *server) {
	stuck := s.dial(t, floodPort)
	stuck.send(t, make([]byte, 1000))
	eventually(t, "the output reaches the limit", func() bool { return s.report(t).Most >= runtime.OutputLimit })
	c := s.dial(t, echoPort)
	for n := range 200 {
		c.echoes(t, fmt.Appendf(nil, "request %d", n))
	}
	stuck.reset(t)
}

func giantPipeline(t *testing.T, s *server) {
	const commands = 50_000
	var requests, replies bytes.Buffer
	for i := range commands {
		value := strconv.Itoa(i)
		switch i % 3 {
		case 0:
			fmt.Fprintf(&requests, "set key%d 0 0 %d\r\n%s\r\n", i%100, len(value), value)
			replies.WriteString("STORED\r\n")
		case 1:
			fmt.Fprintf(&requests, "get key%d\r\n", (i-1)%100)
			value = strconv.Itoa(i - 1)
			fmt.Fprintf(&replies, "VALUE key%d 0 %d\r\n%s\r\nEND\r\n", (i-1)%100, len(value), value)
		case 2:
			requests.WriteString("get absent\r\n")
			replies.WriteString("END\r\n")
		}
	}
	requests.WriteString("quit\r\n")
	c := s.dial(t, memcachedPort)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(requests.Bytes())
		failed <- err
	}()
	if err := c.expect(replies.Bytes()); err != nil {
		t.Error(err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	c.ends(t, nil)
}

func bigValues(t *testing.T, s *server) {
	for _, a := range []netip.Addr{lab.ServerIPv4.Addr(), lab.ServerIPv6.Addr()} {
		c := s.dialTo(t, a, memcachedPort)
		for _, size := range []int{0, 1, 1447, 1448, 1449, 65_535, 65_536, 1_000_000} {
			value := pattern(size)
			c.send(t, fmt.Appendf(nil, "set big 0 0 %d\r\n%s\r\nget big\r\n", size, value))
			if err := c.expect(fmt.Appendf(nil, "STORED\r\nVALUE big 0 %d\r\n%s\r\nEND\r\n", size, value)); err != nil {
				t.Fatalf("%d bytes over %v: %v", size, a, err)
			}
		}
	}
}

func manyAtOnce(t *testing.T, s *server) {
	before := s.report(t)
	var all []connection
	for range 1000 {
		all = append(all, s.dial(t, echoPort))
	}
	for round := range 3 {
		for i, c := range all {
			c.send(t, fmt.Appendf(nil, "round %d, connection %d", round, i))
		}
		for i, c := range all {
			if err := c.expect(fmt.Appendf(nil, "round %d, connection %d", round, i)); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	if r := s.report(t); r.Opened-r.Closed != len(all) {
		t.Errorf("%d connections are open", r.Opened-r.Closed)
	}
	for _, c := range all {
		c.Close()
	}
	if how := s.ended(t, before, len(all)); how[inOrder] != len(all) {
		t.Errorf("the connections ended so: %v", how)
	}
}

func datagrams(t *testing.T, s *server) {
	for _, a := range []netip.Addr{lab.ServerIPv4.Addr(), lab.ServerIPv6.Addr()} {
		to := netip.AddrPortFrom(a, mirrorPort)
		var c net.Conn // connected: what comes from elsewhere does not reach it
		err := s.lab.Do(lab.Client, func() (err error) {
			c, err = net.Dial("udp", to.String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// A datagram may be lost, and is sent again then.
		ask := func(p, want []byte) {
			t.Helper()
			got := make([]byte, 64<<10)
			for range 20 {
				if _, err := c.Write(p); err != nil {
					t.Fatalf("%d bytes to %v: %v", len(p), to, err)
				}
				c.SetReadDeadline(time.Now().Add(patience / 20))
				n, err := c.Read(got)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil || !bytes.Equal(got[:n], want) {
					t.Errorf("%d bytes to %v: %d came back, not the same: %v", len(p), to, n, err)
				}
				return
			}
			t.Errorf("%d bytes to %v: no answer", len(p), to)
		}
		for _, size := range []int{0, 1, 100, 1400, 4000, 65_507} {
			ask(pattern(size), pattern(size))
		}
		ask([]byte("where"), []byte(to.String()))
	}
}

func shortConnections(t *testing.T, s *server) {
	const clients, each = 20, 500
	before := s.report(t)
	// Both ends close first in turn, and one in ten is reset.
	var wait sync.WaitGroup
	var mu sync.Mutex
	wrong := map[string]int{}
	for client := range clients {
		wait.Go(func() {
			for n := range each {
				if err := short(s, n); err != nil {
					mu.Lock()
					wrong[fmt.Sprintf("client %d: %v", client, err)]++
					mu.Unlock()
				}
			}
		})
	}
	wait.Wait()
	if len(wrong) > 0 {
		t.Errorf("%d kinds of failure, among them %s", len(wrong), strings.Join(firstOf(wrong, 5), "; "))
	}
	how := s.ended(t, before, clients*each)
	if how[inOrder] < clients*each*9/10 || how[inOrder]+how[reset] != clients*each {
		t.Errorf("the connections ended so: %v", how)
	}
}

func firstOf(m map[string]int, n int) (some []string) {
	for k := range maps.Keys(m) {
		if some = append(some, k); len(some) == n {
			break
		}
	}
	return some
}

// short opens a connection, has a line repeated, and ends it in one of the ways.
func short(s *server, n int) error {
	c, err := s.connect(lab.ServerIPv4.Addr(), linesPort)
	if err != nil {
		return err
	}
	defer c.Close()
	line := fmt.Appendf(nil, "line %d\n", n)
	if _, err := c.Write(line); err != nil {
		return err
	}
	if err := c.expect(line); err != nil {
		return err
	}
	switch {
	case n%10 == 9:
		return c.SetLinger(0)
	case n%2 == 0:
		return nil
	}
	if _, err := io.WriteString(c, "bye\n"); err != nil {
		return err
	}
	if err := c.expect([]byte("bye\n")); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		return fmt.Errorf("%d bytes and %w after the end", n, err)
	}
	return nil
}
