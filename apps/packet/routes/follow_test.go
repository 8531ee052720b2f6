package routes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/bpf/trio"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A watcher follows a host and keeps what it is told, as a data plane would.
type watcher struct {
	follower *follower
	cancel   context.CancelFunc
	done     chan error
	updates  chan Update

	routes     map[netip.Prefix]Route
	neighbours map[netip.Addr]Neighbour
	addresses  map[netip.Prefix]int
	links      map[int]Link
	resyncs    int
	batches    int
}

func watch(t *testing.T, h *trio.Host, c Config) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{cancel: cancel, done: make(chan error, 1), updates: make(chan Update, 1000),
		routes: map[netip.Prefix]Route{}, neighbours: map[netip.Addr]Neighbour{},
		addresses: map[netip.Prefix]int{}, links: map[int]Link{}}
	h.Must(t, func() (err error) {
		w.follower, err = newFollower(c)
		return err
	})
	go func() {
		w.done <- w.follower.run(ctx, func(u Update) { w.updates <- u })
		w.follower.close()
		close(w.updates)
	}()
	t.Cleanup(func() {
		cancel()
		for range w.updates {
		}
		if err := <-w.done; !errors.Is(err, context.Canceled) {
			t.Errorf("following ended: %v", err)
		}
	})
	return w
}

func (w *watcher) apply(u Update) {
	w.batches++
	if u.Resync {
		w.resyncs++
	}
	for _, l := range u.Links {
		w.links[l.Interface] = l
		if l.Deleted {
			delete(w.links, l.Interface)
		}
	}
	for _, a := range u.Addresses {
		w.addresses[a.Prefix] = a.Interface
		if a.Deleted {
			delete(w.addresses, a.Prefix)
		}
	}
	for _, n := range u.Neighbours {
		w.neighbours[n.Address] = n
		if !n.Valid {
			delete(w.neighbours, n.Address)
		}
	}
	for _, r := range u.Routes {
		w.routes[r.Prefix] = r
	}
	for _, p := range u.Deleted {
		delete(w.routes, p)
	}
}

// until applies updates until ok, for a minute at most.
func (w *watcher) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case u, more := <-w.updates:
			if !more {
				t.Fatalf("following ended while waiting until %s: %v", what, <-w.done)
			}
			w.apply(u)
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// mark makes a change that is told after all others so far, and waits for it.
func (w *watcher) mark(t *testing.T, h *trio.Host, number int) {
	t.Helper()
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(number >> 8), byte(number)}), 32)
	h.Run(t, "ip", "route", "add", "blackhole", p.String())
	w.until(t, "the mark is told", func() bool { return w.routes[p].Blackhole })
}

// differences lists what a fresh dump has and the watcher was not told, and the
// reverse.
func (w *watcher) differences(t *testing.T, h *trio.Host) []string {
	t.Helper()
	var u *Update
	h.Must(t, func() error {
		d, err := openDumper()
		if err != nil {
			return err
		}
		defer d.close()
		fresh, err := d.dump()
		if err != nil {
			return err
		}
		all := newTable()
		all.become(fresh)
		u = all.take(w.follower.wanted)
		return nil
	})
	f := &watcher{routes: map[netip.Prefix]Route{}, neighbours: map[netip.Addr]Neighbour{},
		addresses: map[netip.Prefix]int{}, links: map[int]Link{}}
	f.apply(*u)
	differ := compare(w.routes, f.routes, func(a, b Route) bool {
		return a.Local == b.Local && a.Blackhole == b.Blackhole && a.Unreachable == b.Unreachable &&
			slices.Equal(a.NextHops, b.NextHops)
	})
	differ = append(differ, compare(w.neighbours, f.neighbours, func(a, b Neighbour) bool { return a == b })...)
	differ = append(differ, compare(w.addresses, f.addresses, func(a, b int) bool { return a == b })...)
	differ = append(differ, compare(w.links, f.links, func(a, b Link) bool { return a == b })...)
	return differ
}

