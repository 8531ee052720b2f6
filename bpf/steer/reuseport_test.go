package steer

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/internal/testnet"
	"golang.org/x/sys/unix"
)

func load(t *testing.T, workers int) *Steer {
	t.Helper()
	testnet.NeedRoot(t)
	s, err := Load(Config{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func counts(t *testing.T, s *Steer) Counts {
	t.Helper()
	c, err := s.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sum(numbers []uint64) (total uint64) {
	for _, n := range numbers {
		total += n
	}
	return total
}

// covers says whether all that was accepted was counted. More may have been: on
// a machine that has no time, a SYN that was not answered comes again.
func covers(counted, accepted []uint64) bool {
	for i, n := range accepted {
		if counted[i] < n {
			return false
		}
	}
	return len(counted) == len(accepted)
}

// group opens one receiver for each of some workers.
func group(t *testing.T, ns string, kind int, at netip.Addr, workers int) (fds []int, to netip.AddrPort) {
	t.Helper()
	to = netip.AddrPortFrom(at, 0)
	for range workers {
		fd, port := testnet.Receiver(t, ns, kind, to)
		fds = append(fds, fd)
		to = netip.AddrPortFrom(at, port)
	}
	return fds, to
}

// Many enough that by chance alone (a coin for each) none goes astray once in
// 2^64 runs.
const arrivals = 64

func TestConnectionsGoToTheWorkerOfTheirNAPI(t *testing.T) {
	const workers = 2
	n := testnet.New(t, workers)
	for _, at := range []netip.Addr{testnet.ServerIPv4, testnet.ServerIPv6} {
		t.Run(at.String(), func(t *testing.T) {
			s := load(t, workers)
			fds, to := group(t, n.Server, unix.SOCK_STREAM, at, workers)
			arrive := func() (worker, napi int) {
				c := testnet.Connect(t, n.Client, unix.SOCK_STREAM, to)
				defer unix.Close(c)
				return take(t, unix.SOCK_STREAM, fds)
			}

			// Off: the kernel's hash decides, which knows of no queue.
			var napis []int
			var off [arrivals]struct{ worker, napi int }
			for i := range off {
				off[i].worker, off[i].napi = arrive()
				if off[i].napi == 0 {
					t.Fatal("a connection without a NAPI instance: is GRO off on the veth?")
				}
				if !slices.Contains(napis, off[i].napi) {
					napis = append(napis, off[i].napi)
				}
			}
			slices.Sort(napis)
			if len(napis) != workers {
				t.Fatalf("%d connections came through NAPI instances %v, want %d of them", arrivals, napis, workers)
			}
			for worker, fd := range fds {
				must(t, s.Add(worker, fd))
				must(t, s.SetNAPI(uint32(napis[worker]), worker))
			}
			astray := 0
			for _, o := range off {
				if o.napi != napis[o.worker] {
					astray++
				}
			}
			if astray == 0 || astray == arrivals {
				t.Fatalf("with the program off %d of %d connections went to a worker that does not own their NAPI: then it proves nothing", astray, arrivals)
			}
			t.Logf("off: %d of %d went to a worker that does not own their NAPI", astray, arrivals)

			must(t, s.Attach(fds[0]))
			var got [workers]uint64
			for i := range arrivals {
				worker, napi := arrive()
				if napi != napis[worker] {
					t.Errorf("connection %d came through NAPI %d and went to worker %d, who owns %d", i, napi, worker, napis[worker])
				}
				got[worker]++
			}
			c := counts(t, s)
			if c.Fallback != 0 || sum(c.CPU) != 0 || !covers(c.NAPI, got[:]) {
				t.Errorf("counted %+v, accepted %v by NAPI", c, got)
			}
			if got[0] == 0 || got[1] == 0 {
				t.Errorf("accepted %v: a worker got nothing", got)
			}

			// Off again: back to the hash.
			must(t, Detach(fds[1]))
			astray = 0
			for range arrivals {
				if worker, napi := arrive(); napi != napis[worker] {
					astray++
				}
			}
			if astray == 0 {
				t.Error("after Detach every connection still goes to the owner of its NAPI")
			}
			if now := counts(t, s); sum(now.NAPI) != sum(c.NAPI) {
				t.Errorf("after Detach the program ran: %+v, before %+v", now, c)
			}
		})
	}
}

func TestDatagramsGoToTheWorkerOfTheirNAPI(t *testing.T) {
	const workers = 2
	n := testnet.New(t, workers)
	for _, at := range []netip.Addr{testnet.ServerIPv4, testnet.ServerIPv6} {
		t.Run(at.String(), func(t *testing.T) {
			s := load(t, workers)
			// A connected socket's datagrams all take one queue.
			fds, to := group(t, n.Server, unix.SOCK_DGRAM, at, workers)
			var senders [arrivals]int
			for i := range senders {
				senders[i] = testnet.Connect(t, n.Client, unix.SOCK_DGRAM, to)
				t.Cleanup(func() { unix.Close(senders[i]) })
			}
			send := func(sender int) (worker, napi int) {
				if _, err := unix.Write(sender, []byte("pollux")); err != nil {
					t.Fatal(err)
				}
				return take(t, unix.SOCK_DGRAM, fds)
			}

			// A socket that is not connected remembers the first NAPI instance
			// only: so a witness for each sender.
			witness, seen := testnet.Receiver(t, n.Server, unix.SOCK_DGRAM, netip.AddrPortFrom(at, 0))
			c := testnet.Connect(t, n.Client, unix.SOCK_DGRAM, netip.AddrPortFrom(at, seen))
			t.Cleanup(func() { unix.Close(c) })
			if _, err := unix.Write(c, []byte("first")); err != nil {
				t.Fatal(err)
			}
			_, one := take(t, unix.SOCK_DGRAM, []int{witness})

			var off [arrivals]int
			for i, sender := range senders {
				off[i], _ = send(sender)
			}
			for worker, fd := range fds {
				must(t, s.Add(worker, fd))
			}
			// One of the two instances is known; what came through the other is
			// given by processor, to the other worker.
			must(t, s.SetNAPI(uint32(one), 0))
			for cpu := range runtime.NumCPU() {
				must(t, s.SetCPU(cpu, 1))
			}
			must(t, s.Attach(fds[1]))
			astray := 0
			var got [workers]uint64
			for i, sender := range senders {
				worker, _ := send(sender)
				got[worker]++
				if worker != off[i] {
					astray++
				}
				// And again: it is the queue that decides.
				if again, _ := send(sender); again != worker {
					t.Errorf("sender %d: worker %d, then worker %d", i, worker, again)
				}
			}
			k := counts(t, s)
			if k.NAPI[0] != 2*got[0] || k.CPU[1] != 2*got[1] || k.NAPI[1] != 0 || k.CPU[0] != 0 || k.Fallback != 0 {
				t.Errorf("counted %+v, received twice %v", k, got)
			}
			if got[0] == 0 || got[1] == 0 {
				t.Errorf("received %v: a worker got nothing", got)
			}
			if astray == 0 {
				t.Error("the program changed nothing")
			}
			t.Logf("%d of %d senders went to another worker with the program off", astray, arrivals)
		})
	}
}

func TestWithoutNAPITheProcessorDecides(t *testing.T) {
	const workers = 3
	n := testnet.New(t, 1)
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		for _, at := range []string{"127.0.0.1", "::1"} {
			s := load(t, workers)
			fds, to := group(t, n.Server, kind, netip.MustParseAddr(at), workers)
			for worker, fd := range fds {
				must(t, s.Add(worker, fd))
			}
			must(t, s.Attach(fds[0]))
			var want [workers]uint64
			for _, cpu := range testnet.Usable(t) {
				for worker := range workers {
					must(t, s.SetCPU(cpu, worker))
					c := testnet.OnCPU(t, n.Server, cpu, func() (int, error) {
						c, err := testnet.ConnectHere(kind, to)
						if err == nil && kind == unix.SOCK_DGRAM {
							_, err = unix.Write(c, []byte("pollux"))
						}
						return c, err
					})
					got, napi := take(t, kind, fds)
					unix.Close(c)
					if got != worker || napi != 0 {
						t.Errorf("%v: from processor %d, which is worker %d's, to worker %d (NAPI %d)", to, cpu, worker, got, napi)
					}
					want[worker]++
				}
			}
			if c := counts(t, s); !covers(c.CPU, want[:]) || sum(c.NAPI) != 0 || c.Fallback != 0 {
				t.Errorf("%v: counted %+v, want %v by processor", to, c, want)
			}
		}
	}
}

func TestWhatNobodyOwnsIsLeftToTheKernel(t *testing.T) {
	n := testnet.New(t, 1)
	s := load(t, 2)
	fds, to := group(t, n.Server, unix.SOCK_STREAM, netip.MustParseAddr("127.0.0.1"), 2)
	must(t, s.Add(0, fds[0]))
	must(t, s.Attach(fds[0]))
	arrive := func() int {
		c := testnet.Connect(t, n.Server, unix.SOCK_STREAM, to)
		defer unix.Close(c)
		worker, _ := take(t, unix.SOCK_STREAM, fds)
		return worker
	}
	// Nothing was said about any NAPI or processor.
	for range 4 {
		arrive()
	}
	// The owner has no socket.
	for _, cpu := range testnet.Usable(t) {
		must(t, s.SetCPU(cpu, 1))
	}
	for range 4 {
		arrive()
	}
	before := counts(t, s)
	if c := before; c.Fallback < 8 || sum(c.NAPI) != 0 || sum(c.CPU) != 0 {
		t.Errorf("counted %+v, want 8 left to the kernel", c)
	}
	// Now it has, until it closes it.
	must(t, s.Add(1, fds[1]))
	if worker := arrive(); worker != 1 {
		t.Errorf("a connection of worker 1 went to worker %d", worker)
	}
	must(t, unix.Shutdown(fds[1], unix.SHUT_RD)) // stops listening
	fds = fds[:1]
	arrive()
	if c := counts(t, s); c.Fallback <= before.Fallback || c.CPU[1] == 0 {
		t.Errorf("counted %+v, want one more left to the kernel and one given by processor", c)
	}
}

func TestSteerRefusesWhatCannotBe(t *testing.T) {
	testnet.NeedRoot(t)
	for _, workers := range []int{-1, 0, MaxWorkers + 1} {
		if _, err := Load(Config{Workers: workers}); err == nil {
			t.Errorf("loaded for %d workers", workers)
		}
	}
	n := testnet.New(t, 1)
	s := load(t, 2)
	fds, _ := group(t, n.Server, unix.SOCK_STREAM, netip.MustParseAddr("127.0.0.1"), 1)
	plain := testnet.In(t, n.Server, func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) })
	t.Cleanup(func() { unix.Close(plain) })
	mptcp := testnet.In(t, n.Server, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		return fd, err
	})
	t.Cleanup(func() { unix.Close(mptcp) })
	for _, c := range []struct {
		what string
		err  error
		want string
	}{
		{"worker 2 of 2", s.Add(2, fds[0]), "no worker 2"},
		{"worker -1", s.SetNAPI(1000, -1), "no worker -1"},
		{"no NAPI", s.SetNAPI(0, 0), "NAPI id 0"},
		{"processor -1", s.SetCPU(-1, 0), "no processor"},
		{"processor 2^20", s.SetCPU(1<<20, 0), "no processor"},
		{"no socket", s.Add(0, -1), "socket -1"},
		{"a socket without SO_REUSEPORT", s.Add(0, plain), "SO_REUSEPORT"},
		{"an MPTCP socket", s.Add(0, mptcp), "MPTCP"},
		{"attach to no socket", s.Attach(-1), "socket -1"},
		{"attach to an MPTCP socket", s.Attach(mptcp), "MPTCP"},
		{"detach from no socket", Detach(-1), "socket -1"},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", c.what)
		} else if !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", c.what, c.err, c.want)
		}
	}
	must(t, s.Add(0, fds[0]))
	if err := s.Add(1, fds[0]); err == nil {
		t.Error("one socket for two workers")
	}
}

