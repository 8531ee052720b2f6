package endtoend

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// trace is everything that a server touches outside of itself: the devices of
// both sides with flags and XDP programs, and the network namespaces.
func trace(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var b strings.Builder
	for _, side := range lab.Sides {
		for _, what := range []string{"link", "address"} {
			cmd := exec.Command("ip", "-details", what, "show", "dev", lab.Interface(side))
			var out output
			cmd.Stdout = &out // not standard error: it complains of others' namespaces
			if err := l.Start(side, cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			b.WriteString(peerNamespace.ReplaceAllString(out.String(), ""))
		}
	}
	// Those of others come and go.
	names, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), l.Config().Name) {
			b.WriteString(n.Name() + "\n")
		}
	}
	return b.String()
}

// peerNamespace is what ip says of where the other end is, by name if it finds one.
var peerNamespace = regexp.MustCompile(` link-netns(id)? \S+`)

// fails runs pollux on the server's side, which must end with an error that
// contains all of want, and leave everything as it was.
func fails(t *testing.T, l *lab.Lab, cmd *exec.Cmd, want ...string) {
	t.Helper()
	before := trace(t, l)
	p := start(t, l, lab.Server, cmd)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	stderr := p.stderr.String()
	if !strings.HasPrefix(stderr, "pollux: ") {
		t.Errorf("standard error does not begin with the program's name: %s", stderr)
	}
	for _, w := range want {
		if !strings.Contains(stderr, w) {
			t.Errorf("standard error does not say %q: %s", w, stderr)
		}
	}
	// (The EAL prints its own usage if it does not understand its arguments.)
	if out := p.stdout.(*output).String(); out != "" && !slices.Contains(cmd.Args, "--eal") {
		t.Errorf("standard output: %s", out)
	}
	if after := trace(t, l); after != before {
		t.Errorf("something was left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestWhatCannotStartSaysWhyAndLeavesNothingBehind(t *testing.T) {
	l := newLab(t, 1)
	binary := pollux.build(t)
	// The command line with one flag (and its value) changed.
	with := func(flag, value string) []string {
		args := memcachedArgs(runtime.Adaptive, 1)
		if i := slices.Index(args, flag); i >= 0 {
			args[i+1] = value
			return args
		}
		return append(args, flag, value)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"no such device", with("--device", "absent0"), []string{"no such device", `"absent0"`, "has lo, pollux0"}},
		{"no device", []string{"memcached", "--address", "10.99.0.1/24"}, []string{`"device" not set`}},
		{"a PCI device that is not there", with("--device", "0000:99:00.0"), []string{"0000:99:00.0", "no such device"}},
		{"a virtual device that is not one", with("--device", "net_nonsense0"), []string{"net_nonsense0"}},
		{"no address", []string{"memcached", "--device", lab.ServerInterface}, []string{`"address" not set`}},
		{"an address that is not one", with("--address", "nonsense"), []string{"--address", `"nonsense"`, "like 10.99.0.1/24"}},
		{"an address without prefix length", with("--address", "10.99.0.1"), []string{"--address", `"10.99.0.1"`, "prefix length"}},
		{"an address that no host has", with("--address", "224.0.0.1/24"), []string{"224.0.0.1/24", "not an address that a host can have"}},
		{"a gateway that is not one", with("--gateway", "nonsense"), []string{"--gateway", `"nonsense"`}},
		{"too many cores", with("--cores", "64"), []string{"--cores 64", "this process may use"}},
		{"no core", with("--cores", "-1"), []string{"--cores -1", "at least one"}},
		{"more cores than queues", with("--cores", "2"), []string{"1 receive", "not 2", "ethtool -L pollux0"}},
		{"too little memory for items", with("--memory", "1k"), []string{"1024 bytes", "too small", "minimum is", "8 MiB"}},
		{"memory that is no size", with("--memory", "much"), []string{"--memory", `"much"`, "like 64m"}},
		{"too little memory for DPDK", with("--dpdk-memory", "4"), []string{"too little memory", "MiB", "--dpdk-memory 4"}},
		{"too little memory for the driver", with("--dpdk-memory", "20"), []string{"cannot allocate memory", "--dpdk-memory 20; the default is 128"}},
		{"more hugepages than there are", append(with("--dpdk-memory", "1000000"), "--hugepages"), []string{"hugepages", "1000000 are needed", "nr_hugepages"}},
		{"an unknown mode", with("--mode", "sometimes"), []string{"--mode", `"sometimes"`, "poll, interrupt, adaptive"}},
		{"another path", with("--path", "tunnel"), []string{"--path tunnel", "user"}},
		{"an unknown dispatch", with("--dispatch", "magic"), []string{`"magic"`, "inline or handoff"}},
		{"an unknown driver", with("--driver", "magic"), []string{`"magic"`, "af_xdp, af_packet"}},
		{"a port that is not one", with("--port", "99999"), []string{"--port", "99999"}},
		{"an argument that the EAL does not know", with("--eal", "--nonsense"), []string{"--nonsense"}},
		{"a metrics address that is not ours", with("--metrics", "192.0.2.1:9100"), []string{"metrics", "192.0.2.1:9100", "--metrics"}},
		{"a metrics address that is not one", with("--metrics", "nonsense"), []string{"metrics", "nonsense", "--metrics"}},
		{"a capture that cannot be written", with("--capture", "/absent/x.pcapng"), []string{"capture", "/absent/x.pcapng"}},
		{"an unknown flag", with("--nonsense", "x"), []string{"--nonsense"}},
	} {
		t.Run(c.name, func(t *testing.T) { fails(t, l, exec.Command(binary, c.args...), c.want...) })
	}

	t.Run("without privilege", func(t *testing.T) {
		cmd := exec.Command(binary, memcachedArgs(runtime.Adaptive, 1)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		fails(t, l, cmd, "pollux0", "CAP_NET_ADMIN", "CAP_NET_RAW", "run as root")
	})
	t.Run("the kernel has the address", func(t *testing.T) {
		must(t, l, lab.Server, "ip", "address", "add", "10.99.0.1/24", "dev", lab.ServerInterface)
		fails(t, l, exec.Command(binary, memcachedArgs(runtime.Adaptive, 1)...), "the kernel has 10.99.0.1/24 on pollux0", "ip addr del 10.99.0.1/24 dev pollux0")
		must(t, l, lab.Server, "ip", "address", "del", "10.99.0.1/24", "dev", lab.ServerInterface)
	})
	t.Run("the client's side computes no checksums", func(t *testing.T) {
		must(t, l, lab.Client, "ethtool", "-K", lab.ClientInterface, "tx", "on")
		fails(t, l, exec.Command(binary, memcachedArgs(runtime.Adaptive, 1)...), "pollux1", "checksum", "ethtool -K pollux1 tx off")
		must(t, l, lab.Client, "ethtool", "-K", lab.ClientInterface, "tx", "off", "tso", "off", "gso", "off")
	})

	// What fails beside a server that runs must not disturb it.
	first := serveMemcached(t, l, pollux, memcachedArgs(runtime.Adaptive, 1)...)
	t.Run("the metrics port is in use", func(t *testing.T) {
		fails(t, l, exec.Command(binary, memcachedArgs(runtime.Adaptive, 1)...), "metrics", metricsPort, "in use", "--metrics")
	})
	t.Run("the device is in use", func(t *testing.T) {
		fails(t, l, exec.Command(binary, with("--metrics", "127.0.0.1:9101")...), "pollux0", "in use")
	})
	memccapable(t, l, "10.99.0.1", "-a")
	first.terminate(t)
}