func compare[K comparable, V any](told, is map[K]V, equal func(a, b V) bool) (differ []string) {
	for k := range told {
		if v, ok := is[k]; !ok {
			differ = append(differ, fmt.Sprintf("%v: told %v, is not there", k, told[k]))
		} else if !equal(told[k], v) {
			differ = append(differ, fmt.Sprintf("%v: told %v, is %v", k, told[k], v))
		}
	}
	for k := range is {
		if _, ok := told[k]; !ok {
			differ = append(differ, fmt.Sprintf("%v: not told, is %v", k, is[k]))
		}
	}
	return differ
}

// lookup is what the watcher would do with a packet.
func (w *watcher) lookup(a netip.Addr) (Route, bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if r, ok := w.routes[netip.PrefixFrom(a, bits).Masked()]; ok {
			return r, true
		}
	}
	return Route{}, false
}

// router makes a host with three links, each with an address of either family,
// and returns them.
func router(t *testing.T) (*trio.Host, []trio.Port) {
	t.Helper()
	h, peer := trio.NewHost(t, "router"), trio.NewHost(t, "peer")
	for _, h := range []*trio.Host{h, peer} {
		h.Sysctl(t, "ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0",
			"ipv4/conf/all/forwarding=1", "ipv6/conf/all/forwarding=1")
	}
	var ports []trio.Port
	for i := range 3 {
		p, _ := trio.Join(t, h, peer, trio.Link{
			Names: [2]string{fmt.Sprintf("r%d", i), fmt.Sprintf("p%d", i)},
			V4: [2]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.%d.1/24", i)),
				netip.MustParsePrefix(fmt.Sprintf("10.0.%d.2/24", i))},
			V6: [2]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("fd00:%d::1/64", i)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:%d::2/64", i))},
		})
		ports = append(ports, p)
	}
	return h, ports
}

// A gambler changes routes at random. Few prefixes and metrics, so that routes
// meet.
type gambler struct {
	*rand.Rand
	ports []trio.Port
	// mixed: IPv6 routes with and without a gateway share metrics.
	mixed bool
}

func (g *gambler) commands(n int) (commands []string) {
	for range n {
		commands = append(commands, g.command())
	}
	return commands
}

func (g *gambler) prefix() netip.Prefix {
	if g.IntN(2) == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(g.IntN(4)), byte(g.IntN(4) << 6)}),
			[]int{16, 23, 24, 26, 32}[g.IntN(5)]).Masked()
	}
	a := netip.MustParseAddr("fd77::").As16()
	a[5], a[7] = byte(g.IntN(4)), byte(g.IntN(4)<<6)
	return netip.PrefixFrom(netip.AddrFrom16(a), []int{32, 47, 48, 58, 128}[g.IntN(5)]).Masked()
}

// hop is a next hop on one of the links.
func (g *gambler) hop(six, gateway bool) (port int, via netip.Addr) {
	port = g.IntN(len(g.ports))
	if !gateway {
		return port, netip.Addr{}
	}
	base := g.ports[port].V4.Addr()
	if six {
		base = g.ports[port].V6.Addr()
	}
	b := base.AsSlice()
	b[len(b)-1] = byte(2 + g.IntN(5))
	via, _ = netip.AddrFromSlice(b)
	return port, via
}

