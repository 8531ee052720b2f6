package memcached_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

// onBothPaths runs a test against a server of its own on each path; dial makes a
// connection to it, of TCP or UDP.
func onBothPaths(t *testing.T, o memcached.Options, test func(t *testing.T, server *memcached.Server, dial func(network string) net.Conn)) {
	newServer := func(t *testing.T) *memcached.Server {
		o.Seed = 1
		server, err := memcached.New(o)
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	opened := func(t *testing.T, c net.Conn, err error) net.Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		return c
	}
	type shutter interface{ Shutdown(context.Context) error }
	shut := func(t *testing.T, r shutter) {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			r.Shutdown(ctx) // what the test left unread is reset
		})
	}
	t.Run(string(runtime.Kernel), func(t *testing.T) {
		server := newServer(t)
		r, address := listenOn(t, server)
		shut(t, r)
		test(t, server, func(network string) net.Conn {
			c, err := net.Dial(network, address.String())
			return opened(t, c, err)
		})
	})
	t.Run(string(runtime.User), func(t *testing.T) {
		server := newServer(t)
		link, err := wire.New(wire.Config{})
		if err != nil {
			t.Fatal(err)
		}
		address := netip.MustParseAddrPort("10.99.0.1:11211")
		stacks := make([]*user.Runtime, 2)
		for i, side := range []wire.Side{wire.A, wire.B} {
			prefix := netip.MustParsePrefix(fmt.Sprintf("10.99.0.%d/24", i+1))
			if stacks[i], err = user.New(link.Port(side), user.Config{Stack: stack.Config{Addresses: []netip.Prefix{prefix}}}); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				if err := stacks[i].Listen(address, server); err != nil {
					t.Fatal(err)
				}
				if err := stacks[i].ListenPacket(address, server); err != nil {
					t.Fatal(err)
				}
			}
			if err := stacks[i].Start(); err != nil {
				t.Fatal(err)
			}
			shut(t, stacks[i])
		}
		test(t, server, func(network string) net.Conn {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			c, err := stacks[1].Stack(0).DialContext(ctx, network, address.String())
			return opened(t, c, err)
		})
	})
}

