package nat_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/nat"
	"github.com/pollux-net/pollux/apps/packet/rules"
)

func config() nat.Config {
	return nat.Config{
		Rules: []rules.NAT{{Out: "wan", From: netip.MustParsePrefix("10.0.0.0/8"), First: netip.MustParseAddr("192.0.2.1"),
			Last: netip.MustParseAddr("192.0.2.2"), Ports: rules.Ports{First: 1000, Last: 1099}}},
		Ports: []string{"lan", "wan"}, Shards: 1, Bindings: 1000,
	}
}

const inside = 10<<24 + 1

var remote = nat.Endpoint{Address: 8<<24 + 8, Port: 53}

func TestRepliesFindTheirWayBackAndOthersDoNot(t *testing.T) {
	table := nat.New(config())
	if _, ok := table.Wants(0, inside); ok {
		t.Error("a packet that stays inside is translated")
	}
	if _, ok := table.Wants(1, 11<<24); ok {
		t.Error("a packet of another network is translated")
	}
	rule, ok := table.Wants(1, inside)
	if !ok {
		t.Fatal("no rule for a packet from inside to outside")
	}
	i, ok := table.Outbound(rule, nat.UDP, nat.Endpoint{Address: inside, Port: 5000}, remote, 0)
	if !ok {
		t.Fatal("no binding")
	}
	again, _ := table.Outbound(rule, nat.UDP, nat.Endpoint{Address: inside, Port: 5000}, nat.Endpoint{Address: 1, Port: 1}, 0)
	if again != i {
		t.Error("another destination, another mapping (RFC 4787 REQ-1)")
	}
	out := table.Binding(i).Outside
	if back, ok := table.Inbound(nat.UDP, out); !ok || table.Binding(back).Inside != (nat.Endpoint{Address: inside, Port: 5000}) {
		t.Error("the reply does not find the binding")
	}
	if _, ok := table.Inbound(nat.TCP, out); ok {
		t.Error("a reply by another protocol finds the binding")
	}
	if _, ok := table.Inbound(nat.UDP, nat.Endpoint{Address: out.Address, Port: out.Port + 1}); ok {
		t.Error("a reply to another port finds the binding")
	}
}

func TestPortsOfTheBoxesOwnServicesAreNotTranslatedTo(t *testing.T) {
	c := config()
	c.Shards = 2
	given := map[uint16]int{}
	for c.Shard = range c.Shards {
		c.Reserved = []uint16{1003, 1003, 1070, 80, 65535}
		table := nat.New(c)
		for _, protocol := range []uint8{nat.TCP, nat.UDP} {
			for n := range 101 {
				i, ok := table.Outbound(0, protocol, nat.Endpoint{Address: inside + uint32(n), Port: 1}, remote, 0)
				free := 100 // two addresses with 50 ports each
				if protocol == nat.TCP {
					free = 98
				}
				if ok != (n < free) {
					t.Fatalf("shard %d, protocol %d: binding %d: %v, want %d", c.Shard, protocol, n, ok, free)
				}
				if ok && protocol == nat.TCP {
					given[table.Binding(i).Outside.Port]++
				}
			}
		}
		table.Expire(1000, 3*time.Hour) // what ends comes back, and reserved ports do not
		if table.Used() != 0 {
			t.Fatalf("%d bindings do not end", table.Used())
		}
		for n := range 98 {
			i, ok := table.Outbound(0, nat.TCP, nat.Endpoint{Address: inside + uint32(n), Port: 2}, remote, 0)
			if !ok {
				t.Fatalf("only %d bindings after all had ended", n)
			}
			given[table.Binding(i).Outside.Port]++
		}
	}
	if given[1003] != 0 || given[1070] != 0 || len(given) != 98 {
		t.Errorf("%d ports given away, %d and %d times those that are reserved", len(given), given[1003], given[1070])
	}
}

func TestAFullTableRefusesAndRecovers(t *testing.T) {
	c := config()
	table := nat.New(c)
	seen := map[nat.Endpoint]bool{}
	n := 0
	for ; ; n++ {
		i, ok := table.Outbound(0, nat.UDP, nat.Endpoint{Address: inside + uint32(n), Port: 1}, remote, 0)
		if !ok {
			break
		}
		out := table.Binding(i).Outside
		if seen[out] || out.Port < 1000 || out.Port > 1099 {
			t.Fatalf("binding %d gives %v", n, out)
		}
		seen[out] = true
	}
	if n != 200 {
		t.Fatalf("%d bindings, want all 200 ports of two addresses", n)
	}
	if _, ok := table.Outbound(0, nat.TCP, nat.Endpoint{Address: inside, Port: 1}, remote, 0); !ok {
		t.Error("TCP has no ports once UDP's are used up")
	}
	if ended := table.Expire(1000, 4*time.Minute); ended != 0 {
		t.Errorf("%d bindings ended early", ended)
	}
	if ended := table.Expire(1000, 6*time.Minute); ended != 201 || table.Used() != 0 {
		t.Errorf("%d bindings ended, %d left, want 201 and 0", ended, table.Used())
	}
	if _, ok := table.Outbound(0, nat.UDP, nat.Endpoint{Address: inside, Port: 1}, remote, 6*time.Minute); !ok {
		t.Error("no binding after all have ended")
	}
}

