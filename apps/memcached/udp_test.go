package memcached

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime"
)

// fakePacketConn collects the datagrams of replies.
type fakePacketConn struct {
	shard     int
	datagrams []string
	to        netip.AddrPort
	full      int // datagrams after which sending fails, 0: never
}

var peer = netip.MustParseAddrPort("10.99.0.2:50000")

func (c *fakePacketConn) WriteTo(p []byte, to netip.AddrPort) (int, error) {
	if c.full > 0 && len(c.datagrams) >= c.full {
		return 0, errors.New("no room")
	}
	c.to = to
	c.datagrams = append(c.datagrams, string(p))
	return len(p), nil
}
func (c *fakePacketConn) LocalAddr() netip.AddrPort {
	return netip.MustParseAddrPort("10.99.0.1:11211")
}
func (c *fakePacketConn) Shard() int { return c.shard }

// frame is the start of a datagram.
func frame(id, number, total int) string {
	b := binary.BigEndian.AppendUint16(nil, uint16(id))
	b = binary.BigEndian.AppendUint16(b, uint16(number))
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	return string(b) + "\x00\x00"
}

// ask sends one datagram.
func (c *fakePacketConn) ask(s *Server, datagram string) []string {
	c.datagrams = nil
	s.Packet(c, peer, []byte(datagram))
	return c.datagrams
}

// payloads joins what datagrams carry.
func payloads(datagrams []string) string {
	var b strings.Builder
	for _, d := range datagrams {
		b.WriteString(d[frameSize:])
	}
	return b.String()
}

// udpReference is a memcached that serves UDP on loopback.
func udpReference(t *testing.T) *net.UDPConn {
	t.Helper()
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.LocalAddr().String())
	free.Close()
	cmd := exec.Command("memcached", "-u", "root", "-t", "1", "-o", "no_modern", "-l", "127.0.0.1", "-p", port, "-U", port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	n, _ := strconv.Atoi(port)
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: n})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadBuffer(4 << 20)
	for range 500 {
		c.SetDeadline(time.Now().Add(10 * time.Millisecond))
		c.Write([]byte(frame(0, 0, 1) + "version\r\n"))
		if _, err := c.Read(make([]byte, 2000)); err == nil {
			c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			for err == nil { // late answers to those before
				_, err = c.Read(make([]byte, 2000))
			}
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("memcached did not answer on UDP within 10 s")
	return nil
}

// exchange sends a datagram and a second one, whose answer says that the first
// one's is whole.
func exchange(t *testing.T, c *net.UDPConn, datagram string) (answers []string) {
	t.Helper()
	end := frame(65535, 0, 1) + "mn\r\n"
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, p := range []string{datagram, end} {
		if _, err := c.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 1<<16)
	for {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("memcached does not answer %q: %v", clip(datagram), err)
		}
		if p := string(b[:n]); p != frame(65535, 0, 1)+"MN\r\n" {
			if len(p) > frameSize { // memcached also sends the frame of what it does not say
				answers = append(answers, p)
			}
			continue
		}
		return answers
	}
}

// whole says whether commands are complete and leave the connection open: what
// memcached does not get whole in one datagram it goes on with in the next.
func whole(t *testing.T, s *Server, commands string) bool {
	c := dial(s, 0)
	defer s.Close(c, nil)
	c.deliver(t, commands)
	return len(c.left) == 0 && !c.ended && c.context.(*conn).state == inCommand
}

func TestDatagramsAreAnsweredAsByMemcached(t *testing.T) {
	reference := udpReference(t)
	s, scratch := newServer(t, Options{Stripes: 1}), newServer(t, Options{Stripes: 1})
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 41))
		conn := &fakePacketConn{}
		for i := 0; i < 2000; {
			var request string
			switch rng.IntN(4) {
			case 0:
				request = generateMeta(rng, true)
			case 1:
				request, _ = generateBinary(rng, true)
			default:
				request = generate(rng)
			}
			if len(request) > 10000 || !whole(t, scratch, request) {
				continue
			}
			i++
			id := rng.IntN(65000)
			datagram := frame(id, rng.IntN(3), 1) + request
			s.Tick(time.Now())
			got, want := conn.ask(s, datagram), exchange(t, reference, datagram)
			compareButTimes(t, fmt.Sprintf("seed %d datagram %d", seed, i), request, payloads(got), payloads(want))
			if keys := strings.Fields(request); strings.HasPrefix(request, "g") && len(keys) > 2 {
				continue // memcached has a message for each key
			}
			if len(got) != len(want) {
				t.Fatalf("seed %d: %q is answered with %d datagrams, by memcached with %d", seed, clip(request), len(got), len(want))
			}
			for k := range got {
				if got[k][:frameSize] != want[k][:frameSize] {
					t.Errorf("seed %d: %q: datagram %d has the frame %x, memcached's %x", seed, clip(request), k, got[k][:frameSize], want[k][:frameSize])
				}
			}
			if t.Failed() {
				return
			}
		}
	}
}

