package endtoend

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/pollux-net/pollux/runtime"
)

func TestAClientConnectsAfterAFloodOfAMillionSYNs(t *testing.T) {
	l := newLab(t, 1)
	s := serveMemcached(t, l, plainPollux, memcachedArgs(runtime.Adaptive, 1)...)
	memccapable(t, l, "10.99.0.1", "-a")
	r := newRaw(t, l)
	const seed, flood = 11, 1_000_000
	random := rand.New(rand.NewPCG(seed, 0))
	syn := frame(t, r.ethernet(layers.EthernetTypeIPv4), r.ip4("10.99.0.3", layers.IPProtocolTCP), &layers.TCP{
		SrcPort: 1, DstPort: 11211, SYN: true, Window: 65535,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}},
	})
	const ip, tcp = 14, 34
	// The addresses count in both checksums.
	address := func(at int, value uint16) {
		binary.BigEndian.PutUint16(syn[ip+10:], update(binary.BigEndian.Uint16(syn[ip+10:]), binary.BigEndian.Uint16(syn[at:]), value))
		adjust(syn, at, tcp+16, value)
	}
	before := scrape(t, l)
	var memory []int // MiB, at the start and after each flood
	memory = append(memory, s.memory(t)>>20)
	for range 2 {
		began := time.Now()
		for i := range flood {
			// From everywhere: neighbours that do not answer, and beyond any route.
			source := random.Uint32()
			if i%2 == 0 {
				source = 10<<24 | 99<<16 | 3 + uint32(random.IntN(250))
			}
			address(ip+12, uint16(source>>16))
			address(ip+14, uint16(source))
			adjust(syn, tcp, tcp+16, uint16(random.Uint32()))   // port
			adjust(syn, tcp+4, tcp+16, uint16(random.Uint32())) // sequence number
			adjust(syn, tcp+6, tcp+16, uint16(random.Uint32()))
			r.send(t, syn)
		}
		took := time.Since(began)
		connect(t, l, memcached4).Close()
		t.Logf("seed %d: a million SYNs in %.1f s; then a client connected within %.3f s", seed, took.Seconds(), (time.Since(began) - took).Seconds())
		memccapable(t, l, "10.99.0.1", "-a")
		memccapable(t, l, "fd99::1", "-a")
		memory = append(memory, s.memory(t)>>20)
	}
	after := scrape(t, l)
	rose := func(name string) float64 { return after.get(t, name) - before.get(t, name) }
	received, missed := rose(`pollux_received_frames_total{shard="0"}`), rose(`pollux_device_statistic{device="pollux0",name="rx_missed_errors"}`)
	t.Logf("%.0f frames received, %.0f missed by the device, %.0f SYN cookies; MiB of memory: %d",
		received, missed, rose(`pollux_tcp_syn_cookies_sent_total{shard="0"}`), memory)
	if received+missed < 2*flood {
		t.Errorf("%.0f frames were received or counted as missed, of %d sent", received+missed, 2*flood)
	}
	if received < flood/10 || rose(`pollux_dropped_total{cause="checksum",shard="0"}`) > 0 {
		t.Error("the server has not seen a flood of valid SYNs")
	}
	// What half-open connections take is bounded: a second flood finds it there.
	if memory[2] > memory[1]+memory[1]/2 || memory[1] > memory[0]+512 {
		t.Error("the server's memory has grown without bound")
	}
	s.terminate(t)
}
