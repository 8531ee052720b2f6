package forwarder_test

import (
	"bytes"
	"crypto/sha256"
	be "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/bpf/trio"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "pollux-packet")
	if err == nil {
		binary = filepath.Join(dir, "pollux")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", binary, "github.com/pollux-net/pollux/apps/pollux").CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build pollux:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// log is what a process wrote.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// router runs pollux packet on a network's router; it is stopped with the test.
func router(t *testing.T, n *trio.Network, arguments ...string) (*log, *os.Process) {
	t.Helper()
	return forward(t, n.Router, append([]string{"--device", n.RouterPorts[0].Name, "--device", n.RouterPorts[1].Name}, arguments...)...)
}

// forward runs pollux packet on a host; it is stopped with the test.
func forward(t *testing.T, h *trio.Host, arguments ...string) (*log, *os.Process) {
	t.Helper()
	l := &log{}
	cmd := exec.Command(binary, append([]string{"packet", "--interval", "100ms"}, arguments...)...)
	cmd.Stdout, cmd.Stderr = l, l
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("pollux packet: %v\n%s", err, l)
			}
		case <-time.After(40 * time.Second): // a list of the kernel's routes may take 30
			cmd.Process.Signal(syscall.SIGQUIT) // where it hangs is what one wants to know
			time.Sleep(time.Second)
			cmd.Process.Kill()
			t.Errorf("pollux packet does not end:\n%s", l)
		}
		if t.Failed() {
			t.Logf("%s", tail(l.String()))
		}
	})
	await(t, "the forwarder to begin", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("pollux packet ended: %v\n%s", err, l)
		default:
		}
		if !strings.Contains(l.String(), "msg=forwarding") {
			return errors.New("not yet")
		}
		return nil
	})
	return l, cmd.Process
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// await waits for a condition that must come true.
func await(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

var variants = []struct {
	name      string
	arguments []string
}{
	{"poll", []string{"--mode", "poll"}},
	{"interrupt", []string{"--mode", "interrupt"}},
	{"adaptive", []string{"--mode", "adaptive"}},
	{"adaptive-nocache", []string{"--mode", "adaptive", "--flows", "-1"}},
	{"kernel", []string{"--path", "kernel"}},
}

func TestThreeHostsInARow(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			n := trio.New(t, trio.Options{MTU: 1400, Forwarding: v.name == "kernel"})
			router(t, n, v.arguments...)
			for _, to := range []string{"10.71.2.2", "fd71:2::2", "10.71.1.1", "10.71.2.1", "fd71:1::1", "fd71:2::1"} {
				await(t, "a ping to "+to, func() error {
					_, err := n.Client.Try("ping", "-c", "1", "-W", "1", to)
					return err
				})
				for range 5 {
					if err := ping(n, to); err != nil {
						t.Errorf("a ping to %s is lost", to)
					}
				}
			}
			// Our hop is visible to traceroute, which counts hops by such errors,
			// and the path's MTU is told to who sends too much.
			for hop, to := range map[string]string{"10.71.1.1": "10.71.2.2", "fd71:1::1": "fd71:2::2"} {
				out, _ := n.Client.Try("ping", "-n", "-c", "1", "-W", "2", "-t", "1", to)
				if !strings.Contains(out, "rom "+hop) || !strings.Contains(strings.ToLower(out), "exceeded") {
					t.Errorf("ping -t 1 %s does not show our hop:\n%s", to, out)
				}
				out, _ = n.Client.Try("ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1440", to)
				if !strings.Contains(out, "rom "+hop) || !strings.Contains(out, "mtu") || !strings.Contains(out, "1400") {
					t.Errorf("ping -M do to %s does not show the path's MTU:\n%s", to, out)
				}
			}
			for hop, to := range map[string]string{"10.71.1.1": "10.71.2.2", "fd71:1::1": "fd71:2::2"} {
				traced(t, n, hop, to)
			}
			for _, to := range []string{"10.71.2.2", "fd71:2::2"} {
				size := int64(1 << 30)
				if testing.Short() {
					size = 64 << 20
				}
				transfer(t, n, to, size)
			}
		})
	}
}