func TestALargeReplyIsNumberedDatagrams(t *testing.T) {
	s := newServer(t, Options{})
	c := &fakePacketConn{}
	value := strings.Repeat("0123456789", 1000)
	if got := c.ask(s, frame(7, 0, 1)+fmt.Sprintf("set a 0 0 %d\r\n%s\r\n", len(value), value)); payloads(got) != "STORED\r\n" || c.to != peer {
		t.Fatalf("got %q to %v", got, c.to)
	}
	one := fmt.Sprintf("VALUE a 0 %d\r\n%s\r\n", len(value), value)
	for request, want := range map[string][]string{
		"get a\r\n":                             {one + "END\r\n"},
		"get a none a\r\n":                      {one + one + "END\r\n"},
		"get a\r\nversion\r\nget a\r\n":         {one + "END\r\n", "VERSION 1.6.18\r\n", one + "END\r\n"},
		"get a\r\nset b 0 0 1 noreply\r\nx\r\n": {one + "END\r\n"},
		"mg a v\r\nmg none q\r\nmn\r\n":         {fmt.Sprintf("VA %d\r\n%s\r\n", len(value), value), "MN\r\n"},
	} {
		got := c.ask(s, frame(300, 0, 1)+request)
		for _, message := range want {
			total := (len(message) + 1391) / 1392
			for number := range total {
				part := message[number*1392 : min(len(message), number*1392+1392)]
				if len(got) == 0 || got[0] != frame(300, number, total)+part {
					t.Fatalf("%q: datagram %d of %d is missing", request, number, total)
				}
				got = got[1:]
			}
		}
		if len(got) > 0 {
			t.Errorf("%q: %d datagrams too many", request, len(got))
		}
	}
}

func TestADatagramThatIsNoWholeRequestIsIgnored(t *testing.T) {
	s := newServer(t, Options{})
	c := &fakePacketConn{}
	ignored := []string{"", "abc", frame(1, 0, 1), frame(1, 0, 2) + "version\r\n", frame(1, 0, 0) + "version\r\n", frame(1, 1, 2) + "version\r\n"}
	for _, datagram := range ignored {
		if got := c.ask(s, datagram); len(got) > 0 {
			t.Errorf("%q is answered %q", datagram, got)
		}
	}
	// What is incomplete ends with its datagram: the next one begins anew.
	for _, request := range []string{"version", "get a", "set a 0 0 10\r\nabc", "set a 0 0 3\r\nabc", "ms a 3\r\nab", "get " + strings.Repeat("a ", 2000), "quit\r\n",
		packet(opSet, "a", bigEndian(0, 0), "value", 0, 0)[:35], packet(opNoop, "", "", "", 0, 0)[:20], strings.Repeat("x", 3000), "set a 0 0 2000000\r\nabc"} {
		if got := c.ask(s, frame(1, 0, 1)+request); len(got) > 0 {
			t.Errorf("%q is answered %q", clip(request), got)
		}
		if got := c.ask(s, frame(1, 0, 1)+"get a\r\n"); payloads(got) != "END\r\n" {
			t.Errorf("after %q: %q", clip(request), got)
		}
	}
	stats := s.Statistics()
	if stats.DatagramsIgnored != uint64(len(ignored)) || stats.Datagrams != stats.DatagramsIgnored+22 || stats.Store.UsedChunks != 0 {
		t.Errorf("counted %d datagrams, %d of them ignored; %d chunks in use", stats.Datagrams, stats.DatagramsIgnored, stats.Store.UsedChunks)
	}
}

func TestADatagramCannotFetchMoreThanALimit(t *testing.T) {
	s := newServer(t, Options{})
	c := &fakePacketConn{}
	value := strings.Repeat("v", 1000000)
	conn := dial(s, 0)
	conn.ask(t, fmt.Sprintf("set a 0 0 %d\r\n%s\r\n", len(value), value))
	if got := payloads(c.ask(s, frame(1, 0, 1)+"get a\r\n")); len(got) != len(value)+len("VALUE a 0 1000000\r\n\r\nEND\r\n") {
		t.Errorf("one value is answered with %d bytes", len(got))
	}
	if got := payloads(c.ask(s, frame(1, 0, 1)+"get"+strings.Repeat(" a", 500)+"\r\nversion\r\n")); got != messageTooLarge+"\r\n" {
		t.Errorf("500 values are answered %q", clip(got))
	}
	if limit := 2 * (runtime.OutputLimit + len(value)); cap(s.shard(0).out) > limit {
		t.Errorf("the shard keeps a buffer of %d bytes", cap(s.shard(0).out))
	}
	// Where there is no room, the rest of a message is not tried.
	c.full = 3
	if got := c.ask(s, frame(1, 0, 1)+"get a\r\nversion\r\n"); len(got) != 3 {
		t.Errorf("%d datagrams were sent", len(got))
	}
}

func TestDatagramsDoNotAllocate(t *testing.T) {
	s, _ := filled(t)
	c := &discard{}
	for _, request := range []string{"get key-000001\r\n", "set key-000001 0 0 3\r\nabc\r\n", packet(opGet, "key-000002", "", "", 0, 0), "mg key-000003 v k Oa\r\n"} {
		in := []byte(frame(1, 0, 1) + request)
		if n := testing.AllocsPerRun(100, func() { s.Packet(c, peer, in) }); n != 0 {
			t.Errorf("%q allocates %v times", request, n)
		}
	}
	if c.datagrams == 0 {
		t.Error("nothing was answered")
	}
}

// discard takes datagrams away.
type discard struct {
	fakePacketConn
	datagrams int
}

func (c *discard) WriteTo(p []byte, _ netip.AddrPort) (int, error) {
	c.datagrams++
	return len(p), nil
}