// command is a random `ip route` command, which may fail.
func (g *gambler) command() string {
	p := g.prefix()
	six := p.Addr().Is6()
	verb := []string{"add", "add", "replace", "replace", "append", "prepend", "change", "del", "del", "del"}[g.IntN(10)]
	var b strings.Builder
	fmt.Fprintf(&b, "route %s ", verb)
	level := g.IntN(3)
	metric := ""
	if level > 0 {
		metric = fmt.Sprintf(" metric %d", 100*level)
	}
	other := metric // of IPv6 routes without a gateway
	if six && !g.mixed {
		other = fmt.Sprintf(" metric %d", 100*level+50)
	}
	switch n := g.IntN(10); {
	case verb == "del" && n < 6:
		fmt.Fprintf(&b, "%s%s", p, metric)
	case n == 0:
		fmt.Fprintf(&b, "%s %s%s", []string{"blackhole", "unreachable", "prohibit", "throw"}[g.IntN(4)], p, other)
	case n == 1 && verb != "del":
		fmt.Fprintf(&b, "%s%s", p, metric)
		for range 2 + g.IntN(2) {
			port, via := g.hop(six, true)
			fmt.Fprintf(&b, " nexthop via %s dev %s weight %d", via, g.ports[port].Name, 1+g.IntN(2))
		}
	default:
		port, via := g.hop(six, g.IntN(4) > 0)
		if !via.IsValid() {
			metric = other
		}
		b.WriteString(p.String())
		switch {
		case !six && via.IsValid() && g.IntN(6) == 0:
			_, via = g.hop(true, true)
			fmt.Fprintf(&b, " via inet6 %s", via)
		case via.IsValid():
			fmt.Fprintf(&b, " via %s", via)
		}
		fmt.Fprintf(&b, " dev %s%s", g.ports[port].Name, metric)
		if !six && g.IntN(5) == 0 {
			fmt.Fprintf(&b, " src %s", g.ports[g.IntN(len(g.ports))].V4.Addr())
		}
	}
	return b.String()
}