// listenOn serves TCP and UDP on the same port of loopback, on the kernel path.
func listenOn(t *testing.T, server *memcached.Server) (*kernel.Runtime, netip.AddrPort) {
	t.Helper()
	for range 20 { // until a port is free for both
		r, err := kernel.New(kernel.Config{})
		if err != nil {
			t.Fatal(err)
		}
		err = r.Listen(netip.MustParseAddrPort("127.0.0.1:0"), server)
		if err == nil {
			err = r.ListenPacket(r.Addresses()[0], server)
		}
		if err != nil {
			r.Discard()
			continue
		}
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		return r, r.Addresses()[0]
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil, netip.AddrPort{}
}

// Idle is who sends nothing, and who has replies waiting and takes none of them.
func TestAnIdleConnectionIsClosedOnBothPaths(t *testing.T) {
	onBothPaths(t, memcached.Options{IdleTimeout: time.Second}, func(t *testing.T, server *memcached.Server, dial func(string) net.Conn) {
		silent, deaf := dial("tcp"), dial("tcp")
		value := strings.Repeat("v", 100000)
		go fmt.Fprintf(deaf, "set a 0 0 %d\r\n%s\r\n%s", len(value), value, strings.Repeat("get a\r\n", 1000))
		if _, err := io.WriteString(silent, "version\r\nget a"); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(silent); string(all) != "VERSION 1.6.18\r\n" || err != nil {
			t.Errorf("got %q, %v", all, err)
		}
		eventually(t, "both are closed", func() bool { return server.Statistics().Conns == 0 })
		if s := server.Statistics(); s.IdleKicks != 2 || s.Uptime < 2 || s.GetHits == 1000 {
			t.Errorf("%d kicks after %d s, %d replies to one that does not read", s.IdleKicks, s.Uptime, s.GetHits)
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a minute has passed without: %s", what)
		}
	}
}

func TestOneConnectionTooManyIsToldSoOnBothPaths(t *testing.T) {
	onBothPaths(t, memcached.Options{MaxConns: 2}, func(t *testing.T, server *memcached.Server, dial func(string) net.Conn) {
		version := func(c net.Conn) {
			t.Helper()
			if _, err := io.WriteString(c, "version\r\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(c).ReadString('\n'); line != "VERSION 1.6.18\r\n" {
				t.Fatalf("got %q, %v", line, err)
			}
		}
		first, second := dial("tcp"), dial("tcp")
		version(first)
		version(second)
		if all, err := io.ReadAll(dial("tcp")); string(all) != "ERROR Too many open connections\r\n" || err != nil {
			t.Errorf("the third is told %q, %v", all, err)
		}
		version(first)
		second.Close()
		eventually(t, "the second has left", func() bool { return server.Statistics().Conns == 1 })
		version(dial("tcp"))
		if s := server.Statistics(); s.ConnsOpened != 3 || s.ConnsRejected != 1 {
			t.Errorf("%d were opened, %d rejected", s.ConnsOpened, s.ConnsRejected)
		}
	})
}

// A line without an end is given up after 2 KiB, a value that is too large is
// thrown away as it comes: neither is kept.
func TestWhatIsTooLongIsNotKeptOnBothPaths(t *testing.T) {
	onBothPaths(t, memcached.Options{}, func(t *testing.T, server *memcached.Server, dial func(string) net.Conn) {
		endless := dial("tcp")
		if _, err := io.WriteString(endless, strings.Repeat("x", 3000)); err != nil {
			t.Fatal(err)
		}
		if _, err := endless.Read(make([]byte, 1)); err == nil {
			t.Error("a line of 3,000 bytes without an end is answered")
		}

		var before, after goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		const size = 32 << 20
		large := dial("tcp")
		fmt.Fprintf(large, "set a 0 0 %d\r\n", size+2)
		piece := make([]byte, 1<<20)
		for range size / len(piece) {
			if _, err := large.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the value has arrived", func() bool { return server.Statistics().BytesRead > size })
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > size/2 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		if _, err := io.WriteString(large, "xx\r\nversion\r\n"); err != nil {
			t.Fatal(err)
		}
		want := "SERVER_ERROR object too large for cache\r\nVERSION 1.6.18\r\n"
		if n, err := io.ReadFull(large, piece[:len(want)]); string(piece[:n]) != want {
			t.Errorf("got %q, %v", piece[:n], err)
		}
	})
}

func TestDatagramsAreAnsweredOnBothPaths(t *testing.T) {
	onBothPaths(t, memcached.Options{}, func(t *testing.T, _ *memcached.Server, dial func(string) net.Conn) {
		value := strings.Repeat("0123456789", 500)
		tcp, udp := dial("tcp"), dial("udp")
		fmt.Fprintf(tcp, "set a 0 0 %d\r\n%s\r\n", len(value), value)
		if line, err := bufio.NewReader(tcp).ReadString('\n'); line != "STORED\r\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		// UDP may lose the first to address resolution.
		want := fmt.Sprintf("VALUE a 0 %d\r\n%s\r\nEND\r\n", len(value), value)
		for id := byte(1); ; id++ {
			udp.Write([]byte("\x00" + string(id) + "\x00\x00\x00\x01\x00\x00get a\r\n"))
			udp.SetReadDeadline(time.Now().Add(time.Second))
			var got string
			b := make([]byte, 2000)
			for len(got) < len(want) {
				n, err := udp.Read(b)
				if err != nil {
					break
				}
				if b[1] == id {
					got += string(b[8:n])
				}
			}
			if got == want {
				break
			}
			if id == 20 {
				t.Fatalf("20 requests, the last answered with %d of %d bytes", len(got), len(want))
			}
		}
	})
}

// A client that sends 100,000 commands and reads nothing makes the server hold
// what a connection may have waiting, and not more; then it gets every reply.
func TestAPipelineThatIsNotReadDoesNotGrowTheServerOnBothPaths(t *testing.T) {
	onBothPaths(t, memcached.Options{}, func(t *testing.T, server *memcached.Server, dial func(string) net.Conn) {
		const commands = 100000
		value := strings.Repeat("v", 1000)
		c := dial("tcp")
		fmt.Fprintf(c, "set a 0 0 %d\r\n%s\r\n", len(value), value)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); line != "STORED\r\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		var before, after goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, strings.Repeat("get a\r\n", commands))
			sent <- err
		}()
		// Until the server has stopped to answer.
		for last, same := uint64(0), 0; same < 20; time.Sleep(10 * time.Millisecond) {
			if hits := server.Statistics().GetHits; hits == last && hits > 0 {
				same++
			} else {
				last, same = hits, 0
			}
		}
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		if hits := server.Statistics().GetHits; hits > commands/2 {
			t.Errorf("%d commands were answered although nothing was read", hits)
		}
		// Buffers of TCP on both sides, in this process on the user path, are
		// included.
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		one := fmt.Sprintf("VALUE a 0 %d\r\n%s\r\nEND\r\n", len(value), value)
		b := make([]byte, len(one))
		for i := range commands {
			if _, err := io.ReadFull(r, b); err != nil || string(b) != one {
				t.Fatalf("reply %d: %v", i, err)
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}
