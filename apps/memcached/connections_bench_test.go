package memcached_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
	"github.com/pollux-net/pollux/stack/stacktest"
)

// idleConnections is how many are open when memory is measured.
const idleConnections = 100000

// BenchmarkIdleConnections measures what 100,000 connections take that have each
// stored and fetched a value and are idle since: heap-B/conn is the server's
// share of Go's heap, rss-B/conn the process's resident memory, which has the
// collector's slack on top. On the kernel path the kernel's memory comes beside
// it: kernel-B/socket is the growth of its slabs for each of the connection's two
// sockets, of which only one is the server's, and tcp-mem-B/socket what sockets
// have buffered (/proc/net/sockstat). ns/op is of no interest.
//
//	go test -run ^$ -bench IdleConnections -benchtime 1x ./apps/memcached
func BenchmarkIdleConnections(b *testing.B) {
	b.Run("user", func(b *testing.B) {
		for b.Loop() {
			idleOnUserPath(b)
		}
	})
	b.Run("kernel", func(b *testing.B) {
		for b.Loop() {
			idleOnKernelPath(b)
		}
	})
}

// weight is what a process weighs.
type weight struct{ heap, resident float64 }

func weigh() (weight, error) {
	debug.FreeOSMemory()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	resident, err := number("/proc/self/status", "VmRSS:", 1)
	return weight{heap: float64(m.HeapAlloc), resident: resident * 1024}, err
}

// number reads a word of the line of a file that begins so.
func number(file, begins string, word int) (n float64, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > word && f[0] == begins {
			n, err := strconv.ParseFloat(f[word], 64)
			if err != nil {
				err = fmt.Errorf("%s: %q: %w", file, line, err)
			}
			return n, err
		}
	}
	return 0, fmt.Errorf("%s has no line that begins with %s", file, begins)
}

// kernelMemory is what all slabs take, and what all TCP sockets have buffered.
func kernelMemory() (slab, buffered float64, err error) {
	slab, err = number("/proc/meminfo", "Slab:", 1)
	if err != nil {
		return 0, 0, err
	}
	buffered, err = number("/proc/net/sockstat", "TCP:", 10)
	return slab * 1024, buffered * float64(os.Getpagesize()), err
}

// use is what each connection asks, and what comes back.
const use, used = "set key 0 0 5\r\nvalue\r\nget key\r\n", "STORED\r\nVALUE key 0 5\r\nvalue\r\nEND\r\n"