// transfer sends random bytes over TCP, and compares digests.
func transfer(t *testing.T, n *trio.Network, to string, size int64) {
	t.Helper()
	var listener net.Listener
	n.Server.Must(t, func() (err error) { listener, err = net.Listen("tcp", net.JoinHostPort(to, "0")); return err })
	defer listener.Close()
	received := make(chan string, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			received <- err.Error()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(8 * time.Minute))
		h := sha256.New()
		if _, err := io.Copy(h, c); err != nil {
			received <- err.Error()
			return
		}
		received <- fmt.Sprintf("%x", h.Sum(nil))
	}()
	var c net.Conn
	n.Client.Must(t, func() (err error) {
		c, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
		return err
	})
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Minute))
	h := sha256.New()
	begin := time.Now()
	if _, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
	c.(*net.TCPConn).CloseWrite()
	if got, want := <-received, fmt.Sprintf("%x", h.Sum(nil)); got != want {
		t.Errorf("to %s: received %s, sent %s", to, got, want)
	}
	t.Logf("%s: %.0f Mbit/s", to, 8e-6*float64(size)/time.Since(begin).Seconds())
}

// ping says whether a single ping gets an answer.
func ping(n *trio.Network, to string) error {
	_, err := n.Client.Try("ping", "-n", "-c", "1", "-W", "1", to)
	return err
}

// metricsOf is where a router answers.
func metricsOf(l *log) string {
	_, address, _ := strings.Cut(l.String(), "http://")
	address, _, _ = strings.Cut(address, "/metrics")
	return address
}

// metric is the value of one that has these labels.
func metric(body, name string) (float64, error) {
	_, value, found := strings.Cut("\n"+body, "\n"+name+" ")
	if !found {
		return 0, fmt.Errorf("no metric %s", name)
	}
	value, _, _ = strings.Cut(value, "\n")
	return strconv.ParseFloat(value, 64)
}

