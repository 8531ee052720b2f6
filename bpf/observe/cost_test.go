package observe

import (
	"net/netip"
	"os"
	"testing"

	"github.com/pollux-net/pollux/bpf/internal/testnet"
	"golang.org/x/sys/unix"
)

// BenchmarkCost is what observing costs those who are observed, at the worst:
// loads that are little else than what is counted. datagram sends one over
// loopback and reads it (a softirq, a poll); switch wakes another thread on the
// same processor and waits for it (two context switches).
func BenchmarkCost(b *testing.B) {
	testnet.NeedRoot(b)
	cpu := testnet.Usable(b)[0]
	for _, load := range []struct {
		name string
		make func(b *testing.B) func(n int)
	}{
		{"datagram", datagrams},
		{"switch", pingPong},
	} {
		for _, observed := range []string{"unobserved", "observed", "followed"} {
			b.Run(load.name+"/"+observed, func(b *testing.B) {
				w := newWorker(b, cpu, 10)
				run := load.make(b)
				switch observed {
				case "observed":
					start(b, Config{})
				case "followed":
					start(b, Config{Threads: []int{w.tid}})
				}
				w.do(func() { run(1000) })
				b.ResetTimer()
				w.do(func() { run(b.N) })
			})
		}
	}
}

func datagrams(b *testing.B) func(n int) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(b, err)
	b.Cleanup(func() { unix.Close(fd) })
	loopback := netip.MustParseAddr("127.0.0.1").As4()
	must(b, unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}))
	name, err := unix.Getsockname(fd)
	must(b, err)
	must(b, unix.Connect(fd, name)) // to itself
	buf := make([]byte, 64)
	return func(n int) {
		for range n {
			if _, err := unix.Write(fd, buf); err != nil {
				b.Error(err)
				return
			}
			if _, err := unix.Read(fd, buf); err != nil {
				b.Error(err)
				return
			}
		}
	}
}

func pingPong(b *testing.B) func(n int) {
	thereR, thereW, err := os.Pipe()
	must(b, err)
	backR, backW, err := os.Pipe()
	must(b, err)
	fds := [4]int{}
	for i, f := range []*os.File{thereR, thereW, backR, backW} {
		fds[i] = int(f.Fd()) // which makes it blocking
		b.Cleanup(func() { f.Close() })
	}
	other := newWorker(b, testnet.Usable(b)[0], 10)
	buf := make([]byte, 1)
	return func(n int) {
		other.start(func() {
			mine := make([]byte, 1)
			for range n {
				if _, err := unix.Read(fds[0], mine); err != nil {
					b.Error(err)
				}
				if _, err := unix.Write(fds[3], mine); err != nil {
					b.Error(err)
				}
			}
		})
		for range n {
			if _, err := unix.Write(fds[1], buf); err != nil {
				b.Error(err)
			}
			if _, err := unix.Read(fds[2], buf); err != nil {
				b.Error(err)
			}
		}
		other.wait()
	}
}

// BenchmarkRead is one snapshot of all processors.
func BenchmarkRead(b *testing.B) {
	o := start(b, Config{})
	for b.Loop() {
		read(b, o)
	}
}
