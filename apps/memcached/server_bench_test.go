package memcached_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// BenchmarkServer is the whole server on the user path: driver, stack, loop and
// memcached, over an in-memory wire, one P. 64 connections get a value of 100
// bytes, one request or 16 in a segment; ns/op is per request and includes the
// benchmark's client. "inline" over "handoff" is what our dispatch gains.
func BenchmarkServer(b *testing.B) {
	for _, depth := range []int{1, 16} {
		for _, dispatch := range []stack.Dispatch{stack.Handoff, stack.Inline} {
			b.Run(fmt.Sprintf("get/depth=%d/%s", depth, dispatch), func(b *testing.B) { benchmarkGet(b, dispatch, depth) })
		}
	}
}

func benchmarkGet(b *testing.B, dispatch stack.Dispatch, depth int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	link, err := wire.New(wire.Config{ReceiveChecksum: true, SegmentTCP: true, PartialChecksums: true})
	if err != nil {
		b.Fatal(err)
	}
	server, err := memcached.New(memcached.Options{})
	if err != nil {
		b.Fatal(err)
	}
	port := link.Port(wire.A)
	r, err := user.New(port, user.Config{Tick: server.Tick, Stack: stack.Config{
		Addresses: []netip.Prefix{netip.PrefixFrom(stacktest.ServerAddress, 24)}, Dispatch: dispatch,
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Discard()
	if err := r.Listen(netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort), server); err != nil {
		b.Fatal(err)
	}
	peer := stacktest.NewPeer(b, link.Port(wire.B), port.Address())
	start := time.Now()
	step := func() {
		peer.Transmit()
		r.Step(time.Since(start))
		peer.Receive()
	}
	until := func(what string, done func() bool) {
		for tries := 0; !done(); tries++ {
			if tries > 1_000_000 {
				b.Fatalf("%s: does not happen", what)
			}
			step()
		}
	}
	conns := make([]*stacktest.Conn, 64)
	for i := range conns {
		c := peer.Connect(uint16(10000 + i))
		until("connect", func() bool { return c.Established })
		conns[i] = c
	}
	const key = "key_0000000000000000000000"
	value := bytes.Repeat([]byte{'v'}, 100)
	peer.Send(conns[0], fmt.Appendf(nil, "set %s 0 0 100\r\n%s\r\n", key, value))
	until("set", func() bool { return conns[0].Received == len("STORED\r\n") })
	conns[0].Received = 0
	request := bytes.Repeat([]byte("get "+key+"\r\n"), depth)
	reply := depth * len(fmt.Appendf(nil, "VALUE %s 0 100\r\n%s\r\nEND\r\n", key, value))

	// round has every connection ask once, in bursts of 32, and waits.
	round := func() {
		const burst = 32
		for i := 0; i < len(conns); i += burst {
			batch := conns[i : i+burst]
			for _, c := range batch {
				peer.Send(c, request)
			}
			until("get", func() bool {
				for _, c := range batch {
					if c.Received < reply {
						return false
					}
				}
				return true
			})
			for _, c := range batch {
				c.Received -= reply
			}
		}
	}
	round()
	frames := peer.Frames
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	for ; n < b.N; n += len(conns) * depth {
		round()
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/req")
	b.ReportMetric(float64(peer.Frames-frames)/float64(n), "frames-out/req")
}
