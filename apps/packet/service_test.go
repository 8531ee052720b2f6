package packet_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime"
)

var be = binary.BigEndian

type named struct {
	driver.Port
	name string
}

func (n named) Name() string { return n.name }

var (
	// The link-local addresses that the kernel makes of the Ethernet addresses.
	linkLocal = []netip.Addr{netip.MustParseAddr("fe80::ff:fe00:1"), netip.MustParseAddr("fe80::ff:fe00:101")}
	routerMAC = [][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 1, 1}}
	peerMAC   = [][6]byte{{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 1, 2}}
)

// running is a service between two wires, and what its kernel tells it.
type running struct {
	t       *testing.T
	links   []*wire.Link
	free    []int
	service *packet.Service
	updates chan routes.Update
}

func start(t *testing.T, c packet.Config, interrupts bool) *running {
	t.Helper()
	r := &running{t: t, updates: make(chan routes.Update, 16)}
	for i, name := range []string{"a", "b"} {
		l, err := wire.New(wire.Config{Name: name, Addresses: [2][6]byte{peerMAC[i], routerMAC[i]}, Interrupts: interrupts, Queues: max(1, c.Forward.Shards)})
		if err != nil {
			t.Fatal(err)
		}
		r.links, r.free = append(r.links, l), append(r.free, l.FreeFrames())
		c.Forward.Ports = append(c.Forward.Ports, named{l.Port(wire.B), name})
	}
	c.Follow = func(ctx context.Context, deliver func(routes.Update)) error {
		for {
			select {
			case u := <-r.updates:
				deliver(u)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	r.updates <- initial()
	var err error
	if r.service, err = packet.New(c); err != nil {
		t.Fatal(err)
	}
	if err := r.service.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// stop checks that nothing has leaked.
func (r *running) stop() {
	r.t.Helper()
	if err := r.service.Shutdown(context.Background()); err != nil {
		r.t.Error(err)
	}
	for i, l := range r.links {
		l.Port(wire.A).Close()
		if got := l.FreeFrames(); got != r.free[i] {
			r.t.Errorf("wire %d: %d of %d frames are back", i, got, r.free[i])
		}
	}
}

func initial() (u routes.Update) {
	for i, name := range []string{"a", "b"} {
		u.Links = append(u.Links, routes.Link{Interface: i + 1, Name: name, MTU: 1500, Up: true, Running: true})
		for _, p := range []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 3: byte(i), 15: 1}), 64),
		} {
			u.Addresses = append(u.Addresses, routes.Address{Interface: i + 1, Prefix: p},
				routes.Address{Interface: i + 1, Prefix: netip.PrefixFrom(linkLocal[i], 64)})
			u.Routes = append(u.Routes, routes.Route{Prefix: p.Masked(), NextHops: []routes.NextHop{{Interface: i + 1}}},
				routes.Route{Prefix: netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), Local: true})
			u.Neighbours = append(u.Neighbours, routes.Neighbour{Interface: i + 1, Address: netip.MustParseAddr("fe80::2"), MAC: peerMAC[i], Valid: true, Permanent: true}, routes.Neighbour{Interface: i + 1, Address: p.Addr().Next(), MAC: peerMAC[i], Valid: true, Permanent: true})
		}
	}
	return u
}

func TestAFloodOfNewNeighboursDoesNotMakeTheTablesAnewForEach(t *testing.T) {
	r := start(t, packet.Config{Mode: runtime.Poll}, false)
	defer r.stop()
	adopted := func() uint64 {
		all, err := r.service.Statistics(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return all[0].Adopted
	}
	before, begin := adopted(), time.Now()
	known := r.service.Forwarder().Control().Neighbours()
	const hosts = 100
	for i := range hosts {
		b := make([]byte, 60)
		copy(b, routerMAC[0][:])
		copy(b[6:], peerMAC[0][:])
		copy(b[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2})
		copy(b[22:], peerMAC[0][:])
		copy(b[28:], []byte{10, 0, 0, byte(100 + i)})
		copy(b[38:], []byte{10, 0, 0, 1})
		r.send(0, b)
		time.Sleep(time.Millisecond)
	}
	for deadline := begin.Add(20 * time.Second); r.service.Forwarder().Control().Neighbours() < known+hosts; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d neighbours were learned", r.service.Forwarder().Control().Neighbours()-known, hosts)
		}
		time.Sleep(time.Millisecond)
	}
	made, elapsed := adopted()-before, time.Since(begin)
	if most := uint64(elapsed/(10*time.Millisecond) + elapsed/time.Second + 3); made > most || made == 0 {
		t.Errorf("the tables were made anew %d times in %v, want at most %d", made, elapsed, most)
	}
}