func TestARouteIsReplacedDuringTraffic(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			n := trio.New(t, trio.Options{Forwarding: v.name == "kernel"})
			// By which of two links a packet came, its receiver can tell.
			second, serverPort := trio.Join(t, n.Router, n.Server, trio.Link{
				Names: [2]string{"router2", "server1"},
				V4:    [2]netip.Prefix{netip.MustParsePrefix("10.71.3.1/24"), netip.MustParsePrefix("10.71.3.2/24")},
			})
			n.Server.PrepareEnd(t, serverPort)
			n.Server.Run(t, "ip", "address", "add", "10.99.0.1/32", "dev", "lo")
			by := []string{"10.71.2.2", "10.71.3.2"}
			links := map[int]int{n.ServerPort.Index: 0, serverPort.Index: 1}
			l, _ := router(t, n, append([]string{"--device", second.Name, "--metrics", "127.0.0.1:0"}, v.arguments...)...)
			tables := func() (routes float64, inForce bool, err error) {
				body, err := get(n.Router, metricsOf(l))
				if err != nil {
					return 0, false, err
				}
				routes, err1 := metric(body, "pollux_packet_routes")
				force, err2 := metric(body, "pollux_packet_tables_in_force")
				return routes, force == 1, errors.Join(err1, err2)
			}
			base, markers := 0.0, 0
			// replace returns when the route is in force on all shards.
			replace := func(i int) {
				n.Router.Run(t, "ip", "route", "replace", "10.99.0.0/24", "via", by[i])
				if v.name == "kernel" {
					return // the command says so
				}
				// One more route, which cannot be there before the other is.
				markers++
				n.Router.Run(t, "ip", "route", "add", fmt.Sprintf("10.98.0.%d/32", markers), "via", by[0])
				await(t, "the new tables to be in force", func() error {
					routes, inForce, err := tables()
					if err == nil && (routes < base+float64(markers) || !inForce) {
						err = fmt.Errorf("%v routes of %v, in force: %v", routes, base+float64(markers), inForce)
					}
					return err
				})
			}
			for i := range by { // every next hop is known
				n.Router.Run(t, "ip", "route", "replace", "10.99.0.0/24", "via", by[i])
				await(t, "the route by "+by[i], func() error { return ping(n, "10.99.0.1") })
			}
			if v.name != "kernel" {
				var err error
				if base, _, err = tables(); err != nil {
					t.Fatal(err)
				}
			}
			var server, client *net.UDPConn
			n.Server.Must(t, func() (err error) {
				if server, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 99, 0, 1), Port: 7}); err != nil {
					return err
				}
				raw, err := server.SyscallConn()
				if err != nil {
					return err
				}
				return errors.Join(raw.Control(func(fd uintptr) {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
						unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
				}), err)
			})
			defer server.Close()
			n.Client.Must(t, func() (err error) {
				client, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 71, 1, 2)}, server.LocalAddr().(*net.UDPAddr))
				return err
			})
			defer client.Close()

			const flips, between = 10, 100
			// Packets carry numbers. From number since[i] on, and for some, they must
			// come by link i%2.
			var sent atomic.Uint64
			var since [flips]uint64
			stop, sender := make(chan struct{}), make(chan error, 1)
			go func() {
				var b [8]byte
				for {
					select {
					case <-stop:
						sender <- nil
						return
					case <-time.After(200 * time.Microsecond):
					}
					be.BigEndian.PutUint64(b[:], sent.Add(1))
					if _, err := client.Write(b[:]); err != nil {
						sender <- err
						return
					}
				}
			}()
			var arrived atomic.Uint64 // the highest number so far
			came := map[uint64]int{}  // by which link
			receiver := make(chan error, 1)
			go func() {
				b, control := make([]byte, 8), make([]byte, 256)
				for {
					size, controls, _, _, err := server.ReadMsgUDP(b, control)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						receiver <- nil
						return
					}
					messages, err2 := unix.ParseSocketControlMessage(control[:controls])
					if err := errors.Join(err, err2); err != nil || size != 8 || len(messages) != 1 {
						receiver <- fmt.Errorf("%d bytes, %d control messages: %w", size, len(messages), err)
						return
					}
					number := be.BigEndian.Uint64(b)
					came[number] = links[int(be.NativeEndian.Uint32(messages[0].Data))] // in_pktinfo begins with it
					arrived.Store(max(number, arrived.Load()))
				}
			}()
			for i := range flips {
				replace(i % 2)
				since[i] = sent.Load() + 1 // the one that is being sent may be on its way already
				// Until later ones have arrived, those before may wait for the router,
				// which then sends them by the next route.
				await(t, "packets to arrive", func() error {
					if arrived.Load() < since[i]+between {
						return fmt.Errorf("%d of number %d", arrived.Load(), since[i]+between)
					}
					return nil
				})
			}
			close(stop)
			server.SetReadDeadline(time.Now().Add(time.Second))
			if err := errors.Join(<-sender, <-receiver); err != nil {
				t.Fatal(err)
			}
			received, stale, last := len(came), 0, sent.Load()
			for number, link := range came {
				for i := range flips {
					if number >= since[i] && number < since[i]+between && link != i%2 {
						stale++
					}
				}
			}
			if stale > 0 {
				t.Errorf("%d of %d packets went by a route after the next one was in force", stale, last)
			}
			// A swap takes no packet with it; on a busy machine a socket's or a
			// device's queue may.
			if received < int(last-last/100) {
				t.Errorf("%d of %d packets arrived during %d replacements", received, last, flips)
			}
			n.Router.Run(t, "ip", "route", "replace", "blackhole", "10.99.0.0/24")
			await(t, "the blackhole", func() error {
				if ping(n, "10.99.0.1") == nil {
					return errors.New("still forwarded")
				}
				return nil
			})
		})
	}
}

