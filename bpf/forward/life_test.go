package forward

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/trio"
)

// The test binary is also the process that dies: with its interfaces in the
// environment it forwards between them until it is killed.
const childInterfaces = "POLLUX_FORWARD_INTERFACES"

func TestMain(m *testing.M) {
	list, child := os.LookupEnv(childInterfaces)
	if !child {
		os.Exit(m.Run())
	}
	var c Config
	for s := range strings.SplitSeq(list, ",") {
		index, err := strconv.Atoi(s)
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		c.Interfaces = append(c.Interfaces, index)
	}
	if _, err := Load(c); err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("forwarding\n")
	time.Sleep(time.Minute) // killed before
}

func attached(t *testing.T, n *trio.Network) bool {
	t.Helper()
	return strings.Contains(n.Router.Run(t, "ip", "link", "show"), "xdp")
}

func TestTheProgramLeavesWithItsProcessHoweverThatEnds(t *testing.T) {
	n := trio.New(t, trio.Options{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childInterfaces+"="+strconv.Itoa(n.RouterPorts[0].Index)+","+strconv.Itoa(n.RouterPorts[1].Index))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Router.Start(cmd); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "forwarding\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
	if !attached(t, n) {
		t.Error("no program on the interfaces while the process lives")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	// The kernel lets go of a process's last things a little later.
	for deadline := time.Now().Add(10 * time.Second); attached(t, n); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program is still there")
		}
	}
}

func TestAClosedForwarderLeavesTheKernelToItself(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	f := attach(t, n)
	if err := f.SetRules(nil, true); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Client.Try("ping", "-c", "1", "-W", "1", n.ServerPort.V4.Addr().String()); err == nil {
		t.Errorf("a denied ping was answered:\n%s", out)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if attached(t, n) {
		t.Error("a program is still there")
	}
	n.Client.Run(t, "ping", "-c", "1", "-W", "5", n.ServerPort.V4.Addr().String())
	if err := f.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestWithoutTheKernelsForwardingNothingIsForwardedAndTheCounterSaysWhy(t *testing.T) {
	n := trio.New(t, trio.Options{})
	f := attach(t, n)
	for family, e := range families(n) {
		before := counters(t, f)
		if _, err := n.Client.Try("ping", "-c", "1", "-W", "1", e.server.String()); err == nil {
			t.Errorf("%s: answered", family)
		}
		if c := counters(t, f).since(before); c[Disabled].Frames == 0 || c[Forwarded].Frames > 0 {
			t.Errorf("%s:%s, want disabled", family, c)
		}
	}
}

func TestAnOutputThatTakesNoFramesFromXDPIsCountedAsUnready(t *testing.T) {
	n := trio.New(t, trio.Options{Forwarding: true})
	n.Server.Run(t, "ethtool", "-K", "server0", "gro", "off")
	f := attach(t, n)
	if out, err := n.Client.Try("ping", "-c", "20", "-i", "0.01", "-w", "1", n.ServerPort.V4.Addr().String()); err == nil && !strings.Contains(out, "100% packet loss") {
		t.Logf("some were the kernel's:\n%s", out)
	}
	c := counters(t, f)
	if c[OutputUnready].Frames < 10 || c.Sent() > 5 {
		t.Errorf("%d frames sent:%s; want output-unready", c.Sent(), c)
	}
}

func TestWhatCannotBeJoinedIsRefusedAndNothingStaysBehind(t *testing.T) {
	n := trio.New(t, trio.Options{})
	one, two := n.RouterPorts[0].Index, n.RouterPorts[1].Index
	n.Router.Must(t, func() error {
		for name, c := range map[string]struct {
			interfaces []int
			says       string
		}{
			"none":     {nil, "must be 1 to"},
			"too many": {make([]int, MaxInterfaces+1), "must be 1 to"},
			"unknown":  {[]int{one, 9999}, "interface 9999"},
			"twice":    {[]int{one, two, one}, "named twice"},
			"loopback": {[]int{one, 1}, "no Ethernet address"},
		} {
			f, err := Load(Config{c.interfaces})
			if err == nil {
				f.Close()
				t.Errorf("%s: no error", name)
			} else if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
		first, err := Load(Config{[]int{two}})
		if err != nil {
			return err
		}
		defer first.Close()
		if f, err := Load(Config{[]int{one, two}}); err == nil {
			f.Close()
			t.Error("two programs on one interface")
		} else if !strings.Contains(err.Error(), "it has an XDP program already") {
			t.Error(err)
		}
		return nil
	})
	if attached(t, n) {
		t.Error("a program stayed behind")
	}
}

func TestCausesHaveNamesAndOneFate(t *testing.T) {
	names := map[string]bool{}
	for _, c := range Causes() {
		if c.String() == "" || names[c.String()] {
			t.Errorf("cause %d: name %q", c, c)
		}
		names[c.String()] = true
		fates := 0
		for _, is := range []bool{c == Forwarded, c.Passed(), c.Dropped()} {
			if is {
				fates++
			}
		}
		if fates != 1 {
			t.Errorf("%s has %d fates", c, fates)
		}
	}
}
