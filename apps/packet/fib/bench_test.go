package fib_test

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/pollux-net/pollux/apps/packet/fib"
	"github.com/pollux-net/pollux/apps/packet/fib/generate"
)

// BenchmarkLookup compares the two candidates on a full table: destinations are
// drawn from the table's prefixes, so that no cache in front could help.
func BenchmarkLookup(b *testing.B) {
	const seed = 7
	four, six := generate.Prefixes4(seed, 1_000_000), generate.Prefixes6(seed, 200_000)
	all := append(append([]netip.Prefix{}, four...), six...)
	memory := func(build func()) float64 {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		build()
		runtime.GC()
		runtime.ReadMemStats(&after)
		return float64(after.HeapAlloc-before.HeapAlloc) / 1e6
	}
	var ours *fib.Table
	oursMB := memory(func() {
		builder := fib.NewBuilder()
		ours, _ = builder.Apply(changesOf(all, nil))
	})
	var theirs bart.Table[uint32]
	theirsMB := memory(func() {
		for _, c := range changesOf(all, nil) {
			theirs.Insert(c.Prefix, c.Hop)
		}
	})
	var fast bart.Fast[uint32]
	fastMB := memory(func() {
		for _, c := range changesOf(all, nil) {
			fast.Insert(c.Prefix, c.Hop)
		}
	})
	var sink uint32
	for _, f := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{"IPv4", four}, {"IPv6", six}} {
		to := generate.Destinations(seed, f.prefixes, 1<<18)
		type halves struct{ high, low uint64 }
		numbers := make([]halves, len(to))
		for i, a := range to {
			if s := a.AsSlice(); len(s) == 4 {
				numbers[i].low = uint64(binary.BigEndian.Uint32(s))
			} else {
				numbers[i] = halves{binary.BigEndian.Uint64(s), binary.BigEndian.Uint64(s[8:])}
			}
		}
		report := func(b *testing.B, mb float64) {
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mlookup/s")
			b.ReportMetric(mb, "MB")
		}
		b.Run("ranges/"+f.name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				n := &numbers[i&(1<<18-1)]
				if f.name == "IPv4" {
					sink += ours.Lookup4(uint32(n.low))
				} else {
					sink += ours.Lookup6(n.high, n.low)
				}
				i++
			}
			report(b, oursMB)
		})
		b.Run("bart/"+f.name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				hop, _ := theirs.Lookup(to[i&(1<<18-1)])
				sink += hop
				i++
			}
			report(b, theirsMB)
		})
		b.Run("bart-fast/"+f.name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				hop, _ := fast.Lookup(to[i&(1<<18-1)])
				sink += hop
				i++
			}
			report(b, fastMB)
		})
	}
	runtime.KeepAlive(sink)
}
