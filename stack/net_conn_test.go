package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// listen listens on right and says where left can dial it.
func listen(t testing.TB, right *looper, network string) (net.Listener, string) {
	t.Helper()
	l, err := right.Listen(network, ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return l, net.JoinHostPort(rightHost, port)
}

// joined gives both ends of a new connection from left to right.
func joined(t testing.TB, left, right *looper) (dialled, accepted net.Conn) {
	t.Helper()
	l, address := listen(t, right, "tcp")
	defer l.Close()
	dialled, err := left.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

// wantOp checks that err is a *net.OpError of op around cause.
func wantOp(t testing.TB, err error, op string, cause error) {
	t.Helper()
	var o *net.OpError
	if !errors.As(err, &o) || o.Op != op || !errors.Is(err, cause) {
		t.Errorf("error %v, want a net.OpError of %s around %v", err, op, cause)
	}
}

func TestConnBehavesAsNetConnMust(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			c1, c2 = joined(t, left, right)
			return c1, c2, func() { c1.Close(); c2.Close() }, nil
		})
	})
}

func TestConnKnowsItsAddresses(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	for _, network := range []string{"tcp", "tcp4", "tcp6"} {
		l, address := listen(t, right, network)
		from := leftHost
		if network == "tcp6" {
			_, port, _ := net.SplitHostPort(address)
			address, from = net.JoinHostPort(rightHost6, port), leftHost6
		}
		c, err := left.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().(*net.TCPAddr).String(); got != address {
			t.Errorf("%s: dialled %s, but it says %s", network, address, got)
		}
		if c.LocalAddr().String() != a.RemoteAddr().String() || c.RemoteAddr().String() != a.LocalAddr().String() {
			t.Errorf("%s: %v to %v is seen as %v to %v", network, c.LocalAddr(), c.RemoteAddr(), a.RemoteAddr(), a.LocalAddr())
		}
		if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != from {
			t.Errorf("%s: dialled from %s, want %s", network, got, from)
		}
		c.Close()
		a.Close()
	}
}

func TestListenerOfOneFamilyRefusesTheOther(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	for network, other := range map[string]string{"tcp4": rightHost6, "tcp6": rightHost} {
		l, address := listen(t, right, network)
		_, port, _ := net.SplitHostPort(address)
		c, err := left.Dial("tcp", net.JoinHostPort(other, port))
		if err == nil {
			c.Close()
		}
		wantOp(t, err, "dial", syscall.ECONNREFUSED)
		l.Close()
	}
}

func TestDialIsRefusedWhereNobodyListens(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		_, err := left.Dial("tcp", net.JoinHostPort(rightHost, "9"))
		wantOp(t, err, "dial", syscall.ECONNREFUSED)
	})
}

func TestDialFailsWithoutRoute(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	_, err := left.Dial("tcp", "192.0.2.1:80")
	var o *net.OpError
	if !errors.As(err, &o) || !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("error %v, want no route", err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	right.Stop() // nobody answers
	before := left.endpoints(t)

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := left.DialContext(ctx, "tcp", net.JoinHostPort(rightHost, "80"))
	wantOp(t, err, "dial", context.DeadlineExceeded)
	if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Errorf("%v is not a timeout", err)
	}

	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err = left.DialContext(ctx, "tcp", net.JoinHostPort(rightHost, "80"))
	wantOp(t, err, "dial", context.Canceled)
	_, err = left.DialContext(ctx, "tcp", net.JoinHostPort(rightHost, "80"))
	wantOp(t, err, "dial", context.Canceled)

	eventually(t, func() string {
		if n := left.endpoints(t); n != before {
			return "the endpoints of dials that were given up"
		}
		return ""
	})
}

