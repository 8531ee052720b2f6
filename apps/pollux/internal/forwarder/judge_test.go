package forwarder_test

import (
	be "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/bpf/trio"
)

// A lawyer makes rules and packets of few values, so that they meet.
type lawyer struct {
	*rand.Rand
	n *trio.Network
}

// address is one of some near a host's.
func (l lawyer) address(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] ^= byte(4 * l.IntN(4))
	a, _ = netip.AddrFromSlice(b)
	return a
}

func (l lawyer) rule() string {
	client, server := l.n.ClientPort.V4.Addr(), l.n.ServerPort.V4.Addr()
	if l.IntN(2) == 0 {
		client, server = l.n.ClientPort.V6.Addr(), l.n.ServerPort.V6.Addr()
	}
	words := []string{"permit"}
	if l.IntN(2) == 0 {
		words[0] = "deny"
	}
	if l.IntN(4) == 0 {
		words = append(words, "in", l.n.RouterPorts[l.IntN(2)].Name)
	}
	if l.IntN(4) == 0 {
		words = append(words, "out", l.n.RouterPorts[l.IntN(2)].Name)
	}
	protocol := []string{"", "tcp", "udp", "sctp", "icmp", "icmp6", "47", "60", "59"}[l.IntN(9)]
	if protocol != "" {
		words = append(words, "proto", protocol)
	}
	prefix := func(a netip.Addr) string {
		return netip.PrefixFrom(a, a.BitLen()-[]int{0, 2, 3, 4, 8}[l.IntN(5)]).Masked().String()
	}
	if l.IntN(3) > 0 {
		words = append(words, "from", prefix(l.address(client)))
	}
	if l.IntN(3) == 0 {
		words = append(words, "to", prefix(server))
	}
	if protocol == "" || protocol == "tcp" || protocol == "udp" || protocol == "sctp" {
		for _, end := range []string{"from-port", "to-port"} {
			if first := l.IntN(8); l.IntN(3) == 0 {
				words = append(words, end, fmt.Sprintf("%d-%d", first, first+l.IntN(4)))
			}
		}
	}
	return strings.Join(words, " ") + "\n"
}

// packet is one from the client to the server, as the router gets it. Its number
// is IPv4's identity or IPv6's flow label.
func (l lawyer) packet(number int) []byte {
	protocol := []byte{6, 6, 17, 17, 132, 47, 59}[l.IntN(7)]
	body := make([]byte, []int{20, 24, 40, 60}[l.IntN(4)])
	be.BigEndian.PutUint16(body, uint16(l.IntN(12)))
	be.BigEndian.PutUint16(body[2:], uint16(l.IntN(12)))
	if body[12] = 0x50; l.IntN(8) == 0 {
		body = body[:l.IntN(21)] // not all of the header
	}
	b := append(append([]byte{}, l.n.RouterPorts[0].MAC[:]...), l.n.ClientPort.MAC[:]...)
	if l.IntN(2) == 0 {
		h := make([]byte, 20, 60)
		if l.IntN(4) == 0 { // options
			for range 4 * (1 + l.IntN(10)) {
				h = append(h, 1)
			}
		}
		h[0], h[8], h[9] = 0x40|byte(len(h)/4), 64, protocol
		be.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
		be.BigEndian.PutUint16(h[4:], uint16(number))
		if l.IntN(4) == 0 {
			be.BigEndian.PutUint16(h[6:], []uint16{0x2000, 0x2001, 3, 0x4000}[l.IntN(4)])
		}
		copy(h[12:], l.address(l.n.ClientPort.V4.Addr()).AsSlice())
		copy(h[16:], l.n.ServerPort.V4.Addr().AsSlice())
		sum := uint32(0)
		for i := 0; i < len(h); i += 2 {
			sum += uint32(be.BigEndian.Uint16(h[i:]))
		}
		be.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum&0xffff))
		b = append(append(append(b, 8, 0), h...), body...)
	} else {
		h := make([]byte, 40)
		be.BigEndian.PutUint32(h, 6<<28|uint32(number))
		h[6], h[7] = protocol, 64
		copy(h[8:], l.address(l.n.ClientPort.V6.Addr()).AsSlice())
		copy(h[24:], l.n.ServerPort.V6.Addr().AsSlice())
		next := 6 // where the kind of the next header is said
		for i := range max(0, l.IntN(16)-5) {
			kind := []byte{60, 43, 44, 60, 0}[l.IntN(5)]
			if kind == 0 && i > 0 {
				kind = 60
			}
			x := make([]byte, 8*(1+l.IntN(2)))
			switch kind {
			case 44:
				x = x[:8]
				if x[3] = []byte{0, 0, 1, 16}[l.IntN(4)]; x[3] == 1 && l.IntN(2) == 0 {
					x[3] = 0
				}
			case 43:
				x[1], x[2] = byte(len(x)/8-1), 4
			default: // padding
				x[1], x[2], x[3] = byte(len(x)/8-1), 1, byte(len(x)-4)
			}
			h[next], x[0] = kind, protocol
			next = len(h)
			h = append(h, x...)
		}
		be.BigEndian.PutUint16(h[4:], uint16(len(h)-40+len(body)))
		b = append(append(append(b, 0x86, 0xdd), h...), body...)
	}
	for len(b) < 60 {
		b = append(b, 0xff) // padding, which is no header
	}
	return b
}

