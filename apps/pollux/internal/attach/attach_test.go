package attach

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The test binary is one of the processes that the tests need if this is set.
const role = "POLLUX_ATTACH_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "server": // makes an epoll instance for each line, and ends with its input
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(fd)
		}
	case "attach": // attaches to the process that is named, with a watcher
		os.Setenv(role, "watcher")
		pid, _ := strconv.Atoi(os.Args[1])
		settings, err := kernel.SettingsOf(runtime.KernelPolling)
		if err == nil {
			err = Run(context.Background(), Config{PIDs: []int{pid}, Device: lab.ServerInterface, Settings: settings, Watcher: os.Args[:1], Out: os.Stdout})
		}
		fmt.Println(err)
		os.Exit(1)
	case "watcher":
		if err := kernel.RestoreWhenDead(os.Args[1]); err != nil {
			os.Exit(1)
		}
	}
}

func myself(as string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), role+"="+as, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func newLab(t *testing.T, name string) *lab.Lab {
	t.Helper()
	l, err := lab.Up(lab.Config{Name: fmt.Sprintf("t%d-%s", os.Getpid(), name), Path: runtime.Kernel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(l.Config().Name); err != nil {
			t.Error(err)
		}
	})
	return l
}

// server is a process in the lab that makes epoll instances when it is told to.
type server struct {
	t   *testing.T
	cmd *exec.Cmd
	in  interface {
		Write([]byte) (int, error)
		Close() error
	}
	out *bufio.Reader
}

func newServer(t *testing.T, l *lab.Lab) *server {
	t.Helper()
	s := &server{t: t, cmd: myself("server")}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(lab.Server, s.cmd); err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, bufio.NewReader(out)
	t.Cleanup(s.end)
	return s
}

func (s *server) end() { s.in.Close(); s.cmd.Wait() }

func (s *server) pid() int { return s.cmd.Process.Pid }

// newEpoll has the server make one, and returns its number there.
func (s *server) newEpoll() int {
	s.t.Helper()
	fmt.Fprintln(s.in)
	line, err := s.out.ReadString('\n')
	fd, e := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || e != nil {
		s.t.Fatalf("the server said %q: %v %v", line, err, e)
	}
	return fd
}

