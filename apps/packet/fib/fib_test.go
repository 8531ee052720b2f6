package fib_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/fib"
	"github.com/pollux-net/pollux/apps/packet/fib/generate"
)

// scan is the linear scan that the table must agree with.
func scan(routes map[netip.Prefix]uint32, a netip.Addr) uint32 {
	best, hop := -1, uint32(fib.None)
	for p, h := range routes {
		if p.Bits() > best && p.Contains(a) {
			best, hop = p.Bits(), h
		}
	}
	return hop
}

// candidates draws prefixes that overlap a lot: of few bits, at all lengths.
func candidate(r *rand.Rand, six bool) netip.Prefix {
	if six {
		var b [16]byte
		b[0] = []byte{0x20, 0x2a, 0xfe, 0}[r.IntN(4)]
		for _, i := range []int{1, 2, 4, 7, 8, 12, 15} {
			b[i] = byte(r.IntN(3) * 0x55)
		}
		bits := []int{0, 3, 8, 15, 16, 17, 20, 29, 32, 40, 48, 56, 63, 64, 65, 72, 96, 127, 128}[r.IntN(19)]
		return netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
	}
	b := [4]byte{byte(r.IntN(3) * 100), byte(r.IntN(4) * 16), byte(r.IntN(256)), byte(r.IntN(256))}
	return netip.PrefixFrom(netip.AddrFrom4(b), r.IntN(33)).Masked()
}

// near returns an address at, or one beside, an edge of a prefix, or within it.
func near(r *rand.Rand, p netip.Prefix) netip.Addr {
	switch r.IntN(4) {
	case 0:
		return p.Addr()
	case 1:
		if a := p.Addr().Prev(); a.IsValid() {
			return a
		}
		return p.Addr()
	default:
		return generate.Within(r, p)
	}
}

func TestTheTableAgreesWithALinearScan(t *testing.T) {
	tables, lookups := 40, 0
	if testing.Short() {
		tables = 8
	}
	for table := range tables {
		seed := uint64(table)
		r := rand.New(rand.NewPCG(seed, 0))
		six := table%2 == 1
		routes := map[netip.Prefix]uint32{}
		var list []netip.Prefix
		b := fib.NewBuilder()
		for round := range 12 {
			var changes []fib.Change
			for range 1 + r.IntN(20) {
				p, hop := candidate(r, six), 1+r.Uint32N(fib.MaxHop)
				if len(list) > 0 && r.IntN(3) == 0 {
					p, hop = list[r.IntN(len(list))], fib.None
				}
				changes = append(changes, fib.Change{Prefix: p, Hop: hop})
				if hop == fib.None {
					delete(routes, p)
				} else {
					routes[p] = hop
					list = append(list, p)
				}
			}
			compiled, err := b.Apply(changes)
			if err != nil {
				t.Fatal(err)
			}
			if compiled.Routes() != len(routes) {
				t.Fatalf("seed %d round %d: %d routes in the table, want %d", seed, round, compiled.Routes(), len(routes))
			}
			for range 8000 {
				a := near(r, list[r.IntN(len(list))])
				lookups++
				if got, want := compiled.Lookup(a), scan(routes, a); got != want {
					t.Fatalf("seed %d round %d: %v leads to hop %d, want %d of %v", seed, round, a, got, want, routes)
				}
			}
		}
	}
	t.Logf("%d lookups", lookups)
}

// trie is a second oracle, fast enough for full tables: one bit a level.
type trie struct {
	children [2]*trie
	hop      uint32
}

func (n *trie) insert(p netip.Prefix, hop uint32) {
	b := p.Addr().AsSlice()
	for i := range p.Bits() {
		bit := b[i/8] >> (7 - i%8) & 1
		if n.children[bit] == nil {
			n.children[bit] = new(trie)
		}
		n = n.children[bit]
	}
	n.hop = hop
}

func (n *trie) lookup(a netip.Addr) (hop uint32) {
	b := a.AsSlice()
	for i := 0; n != nil; i++ {
		if n.hop != fib.None {
			hop = n.hop
		}
		if i == 8*len(b) {
			break
		}
		n = n.children[b[i/8]>>(7-i%8)&1]
	}
	return hop
}