// open opens a packet socket on an interface.
func open(t *testing.T, h *trio.Host, p trio.Port) int {
	t.Helper()
	var s int
	h.Must(t, func() (err error) {
		const all = 3 << 8 // ETH_P_ALL
		if s, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: p.Index}))
	})
	t.Cleanup(func() { unix.Close(s) })
	return s
}

// verdicts sends packets through a router and says which of them it let pass.
func verdicts(t *testing.T, n *trio.Network, packets [][]byte) []bool {
	t.Helper()
	out, in := open(t, n.Client, n.ClientPort), open(t, n.Server, n.ServerPort)
	passed := make([]bool, len(packets))
	b := make([]byte, 2048)
	collect := func() {
		for {
			size, err := unix.Read(in, b)
			if err != nil {
				return // no more
			}
			if size < 34 || [6]byte(b[:6]) != n.ServerPort.MAC {
				continue
			}
			number := len(packets)
			switch be.BigEndian.Uint16(b[12:]) {
			case 0x0800:
				number = int(be.BigEndian.Uint16(b[18:]))
			case 0x86dd:
				number = int(be.BigEndian.Uint32(b[14:]) & 0xfffff)
			}
			if number > 0 && number < len(packets) {
				passed[number] = true
			}
		}
	}
	for range 3 { // a busy machine may lose one
		for i, p := range packets {
			if i == 0 || passed[i] {
				continue // other traffic has number 0
			}
			if _, err := unix.Write(out, p); err != nil {
				t.Fatalf("send %x: %v", p, err)
			}
			if i%16 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		collect()
	}
	return passed
}

func TestBothPathsJudgeTheSamePacketsByTheSameFileAlike(t *testing.T) {
	const seed = 14
	permitted, denied := 0, 0
	for round, rules := range []int{10, 50, 200} {
		var want []bool
		for _, v := range variants[2:] { // the user path with the flow cache and without, the kernel path
			t.Run(fmt.Sprintf("%d-rules/%s", rules, v.name), func(t *testing.T) {
				n := trio.New(t, trio.Options{Forwarding: v.name == "kernel"})
				l := lawyer{rand.New(rand.NewPCG(seed, uint64(round))), n}
				// Pings find the way.
				text := "permit proto icmp\npermit proto icmp6\n" + []string{"default permit\n", "default deny\n"}[round%2]
				for range rules {
					text += l.rule()
				}
				var packets [][]byte
				for i := range 600 {
					packets = append(packets, l.packet(i))
				}
				file := filepath.Join(t.TempDir(), "rules")
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				router(t, n, append([]string{"--rules", file}, v.arguments...)...)
				for _, to := range []string{"10.71.2.2", "fd71:2::2"} {
					await(t, "a ping to "+to, func() error { return ping(n, to) })
				}
				got := verdicts(t, n, packets)
				for i := range got {
					if got[i] {
						permitted++
					} else {
						denied++
					}
					if want != nil && got[i] != want[i] {
						t.Errorf("seed %d: packet %d passes %v, on the other path %v: %x", seed, i, got[i], want[i], packets[i][14:])
					}
				}
				if want == nil {
					want = got
				}
				if t.Failed() {
					t.Log(text)
				}
			})
		}
	}
	if permitted < 1000 || denied < 1000 {
		t.Errorf("seed %d: %d packets passed, %d did not: not much of a test", seed, permitted, denied)
	}
}