func TestRulesAreLoadedAgainAndTranslationWorks(t *testing.T) {
	n := trio.New(t, trio.Options{})
	// The server knows no way back to the client: only translated packets
	// are answered.
	n.Server.Run(t, "ip", "route", "delete", "default")
	file := filepath.Join(t.TempDir(), "edge.rules")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("permit\n")
	l, process := router(t, n, "--rules", file, "--metrics", "127.0.0.1:0")
	if ping(n, "10.71.2.2") == nil {
		t.Error("a packet that is not translated is answered")
	}
	write("nat out router1 from 10.71.1.0/24 to 10.71.2.1\ndeny proto tcp to-port 9\n")
	process.Signal(syscall.SIGHUP)
	await(t, "the translation", func() error { return ping(n, "10.71.2.2") })
	if testing.Short() {
		transfer(t, n, "10.71.2.2", 4<<20)
	} else {
		transfer(t, n, "10.71.2.2", 256<<20)
	}
	// The box's own address is still the box's.
	if err := ping(n, "10.71.2.1"); err != nil {
		t.Error("the box does not answer on the address that it translates to")
	}
	write("default deny\nnonsense\n")
	process.Signal(syscall.SIGHUP)
	await(t, "the refusal", func() error {
		if !strings.Contains(l.String(), "edge.rules:2:") {
			return errors.New("no error with the line")
		}
		return nil
	})
	if err := ping(n, "10.71.2.2"); err != nil {
		t.Error("a bad file was taken over")
	}
	write("default deny\n")
	process.Signal(syscall.SIGHUP)
	await(t, "everything to be denied", func() error {
		if ping(n, "10.71.2.2") == nil {
			return errors.New("still forwarded")
		}
		return nil
	})
	address := l.String()[strings.Index(l.String(), "http://"):]
	address, _, _ = strings.Cut(address, "\n")
	var body []byte
	n.Router.Must(t, func() error {
		c, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(address, "http://"), "/metrics"))
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /metrics HTTP/1.0\r\n\r\n")
		body, err = io.ReadAll(c)
		return err
	})
	for _, want := range []string{`pollux_packet_dropped_total{cause="denied",shard="0"} `, "pollux_packet_forwarded_total", "pollux_packet_bindings{", `pollux_packet_port_received_total{port="router0",shard="0"}`} {
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

func TestBothPathsCountTheSameUnderTheSameNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte("deny proto udp to-port 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range variants[2:] {
		n := trio.New(t, trio.Options{Forwarding: v.name == "kernel"})
		l, _ := router(t, n, append([]string{"--rules", file, "--metrics", "127.0.0.1:0"}, v.arguments...)...)
		await(t, "a ping", func() error { return ping(n, "10.71.2.2") })
		var c net.Conn
		n.Client.Must(t, func() (err error) { c, err = net.Dial("udp", "10.71.2.2:9"); return err })
		defer c.Close()
		for range 30 {
			if _, err := c.Write([]byte("denied")); err != nil {
				t.Fatal(err)
			}
			if err := ping(n, "10.71.2.2"); err != nil {
				t.Error(err)
			}
		}
		await(t, v.name+" to count", func() error {
			body, err := get(n.Router, metricsOf(l))
			if err != nil {
				return err
			}
			// Of all shards or processors.
			sum := func(name, labels string) (total float64) {
				for line := range strings.Lines(body) {
					if strings.HasPrefix(line, name+"{") && strings.Contains(line, labels) && strings.Contains(line, `shard="`) {
						value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.Index(line, "} ")+1:]), 64)
						if err != nil {
							t.Fatal(err)
						}
						total += value
					}
				}
				return total
			}
			received, forwarded, denied := sum("pollux_packet_received_total", ""), sum("pollux_packet_forwarded_total", ""), sum("pollux_packet_dropped_total", `cause="denied"`)
			// Of the pings and their answers the kernel path leaves one a second each
			// way to the kernel.
			if denied != 30 || forwarded < 50 || received < denied+forwarded {
				return fmt.Errorf("%v received, %v forwarded, %v denied; want 30 denied, and 60 forwarded or some less", received, forwarded, denied)
			}
			for _, want := range []string{"received ", "/s forwarded ", "/s dropped ", "denied "} {
				if !strings.Contains(l.String(), want) {
					return fmt.Errorf("%q is not shown", want)
				}
			}
			return nil
		})
	}
}