func TestTCPLivesAsLongAsItsState(t *testing.T) {
	const syn, fin, rst = 2, 1, 4
	for _, c := range []struct {
		name   string
		flags  []int // negative: inbound
		lives  time.Duration
		closed time.Duration
	}{
		{"half open", []int{syn}, 3 * time.Minute, 5 * time.Minute},
		{"established", []int{syn, -syn, 16}, 2 * time.Hour, 125 * time.Minute},
		{"one side closed", []int{syn, -syn, fin}, 2 * time.Hour, 125 * time.Minute},
		{"closed", []int{syn, -syn, fin, -fin}, 3 * time.Minute, 5 * time.Minute},
		{"reset", []int{syn, -syn, -rst}, 3 * time.Minute, 5 * time.Minute},
		{"opened again", []int{syn, -syn, -rst, syn, -syn}, 2 * time.Hour, 125 * time.Minute},
	} {
		table := nat.New(config())
		i, _ := table.Outbound(0, nat.TCP, nat.Endpoint{Address: inside, Port: 1}, remote, 0)
		epoch := table.Binding(i).Epoch
		for _, f := range c.flags {
			if !table.Touch(i, epoch, f < 0, uint8(max(f, -f)), 0) {
				t.Fatal("the binding is gone")
			}
		}
		if table.Expire(1000, c.lives) != 0 {
			t.Errorf("%s: ended within %v", c.name, c.lives)
		}
		if table.Expire(1000, c.closed) != 1 {
			t.Errorf("%s: lives on after %v", c.name, c.closed)
		}
		if table.Touch(i, epoch, false, 0, c.closed) {
			t.Errorf("%s: a decision made for it is still believed", c.name)
		}
	}
}

func TestShardsShareNoPortAndKnowWhoseItIs(t *testing.T) {
	const shards = 3
	owner := map[nat.Endpoint]int{}
	var tables []*nat.Table
	for shard := range shards {
		c := config()
		c.Shard, c.Shards = shard, shards
		table := nat.New(c)
		tables = append(tables, table)
		for n := range uint32(66) {
			i, ok := table.Outbound(0, nat.TCP, nat.Endpoint{Address: inside + n, Port: 1}, remote, 0)
			if !ok {
				t.Fatalf("shard %d has only %d ports", shard, n)
			}
			out := table.Binding(i).Outside
			if other, taken := owner[out]; taken {
				t.Fatalf("shards %d and %d both gave %v", other, shard, out)
			}
			owner[out] = shard
		}
	}
	for out, shard := range owner {
		for _, table := range tables {
			if got, ok := table.Owner(out); got != shard || !ok {
				t.Fatalf("%v is said to be shard %d's, is %d's", out, got, shard)
			}
		}
	}
	if shard, outside := tables[0].Owner(nat.Endpoint{Address: 1}); shard >= 0 || outside {
		t.Error("an address of no pool has an owner")
	}
	if shard, outside := tables[0].Owner(nat.Endpoint{Address: 0xc0000201, Port: 22}); shard >= 0 || !outside {
		t.Error("a port of no shard has an owner, or the address is not known")
	}
}

func TestPortsAreTakenThatRepliesReachByThemselves(t *testing.T) {
	c := config()
	c.Prefer = func(_ uint8, _ uint32, port uint16, _ uint32, _ uint16) bool { return port%4 == 3 }
	table := nat.New(c)
	for n := range uint32(20) {
		i, _ := table.Outbound(0, nat.TCP, nat.Endpoint{Address: inside, Port: uint16(n)}, remote, 0)
		if port := table.Binding(i).Outside.Port; port%4 != 3 {
			t.Errorf("binding %d: port %d although preferred ones are free", n, port)
		}
	}
}

func TestTheTableAgreesWithMapsThroughRandomUse(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 0))
		c := config()
		c.Bindings = 150
		table := nat.New(c)
		type key struct {
			protocol uint8
			e        nat.Endpoint
		}
		bound, last := map[key]nat.Endpoint{}, map[key]time.Duration{}
		now := time.Duration(0)
		for range 5000 {
			now += time.Duration(r.IntN(int(2 * time.Second)))
			k := key{[]uint8{nat.UDP, nat.ICMP}[r.IntN(2)], nat.Endpoint{Address: inside + r.Uint32N(20), Port: uint16(r.IntN(10))}}
			i, ok := table.Outbound(0, k.protocol, k.e, remote, now)
			if ok {
				b := *table.Binding(i)
				table.Touch(i, b.Epoch, false, 0, now)
				if want, known := bound[k]; known && want != b.Outside {
					t.Fatalf("seed %d: %v was %v and is %v", seed, k, want, b.Outside)
				}
				bound[k], last[k] = b.Outside, now
			} else if _, known := bound[k]; known {
				t.Fatalf("seed %d: %v has lost its binding", seed, k)
			}
			table.Expire(1000, now)
			for k, t0 := range last {
				limit := 5 * time.Minute
				if k.protocol == nat.ICMP {
					limit = time.Minute
				}
				_, found := table.Inbound(k.protocol, bound[k])
				if found && now-t0 > limit+200*time.Millisecond || !found && now-t0 < limit-200*time.Millisecond {
					t.Fatalf("seed %d: %v found %v, %v after its last packet", seed, k, found, now-t0)
				}
				if !found {
					delete(bound, k)
					delete(last, k)
				}
			}
			if table.Used() != len(bound) {
				t.Fatalf("seed %d: %d bindings, want %d", seed, table.Used(), len(bound))
			}
		}
	}
}