func TestNamesThatAreNoneAreRefused(t *testing.T) {
	left, _ := newPair(t, Inline, nil)
	for _, c := range []struct{ call, network, address, want string }{
		{"dial", "tcp", "example.com:80", "not an IP address"},
		{"dial", "tcp", ":80", "name the host"},
		{"dial", "tcp", "[::]:80", "name the host"},
		{"dial", "tcp", rightHost, "missing port"},
		{"dial", "tcp", rightHost + ":nosuchservice", "unknown port"},
		{"dial", "tcp", rightHost + ":65536", "invalid port"},
		{"dial", "tcp4", "[fd07::2]:80", "not an address of network tcp4"},
		{"dial", "tcp6", "10.7.0.2:80", "not an address of network tcp6"},
		{"dial", "unix", "/tmp/socket", "unknown network"},
		{"dial", "tcp46", "10.7.0.2:80", "unknown network"},
		{"listen", "udp", ":80", "unknown network"},
		{"listen", "tcp", "192.0.2.1:80", "assign requested address"},
		{"packet", "tcp", ":80", "unknown network"},
		{"packet", "udp", "192.0.2.1:80", "assign requested address"},
	} {
		var err error
		switch c.call {
		case "dial":
			_, err = left.Dial(c.network, c.address)
		case "listen":
			_, err = left.Listen(c.network, c.address)
		case "packet":
			_, err = left.ListenPacket(c.network, c.address)
		}
		var o *net.OpError
		if !errors.As(err, &o) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %s: error %v, want %q in a net.OpError", c.call, c.network, c.address, err, c.want)
		}
	}
	l, _ := listen(t, left, "tcp")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_, err := left.Listen("tcp", ":"+port)
	wantOp(t, err, "listen", syscall.EADDRINUSE)
}

func TestListenerCloseUnblocksAccept(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		l, address := listen(t, right, "tcp")
		result := make(chan error)
		go func() { _, err := l.Accept(); result <- err }()
		waiting, err := left.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil { // the first Accept got it
			t.Fatal(err)
		}
		for range 2 {
			go func() { _, err := l.Accept(); result <- err }()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			wantOp(t, <-result, "accept", net.ErrClosed)
		}
		wantOp(t, l.Close(), "close", net.ErrClosed)
		waiting.Close()
		eventually(t, func() string {
			c, err := left.Dial("tcp", address)
			if err == nil {
				c.Close()
				return "a closed listener accepts"
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return err.Error()
			}
			return ""
		})
	})
}

func TestListenerCloseResetsThoseNotAccepted(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	l, address := listen(t, right, "tcp")
	c, err := left.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.Close()
	_, err = c.Read(make([]byte, 1))
	wantOp(t, err, "read", syscall.ECONNRESET)
}

func TestAcceptHasADeadline(t *testing.T) {
	_, right := newPair(t, Inline, nil)
	l, _ := listen(t, right, "tcp")
	type deadliner interface{ SetDeadline(time.Time) error }
	if err := l.(deadliner).SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := l.Accept()
	wantOp(t, err, "accept", os.ErrDeadlineExceeded)
}

// Connections beyond what the listener holds wait in the stack, and none is lost.
func TestListenerServesMoreThanItsBacklog(t *testing.T) {
	left, right := newPair(t, Inline, func(c *Config) { c.Backlog = 4 })
	l, address := listen(t, right, "tcp")
	const n = 12
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			c, err := left.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			// The peer must hear of a connection again whose handshake it had
			// to forget.
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadAll(c); err != nil {
				t.Error(err)
			}
		})
	}
	held := l.(*listener)
	eventually(t, func() string {
		held.mu.Lock()
		defer held.mu.Unlock()
		if n := len(held.queue); n > 4 {
			t.Fatalf("the listener holds %d connections, more than its backlog", n)
		}
		if !held.stalled {
			return "the listener's queue is not full"
		}
		return ""
	})
	for range n {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	wg.Wait()
}

func TestHalfClosedConnStillReads(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		c, a := joined(t, left, right)
		sent := bytes.Repeat([]byte("request "), 50_000)
		go func() {
			c.Write(sent)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("read %d of %d bytes: %v", len(got), len(sent), err)
		}
		_, err = c.Write([]byte("more"))
		wantOp(t, err, "write", syscall.EPIPE)
		if _, err := a.Write([]byte("reply")); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "reply" {
			t.Errorf("read %q: %v", got, err)
		}
	})
}

func TestCloseSendsWhatWasWritten(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		c, a := joined(t, left, right)
		// More than the peer's window, so that some of it is unsent at Close.
		sent := make([]byte, 1<<20+ringSize)
		for i := range sent {
			sent[i] = byte(i * 31 >> 8)
		}
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("read %d of %d bytes: %v", len(got), len(sent), err)
		}
	})
}