// traced checks what traceroute and tracepath show: our hop first, the server
// second, and the path's MTU.
func traced(t *testing.T, n *trio.Network, hop, to string) {
	t.Helper()
	var out string
	await(t, "a route to be traced to "+to, func() (err error) {
		out, err = n.Client.Try("traceroute", "-n", "-q", "1", "-w", "2", "-m", "4", to)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err != nil || len(lines) != 3 || !strings.HasPrefix(lines[1], " 1  "+hop+" ") || !strings.HasPrefix(lines[2], " 2  "+to+" ") {
			return fmt.Errorf("%v:\n%s", err, out)
		}
		return nil
	})
	// What was learned of the path so far would hide where it narrows.
	n.Client.Run(t, "ip", "route", "flush", "cache")
	n.Client.Run(t, "ip", "-6", "route", "flush", "cache")
	await(t, "a path to be traced to "+to, func() (err error) {
		out, err = n.Client.Try("tracepath", "-n", "-m", "4", to)
		if err != nil || !strings.Contains(out, hop) || !strings.Contains(out, "pmtu 1400") || !strings.Contains(out, to) || !strings.Contains(out, "reached") {
			return fmt.Errorf("%v:\n%s", err, out)
		}
		return nil
	})
}

// get asks for the metrics over TCP as a host's kernel does it.
func get(h *trio.Host, address string) (body string, err error) {
	err = h.Do(func() error {
		c, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "GET /metrics HTTP/1.0\r\n\r\n")
		b, err := io.ReadAll(c)
		body = string(b)
		return err
	})
	return body, err
}

func TestTheBoxServesTCPOnItsOwnAddresses(t *testing.T) {
	n := trio.New(t, trio.Options{})
	router(t, n, "--metrics-port", "9100")
	answers := func(address string) func() error {
		return func() error {
			body, err := get(n.Client, address)
			if err == nil && (!strings.HasPrefix(body, "HTTP/1.0 200") || !strings.Contains(body, "pollux_packet_delivered_total{")) {
				err = fmt.Errorf("an answer without metrics: %.200q", body)
			}
			return err
		}
	}
	// Also on the far port's addresses, and on one that comes later.
	for _, address := range []string{"10.71.1.1:9100", "10.71.2.1:9100", "[fd71:1::1]:9100", "[fd71:2::1]:9100"} {
		await(t, "metrics from "+address, answers(address))
	}
	n.Router.Run(t, "ip", "address", "add", "10.71.1.77/24", "dev", n.RouterPorts[0].Name)
	await(t, "metrics from a new address", answers("10.71.1.77:9100"))
	await(t, "metrics from an old address", answers("10.71.1.1:9100"))
}

