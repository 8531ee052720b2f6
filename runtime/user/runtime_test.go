package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/stack"
)

func TestEachModeServesAndWaitsAsItSays(t *testing.T) {
	for _, interrupts := range []bool{true, false} {
		for _, mode := range polluxruntime.Modes(polluxruntime.User) {
			t.Run(fmt.Sprintf("%s/interrupts=%v", mode, interrupts), func(t *testing.T) {
				p := newPair(t, wire.Config{Interrupts: interrupts}, Config{Mode: mode}, &echo{})
				c := p.dial(t, 0)
				for i := range 300 {
					if err := ask(c, fmt.Sprintf("request %d", i)); err != nil {
						t.Fatalf("request %d: %v", i, err)
					}
					if i%10 == 0 {
						time.Sleep(3 * time.Millisecond) // long enough for every mode that sleeps
					}
				}
				c.Close()
				s := p.statistics(t, p.server)[0]
				switch {
				case mode == polluxruntime.Poll && s.Sleeps > 0:
					t.Errorf("poll slept %d times", s.Sleeps)
				case mode != polluxruntime.Poll && s.Sleeps == 0:
					t.Errorf("%s never slept", mode)
				case mode != polluxruntime.Poll && interrupts && s.WokenByFrame == 0:
					t.Errorf("%s was never woken by a frame", mode)
				}
			})
		}
	}
}

