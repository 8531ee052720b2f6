package endtoend

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

// Where headers begin in the frames of valid.
const atIP, atTransport4, atTransport6 = 14, 34, 54

// stranger is who sends what is wrong: a client must not be harmed by it.
const stranger4, stranger6 = "10.99.0.77", "fd99::77"

// valid are frames of every kind that the stack understands.
func (r *raw) valid(t *testing.T) map[string][]byte {
	payload := gopacket.Payload(slices.Repeat([]byte("get absent\r\n"), 20))
	tcp := func() *layers.TCP {
		return &layers.TCP{SrcPort: 1234, DstPort: 11211, SYN: true, Window: 1000, Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
			{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
		}}
	}
	data := &layers.TCP{SrcPort: 1234, DstPort: 11211, ACK: true, PSH: true, Window: 1000}
	ip4, ip6 := r.ethernet(layers.EthernetTypeIPv4), r.ethernet(layers.EthernetTypeIPv6)
	option := layers.IPv6Destination{}
	option.NextHeader = layers.IPProtocolUDP
	option.Options = []*layers.IPv6DestinationOption{{OptionType: 1, OptionData: make([]byte, 4)}}
	return map[string][]byte{
		"arp": frame(t, r.ethernet(layers.EthernetTypeARP), &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: r.client, SourceProtAddress: net.ParseIP(stranger4).To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: lab.ServerIPv4.Addr().AsSlice(),
		}),
		"ipv4 tcp syn":  frame(t, ip4, r.ip4(stranger4, layers.IPProtocolTCP), tcp()),
		"ipv4 tcp data": frame(t, ip4, r.ip4(stranger4, layers.IPProtocolTCP), data, payload),
		"ipv4 udp":      frame(t, ip4, r.ip4(stranger4, layers.IPProtocolUDP), &layers.UDP{SrcPort: 53, DstPort: 11211}, payload),
		"ipv4 icmp":     frame(t, ip4, r.ip4(stranger4, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, payload),
		"ipv6 tcp syn":  frame(t, ip6, r.ip6(stranger6, layers.IPProtocolTCP), tcp()),
		"ipv6 tcp data": frame(t, ip6, r.ip6(stranger6, layers.IPProtocolTCP), data, payload),
		"ipv6 udp":      frame(t, ip6, r.ip6(stranger6, layers.IPProtocolUDP), &layers.UDP{SrcPort: 53, DstPort: 11211}, payload),
		"ipv6 icmp":     frame(t, ip6, r.ip6(stranger6, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, payload),
		"ipv6 neighbour": frame(t, ip6, r.ip6(stranger6, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)},
			&layers.ICMPv6NeighborSolicitation{TargetAddress: lab.ServerIPv6.Addr().AsSlice()}),
		"ipv6 options": frame(t, ip6, r.ip6(stranger6, layers.IPProtocolIPv6Destination), &option, &layers.UDP{SrcPort: 53, DstPort: 11211}, payload),
	}
}