// idleOnUserPath opens the connections from two peers, because one has no more
// than 65,535 ports; each has a shard of its own.
func idleOnUserPath(b *testing.B) {
	server, err := memcached.New(memcached.Options{MaxConns: idleConnections, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	const each = idleConnections / 2
	type shard struct {
		*user.Runtime
		peer *stacktest.Peer
	}
	var shards [2]shard
	for i := range shards {
		link, err := wire.New(wire.Config{ReceiveChecksum: true, SegmentTCP: true, PartialChecksums: true})
		if err != nil {
			b.Fatal(err)
		}
		port := link.Port(wire.A)
		r, err := user.New(port, user.Config{Tick: server.Tick, Stack: stack.Config{
			Addresses: []netip.Prefix{netip.PrefixFrom(stacktest.ServerAddress, 24)},
		}})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Discard()
		if err := r.Listen(netip.AddrPortFrom(stacktest.ServerAddress, stacktest.ServerPort), server); err != nil {
			b.Fatal(err)
		}
		peer := stacktest.NewPeer(b, link.Port(wire.B), port.Address())
		for n := range each {
			peer.Conns[uint16(10000+n)] = &stacktest.Conn{} // the peer's memory, so that it is not measured
		}
		shards[i] = shard{r, peer}
	}
	start := time.Now()
	open := func(s shard, n int) {
		c := s.peer.Connect(uint16(10000 + n))
		for step, sent := 0, false; c.Received < len(used); step++ {
			if step > 1_000_000 {
				b.Fatalf("connection %d has %d of %d bytes", n, c.Received, len(used))
			}
			s.peer.Transmit()
			s.Step(time.Since(start))
			s.peer.Receive()
			if c.Established && !sent {
				sent = true
				s.peer.Send(c, []byte(use))
			}
		}
		const ack = 1 << 4
		s.peer.Segment(c, ack, nil) // of the reply
		s.peer.Transmit()
		s.Step(time.Since(start))
	}
	before, err := weigh()
	if err != nil {
		b.Fatal(err)
	}
	for n := range each {
		for _, s := range shards {
			open(s, n)
		}
	}
	if n := server.Statistics().Conns; n != idleConnections {
		b.Fatalf("%d connections are open", n)
	}
	after, err := weigh()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric((after.heap-before.heap)/idleConnections, "heap-B/conn")
	b.ReportMetric((after.resident-before.resident)/idleConnections, "rss-B/conn")
	goruntime.KeepAlive(shards)
}

// idleOnKernelPath opens the connections through the loopback device. A process
// may have so many files only, and both sockets of a connection are one: as many
// processes as it takes share them, each with a server of its own.
func idleOnKernelPath(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	const otherFiles = 100
	each := min((int(limit.Max)-otherFiles)/2, idleConnections)
	shares := make([]*idleShare, (idleConnections+each-1)/each)
	for i := range shares {
		shares[i] = startIdleShare(b, i, (idleConnections*(i+1))/len(shares)-(idleConnections*i)/len(shares))
		defer shares[i].end()
	}
	slab, buffered, err := kernelMemory()
	if err != nil {
		b.Fatal(err)
	}
	var heap, resident float64
	for _, s := range shares {
		h, r := s.open(b)
		heap, resident = heap+h, resident+r
	}
	slabAfter, bufferedAfter, err := kernelMemory()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(heap/idleConnections, "heap-B/conn")
	b.ReportMetric(resident/idleConnections, "rss-B/conn")
	b.ReportMetric((slabAfter-slab)/(2*idleConnections), "kernel-B/socket")
	b.ReportMetric((bufferedAfter-buffered)/(2*idleConnections), "tcp-mem-B/socket")
	b.ReportMetric(float64(len(shares)), "processes")
}

// asIdleShare has the test binary be one of those processes; its value is which,
// and how many connections it opens.
const asIdleShare = "POLLUX_IDLE_CONNECTIONS"

func TestMain(m *testing.M) {
	if share := os.Getenv(asIdleShare); share != "" {
		if err := holdIdleShare(share); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// idleShare is such a process, as its parent sees it.
type idleShare struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

func startIdleShare(b *testing.B, index, connections int) *idleShare {
	b.Helper()
	s := &idleShare{cmd: exec.Command(os.Args[0])}
	s.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", asIdleShare, index, connections))
	s.cmd.Stderr = os.Stderr
	in, err := s.cmd.StdinPipe()
	if err == nil {
		s.in = in
		s.out, err = s.cmd.StdoutPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	var ready string
	if _, err := fmt.Fscanln(s.out, &ready); err != nil {
		b.Fatalf("process %d is not ready: %v", index, err)
	}
	return s
}

// open has the process open its connections and tell by how much it has grown.
func (s *idleShare) open(b *testing.B) (heap, resident float64) {
	b.Helper()
	fmt.Fprintln(s.in, "open")
	if _, err := fmt.Fscanln(s.out, &heap, &resident); err != nil {
		b.Fatalf("%v: %v", s.cmd.Env[len(s.cmd.Env)-1], err)
	}
	return heap, resident
}

func (s *idleShare) end() {
	s.in.Close()
	s.cmd.Wait()
}

// holdIdleShare is the process: when it is told to, it opens connections, and it
// holds them until its input ends.
func holdIdleShare(share string) error {
	var index, connections int
	if _, err := fmt.Sscan(share, &index, &connections); err != nil {
		return fmt.Errorf("%s: %w", asIdleShare, err)
	}
	server, err := memcached.New(memcached.Options{MaxConns: connections, Seed: 1})
	if err != nil {
		return err
	}
	r, err := kernel.New(kernel.Config{Tick: server.Tick})
	if err != nil {
		return err
	}
	if err := r.Listen(netip.MustParseAddrPort("127.0.0.1:0"), server); err != nil {
		return err
	}
	if err := r.Start(); err != nil {
		return err
	}
	client := &idleClient{
		from: &unix.SockaddrInet4{Addr: [4]byte{127, 0, 9, byte(1 + index)}},
		to:   &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(r.Addresses()[0].Port())},
		in:   make([]byte, len(used)),
		fds:  make([]int, 0, connections),
	}
	defer client.reset()
	before, err := weigh()
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var line string
	fmt.Scanln(&line)
	for range connections {
		if err := client.open(); err != nil {
			return fmt.Errorf("connection %d: %w", len(client.fds), err)
		}
	}
	if n := server.Statistics().Conns; n != uint64(connections) {
		return fmt.Errorf("%d connections are open, want %d", n, connections)
	}
	after, err := weigh()
	if err != nil {
		return err
	}
	fmt.Println(after.heap-before.heap, after.resident-before.resident)
	fmt.Scanln(&line)
	return nil
}

// idleClient opens connections with sockets alone, which take nothing of Go's
// memory.
type idleClient struct {
	from, to *unix.SockaddrInet4
	in       []byte
	fds      []int
}

func (c *idleClient) open() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.fds = append(c.fds, fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		return err
	}
	if err := unix.Bind(fd, c.from); err != nil {
		return err
	}
	// An interrupted connect goes on by itself, and the write waits for it.
	if err := unix.Connect(fd, c.to); err != nil && err != unix.EINTR {
		return err
	}
	if _, err := unix.Write(fd, []byte(use)); err != nil {
		return err
	}
	for got := 0; got < len(used); {
		n, err := unix.Read(fd, c.in)
		if err == unix.EINTR { // by the scheduler's signals, for lack of SA_RESTART with a timeout
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("after %d of %d bytes: %w", got, len(used), err)
		}
		got += n
	}
	return nil
}

// reset ends the connections without TIME-WAIT.
func (c *idleClient) reset() {
	for _, fd := range c.fds {
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
}
