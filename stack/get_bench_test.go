package stack

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// replier answers every read with the same reply, as a 100-byte GET is.
type replier struct {
	buffer [4096]byte
	output []byte
	reply  []byte
	served int
}

func (r *replier) Ready(k *Socket) {
	for {
		n, err := k.Read(r.buffer[:])
		if err != nil || n == 0 {
			return
		}
		r.output = r.output[:0]
		for range bytes.Count(r.buffer[:n], []byte("\r\n")) {
			r.served++
			r.output = append(r.output, r.reply...)
		}
		if _, err := k.Write(r.output); err != nil {
			panic(err)
		}
	}
}

// bench is a stack that serves a replier to a peer over a wire, all stepped by
// one goroutine.
type bench struct {
	link   *wire.Link
	stack  *Stack
	peer   *stacktest.Peer
	app    *replier
	conns  []*stacktest.Conn
	origin time.Time
	server [6]byte // the stack's Ethernet address
}

// newBench connects conns connections.
func newBench(t testing.TB, c Config, conns int) *bench {
	t.Helper()
	// As on a NIC, checksums cost neither side anything.
	link, err := wire.New(wire.Config{ReceiveChecksum: true, SegmentTCP: true, PartialChecksums: true})
	if err != nil {
		t.Fatal(err)
	}
	return newBenchOn(t, link, c, conns)
}

// newBenchOn is newBench on a link of the caller's.
func newBenchOn(t testing.TB, link *wire.Link, c Config, conns int) *bench {
	t.Helper()
	c.Addresses = []netip.Prefix{netip.PrefixFrom(stacktest.ServerAddress, 24)}
	server := link.Port(wire.A)
	s, err := New(server, server.Queue(0), c)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{link: link, stack: s, app: &replier{reply: reply}, origin: time.Now(), server: server.Address()}
	b.peer = stacktest.NewPeer(t, link.Port(wire.B), server.Address())
	if _, err := s.ListenEvents(netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort), func(*Socket) Owner { return b.app }); err != nil {
		t.Fatal(err)
	}
	for i := range conns {
		c := b.peer.Connect(uint16(10000 + i))
		b.conns = append(b.conns, c)
		for tries := 0; !c.Established; tries++ {
			if tries > 100_000 {
				t.Fatalf("connection %d is not established", i)
			}
			b.step()
		}
		b.step()
	}
	return b
}

// reply is what a GET of a 100-byte value answers.
var reply = fmt.Appendf(nil, "VALUE key_0000000000000000000000 0 100\r\n%s\r\nEND\r\n", bytes.Repeat([]byte("v"), 100))

// step lets the peer send, the stack run once, and the peer receive.
func (b *bench) step() {
	b.peer.Transmit()
	b.stack.Advance(time.Since(b.origin))
	b.stack.Receive()
	b.stack.Deliver()
	b.stack.Acknowledge()
	b.stack.Transmit()
	b.peer.Receive()
}

// round has every connection send payload, depth requests, and waits for the
// replies; bursts of 32 connections.
func (b *bench) round(payload []byte, depth int) {
	const burst = 32
	for i := 0; i < len(b.conns); i += burst {
		batch := b.conns[i:min(i+burst, len(b.conns))]
		want := b.app.served + depth*len(batch)
		for _, c := range batch {
			b.peer.Send(c, payload)
		}
		for b.app.served < want {
			b.step()
		}
	}
}

// BenchmarkGet is a request of 100 bytes' value on each of 64 connections in
// turn: ns/op is per request and includes the peer, the same for both. One P, as
// on one core; "inline" over "handoff" is what our dispatch gains.
func BenchmarkGet(b *testing.B) {
	for _, depth := range []int{1, 16} {
		for _, dispatch := range []Dispatch{Handoff, Inline} {
			name := string(dispatch)
			if depth > 1 {
				name = fmt.Sprintf("%s-pipelined-%d", dispatch, depth)
			}
			b.Run(name, func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
				x := newBench(b, Config{Dispatch: dispatch}, 64)
				request := bytes.Repeat([]byte("get key_0000000000000000000000\r\n"), depth)
				x.round(request, depth)
				frames, served := x.peer.Frames, x.app.served
				b.ReportAllocs()
				b.ResetTimer()
				for x.app.served-served < b.N {
					x.round(request, depth)
				}
				b.StopTimer()
				x.stack.Close()
				n := x.app.served - served
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/req")
				b.ReportMetric(float64(x.peer.Frames-frames)/float64(n), "frames-out/req")
			})
		}
	}
}