func TestModesSwitchUnderTrafficWithoutLosingAByte(t *testing.T) {
	p := newPair(t, wire.Config{Interrupts: true}, Config{Mode: polluxruntime.Poll}, &echo{})
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for i := range 8 {
		c := p.dial(t, 0)
		clients.Add(1)
		go func() {
			defer clients.Done()
			defer c.Close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := ask(c, fmt.Sprintf("client %d request %d", i, n)); err != nil {
					t.Errorf("client %d request %d: %v", i, n, err)
					return
				}
			}
		}()
	}
	modes := polluxruntime.Modes(polluxruntime.User)
	for n := range 150 {
		if err := p.server.SetMode(modes[n%len(modes)]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	clients.Wait()
	if s := p.statistics(t, p.server)[0]; s.Stack.TCP.Retransmits > 0 || s.Stack.DroppedTransmit > 0 {
		t.Errorf("frames were lost: %d retransmits, %d dropped on transmit", s.Stack.TCP.Retransmits, s.Stack.DroppedTransmit)
	}
}

func TestShardsServeTheirOwnConnectionsOnly(t *testing.T) {
	h := &echo{}
	p := newPair(t, wire.Config{Queues: 2, Interrupts: true}, Config{}, h)
	const connections = 64
	for i := range connections {
		// The client has two shards as well, and its connections must come
		// back to the one that made them.
		c := p.dial(t, i%2)
		for n := range 3 {
			if err := ask(c, fmt.Sprintf("connection %d, request %d", i, n)); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t.Logf("connections by shard: %v", h.perShard)
	if h.perShard[0] == 0 || h.perShard[1] == 0 {
		t.Errorf("%d connections spread as %v over two shards", connections, h.perShard)
	}
	if h.moved > 0 {
		t.Errorf("%d requests were served by another shard than their connection's", h.moved)
	}
	for _, r := range []*Runtime{p.server, p.client} {
		for _, s := range p.statistics(t, r) {
			if s.Stack.Strays > 0 || s.Stack.Misdirected > 0 {
				t.Errorf("shard %d: %d strays, %d misdirected, although RSS is known", s.Shard, s.Stack.Strays, s.Stack.Misdirected)
			}
		}
	}
}

// brokenRSS is a port that lies about its RSS.
type brokenRSS struct {
	driver.Port
	rss driver.RSS
}

func (b brokenRSS) RSS() (driver.RSS, bool) { return b.rss, true }

func TestADeviceWhoseRSSCannotBeReliedOnIsRefused(t *testing.T) {
	link, err := wire.New(wire.Config{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	port := link.Port(wire.A)
	good, _ := port.RSS()
	for name, spoil := range map[string]func(*driver.RSS){
		"short key":             func(r *driver.RSS) { r.Key = r.Key[:16] },
		"queue nobody serves":   func(r *driver.RSS) { r.Table = []uint16{0, 1, 2, 3} },
		"queue without entries": func(r *driver.RSS) { r.Table = []uint16{1, 1} },
		"no TCP":                func(r *driver.RSS) { r.TCP4, r.TCP6 = false, false },
	} {
		rss := good
		spoil(&rss)
		r, err := New(brokenRSS{port, rss}, Config{Stack: stack.Config{Addresses: []netip.Prefix{serverPrefix}}})
		if err == nil {
			r.Discard()
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// misled starts a server of two shards whose device delivers each connection to the
// other one than its RSS says, and a client.
func misled(t *testing.T) (server, client *Runtime) {
	t.Helper()
	link, err := wire.New(wire.Config{Queues: 2, Interrupts: true})
	if err != nil {
		t.Fatal(err)
	}
	port := link.Port(wire.A)
	rss, _ := port.RSS()
	// The table as the device reports it is the wrong way round.
	rss.Table = flipped(rss.Table)
	server, err = New(brokenRSS{port, rss}, Config{Stack: stack.Config{Addresses: []netip.Prefix{serverPrefix}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(service, &echo{}); err != nil {
		t.Fatal(err)
	}
	client, err = New(link.Port(wire.B), Config{Stack: stack.Config{Addresses: []netip.Prefix{clientPrefix}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Runtime{server, client} {
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { shutdown(r, time.Second) })
	}
	return server, client
}

func TestShardsStopWhenTheDeviceDoesNotFollowItsRSS(t *testing.T) {
	server, client := misled(t)
	// All of them arrive at the wrong one of two shards.
	for range 2 * misdirectedLimit {
		go client.Stack(0).Dial("tcp", service.String())
	}
	select {
	case <-server.Done():
		if server.Err() == nil {
			t.Error("the loops ended without a reason")
		}
		t.Log(server.Err())
	case <-time.After(20 * time.Second):
		t.Error("the shards went on")
	}
}

func TestAFewMisdirectedConnectionsDoNotStopTheShards(t *testing.T) {
	server, client := misled(t)
	p := &pair{server: server, client: client}
	for range misdirectedLimit / 2 {
		c := p.dial(t, 0)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	misdirected := uint64(0)
	for _, s := range p.statistics(t, server) {
		misdirected += s.Stack.Misdirected
	}
	if misdirected == 0 {
		t.Error("no connection was misdirected: the test does not test")
	}
}

func TestAFamilyThatIsNotHashedBelongsToEveryShard(t *testing.T) {
	link, err := wire.New(wire.Config{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	rss, _ := link.Port(wire.A).RSS()
	for _, hashed := range []bool{true, false} {
		rss.TCP6 = hashed
		o := &owner{rss}
		for local, sharp := range map[string]bool{"10.99.0.1": true, "fd99::1": hashed} {
			both := 0
			for port := range uint16(64) {
				local := netip.AddrPortFrom(netip.MustParseAddr(local), port)
				if o.owns(0, local, local) && o.owns(1, local, local) {
					both++
				} else if o.owns(0, local, local) == o.owns(1, local, local) {
					t.Errorf("%v belongs to no shard", local)
				}
			}
			if want := map[bool]int{true: 0, false: 64}[sharp]; both != want {
				t.Errorf("%s, IPv6 hashed %v: %d of 64 connections belong to both shards, want %d", local, hashed, both, want)
			}
		}
	}
}

func flipped(table []uint16) []uint16 {
	other := make([]uint16, len(table))
	for i, q := range table {
		other[i] = 1 - q
	}
	return other
}

// unspread is a port that does have several queues but no RSS, and delivers each
// frame to whichever queue: a veth at its worst.
type unspread struct{ driver.Port }

func (u unspread) RSS() (driver.RSS, bool) { return driver.RSS{}, false }

// scatter delivers what any queue of the port received on a random one.
type scatter struct {
	mu     sync.Mutex
	rng    *rand.Rand
	queues []driver.Queue
}

type scatterQueue struct {
	driver.Queue
	s *scatter
}

func (q scatterQueue) Receive(frames []driver.Frame) int {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.s.queues[q.s.rng.IntN(len(q.s.queues))].Receive(frames)
}

// The queues are used by both loops here, so everything is under the lock.
func (q scatterQueue) Transmit(frames []driver.Frame) int {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.Queue.Transmit(frames)
}

func (q scatterQueue) Allocate(frames []driver.Frame, size int) int {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.Queue.Allocate(frames, size)
}

func (q scatterQueue) Statistics() driver.QueueStatistics {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.Queue.Statistics()
}

func (q scatterQueue) Interrupt() driver.Interrupt { return nil }

// end closes a connection in order: ours first, then the peer's end, and nothing
// more in between.
func end(c net.Conn) error {
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		return fmt.Errorf("%d bytes after the last reply, then %v; want the end", n, err)
	}
	return c.Close()
}

func TestStraySegmentsFindTheirShard(t *testing.T) {
	const seed = 5
	h := &echo{}
	link, err := wire.New(wire.Config{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	port := link.Port(wire.A)
	s := &scatter{rng: rand.New(rand.NewPCG(seed, 0)), queues: []driver.Queue{port.Queue(0), port.Queue(1)}}
	server, err := New(unspread{port}, Config{
		Mode: polluxruntime.Poll, Stack: stack.Config{Addresses: []netip.Prefix{serverPrefix}},
		Queue: func(i int) driver.Queue { return scatterQueue{port.Queue(i), s} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(service, h); err != nil {
		t.Fatal(err)
	}
	client, err := New(link.Port(wire.B), Config{Stack: stack.Config{Addresses: []netip.Prefix{clientPrefix}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Runtime{server, client} {
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := shutdown(r, 5*time.Second); err != nil {
				t.Error(err)
			}
		}()
	}
	p := &pair{link: link, server: server, client: client}
	for i := range 20 {
		c := p.dial(t, i%2)
		for n := range 20 {
			if err := ask(c, fmt.Sprintf("connection %d, request %d", i, n)); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		// Whoever reset it, the connection would not end in order. (The number of
		// resets that were sent says less: an acknowledgement that is passed round
		// until its connection has ended on both sides is answered by one.)
		if err := end(c); err != nil {
			t.Fatalf("seed %d: connection %d: %v", seed, i, err)
		}
	}
	strays := uint64(0)
	for _, st := range p.statistics(t, server) {
		strays += st.Stack.Strays
	}
	if strays == 0 {
		t.Error("no segment was a stray: the test does not test")
	}
	if h.moved > 0 {
		t.Errorf("%d requests were served by another shard than their connection's", h.moved)
	}
}

func TestConnectionToAClosedPortIsResetAlsoWithSeveralShards(t *testing.T) {
	p := newPair(t, wire.Config{Queues: 2}, Config{}, &echo{})
	other := netip.AddrPortFrom(serverPrefix.Addr(), 9)
	start := time.Now()
	if c, err := p.client.Stack(0).Dial("tcp", other.String()); err == nil {
		c.Close()
		t.Fatal("connected to a port that nobody listens on")
	} else if time.Since(start) > 10*time.Second {
		t.Errorf("refused after %v: %v", time.Since(start), err)
	}
}

// flood answers each byte with a chunk, one byte a call, and never asks how much
// of its output is still there.
type flood struct {
	echo
	written atomic.Int64
}

const floodChunk = 64 << 10

func (f *flood) Data(c polluxruntime.Conn, in []byte) int {
	c.Write(make([]byte, floodChunk))
	f.written.Add(floodChunk)
	return 1
}

func TestASlowReaderDoesNotMakeTheServerGrow(t *testing.T) {
	h := &flood{}
	p := newPair(t, wire.Config{}, Config{}, h)
	c := p.dial(t, 0)
	defer c.Close()
	const requests = 1000 // 64 MB of replies
	if _, err := c.Write(make([]byte, requests)); err != nil {
		t.Fatal(err)
	}
	// Until the handler is called no more, because nobody reads.
	for before, still := int64(-1), 0; still < 20; time.Sleep(10 * time.Millisecond) {
		if now := h.written.Load(); now != before || now == 0 {
			before, still = now, 0
		} else {
			still++
		}
	}
	// What both ends' stacks and the client's Conn hold is on its way; the rest is
	// what the server has to keep.
	buffers := p.server.Stack(0).Config().SendBuffer.Max + p.client.Stack(0).Config().ReceiveBuffer.Max + 64<<10
	if most := int64(polluxruntime.OutputLimit + floodChunk + buffers); h.written.Load() > most {
		t.Errorf("the handler was asked for %d bytes that nobody reads, at most %d have a place", h.written.Load(), most)
	}
	if n, err := io.CopyN(io.Discard, c, requests*floodChunk); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
}

// stubborn takes input in odd pieces, and only when there are enough.
type stubborn struct {
	echo
	got bytes.Buffer
	mu  sync.Mutex
}

func (s *stubborn) Data(c polluxruntime.Conn, in []byte) int {
	if len(in) < 7 {
		return 0
	}
	s.mu.Lock()
	s.got.Write(in[:7])
	s.mu.Unlock()
	c.Write([]byte{'.'})
	return 7
}

func TestWhatAHandlerLeavesIsHandedOverAgain(t *testing.T) {
	h := &stubborn{}
	p := newPair(t, wire.Config{}, Config{}, h)
	c := p.dial(t, 0)
	defer c.Close()
	var sent bytes.Buffer
	rng := rand.New(rand.NewPCG(3, 0))
	for sent.Len() < 7000 {
		piece := make([]byte, 1+rng.IntN(20))
		for i := range piece {
			piece[i] = byte(sent.Len() + i)
		}
		if sent.Len()+len(piece) > 7000 {
			piece = piece[:7000-sent.Len()]
		}
		sent.Write(piece)
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !bytes.Equal(h.got.Bytes(), sent.Bytes()) {
		t.Error("the handler was given other bytes than were sent")
	}
}

func TestHalfClosedConnectionsGetTheirReplies(t *testing.T) {
	h := &echo{}
	p := newPair(t, wire.Config{}, Config{}, h)
	c := p.dial(t, 0)
	big := bytes.Repeat([]byte("half"), 500_000)
	go func() {
		c.Write(big)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("got %d of %d bytes back: %v", len(got), len(big), err)
	}
	c.Close()
	eventually(t, "the handler hears of the end", func() bool { return h.closed.Load() == 1 })
	if h.reasons[0] != nil {
		t.Errorf("the handler was told %v, not that the peer closed", h.reasons[0])
	}
}

func TestShutdownEndsConnectionsAndTellsTheHandler(t *testing.T) {
	h := &echo{}
	p := newPair(t, wire.Config{Interrupts: true}, Config{}, h)
	conns := make([]io.ReadCloser, 10)
	for i := range conns {
		c := p.dial(t, 0)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		conns[i] = c
	}
	if err := shutdown(p.server, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for i, c := range conns {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection %d ended with %v, not in order", i, err)
		}
		c.Close()
	}
	if h.opened.Load() != 10 || h.closed.Load() != 10 {
		t.Errorf("%d connections opened, %d closed", h.opened.Load(), h.closed.Load())
	}
	if err := p.server.Stack(0).Post(func() {}); err {
		t.Error("a stopped shard still takes posts")
	}
}

// block keeps shard i of r inside a posted function until release is called, with
// a mailbox that takes no more.
func block(t *testing.T, r *Runtime, i int) (release func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	s := r.Stack(i)
	for !s.Post(func() { close(held); <-free }) {
	}
	<-held
	for n := 0; s.Post(func() {}); n++ {
		if n > s.Config().MailboxLimit {
			t.Fatal("the mailbox has no limit")
		}
	}
	return sync.OnceFunc(func() { close(free) })
}

func TestAFullMailboxKeepsNobodyFromShutdownOrStatistics(t *testing.T) {
	p := newPair(t, wire.Config{}, Config{Stack: stack.Config{MailboxLimit: 1}}, &echo{})
	release := block(t, p.server, 0)
	defer release()
	statistics := make(chan error)
	go func() { _, err := p.server.Statistics(context.Background()); statistics <- err }()
	// The loop cannot end yet, and Shutdown does not wait for it for ever.
	start := time.Now()
	if err := shutdown(p.server, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shut down while a loop runs: %v", err)
	}
	if took := time.Since(start); took > resetTime+10*time.Second {
		t.Errorf("Shutdown took %v", took)
	}
	release()
	if err := <-statistics; err != nil {
		t.Errorf("statistics of a busy loop: %v", err)
	}
	if err := shutdown(p.server, 5*time.Second); err != nil {
		t.Error(err)
	}
}

func TestAShutdownThatIsCancelledResetsWhatIsLeft(t *testing.T) {
	p := newPair(t, wire.Config{}, Config{}, &flood{})
	c := p.dial(t, 0)
	defer c.Close()
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	// Nobody reads, so there is something unsent for ever.
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	ended := make(chan error)
	go func() { ended <- p.server.Shutdown(ctx) }()
	time.AfterFunc(50*time.Millisecond, cancel)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Shutdown goes on although its context was cancelled")
	}
}

func TestAShardThatFailsEndsTheOthersHoweverBusy(t *testing.T) {
	link, err := wire.New(wire.Config{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(link.Port(wire.A), Config{Stack: stack.Config{Addresses: []netip.Prefix{serverPrefix}, MailboxLimit: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	release := block(t, r, 1)
	defer release()
	failure := errors.New("broken")
	for !r.Stack(0).Post(func() { r.loops[0].fail(failure) }) {
	}
	eventually(t, "the first shard ends", func() bool { return r.Err() != nil })
	release()
	select {
	case <-r.Done():
		if !errors.Is(r.Err(), failure) {
			t.Errorf("ended by %v", r.Err())
		}
	case <-time.After(20 * time.Second):
		t.Error("the other shard goes on")
	}
}
