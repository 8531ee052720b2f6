package stack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/pollux-net/pollux/driver"
)

// Dispatch is how a TCP segment gets from the queue to its endpoint.
type Dispatch string

const (
	// Inline processes segments on the goroutine that received the frame, in
	// every TCP state, and lets a reply carry the ACK. The default.
	Inline Dispatch = "inline"
	// Handoff is netstack as it comes: segments go to processor goroutines,
	// which acknowledge at once. Kept so that what Inline gains stays measurable.
	Handoff Dispatch = "handoff"
)

// Config is everything that can be set on a stack. The zero value of a field
// means the default that its comment names, so a Config needs only Addresses.
type Config struct {
	// Addresses are the stack's own, each with its on-link prefix. At least one.
	Addresses []netip.Prefix
	// Gateways are the next hops of the default routes, at most one a family.
	Gateways []netip.Addr
	// Dispatch defaults to Inline.
	Dispatch Dispatch
	// Burst is the number of frames taken from the queue at once: 64, at most 512.
	Burst int
	// TransmitLimit bounds the frames that wait for the device: 4,096. Past it
	// frames are dropped and counted.
	TransmitLimit int
	// MailboxLimit bounds the functions that other goroutines may have posted
	// and that have not run yet: 4,096.
	MailboxLimit int

	// Random is the source of everything unpredictable (sequence numbers, SYN
	// cookies, ports): crypto/rand. A simulation passes a seeded one.
	Random io.Reader

	// CongestionControl is "cubic" (default) or "reno".
	CongestionControl string
	// SendBuffer and ReceiveBuffer bound the bytes in flight and unread on a
	// connection: 1 MiB start and 4 MiB at most. The window starts at the
	// first and is tuned up to the second.
	SendBuffer, ReceiveBuffer BufferSize
	// NoSACK turns selective acknowledgement (RFC 2018) off.
	NoSACK bool
	// Nagle turns RFC 896's delay of small segments on; servers want it off.
	Nagle bool
	// Keepalive is the silence after which a peer is probed: 2 h as RFC 1122
	// 4.2.3.6 asks; KeepaliveInterval (75 s) and KeepaliveCount (9) follow
	// Linux. Negative Keepalive turns it off.
	Keepalive, KeepaliveInterval time.Duration
	KeepaliveCount               int
	// TimeWait is how long a closed connection's ports are held: 60 s.
	TimeWait time.Duration
	// MinRTO is the least retransmission timeout: 200 ms.
	MinRTO time.Duration
	// Backlog is the number of connections a listener holds that are not yet
	// accepted, and of handshakes it remembers; beyond it SYN cookies answer: 1,024.
	Backlog int
	// MaxFlows bounds the flow cache: 1 << 20 connections; more are served
	// without it.
	MaxFlows int

	// OwnsFlow, if not nil, says whether the device will deliver the replies of
	// a connection to this stack's queue; outgoing connections choose their
	// port by it. It must be safe to call on the stack's goroutine.
	OwnsFlow func(local, remote netip.AddrPort) bool

	// Siblings, if not nil, are the other shards of the same device.
	Siblings Siblings
}

// BufferSize is a socket buffer's starting and largest size in bytes.
type BufferSize struct{ Default, Max int }

// Siblings reaches the stacks of a device's other queues. Its methods are
// called on the stack's own goroutine and must copy the frame if they keep it.
type Siblings interface {
	// Share passes a frame on to every other stack's Inject with visited = 1:
	// address resolution replies, router and error messages, of which each
	// stack needs its own copy.
	Share(f *driver.Frame)
	// Pass hands a TCP segment that matches no connection here to the Inject
	// of the next stack in a ring. Visited is the number of stacks that have
	// seen it; once all have, Pass returns false, and since the ring has come
	// round, the stack that first received the segment answers it.
	Pass(f *driver.Frame, visited int) bool
}

const (
	minBuffer = 4 << 10
	maxBuffer = 64 << 20
)

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Config) hasIPv6() bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return !p.Addr().Unmap().Is4() })
}

// withDefaults fills in what was left out and checks the rest.
func (c Config) withDefaults() (Config, error) {
	or(&c.Dispatch, Inline)
	or(&c.Burst, 64)
	or(&c.TransmitLimit, 4096)
	or(&c.MailboxLimit, 4096)
	or(&c.CongestionControl, "cubic")
	or(&c.SendBuffer.Default, 1<<20)
	or(&c.SendBuffer.Max, 4<<20)
	or(&c.ReceiveBuffer.Default, 1<<20)
	or(&c.ReceiveBuffer.Max, 4<<20)
	or(&c.Keepalive, 2*time.Hour)
	or(&c.KeepaliveInterval, 75*time.Second)
	or(&c.KeepaliveCount, 9)
	or(&c.TimeWait, tcp.DefaultTCPTimeWaitTimeout)
	or(&c.MinRTO, tcp.MinRTO)
	or(&c.Backlog, 1024)
	or(&c.MaxFlows, 1<<20)
	if c.Random == nil {
		c.Random = rand.Reader
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Addresses) == 0 {
		bad("no address: give at least one, such as 10.99.0.1/24")
	}
	for _, p := range c.Addresses {
		if !p.IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
			bad("%v is not an address that a host can have", p)
		}
	}
	families := map[bool]bool{}
	for _, g := range c.Gateways {
		if !g.IsValid() {
			bad("a gateway is not a valid address")
		} else if families[g.Is4()] {
			bad("gateway %v: there is another one of its family already", g)
		}
		families[g.Is4()] = true
	}
	if c.Dispatch != Inline && c.Dispatch != Handoff {
		bad("dispatch %q: use %s or %s", c.Dispatch, Inline, Handoff)
	}
	if c.Burst < 1 || c.Burst > 512 {
		bad("burst of %d frames: use 1 to 512", c.Burst)
	}
	if c.CongestionControl != "cubic" && c.CongestionControl != "reno" {
		bad("congestion control %q: use cubic or reno", c.CongestionControl)
	}
	for name, b := range map[string]BufferSize{"send": c.SendBuffer, "receive": c.ReceiveBuffer} {
		if b.Default < minBuffer || b.Max < b.Default || b.Max > maxBuffer {
			bad("%s buffer of %d to %d bytes: use %d <= default <= max <= %d", name, b.Default, b.Max, minBuffer, maxBuffer)
		}
	}
	if c.Backlog < 1 || c.TransmitLimit < 1 || c.MailboxLimit < 1 || c.KeepaliveCount < 1 || c.MaxFlows < 1 {
		bad("backlog, limits and counts must be positive")
	}
	if c.KeepaliveInterval < 0 || c.TimeWait < 0 || c.MinRTO < 0 {
		bad("keepalive interval, TIME-WAIT and minimum RTO must not be negative")
	}
	return c, errors.Join(errs...)
}