func TestGarbageIsDroppedAndCountedAndHarmsNobody(t *testing.T) {
	l := newLab(t, 1)
	s := serveMemcached(t, l, pollux, memcachedArgs(runtime.Adaptive, 1)...)
	memccapable(t, l, "10.99.0.1", "-a")
	r := newRaw(t, l)
	const seed = 13
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	valid := r.valid(t)
	var names []string
	for name := range valid {
		names = append(names, name)
	}
	slices.Sort(names) // so that the seed decides
	changed := func(name string, change func(b []byte)) []byte {
		b := slices.Clone(valid[name])
		change(b)
		return b
	}
	fill := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}

	for _, c := range []struct {
		name string
		// causes are those under which drops must be counted.
		causes []string
		send   func()
	}{
		{"random bytes", []string{"other-host"}, func() {
			for range 2000 {
				b := make([]byte, 14+random.IntN(1500))
				fill(b)
				b[0] &^= 1 // a broadcast is nobody else's
				r.send(t, b)
			}
		}},
		{"random bytes behind a right header", []string{"malformed-packet", "checksum"}, func() {
			for i := range 4000 {
				header := valid[names[i%len(names)]]
				b := make([]byte, 1514)
				fill(b)
				copy(b, header[:[]int{12, 14, 15, 24, 34, 38, 54}[random.IntN(7)]])
				r.send(t, b[:14+random.IntN(1500)])
			}
		}},
		{"truncated at every length", []string{"malformed-packet"}, func() {
			for _, name := range names {
				for n := 14; n < len(valid[name]); n++ {
					r.send(t, valid[name][:n])
				}
			}
		}},
		{"wrong checksums", []string{"checksum", "malformed-packet"}, func() {
			for range 100 {
				for name, at := range map[string][]int{
					"ipv4 tcp syn": {atIP + 10, atTransport4 + 16}, "ipv4 tcp data": {atIP + 10, atTransport4 + 16},
					"ipv4 udp": {atIP + 10, atTransport4 + 6}, "ipv4 icmp": {atIP + 10, atTransport4 + 2},
					"ipv6 tcp syn": {atTransport6 + 16}, "ipv6 tcp data": {atTransport6 + 16},
					"ipv6 udp": {atTransport6 + 6}, "ipv6 icmp": {atTransport6 + 2}, "ipv6 neighbour": {atTransport6 + 2},
				} {
					for _, at := range at {
						r.send(t, changed(name, func(b []byte) { b[at] ^= 0x55 }))
					}
				}
			}
		}},
		{"lengths that contradict each other", []string{"malformed-packet"}, func() {
			for n := range 256 {
				// Of the whole and of the header; each checksum is right again.
				r.send(t, changed("ipv4 udp", func(b []byte) { adjust(b, atIP+2, atIP+10, uint16(n)) }))
				r.send(t, changed("ipv4 udp", func(b []byte) { adjust(b, atIP+2, atIP+10, uint16(n)<<8|0xff) }))
				r.send(t, changed("ipv4 tcp syn", func(b []byte) { adjust(b, atIP, atIP+10, uint16(n)<<8) }))
				r.send(t, changed("ipv6 udp", func(b []byte) { binary.BigEndian.PutUint16(b[atIP+4:], uint16(n)<<8|uint16(n)) }))
				r.send(t, changed("ipv4 udp", func(b []byte) { binary.BigEndian.PutUint16(b[atTransport4+4:], uint16(n)<<8) }))
			}
		}},
		{"TCP options and offsets out of bounds", []string{"malformed-segment"}, func() {
			for _, at := range []int{atTransport4, atTransport6} {
				name := map[int]string{atTransport4: "ipv4 tcp syn", atTransport6: "ipv6 tcp syn"}[at]
				for n := range 256 {
					r.send(t, changed(name, func(b []byte) { adjust(b, at+12, at+16, uint16(n)<<8|2) }))
					for option := at + 20; option+2 <= len(valid[name]); option += 2 {
						r.send(t, changed(name, func(b []byte) { adjust(b, option, at+16, uint16(n)<<8|uint16(random.Uint32())&0xff) }))
					}
				}
			}
		}},
		{"fragments that overlap, repeat or end beyond 64 KiB", nil, func() {
			for id := range uint16(300) {
				for range 8 {
					// In units of 8 bytes; the flag is "more fragments".
					offset, more := uint16(random.IntN(24)), uint16(random.IntN(2))<<13
					if random.IntN(8) == 0 {
						offset = 0x1fff - uint16(random.IntN(4))
					}
					size := 1 + random.IntN(200)
					r.send(t, r.fragment4(t, id, offset|more, size))
					r.send(t, r.fragment6(t, uint32(id), offset<<3|more>>13, size))
				}
			}
		}},
		{"extension headers without end", nil, func() {
			for _, next := range []byte{0, 43, 44, 50, 51, 60, 59, 135} {
				for range 200 {
					b := changed("ipv6 udp", func(b []byte) {
						b[atIP+6] = next
						fill(b[atTransport6:])
						for at := atTransport6; at+8 <= len(b); at += 8 {
							b[at], b[at+1] = next, byte(random.IntN(3))
						}
					})
					r.send(t, b)
				}
			}
		}},
		{"bits flipped", []string{"checksum"}, func() {
			for range 2000 {
				for _, name := range names {
					r.send(t, changed(name, func(b []byte) {
						// Not the addresses of Ethernet, nor those that ARP and
						// neighbours would believe.
						for range 1 + random.IntN(3) {
							b[12+random.IntN(len(b)-12)] ^= 1 << random.IntN(8)
						}
					}))
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := scrape(t, l)
			c.send()
			memccapable(t, l, "10.99.0.1", "-a")
			memccapable(t, l, "fd99::1", "-a")
			if s.ended() {
				t.Fatal("the server has ended")
			}
			dropped := scrape(t, l).rise(before, "pollux_dropped_total")
			t.Log(dropped)
			for _, cause := range c.causes {
				if dropped[`pollux_dropped_total{cause="`+cause+`",shard="0"}`] == 0 {
					t.Errorf("nothing was counted as dropped by %s", cause)
				}
			}
		})
	}
	s.terminate(t)
}

// fragment4 is a fragment of size bytes of a datagram; offset holds the flags too.
func (r *raw) fragment4(t *testing.T, id, offset uint16, size int) []byte {
	ip := r.ip4(stranger4, layers.IPProtocolUDP)
	ip.Id, ip.FragOffset, ip.Flags = id, offset&0x1fff, layers.IPv4Flag(offset>>13)
	return frame(t, r.ethernet(layers.EthernetTypeIPv4), ip, gopacket.Payload(make([]byte, size)))
}

// fragment6 is the same for IPv6.
func (r *raw) fragment6(t *testing.T, id uint32, offset uint16, size int) []byte {
	b := make([]byte, 8+size)
	b[0] = byte(layers.IPProtocolUDP)
	binary.BigEndian.PutUint16(b[2:], offset)
	binary.BigEndian.PutUint32(b[4:], id)
	return frame(t, r.ethernet(layers.EthernetTypeIPv6), r.ip6(stranger6, layers.IPProtocolIPv6Fragment), gopacket.Payload(b))
}