func TestCloseWithUnreadInputResets(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	c, a := joined(t, left, right)
	if _, err := a.Write([]byte("unread and more")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil { // it has arrived
		t.Fatal(err)
	}
	c.Close()
	_, err := a.Read(make([]byte, 1))
	wantOp(t, err, "read", syscall.ECONNRESET)
	_, err = a.Write([]byte("x"))
	wantOp(t, err, "write", syscall.ECONNRESET)
}

// Input that arrives before a reset can be read after it.
func TestInputBeforeAResetIsRead(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	c, a := joined(t, left, right)
	if _, err := a.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { return missing(c, 10) })
	eventually(t, func() string { return missing(a, 10) })
	a.Close() // resets
	_, err := c.Write([]byte("x"))
	for err == nil {
		_, err = c.Write([]byte("x"))
	}
	wantOp(t, err, "write", syscall.ECONNRESET)
	got, err := io.ReadAll(c)
	wantOp(t, err, "read", syscall.ECONNRESET)
	if string(got) != "last words" {
		t.Errorf("read %q", got)
	}
}

// missing complains while fewer than n bytes wait to be read.
func missing(c net.Conn, n int) string {
	k := c.(*conn)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.in.n < n {
		return "input is missing"
	}
	return ""
}

// A reader that stops reading stops the writer, with bounded memory between.
func TestUnreadInputHoldsTheWriterOff(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		c, a := joined(t, left, right)
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		written, chunk := 0, make([]byte, 1<<20)
		for {
			n, err := c.Write(chunk)
			written += n
			if err != nil {
				wantOp(t, err, "write", os.ErrDeadlineExceeded)
				break
			}
			if written > 64<<20 {
				t.Fatal("nothing holds the writer off")
			}
		}
		if bound := right.Config().ReceiveBuffer.Max + left.Config().SendBuffer.Max + 3*ringSize; written > bound {
			t.Errorf("%d bytes were written, of which %d can be held", written, bound)
		}
		// And once the reader goes on, so does everything else.
		c.SetWriteDeadline(time.Time{})
		go func() { c.Write([]byte("end")); c.Close() }()
		n, err := io.Copy(io.Discard, a)
		if err != nil || n != int64(written)+3 {
			t.Errorf("read %d of %d bytes: %v", n, written+3, err)
		}
	})
}

func TestClosedConnSaysSo(t *testing.T) {
	left, right := newPair(t, Inline, nil)
	c, _ := joined(t, left, right)
	blocked := make(chan error)
	go func() { _, err := c.Read(make([]byte, 1)); blocked <- err }()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wantOp(t, <-blocked, "read", net.ErrClosed)
	_, err := c.Read(make([]byte, 1))
	wantOp(t, err, "read", net.ErrClosed)
	_, err = c.Write([]byte("x"))
	wantOp(t, err, "write", net.ErrClosed)
	wantOp(t, c.SetDeadline(time.Now()), "set", net.ErrClosed)
	wantOp(t, c.Close(), "close", net.ErrClosed)
}

func TestStackCloseFailsEverybodyWhoWaits(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		c, _ := joined(t, left, right)
		full, _ := joined(t, left, right)
		l, _ := listen(t, left, "tcp")
		p, err := left.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		waiters := []func() error{
			func() error { _, err := c.Read(make([]byte, 1)); return err },
			func() error {
				for {
					if _, err := full.Write(make([]byte, 1<<20)); err != nil {
						return err
					}
				}
			},
			func() error { _, err := l.Accept(); return err },
			func() error { _, _, err := p.ReadFrom(make([]byte, 1)); return err },
			// Nobody has this address, and the stack asks for it for seconds.
			func() error { _, err := left.Dial("tcp", "10.7.0.77:80"); return err },
		}
		for _, w := range waiters {
			go func() { results <- w() }()
		}
		time.Sleep(20 * time.Millisecond)
		left.Stop()
		for range waiters {
			if err := <-results; !errors.Is(err, net.ErrClosed) {
				t.Errorf("error %v, want %v", err, net.ErrClosed)
			}
		}
		_, err = left.Dial("tcp", net.JoinHostPort(rightHost, "80"))
		wantOp(t, err, "dial", net.ErrClosed)
		_, err = left.Listen("tcp", ":80")
		wantOp(t, err, "listen", net.ErrClosed)
		_, err = left.ListenPacket("udp", ":80")
		wantOp(t, err, "listen", net.ErrClosed)
		for _, closer := range []io.Closer{c, full, l, p} {
			if err := closer.Close(); err != nil {
				t.Errorf("the first Close after the stack's: %v", err)
			}
		}
	})
}