// params reads those of another process's epoll instance.
func params(t *testing.T, pid, fd int) napi.EpollParams {
	t.Helper()
	p, err := napi.OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	borrowed, err := p.Borrow(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(borrowed)
	e, err := napi.Epoll(borrowed)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func state(t *testing.T, l *lab.Lab) (s napi.State) {
	t.Helper()
	err := l.Do(lab.Server, func() error {
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := c.Device(lab.ServerInterface)
		if err != nil {
			return err
		}
		s, err = c.Save(d)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func kernelPolling(t *testing.T) kernel.Settings {
	t.Helper()
	s, err := kernel.SettingsOf(runtime.KernelPolling)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits until something that others do has happened.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// output can be written and read at once.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// attached is a Run in progress.
type attached struct {
	out    output
	cancel context.CancelFunc
	done   chan error
}

func attachTo(t *testing.T, pids ...int) *attached {
	ctx, cancel := context.WithCancel(context.Background())
	a := &attached{cancel: cancel, done: make(chan error, 1)}
	c := Config{PIDs: pids, Device: lab.ServerInterface, Settings: kernelPolling(t), Interval: 20 * time.Millisecond, Out: &a.out}
	go func() { a.done <- Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Log(a.out.String())
		}
	})
	return a
}

// end detaches and returns what Run did.
func (a *attached) end() error {
	a.cancel()
	return <-a.done
}

// busyPolled counts the packets that programs in a process's network namespace
// have polled for themselves.
func busyPolled(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "BusyPollRxPackets" {
				n, err := strconv.Atoi(f[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatal("the kernel does not count BusyPollRxPackets")
	return 0
}

func TestDebiansMemcachedPollsWhileAttachedAndNotAfterwards(t *testing.T) {
	l := newLab(t, "memcached")
	before := state(t, l)
	address := net.JoinHostPort(lab.ServerIPv4.Addr().String(), "11311")
	memcached := exec.Command("memcached", "-u", "root", "-t", "1", "-l", lab.ServerIPv4.Addr().String(), "-p", "11311")
	if err := l.Start(lab.Server, memcached); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memcached.Process.Kill(); memcached.Wait() })
	var connections []net.Conn
	connect := func() (err error) {
		return l.Do(lab.Client, func() error {
			c, err := net.DialTimeout("tcp4", address, time.Second)
			if err == nil {
				connections = append(connections, c)
			}
			return err
		})
	}
	eventually(t, "memcached answers", func() bool { return connect() == nil })
	t.Cleanup(func() {
		for _, c := range connections {
			c.Close()
		}
	})
	ask := func() {
		for _, c := range connections {
			c.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprint(c, "version\r\n")
			if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "VERSION") {
				t.Fatalf("%q, %v", line, err)
			}
		}
	}
	ask()
	pid := memcached.Process.Pid
	instances, err := epolls(pid)
	if err != nil || len(instances) < 2 {
		t.Fatalf("memcached's epoll instances: %v, %v", instances, err)
	}
	old := params(t, pid, instances[0])
	polled := busyPolled(t, pid)
	for range 100 {
		ask()
	}
	if n := busyPolled(t, pid); n != polled {
		t.Errorf("%d packets were polled before", n-polled)
	}

	a := attachTo(t, pid)
	eventually(t, "the worker's connection is seen", func() bool {
		return strings.Contains(a.out.String(), fmt.Sprintf("all its connections come through NAPI %d,", before.NAPIs[0].ID))
	})
	for range 3 {
		if err := connect(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "packets are polled", func() bool { ask(); return busyPolled(t, pid) > polled+100 })
	want := kernelPolling(t)
	for _, fd := range instances {
		if p := params(t, pid, fd); p != want.Epoll() {
			t.Errorf("epoll %d: %+v", fd, p)
		}
	}
	if s := state(t, l).NAPIs[0].Settings; s.IRQSuspendTimeout != want.IRQSuspendTimeout || s.DeferHardIRQs != want.DeferHardIRQs {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(a.out.String(), "only listens") {
		t.Error("the listening thread's epoll instance is not told apart")
	}

	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	for _, fd := range instances {
		if p := params(t, pid, fd); p != old {
			t.Errorf("epoll %d: %+v, was %+v", fd, p, old)
		}
	}
	if after := state(t, l); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
	ask() // the last poll may still be under way
	polled = busyPolled(t, pid)
	for range 100 {
		ask()
	}
	if n := busyPolled(t, pid); n != polled {
		t.Errorf("%d packets were polled afterwards", n-polled)
	}
}

func TestEpollInstancesThatComeLaterAreSetAndTheEndOfTheLastProcessDetaches(t *testing.T) {
	l := newLab(t, "later")
	before := state(t, l)
	one, two := newServer(t, l), newServer(t, l)
	first, second := one.newEpoll(), two.newEpoll()
	want := kernelPolling(t).Epoll()
	a := attachTo(t, one.pid(), two.pid())
	for s, fd := range map[*server]int{one: first, two: second} {
		eventually(t, "an instance is set", func() bool { return params(t, s.pid(), fd) == want })
	}
	later := one.newEpoll()
	eventually(t, "a later one is set", func() bool { return params(t, one.pid(), later) == want })
	two.end()
	eventually(t, "the end is seen", func() bool {
		return strings.Contains(a.out.String(), fmt.Sprintf("process %d has ended", two.pid()))
	})
	select {
	case err := <-a.done:
		t.Fatalf("detached while one process lives: %v", err)
	default:
	}
	one.end()
	if err := <-a.done; err != nil {
		t.Fatal(err)
	}
	if after := state(t, l); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
}

func TestADeviceThatWentDownAndUpIsSetAgainWhileAttached(t *testing.T) {
	l := newLab(t, "flap")
	s := newServer(t, l)
	s.newEpoll()
	a := attachTo(t, s.pid())
	want := kernelPolling(t)
	set := func() bool {
		list := state(t, l).NAPIs
		return len(list) > 0 && list[0].Settings.IRQSuspendTimeout == want.IRQSuspendTimeout && list[0].Settings.GROFlushTimeout == want.GROFlushTimeout
	}
	eventually(t, "the device is set", set)
	old := state(t, l).NAPIs[0].ID
	err := l.Do(lab.Server, func() error {
		link, err := netlink.LinkByName(lab.ServerInterface)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetUp(link))
	})
	if err != nil {
		t.Fatal(err)
	}
	if id := state(t, l).NAPIs[0].ID; id == old {
		t.Fatal("it has the NAPI instance that it had: this shows nothing")
	}
	eventually(t, "the device is set again", set)
	eventually(t, "that is said", func() bool { return strings.Contains(a.out.String(), fmt.Sprintf("NAPI %d gone", old)) })
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	if n := state(t, l).NAPIs[0]; n.Settings.IRQSuspendTimeout != 0 || n.Settings.GROFlushTimeout != 0 {
		t.Errorf("left %+v", n)
	}
}

func TestADeviceIsSpreadAsLongAsAttached(t *testing.T) {
	l := newLab(t, "spread")
	s := newServer(t, l)
	program := func() (attached bool) {
		err := l.Do(lab.Server, func() error {
			link, err := netlink.LinkByName(lab.ServerInterface)
			attached = err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return attached
	}
	settings, err := kernel.SettingsOf(runtime.IRQSuppression)
	if err != nil {
		t.Fatal(err)
	}
	settings.Spread = []int{0}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{PIDs: []int{s.pid()}, Device: lab.ServerInterface, Settings: settings})
	}()
	eventually(t, "a program is on the device", program)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if program() {
		t.Error("a program is left on the device")
	}
}

func TestAfterSIGKILLOfAttachTheServerIsAsItWas(t *testing.T) {
	l := newLab(t, "sigkill")
	before := state(t, l)
	s := newServer(t, l)
	fd := s.newEpoll()
	old := params(t, s.pid(), fd)
	cmd := myself("attach", strconv.Itoa(s.pid()))
	var out output
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil { // outside the lab: it finds the namespace
		t.Fatal(err)
	}
	eventually(t, "it is set", func() bool { return params(t, s.pid(), fd) == kernelPolling(t).Epoll() })
	if reflect.DeepEqual(state(t, l), before) {
		t.Error("the device is not set")
	}
	cmd.Process.Kill()
	cmd.Wait()
	files := filepath.Join(kernel.Directory, fmt.Sprintf("restore-%s-*-%d.json", lab.ServerInterface, cmd.Process.Pid))
	eventually(t, "the watcher puts it back", func() bool {
		left, err := filepath.Glob(files)
		return err == nil && len(left) == 0
	})
	if p := params(t, s.pid(), fd); p != old {
		t.Errorf("%+v, was %+v\n%s", p, old, out.String())
	}
	if after := state(t, l); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
}

func TestWhatStandsInTheWayIsNamedAndNothingChanged(t *testing.T) {
	l := newLab(t, "errors")
	before := state(t, l)
	s := newServer(t, l)
	without := newServer(t, l)
	fd := s.newEpoll()
	old := params(t, s.pid(), fd)
	good := Config{PIDs: []int{s.pid()}, Device: lab.ServerInterface, Settings: kernelPolling(t)}
	for _, c := range []struct {
		name   string
		change func(*Config)
		is     error
		want   string
	}{
		{"no process named", func(c *Config) { c.PIDs = nil }, nil, "no process"},
		{"no such process", func(c *Config) { c.PIDs = []int{1 << 22} }, napi.ErrGone, "4194304"},
		{"one without epoll", func(c *Config) { c.PIDs = append(c.PIDs, without.pid()) }, nil, fmt.Sprintf("process %d has no epoll instance", without.pid())},
		{"another namespace", func(c *Config) { c.PIDs = append(c.PIDs, os.Getpid()) }, nil, "different network namespaces"},
		{"no such device", func(c *Config) { c.Device = "absent" }, napi.ErrGone, `"absent"`},
		{"a device without NAPI", func(c *Config) { c.Device = "lo" }, kernel.ErrNoNAPI, "no NAPI"},
		{"invalid settings", func(c *Config) { c.Settings.IRQSuspendTimeout = time.Hour }, nil, "1h0m0s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := good
			config.PIDs = append([]int(nil), good.PIDs...)
			c.change(&config)
			if err := Run(t.Context(), config); err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("no privilege", func(t *testing.T) {
		result := make(chan error)
		go func() {
			goruntime.LockOSThread() // it ends without privilege
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				result <- err
				return
			}
			result <- Run(t.Context(), good)
		}()
		if err := <-result; !errors.Is(err, napi.ErrPrivilege) || !strings.Contains(err.Error(), "CAP_SYS_PTRACE") {
			t.Errorf("got %v", err)
		}
	})
	if p := params(t, s.pid(), fd); p != old {
		t.Errorf("%+v, was %+v", p, old)
	}
	if after := state(t, l); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
}

func TestTheVerdictSaysWhetherTheKernelCanPollForAnEpollInstance(t *testing.T) {
	ours := []napi.NAPI{{ID: 7, Queue: 0}, {ID: 8, Queue: 1}}
	for _, c := range []struct {
		connections map[uint32]int
		listening   int
		more        bool
		want        string
	}{
		{nil, 0, false, "no connections yet"},
		{nil, 1, false, "only listens"},
		{nil, 1, true, "of its first 1024 sockets: no connections yet"},
		{map[uint32]int{7: 3}, 1, false, "all its connections come through NAPI 7"},
		{map[uint32]int{7: 3}, 1, true, "of its first 1024 sockets: connections come through NAPI 7"},
		{map[uint32]int{0: 1, 8: 3}, 0, false, "all its connections come through NAPI 8"},
		{map[uint32]int{7: 1, 8: 3}, 0, false, "2 NAPIs (7, 8)"},
		{map[uint32]int{7: 1, 8: 3}, 0, true, "of its first 1024 sockets: its connections come through 2 NAPIs (7, 8)"},
		{map[uint32]int{0: 2}, 0, false, "NAPI id 0"},
		{map[uint32]int{7: 1, 99: 1}, 0, false, "NAPI 99 of another device"},
	} {
		got := waiting{c.connections, c.listening, c.more}.verdict(ours)
		if !strings.Contains(got, c.want) || c.more && strings.Contains(got, "all its") {
			t.Errorf("%v: %q, want %q", c.connections, got, c.want)
		}
	}
}