func TestAFullTableAgreesWithATrieBitByBit(t *testing.T) {
	n4, n6, lookups := 1_000_000, 200_000, 2_000_000
	if testing.Short() {
		n4, n6, lookups = 50_000, 20_000, 200_000
	}
	const seed = 7
	r := rand.New(rand.NewPCG(seed, 3))
	for name, prefixes := range map[string][]netip.Prefix{"IPv4": generate.Prefixes4(seed, n4), "IPv6": generate.Prefixes6(seed, n6)} {
		b, root := fib.NewBuilder(), new(trie)
		compiled, err := b.Apply(changesOf(prefixes, root))
		if err != nil {
			t.Fatal(err)
		}
		for range lookups {
			a := near(r, prefixes[r.IntN(len(prefixes))])
			if got, want := compiled.Lookup(a), root.lookup(a); got != want {
				t.Fatalf("%s seed %d: %v leads to hop %d, want %d", name, seed, a, got, want)
			}
		}
	}
}

func changesOf(prefixes []netip.Prefix, root *trie) []fib.Change {
	changes := make([]fib.Change, len(prefixes))
	for i, p := range prefixes {
		changes[i] = fib.Change{Prefix: p, Hop: 1 + uint32(i)%250}
		if root != nil {
			root.insert(p, changes[i].Hop)
		}
	}
	return changes
}

func TestATableOfHostRoutesOnly(t *testing.T) {
	b := fib.NewBuilder()
	var changes []fib.Change
	for i := range 1 << 16 { // dense: every address of sixteen /20s differs from its neighbours
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		changes = append(changes, fib.Change{Prefix: netip.PrefixFrom(a, 32), Hop: 1 + uint32(i)})
	}
	table, err := b.Apply(changes)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if got := table.Lookup(c.Prefix.Addr()); got != c.Hop {
			t.Fatalf("%v leads to hop %d, want %d", c.Prefix, got, c.Hop)
		}
	}
	if got := table.Lookup(netip.MustParseAddr("10.2.0.0")); got != fib.None {
		t.Errorf("an address that no prefix covers leads to hop %d", got)
	}
}

func TestAnOldTableStaysAsItWas(t *testing.T) {
	b := fib.NewBuilder()
	set := func(prefix string, hop uint32) *fib.Table {
		table, err := b.Apply([]fib.Change{{Prefix: netip.MustParsePrefix(prefix), Hop: hop}})
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	for _, c := range []struct{ prefix, address string }{
		{"0.0.0.0/0", "192.0.2.1"}, {"192.0.2.0/24", "192.0.2.1"}, {"192.0.2.1/32", "192.0.2.1"},
		{"::/0", "2001:db8::1"}, {"2001:db8::/32", "2001:db8::1"}, {"2001:db8::/64", "2001:db8::1"}, {"2001:db8::1/128", "2001:db8::1"},
	} {
		a := netip.MustParseAddr(c.address)
		one, two, none := set(c.prefix, 1), set(c.prefix, 2), set(c.prefix, fib.None)
		if got := [3]uint32{one.Lookup(a), two.Lookup(a), none.Lookup(a)}; got != [3]uint32{1, 2, fib.None} {
			t.Errorf("%s through three tables: hops %v, want 1, 2 and none", c.prefix, got)
		}
	}
}

func TestAWrongChangeChangesNothing(t *testing.T) {
	b := fib.NewBuilder()
	good := fib.Change{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Hop: 1}
	for _, bad := range []fib.Change{{Hop: 1}, {Prefix: good.Prefix, Hop: fib.MaxHop + 1}} {
		if _, err := b.Apply([]fib.Change{good, bad}); err == nil {
			t.Errorf("%v was accepted", bad)
		}
		if got := b.Table().Lookup(netip.MustParseAddr("10.0.0.1")); got != fib.None {
			t.Errorf("after the refusal, 10.0.0.1 leads to hop %d", got)
		}
	}
}

// BenchmarkUpdate measures updates of a full table in batches of 50, as they would be at 200 swaps a second.
func BenchmarkUpdate(b *testing.B) {
	const seed = 7
	all := append(generate.Prefixes4(seed, 1_000_000), generate.Prefixes6(seed, 200_000)...)
	builder := fib.NewBuilder()
	start := time.Now()
	if _, err := builder.Apply(changesOf(all, nil)); err != nil {
		b.Fatal(err)
	}
	load := time.Since(start)
	r := rand.New(rand.NewPCG(seed, 2))
	for _, batch := range []int{1, 50} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			for b.Loop() {
				changes := make([]fib.Change, batch)
				for i := range changes {
					changes[i] = fib.Change{Prefix: all[r.IntN(len(all))], Hop: 1 + r.Uint32N(250)}
				}
				if _, err := builder.Apply(changes); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/update")
			b.ReportMetric(load.Seconds()*1e3, "ms/full-load")
		})
	}
}