// take waits until one of some receivers has something, accepts the connection
// or reads the datagram, and returns whose it was and the NAPI instance that it
// came through.
func take(t testing.TB, kind int, fds []int) (worker, napi int) {
	t.Helper()
	polled := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		n, err := unix.Poll(polled, 1000)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if n > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing arrived at any worker's socket within 30 s")
		}
	}
	for i, p := range polled {
		if p.Revents&unix.POLLIN == 0 {
			continue
		}
		from := fds[i]
		if kind == unix.SOCK_STREAM {
			c, _, err := unix.Accept4(fds[i], unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(c)
			from = c
		} else if _, err := unix.Read(fds[i], make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		napi, err := unix.GetsockoptInt(from, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
		if err != nil {
			t.Fatal(err)
		}
		return i, napi
	}
	t.Fatalf("a socket failed: %+v", polled)
	return 0, 0
}

func TestNoConnectionComesBeforeTheDoorIsOpen(t *testing.T) {
	const workers = 2
	n := testnet.New(t, 1)
	s, err := Load(Config{Workers: workers, Closed: true})
	must(t, err)
	defer s.Close()
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	to := netip.AddrPortFrom(testnet.ServerIPv4, 0)
	for worker := range workers {
		fd := testnet.In(t, n.Server, func() (int, error) {
			return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		})
		fds = append(fds, fd)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}))
		if worker == 0 { // before anything listens
			must(t, s.Attach(fd))
			name, err := unix.Getsockname(fd)
			must(t, err)
			to = netip.AddrPortFrom(to.Addr(), uint16(name.(*unix.SockaddrInet4).Port))
		}
		must(t, unix.Listen(fd, 16))
		refused := testnet.In(t, n.Client, func() (error, error) {
			c, err := testnet.ConnectHere(unix.SOCK_STREAM, to)
			if err == nil {
				unix.Close(c)
			}
			return err, nil
		})
		if !errors.Is(refused, unix.ECONNREFUSED) {
			t.Errorf("with %d of %d sockets listening: %v", worker+1, workers, refused)
		}
	}
	for worker, fd := range fds {
		must(t, s.Add(worker, fd))
	}
	for _, cpu := range testnet.Usable(t) {
		must(t, s.SetCPU(cpu, 1))
	}
	must(t, s.Open())
	for range 20 {
		c := testnet.Connect(t, n.Client, unix.SOCK_STREAM, to)
		if worker, _ := take(t, unix.SOCK_STREAM, fds); worker != 1 {
			t.Errorf("a connection went to worker %d", worker)
		}
		unix.Close(c)
	}
}