// client ── af_packet, router, memif ── memif, far, af_xdp and tap ── server
func TestPortsOfDifferentDriversMix(t *testing.T) {
	n := trio.New(t, trio.Options{})
	far := trio.NewHost(t, "far")
	ip := func(h *trio.Host, words string) {
		t.Helper()
		h.Run(t, "ip", strings.Fields(words)...)
	}
	// What a port borrows; not every kernel has dummies, but a veth to nobody does.
	dummy := func(h *trio.Host, name string, addresses ...string) {
		t.Helper()
		ip(h, "link add "+name+" type veth peer name "+name+"x")
		ip(h, "link set "+name+"x up")
		for _, a := range addresses {
			ip(h, "address add "+a+" dev "+name+" nodad")
		}
		ip(h, "link set "+name+" up")
	}
	// The kernel sees af_packet's frames, too: it has no address there.
	ip(n.Router, "address flush dev router0")
	dummy(n.Router, "lan0", "10.71.1.1/24", "fd71:1::1/64")
	dummy(n.Router, "link0", "10.71.9.1/24", "fd71:9::1/64")
	dummy(far, "link1", "10.71.9.2/24", "fd71:9::2/64")
	dummy(far, "wan1", "10.71.3.1/24", "fd71:3::1/64")
	farPort, serverPort := trio.Join(t, far, n.Server, trio.Link{
		Names: [2]string{"far0", "server1"},
		V4:    [2]netip.Prefix{netip.MustParsePrefix("10.71.4.1/24"), netip.MustParsePrefix("10.71.4.2/24")},
		V6:    [2]netip.Prefix{netip.MustParsePrefix("fd71:4::1/64"), netip.MustParsePrefix("fd71:4::2/64")},
	})
	n.Server.PrepareEnd(t, serverPort)
	for _, family := range []struct{ option, net, gateway, back, own string }{
		{"-4", "10.71.%d.0/24", "10.71.9.2", "10.71.9.1", "10.71.%d.1"}, {"-6", "fd71:%d::/64", "fd71:9::2", "fd71:9::1", "fd71:%d::1"},
	} {
		for _, i := range []int{3, 4} {
			ip(n.Router, fmt.Sprintf("%s route add "+family.net+" via %s dev link0", family.option, i, family.gateway))
		}
		ip(far, fmt.Sprintf("%s route add "+family.net+" via %s dev link1", family.option, 1, family.back))
		ip(n.Server, fmt.Sprintf("%s route del default", family.option))
		ip(n.Server, fmt.Sprintf("%s route add default via "+family.own+" dev server1", family.option, 4))
	}
	memif := "net_memif0,socket-abstract=no,socket=" + filepath.Join(t.TempDir(), "memif")
	first, _ := forward(t, n.Router, "--device", "af_packet:router0@lan0", "--device", memif+",role=server@link0", "--metrics", "127.0.0.1:0")
	second, _ := forward(t, far, "--device", memif+",role=client@link1", "--device", farPort.Name, "--device", "tap:far1@wan1", "--metrics", "127.0.0.1:0")
	// The tap's other side is the server's, and what it sends from there goes back
	// there.
	n.Server.Take(t, far, "far1")
	ip(n.Server, "link set far1 up")
	for _, family := range []struct{ option, own, router string }{{"-4", "10.71.3.2/24", "10.71.3.1"}, {"-6", "fd71:3::2/64", "fd71:3::1"}} {
		ip(n.Server, fmt.Sprintf("%s address add %s dev far1 nodad", family.option, family.own))
		ip(n.Server, fmt.Sprintf("%s rule add from %s lookup 100", family.option, family.own[:strings.Index(family.own, "/")]))
		ip(n.Server, fmt.Sprintf("%s route add default via %s dev far1 table 100", family.option, family.router))
	}
	for _, to := range []string{"10.71.4.2", "10.71.3.2", "fd71:4::2", "fd71:3::2"} {
		await(t, "a ping to "+to, func() error { return ping(n, to) })
		transfer(t, n, to, 16<<20)
	}
	for _, to := range []string{"10.71.1.2", "fd71:1::2"} {
		await(t, "a ping from the server to "+to, func() error {
			_, err := n.Server.Try("ping", "-n", "-c", "1", "-W", "1", to)
			return err
		})
	}
	// All of it went through the two services, by every one of their ports.
	for _, c := range []struct {
		host  *trio.Host
		log   *log
		ports []string
	}{{n.Router, first, []string{"router0", "net_memif0"}}, {far, second, []string{"net_memif0", "far0", "far1"}}} {
		_, address, _ := strings.Cut(c.log.String(), "http://")
		address, _, _ = strings.Cut(address, "/metrics")
		body, err := get(c.host, address)
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range c.ports {
			for _, way := range []string{"received", "transmitted"} {
				key := fmt.Sprintf(`pollux_packet_port_%s_total{port="%s",shard="0"} `, way, port)
				_, value, _ := strings.Cut(body, key)
				value, _, _ = strings.Cut(value, "\n")
				if frames, err := strconv.ParseFloat(value, 64); err != nil || frames < 100 {
					t.Errorf("%s: %s %q frames", port, way, value)
				}
			}
		}
	}
}