// The mailbox may be full of other work: flushes have a place of their own.
func TestFullMailboxLosesNoWrite(t *testing.T) {
	left, right := newPair(t, Inline, func(c *Config) { c.MailboxLimit = 1 })
	c, a := joined(t, left, right)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	refused := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if !left.Post(func() {}) {
					refused++
				}
			}
		}
	})
	go io.Copy(a, a)
	b := make([]byte, 100)
	for range 500 {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if refused == 0 {
		t.Error("the mailbox was never full")
	}
}

// However slow the reader: it gets all that came before a reset, and then the
// reset, not an end that looks as if there had been no more.
func TestAResetIsNoEndForASlowReader(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		c, a := joined(t, left, right)
		sent := make([]byte, 5*ringSize)
		for i := range sent {
			sent[i] = byte(i * 31 >> 8)
		}
		if _, err := c.Write([]byte("never read")); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string { return missing(a, 10) })
		if _, err := a.Write(sent); err != nil {
			t.Fatal(err)
		}
		k := c.(*conn)
		eventually(t, func() (complaint string) {
			left.gate.do(func() {
				queued, _ := k.socket.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
				k.mu.Lock()
				defer k.mu.Unlock()
				if n := k.in.n + queued; n < len(sent) || !k.stalled {
					complaint = fmt.Sprintf("%d of %d bytes have arrived", n, len(sent))
				}
			})
			return complaint
		})
		a.Close() // resets
		eventually(t, func() string {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.failed == nil {
				return "no reset"
			}
			return ""
		})
		_, err := c.Write([]byte("x"))
		wantOp(t, err, "write", syscall.ECONNRESET)
		got, err := io.ReadAll(c)
		wantOp(t, err, "read", syscall.ECONNRESET)
		if !bytes.Equal(got, sent) {
			t.Errorf("read %d of %d bytes", len(got), len(sent))
		}
	})
}

// deaf is an owner that looks at its socket only when the test does.
type deaf struct{}

func (deaf) Ready(*Socket) {}

func TestASocketSaysEachTimeWhyItFailed(t *testing.T) {
	calls := map[string]func(*Socket) error{
		"Err":    func(k *Socket) error { return k.Err() },
		"Read":   func(k *Socket) error { _, err := k.Read(make([]byte, 1)); return err },
		"ReadTo": func(k *Socket) error { _, err := k.ReadTo(io.Discard); return err },
		"Write":  func(k *Socket) error { _, err := k.Write([]byte("x")); return err },
	}
	left, right := newPair(t, Inline, nil)
	for first := range calls {
		var k *Socket
		var listener *Listener
		address := netip.MustParseAddrPort(rightHost + ":80")
		right.gate.do(func() {
			var err error
			listener, err = right.ListenEvents(address, func(s *Socket) Owner {
				k = s
				k.Write([]byte("unread"))
				return deaf{}
			})
			if err != nil {
				t.Error(err)
			}
		})
		c, err := left.Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string { return missing(c, 6) })
		c.Close() // resets
		eventually(t, func() (complaint string) {
			right.gate.do(func() {
				if k.ep.EndpointState() != tcp.StateError {
					complaint = "no reset"
				}
			})
			return complaint
		})
		right.gate.do(func() {
			for _, name := range []string{first, "Err", "Read", "ReadTo", "Write"} {
				if err := calls[name](k); err != syscall.ECONNRESET {
					t.Errorf("%s first: %s says %v", first, name, err)
				}
			}
			k.Close()
			listener.Close()
		})
	}
}
