package driver

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The vectors are those of "Verifying the RSS Hash Calculation", Microsoft.
var microsoftVectors = []struct {
	src, dst string
	hash     uint32 // of addresses and ports
	address  uint32 // of addresses only
}{
	{"66.9.149.187:2794", "161.142.100.80:1766", 0x51ccc178, 0x323e8fc2},
	{"199.92.111.2:14230", "65.69.140.83:4739", 0xc626b0ea, 0xd718262a},
	{"24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b394a, 0xd2d0a5de},
	{"38.27.205.30:48228", "209.142.163.6:2217", 0xafc7327f, 0x82989176},
	{"153.39.163.191:44251", "202.188.127.2:1303", 0x10e828a2, 0x5d1809c5},
	{"[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x40207d3d, 0x2cc18cd5},
	{"[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0xdde51bbf, 0x0f0c461c},
	{"[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", "[fe80::200:f8ff:fe21:67cf]:38024", 0x02d1feef, 0x4b61e985},
}

func TestRSSHashMatchesMicrosoftsVectors(t *testing.T) {
	rss := RSS{Key: MicrosoftKey()}
	fast := NewHasher(MicrosoftKey())
	for _, v := range microsoftVectors {
		src, dst := netip.MustParseAddrPort(v.src), netip.MustParseAddrPort(v.dst)
		if got := rss.Hash(src, dst); got != v.hash {
			t.Errorf("%s to %s: hash %#08x, want %#08x", v.src, v.dst, got, v.hash)
		}
		flow := AppendFlow(nil, src, dst)
		if got := fast.Sum(flow); got != v.hash {
			t.Errorf("%s to %s: table hash %#08x, want %#08x", v.src, v.dst, got, v.hash)
		}
		if got := Toeplitz(rss.Key, flow[:len(flow)-4]); got != v.address {
			t.Errorf("%s to %s: hash of addresses %#08x, want %#08x", v.src, v.dst, got, v.address)
		}
	}
}

func TestRSSHashTakesMappedAddressesAsIPv4(t *testing.T) {
	rss := RSS{Key: MicrosoftKey()}
	src, dst := netip.MustParseAddrPort("[::ffff:66.9.149.187]:2794"), netip.MustParseAddrPort("161.142.100.80:1766")
	if got := rss.Hash(src, dst); got != microsoftVectors[0].hash {
		t.Fatalf("hash %#08x, want %#08x", got, microsoftVectors[0].hash)
	}
}

func TestHasherAgreesWithToeplitzForAnyKeyAndLength(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for _, size := range []int{0, 1, 4, 7, 39, 40, 52} {
		key := random(size)
		fast := NewHasher(key)
		for n := range 37 {
			data := random(n)
			if got, want := fast.Sum(data), Toeplitz(key, data); got != want {
				t.Fatalf("seed %d: key %x, data %x: %#08x, want %#08x", seed, key, data, got, want)
			}
		}
	}
}

func TestRSSQueueFollowsTheTable(t *testing.T) {
	rss := RSS{Table: []uint16{3, 1, 2}}
	for hash, want := range map[uint32]int{0: 3, 1: 1, 2: 2, 3: 3, 0xffffffff: 3} {
		if got := rss.Queue(hash); got != want {
			t.Errorf("hash %d: queue %d, want %d", hash, got, want)
		}
	}
	if got := (RSS{}).Queue(7); got != 0 {
		t.Errorf("without a table: queue %d, want 0", got)
	}
}

func BenchmarkHasherIPv4(b *testing.B) {
	h := NewHasher(MicrosoftKey())
	flow := AppendFlow(nil, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	b.ReportAllocs()
	for b.Loop() {
		h.Sum(flow)
	}
}
