package stack

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"

	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// simulation is two stacks on a faulty wire in virtual time: a client that asks
// and a server that answers, until all requests are served. Nothing in it reads
// a clock or starts a goroutine, so the seed decides every frame.
type simulation struct {
	link           *wire.Link
	server, client *Stack
	now            time.Duration
	trace          [sha256.Size]byte
	frames         int
	failure        error
}

const simulatedConnections = 20

// simulate runs requests requests and returns the hash of all frames with their
// times and directions.
func simulate(t *testing.T, seed uint64, requests int) *simulation {
	t.Helper()
	sim := &simulation{}
	h := sha256.New()
	faults := wire.Faults{Loss: 0.01, Duplicate: 0.01, Corrupt: 0.005, Reorder: 0.02, Delay: 100 * time.Microsecond, Jitter: 50 * time.Microsecond}
	link, err := wire.New(wire.Config{Seed: seed, Faults: [2]wire.Faults{faults, faults}, Trace: func(from wire.Side, now time.Duration, frame []byte) {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], uint64(now))
		binary.BigEndian.PutUint64(b[8:], uint64(from))
		h.Write(b[:])
		h.Write(frame)
		sim.frames++
	}})
	if err != nil {
		t.Fatal(err)
	}
	sim.link = link
	build := func(side wire.Side, a netip.Addr) *Stack {
		p := link.Port(side)
		s, err := New(p, p.Queue(0), Config{Addresses: []netip.Prefix{netip.PrefixFrom(a, 24)}, Random: seeded(seed + uint64(side))})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sim.server, sim.client = build(wire.A, stacktest.ServerAddress), build(wire.B, stacktest.ClientAddress)
	served := 0
	if _, err := sim.server.ListenEvents(netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort), func(*Socket) Owner {
		return &lineServer{sim: sim}
	}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range simulatedConnections {
		c := &lineClient{sim: sim, rng: rng, left: requests / simulatedConnections, served: &served, id: i}
		if _, err := sim.client.Connect(netip.AddrPort{}, netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort), c); err != nil {
			t.Fatal(err)
		}
	}
	for served < requests && sim.failure == nil {
		if sim.now > time.Hour {
			t.Fatalf("seed %d: %d of %d requests after an hour of virtual time", seed, served, requests)
		}
		sim.step()
	}
	if sim.failure != nil {
		t.Fatalf("seed %d: %v", seed, sim.failure)
	}
	sim.server.Close()
	sim.client.Close()
	link.Port(wire.A).Close()
	link.Port(wire.B).Close()
	h.Sum(sim.trace[:0])
	return sim
}

// step runs both stacks at the present moment, then jumps to the next one at
// which anything can happen.
func (sim *simulation) step() {
	for {
		work := 0
		for _, s := range []*Stack{sim.server, sim.client} {
			s.Advance(sim.now)
			work += s.Receive() + s.Deliver()
			s.Acknowledge()
			work += s.Transmit()
		}
		if work == 0 {
			break
		}
	}
	next := min(sim.server.Deadline(), sim.client.Deadline())
	if due, ok := sim.link.Next(); ok {
		next = min(next, due)
	}
	if next == Never {
		sim.failure = fmt.Errorf("at %v nothing is left to happen", sim.now)
		return
	}
	sim.now = max(sim.now+1, next)
	sim.link.Advance(sim.now)
}

// A request is 8 bytes, the number and the length of the reply; the reply is the
// number, then bytes that follow from it.
const requestSize = 8

// lineServer answers requests.
type lineServer struct {
	sim     *simulation
	in, out []byte
}

func (c *lineServer) Ready(k *Socket) {
	var b [4096]byte
	for {
		n, err := k.Read(b[:])
		c.in = append(c.in, b[:n]...)
		for len(c.in) >= requestSize {
			number, size := binary.BigEndian.Uint32(c.in), binary.BigEndian.Uint32(c.in[4:])
			c.out = appendReply(c.out, number, size)
			c.in = c.in[requestSize:]
		}
		if n == 0 || err != nil {
			if err == io.EOF {
				k.Close()
			}
			break
		}
	}
	if len(c.out) > 0 {
		n, _ := k.Write(c.out)
		c.out = c.out[n:]
	}
}