func fold(b []byte, s uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(be.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// ping is an echo request that comes in by a port.
func ping(in int, from, to netip.Addr) []byte {
	if from.Is6() {
		b := make([]byte, 14+40+16)
		copy(b, routerMAC[in][:])
		copy(b[6:], peerMAC[in][:])
		b[12], b[13] = 0x86, 0xdd
		ip := b[14:]
		ip[0], ip[5], ip[6], ip[7] = 0x60, 16, 58, 64
		copy(ip[8:], from.AsSlice())
		copy(ip[24:], to.AsSlice())
		ip[40] = 128
		be.PutUint16(ip[42:], ^fold(ip[8:], 16+58))
		return b
	}
	b := make([]byte, 60)
	copy(b, routerMAC[in][:])
	copy(b[6:], peerMAC[in][:])
	b[12] = 8
	ip := b[14:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 46, 64, 1
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	be.PutUint16(ip[10:], ^fold(ip[:20], 0))
	ip[20] = 8
	be.PutUint16(ip[22:], ^fold(ip[20:], 0))
	return b
}

func (r *running) send(i int, data []byte) {
	r.t.Helper()
	q := r.links[i].Port(wire.A).Queue(0)
	var f [1]driver.Frame
	if q.Allocate(f[:], len(data)) != 1 {
		r.t.Fatal("no frame")
	}
	f[0].Data = f[0].Data[:len(data)]
	copy(f[0].Data, data)
	if q.Transmit(f[:]) != 1 {
		r.t.Fatal("the wire is full")
	}
}

// receive waits for a frame that satisfies a condition.
func (r *running) receive(i int, what string, ok func([]byte) bool) {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	var f [16]driver.Frame
	for time.Now().Before(deadline) {
		for k := range r.links[i].Port(wire.A).Queues() {
			n := r.links[i].Port(wire.A).Queue(k).Receive(f[:])
			found := false
			for j := range f[:n] {
				found = found || ok(f[j].Data)
			}
			driver.Free(f[:n])
			if found {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	all, err := r.service.Statistics(context.Background())
	r.t.Fatalf("waited for %s: %+v %v", what, all, err)
}

func replyFrom(a netip.Addr) func(b []byte) bool {
	return func(b []byte) bool {
		if a.Is6() {
			return len(b) > 54 && b[12] == 0x86 && [16]byte(b[22:38]) == a.As16() && b[54] == 129
		}
		return b[12] == 8 && b[13] == 0 && [4]byte(b[26:30]) == a.As4() && b[34] == 0
	}
}

func TestTheBoxAnswersOnAllItsAddressesInEveryMode(t *testing.T) {
	for _, mode := range runtime.Modes(runtime.User) {
		for _, interrupts := range []bool{true, false} {
			r := start(t, packet.Config{Mode: mode}, interrupts)
			for _, from := range []string{"10.0.0.2", "fd00::2", "fe80::2"} {
				for _, to := range []string{"10.0.0.1", "10.1.0.1", "fd00::1", "fd00:1::1", linkLocal[0].String()} {
					source, target := netip.MustParseAddr(from), netip.MustParseAddr(to)
					if source.Is4() != target.Is4() || source.IsLinkLocalUnicast() != target.IsLinkLocalUnicast() {
						continue
					}
					for range 2 {
						r.send(0, ping(0, source, target))
						r.receive(0, "a reply from "+to, replyFrom(target))
					}
				}
			}
			r.stop()
		}
	}
}

func TestTrafficIsForwardedInEveryModeAndModesChangeUnderWay(t *testing.T) {
	r := start(t, packet.Config{Forward: forward.Config{Shards: 2}}, true)
	defer r.stop()
	for i := range 30 {
		if err := r.service.SetMode(runtime.Modes(runtime.User)[i%3]); err != nil {
			t.Fatal(err)
		}
		r.send(0, ping(0, netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.1.0.2")))
		r.receive(1, "a forwarded packet", func(b []byte) bool { return b[22] == 63 })
	}
}

func TestAddressesComeAndGo(t *testing.T) {
	r := start(t, packet.Config{}, true)
	defer r.stop()
	a := netip.MustParsePrefix("10.0.0.77/24")
	single := netip.PrefixFrom(a.Addr(), 32)
	r.updates <- routes.Update{Addresses: []routes.Address{{Interface: 1, Prefix: a}}, Routes: []routes.Route{{Prefix: single, Local: true}}}
	await(t, "the new address", func() bool {
		r.send(0, ping(0, netip.MustParseAddr("10.0.0.2"), a.Addr()))
		found := false
		time.Sleep(10 * time.Millisecond)
		var f [16]driver.Frame
		n := r.links[0].Port(wire.A).Queue(0).Receive(f[:])
		for i := range f[:n] {
			found = found || replyFrom(a.Addr())(f[i].Data)
		}
		driver.Free(f[:n])
		return found
	})
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func TestABadFileOfRulesIsRefusedAndChangesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("deny from 10.0.0.3")
	r := start(t, packet.Config{Rules: file}, true)
	defer r.stop()
	generation := r.service.Forwarder().Control().Generation()
	write("default deny\nnonsense")
	if err := r.service.LoadRules(); err == nil {
		t.Error("nonsense was accepted")
	}
	if got := r.service.Forwarder().Control().Generation(); got != generation {
		t.Error("a refused file changed the tables")
	}
	write("default deny")
	if err := r.service.LoadRules(); err != nil {
		t.Error(err)
	}
	if _, err := packet.New(packet.Config{Rules: file + "x", Forward: forward.Config{Ports: []driver.Port{r.links[0].Port(wire.B)}}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v for a file that is not there", err)
	}
}

// A stack probes its gateway once it has not heard of it for a while: it must go
// on believing in it.
func TestTheBoxGoesOnAnsweringAfterAPause(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute of real time")
	}
	r := start(t, packet.Config{Mode: runtime.Interrupt}, true)
	defer r.stop()
	for begin := time.Now(); time.Since(begin) < 70*time.Second; time.Sleep(2 * time.Second) {
		for _, to := range []string{"10.0.0.1", "fd00::1"} {
			target := netip.MustParseAddr(to)
			r.send(0, ping(0, target.Next(), target))
			r.receive(0, "a reply from "+to, replyFrom(target))
		}
	}
}
