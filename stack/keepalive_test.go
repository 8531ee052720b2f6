package stack

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Where a reply has said it all, Acknowledge leaves netstack alone, which would also
// restart its keepalive timer there. It does so as well when the reply is acknowledged.
func TestAConnectionThatFellSilentAfterAReplyIsProbed(t *testing.T) {
	const idle = time.Hour
	b := newBench(t, Config{Dispatch: Inline, Keepalive: idle}, 1)
	for range 3 {
		b.round([]byte("get key_0000000000000000000000\r\n"), 1)
	}
	b.peer.Segment(b.conns[0], header.TCPFlagAck, nil)
	b.step()
	probes := func(silence time.Duration) int {
		b.origin = b.origin.Add(-silence)
		b.stack.Advance(time.Since(b.origin))
		b.stack.Transmit()
		return b.peer.Receive()
	}
	if n := probes(idle - time.Minute); n != 0 {
		t.Errorf("%d frames before the connection was silent for long enough", n)
	}
	if n := probes(2 * time.Minute); n != 1 {
		t.Errorf("%d probes of a silent connection, want 1", n)
	}
}