func appendReply(b []byte, number, size uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, number)
	for i := range size {
		b = append(b, byte(number+i*7))
	}
	return b
}

// lineClient asks one request after another and checks the replies.
type lineClient struct {
	sim     *simulation
	rng     *rand.Rand
	id      int
	left    int
	served  *int
	number  uint32
	waiting []byte // the reply that is expected
	in      []byte
}

func (c *lineClient) Ready(k *Socket) {
	if err := k.Err(); err != nil {
		c.sim.failure = fmt.Errorf("connection %d: %w", c.id, err)
		return
	}
	if !k.Established() {
		return
	}
	var b [4096]byte
	for c.sim.failure == nil {
		if c.waiting == nil {
			if c.left == 0 {
				k.Close()
				return
			}
			c.left--
			c.number = uint32(c.id)<<20 | uint32(c.left)
			size := uint32(c.rng.IntN(3000))
			var request [requestSize]byte
			binary.BigEndian.PutUint32(request[:], c.number)
			binary.BigEndian.PutUint32(request[4:], size)
			if n, err := k.Write(request[:]); n != requestSize {
				c.sim.failure = fmt.Errorf("connection %d: wrote %d bytes of a request: %v", c.id, n, err)
				return
			}
			c.waiting = appendReply(nil, c.number, size)
		}
		n, err := k.Read(b[:])
		if n == 0 {
			if err != ErrWouldBlock {
				c.sim.failure = fmt.Errorf("connection %d: read: %w", c.id, err)
			}
			return
		}
		c.in = append(c.in, b[:n]...)
		if len(c.in) >= len(c.waiting) {
			if string(c.in) != string(c.waiting) {
				c.sim.failure = fmt.Errorf("connection %d: a wrong reply to request %x", c.id, c.number)
				return
			}
			c.in, c.waiting = c.in[:0], nil
			*c.served++
		}
	}
}

// seeded is a source of random bytes that replays.
func seeded(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

func TestASimulationReplaysFromItsSeed(t *testing.T) {
	const requests = 10_000
	const seed = 42
	first, again, other := simulate(t, seed, requests), simulate(t, seed, requests), simulate(t, seed+1, requests)
	t.Logf("seed %d: %d frames in %v of virtual time, %d retransmits; seed %d: %d frames",
		seed, first.frames, first.now, first.server.Statistics().TCP.Retransmits+first.client.Statistics().TCP.Retransmits, seed+1, other.frames)
	if first.trace != again.trace || first.frames != again.frames || first.now != again.now {
		t.Errorf("seed %d: two runs differ: %d frames until %v, hash %x; %d frames until %v, hash %x",
			seed, first.frames, first.now, first.trace[:4], again.frames, again.now, again.trace[:4])
	}
	if first.trace == other.trace {
		t.Errorf("seeds %d and %d give the same frames: the trace does not show what happens", seed, seed+1)
	}
}

func TestNeighboursThatAcknowledgeAreNotAskedFor(t *testing.T) {
	requests := 0
	link, err := wire.New(wire.Config{ReceiveChecksum: true, SegmentTCP: true, PartialChecksums: true, Trace: func(from wire.Side, _ time.Duration, frame []byte) {
		if from == wire.A && binary.BigEndian.Uint16(frame[12:]) == uint16(arp.ProtocolNumber) && header.ARP(frame[ethernet:]).Op() == header.ARPRequest {
			requests++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := newBenchOn(t, link, Config{}, 4)
	first := requests
	now := time.Since(b.origin)
	for range 600 { // ten minutes, in which a neighbour would be asked for 17 times
		now += time.Second
		b.stack.Advance(now)
		for _, c := range b.conns {
			b.peer.Send(c, []byte("get k\r\n"))
		}
		for range 3 {
			b.peer.Transmit()
			b.stack.Receive()
			b.stack.Deliver()
			b.stack.Acknowledge()
			b.stack.Transmit()
			b.peer.Receive()
		}
	}
	if b.app.served != 600*len(b.conns) || requests > first {
		t.Errorf("%d requests were served, and the peer was asked for its address %d times", b.app.served, requests-first)
	}
	b.stack.Close()
}