// batch runs ip commands, of which some fail.
func batch(t *testing.T, h *trio.Host, commands []string) {
	t.Helper()
	file := t.TempDir() + "/commands"
	if err := os.WriteFile(file, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := h.Try("ip", "-force", "-batch", file)
	if n := strings.Count(out, "Command failed"); err != nil && (n == 0 || n == len(commands)) {
		t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

func TestWhatIsToldIsWhatAFreshDumpHasAfterAnySequenceOfChanges(t *testing.T) {
	h, ports := router(t)
	w := watch(t, h, Config{})
	several := [2]int{} // IPv4, IPv6
	for seed := range uint64(40) {
		batch(t, h, (&gambler{rand.New(rand.NewPCG(seed, 0)), ports, false}).commands(200))
		w.mark(t, h, int(seed))
		if differ := w.differences(t, h); differ != nil {
			t.Fatalf("seed %d: %s", seed, strings.Join(differ, "\n"))
		}
		for p, r := range w.routes {
			if len(r.NextHops) > 1 {
				several[p.Addr().BitLen()/128]++
			}
		}
	}
	if w.resyncs != 1 {
		t.Errorf("listed everything %d times: notifications were not understood", w.resyncs)
	}
	if several[0] < 20 || several[1] < 20 {
		t.Errorf("%d multipath routes of IPv4 and IPv6: not much of a test", several)
	}
	t.Logf("%d routes, %d batches", len(w.routes), w.batches)
}

func TestIPv6MultipathRoutesAmongOthersOfTheirMetricAreToldInTheEnd(t *testing.T) {
	h, ports := router(t)
	w := watch(t, h, Config{})
	for seed := range uint64(20) {
		batch(t, h, (&gambler{rand.New(rand.NewPCG(seed, 0)), ports, true}).commands(200))
		w.mark(t, h, int(seed))
		w.waitEqual(t, h, fmt.Sprintf("seed %d", seed))
	}
	t.Logf("%d routes, %d batches, %d dumps", len(w.routes), w.batches, w.resyncs)
}

func TestWhatIsToldRoutesAsTheKernelDoes(t *testing.T) {
	h, ports := router(t)
	w := watch(t, h, Config{})
	const seed = 7
	g := &gambler{rand.New(rand.NewPCG(seed, 0)), ports, false}
	batch(t, h, g.commands(300))
	w.mark(t, h, 0)
	forwarded, refused := 0, 0
	h.Must(t, func() error {
		for range 2000 {
			p := g.prefix()
			b := p.Addr().AsSlice()
			b[len(b)-1] += byte(g.IntN(4))
			a, _ := netip.AddrFromSlice(b)
			kernel, err := netlink.RouteGet(b)
			r, ok := w.lookup(a)
			if err != nil || len(kernel) != 1 || kernel[0].Type == unix.RTN_UNREACHABLE || kernel[0].Type == unix.RTN_PROHIBIT {
				refused++
				if ok && len(r.NextHops) > 0 {
					t.Errorf("seed %d: %s: told %v, the kernel says %v, %v", seed, a, r, kernel, err)
				}
				continue
			}
			forwarded++
			hop := NextHop{Interface: kernel[0].LinkIndex}
			if kernel[0].Gw != nil {
				hop.Gateway, _ = netip.AddrFromSlice(kernel[0].Gw)
				if a.Is4() {
					hop.Gateway = hop.Gateway.Unmap()
				}
			} else if via, ok := kernel[0].Via.(*netlink.Via); ok {
				hop.Gateway, _ = netip.AddrFromSlice(via.Addr)
			}
			if !slices.Contains(r.NextHops, hop) {
				t.Errorf("seed %d: %s: told %v, the kernel uses %v", seed, a, r, hop)
			}
		}
		return nil
	})
	if forwarded < 50 || refused < 50 {
		t.Errorf("%d forwarded, %d refused: not much of a test", forwarded, refused)
	}
}

// waitEqual waits until what is told is what there is.
func (w *watcher) waitEqual(t *testing.T, h *trio.Host, why string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		differ := w.differences(t, h)
		if differ == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s:\n%s", why, strings.Join(differ, "\n"))
		}
		select {
		case u := <-w.updates:
			w.apply(u)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestRoutesThatTheKernelDropsWithoutAWordAreGone(t *testing.T) {
	h, _ := router(t)
	w := watch(t, h, Config{})
	p := netip.MustParsePrefix("172.16.0.0/16")
	via := func(host string) func() bool {
		return func() bool {
			r := w.routes[p]
			return len(r.NextHops) == 1 && r.NextHops[0].Gateway == netip.MustParseAddr(host)
		}
	}
	several := "172.17.0.0/16"
	h.Run(t, "ip", "route", "add", p.String(), "via", "10.0.0.2", "metric", "10")
	h.Run(t, "ip", "route", "add", p.String(), "via", "10.0.1.2", "metric", "20")
	h.Run(t, "ip", "route", "add", several, "nexthop", "via", "10.0.0.2", "nexthop", "via", "10.0.1.2")
	h.Run(t, "ip", "-6", "route", "add", "fd99::/64", "nexthop", "via", "fd00:0::2", "nexthop", "via", "fd00:1::2")
	w.until(t, "the better route is told", via("10.0.0.2"))
	h.Run(t, "ip", "link", "set", "r0", "down")
	w.until(t, "the route over the dead link is replaced by the other", via("10.0.1.2"))
	w.waitEqual(t, h, "after a link went down")
	if hops := w.routes[netip.MustParsePrefix(several)].NextHops; len(hops) != 1 {
		t.Errorf("next hops of which one is dead: %v", hops)
	}
	h.Run(t, "ip", "link", "set", "r0", "up")
	w.until(t, "the next hop lives again", func() bool {
		return len(w.routes[netip.MustParsePrefix(several)].NextHops) == 2
	})
	w.waitEqual(t, h, "after a link came up")

	h.Run(t, "ip", "address", "add", "10.0.2.9/32", "dev", "r2")
	h.Run(t, "ip", "route", "add", "172.18.0.0/16", "via", "10.0.2.2", "src", "10.0.2.9")
	w.until(t, "the route with a source is told", func() bool { return len(w.routes[netip.MustParsePrefix("172.18.0.0/16")].NextHops) == 1 })
	h.Run(t, "ip", "address", "del", "10.0.2.9/32", "dev", "r2")
	w.until(t, "the route is gone with its source", func() bool { _, ok := w.routes[netip.MustParsePrefix("172.18.0.0/16")]; return !ok })

	h.Run(t, "ip", "nexthop", "add", "id", "7", "via", "10.0.2.2", "dev", "r2")
	h.Run(t, "ip", "route", "add", "172.19.0.0/16", "nhid", "7")
	h.Run(t, "ip", "-6", "nexthop", "add", "id", "8", "via", "fd00:2::2", "dev", "r2")
	h.Run(t, "ip", "-6", "route", "add", "fd98::/64", "nhid", "8")
	w.until(t, "a route by nexthop object is told", func() bool { return len(w.routes[netip.MustParsePrefix("172.19.0.0/16")].NextHops) == 1 })
	h.Run(t, "ip", "nexthop", "replace", "id", "7", "via", "10.0.2.3", "dev", "r2")
	w.until(t, "the object's change is told", func() bool {
		hops := w.routes[netip.MustParsePrefix("172.19.0.0/16")].NextHops
		return len(hops) == 1 && hops[0].Gateway == netip.MustParseAddr("10.0.2.3")
	})
	w.waitEqual(t, h, "with nexthop objects")
	h.Run(t, "ip", "nexthop", "del", "id", "7")
	h.Run(t, "ip", "nexthop", "del", "id", "8")
	w.until(t, "the route is gone with its object", func() bool { _, ok := w.routes[netip.MustParsePrefix("172.19.0.0/16")]; return !ok })

	h.Run(t, "ip", "link", "del", "r2")
	w.until(t, "the link is gone", func() bool { return len(w.links) == 3 })
	w.waitEqual(t, h, "after a link was deleted")
}

func TestLostNotificationsAreMadeGoodByADump(t *testing.T) {
	h, ports := router(t)
	w := watch(t, h, Config{ReceiveBuffer: 1 << 16})
	w.mark(t, h, 0)
	before := w.resyncs
	// Nobody empties the socket now: the kernel cannot but lose what follows.
	w.follower.inbox.mu.Lock()
	var commands []string
	for i := range 5000 {
		commands = append(commands, fmt.Sprintf("route add 172.20.%d.%d/32 dev r0", i>>8, i&255))
	}
	for i := range 2500 {
		commands = append(commands, fmt.Sprintf("route del 172.20.%d.%d/32 dev r0", i>>8, i&255))
	}
	batch(t, h, commands)
	w.follower.inbox.mu.Unlock()
	w.mark(t, h, 1)
	w.until(t, "everything is listed anew", func() bool { return w.resyncs > before })
	if differ := w.differences(t, h); differ != nil {
		t.Errorf("%d differences, the first: %s", len(differ), differ[0])
	}
	if len(w.routes) < 2500 {
		t.Errorf("%d routes", len(w.routes))
	}
	// And it goes on as before.
	g := &gambler{rand.New(rand.NewPCG(3, 0)), ports, false}
	batch(t, h, g.commands(100))
	w.mark(t, h, 2)
	if differ := w.differences(t, h); differ != nil {
		t.Errorf("afterwards: %s", strings.Join(differ, "\n"))
	}
}

func TestABurstOfChangesComesInFewBatchesToASlowDataPlane(t *testing.T) {
	h, _ := router(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const changes = 30000
	last := netip.MustParsePrefix("203.0.113.0/24")
	routes, calls, resyncs := make(map[netip.Prefix]Route), 0, 0
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- h.Do(func() error {
			return Follow(ctx, Config{}, func(u Update) {
				if calls++; calls == 1 {
					close(started)
				}
				if u.Resync {
					resyncs++
				}
				time.Sleep(20 * time.Millisecond) // a compiler of tables
				for _, r := range u.Routes {
					routes[r.Prefix] = r
				}
				for _, p := range u.Deleted {
					delete(routes, p)
				}
				if _, ok := routes[last]; ok {
					cancel()
				}
			})
		})
	}()
	<-started
	commands := make([]string, 0, changes+1)
	for i := range changes {
		// A flap: two of three changes undo each other.
		verb := []string{"add", "del", "add"}[i%3]
		commands = append(commands, fmt.Sprintf("route %s 172.21.%d.%d/32 via 10.0.0.%d", verb, i/3>>8&255, i/3&255, 2+i%3/2))
	}
	for i := 1; i < changes; i += 3 { // what was added first is what is deleted
		commands[i] = strings.Replace(commands[i-1], "add", "del", 1)
	}
	batch(t, h, append(commands, "route add blackhole "+last.String()))
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the last change was never told")
	}
	count := 0
	for p, r := range maps.All(routes) {
		if netip.MustParsePrefix("172.21.0.0/16").Contains(p.Addr()) {
			count++
			if r.NextHops[0].Gateway != netip.MustParseAddr("10.0.0.3") {
				t.Fatalf("%v", r)
			}
		}
	}
	if count != changes/3 || resyncs != 1 {
		t.Errorf("%d routes of %d, %d dumps", count, changes/3, resyncs)
	}
	if calls > changes/100 {
		t.Errorf("%d calls for %d changes", calls, changes)
	}
	t.Logf("%d changes in %d calls", changes, calls)
}

func TestAResolvedNeighbourIsToldAndAForgottenOneToo(t *testing.T) {
	n := trio.New(t, trio.Options{})
	port := n.RouterPorts[1]
	w := watch(t, n.Router, Config{Interfaces: []int{port.Index}})
	for _, address := range []netip.Addr{n.ServerPort.V4.Addr(), n.ServerPort.V6.Addr()} {
		n.Router.Must(t, func() error { return Resolve(port.Index, address) })
		w.until(t, "the neighbour is told", func() bool { return w.neighbours[address].Valid })
		want := Neighbour{Interface: port.Index, Address: address, MAC: n.ServerPort.MAC, Valid: true}
		if w.neighbours[address] != want {
			t.Errorf("told %v, want %v", w.neighbours[address], want)
		}
		n.Router.Run(t, "ip", "neigh", "del", address.String(), "dev", port.Name)
		w.until(t, "the neighbour is forgotten", func() bool { return !w.neighbours[address].Valid })
	}
	n.Router.Run(t, "ip", "neigh", "add", "10.71.2.77", "lladdr", "02:00:00:00:00:77", "dev", port.Name)
	silent := netip.MustParseAddr("10.71.2.77")
	w.until(t, "the configured neighbour is told", func() bool { return w.neighbours[silent].Permanent })
	if err := n.Router.Do(func() error { return Resolve(9999, silent) }); err == nil {
		t.Error("no error for a link that is not there")
	}
	// Of other links nothing is told.
	for _, l := range w.links {
		if l.Interface != port.Index {
			t.Errorf("told of %v", l)
		}
	}
	if l := w.links[port.Index]; l.MTU != 1500 || !l.Up || !l.Running || l.MAC != port.MAC || l.Name != port.Name {
		t.Errorf("told %+v", l)
	}
	if w.addresses[port.V4] != port.Index || w.addresses[port.V6] != port.Index {
		t.Errorf("told %v", w.addresses)
	}
	if !w.routes[netip.PrefixFrom(port.V4.Addr(), 32)].Local || !w.routes[netip.PrefixFrom(port.V6.Addr(), 128)].Local {
		t.Error("the box's own addresses are not local routes")
	}
	if r := w.routes[port.V4.Masked()]; len(r.NextHops) != 1 || r.NextHops[0] != (NextHop{Interface: port.Index}) {
		t.Errorf("the link's own network: %v", r)
	}
}
