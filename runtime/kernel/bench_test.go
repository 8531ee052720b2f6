package kernel

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// respond answers every 32-byte request with 100 bytes, about a GET and its hit.
var respond = function(func(c polluxruntime.Conn, in []byte) int {
	n := 0
	for ; n+requestSize <= len(in); n += requestSize {
		c.Write(reply[:])
	}
	return n
})

const requestSize = 32

var reply [100]byte

// blockingClient is a socket that blocks, without Go's network poller.
func blockingClient(b testing.TB, r *Runtime) int {
	b.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	a := r.Addresses()[0]
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		b.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		b.Fatal(err)
	}
	return fd
}

// round sends requests on each connection and waits for all replies.
func round(b testing.TB, fds []int, requests, replies []byte) {
	for _, fd := range fds {
		if n, err := unix.Write(fd, requests); n != len(requests) {
			b.Fatal(err)
		}
	}
	for _, fd := range fds {
		for got := 0; got < len(replies); {
			n, err := unix.Read(fd, replies[got:])
			if n <= 0 {
				b.Fatal(n, err)
			}
			got += n
		}
	}
}

func buffersOf(depth int) (requests, replies []byte) {
	return bytes.Repeat([]byte("r"), depth*requestSize), make([]byte, depth*len(reply))
}

// BenchmarkLoopback is the whole of a request over the loopback, the client's
// half included. The figure to look at is ns-busy, the loop's time a request.
func BenchmarkLoopback(b *testing.B) {
	for _, c := range []struct{ connections, depth int }{{1, 1}, {16, 1}, {16, 16}} {
		b.Run(fmt.Sprintf("connections=%d/depth=%d", c.connections, c.depth), func(b *testing.B) {
			cores, err := affinity.Allowed()
			if err != nil {
				b.Fatal(err)
			}
			r := serve(b, Config{Cores: cores[:1]}, loopback4, respond)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var fds []int
			for range c.connections {
				fds = append(fds, blockingClient(b, r))
			}
			requests, replies := buffersOf(c.depth)
			round(b, fds, requests, replies)
			before := statistics(b, r)[0]
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				round(b, fds, requests, replies)
			}
			after := statistics(b, r)[0]
			served := float64(after.ReadBytes-before.ReadBytes) / requestSize
			b.ReportMetric(served/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(after.Busy-before.Busy)/served, "ns-busy/request")
			b.ReportMetric(float64(after.Waits-before.Waits)/served, "waits/request")
			b.ReportMetric(float64(after.BlockingWaits-before.BlockingWaits)/served, "blocking/request")
		})
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	r := serve(t, Config{}, loopback4, respond)
	fds := []int{blockingClient(t, r), blockingClient(t, r)}
	requests, replies := buffersOf(8)
	for range 100 {
		round(t, fds, requests, replies)
	}
	if n := testing.AllocsPerRun(1000, func() { round(t, fds, requests, replies) }); n > 0 {
		t.Errorf("%v allocations for 16 requests", n)
	}
}

func TestADatagramAllocatesNothing(t *testing.T) {
	r, _ := listenPacket(t, loopback4)
	c := talk(t, r.Addresses()[0])
	p := make([]byte, 64)
	exchange := func() {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(p); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if n := testing.AllocsPerRun(1000, exchange); n > 0 {
		t.Errorf("%v allocations for a datagram", n)
	}
}
