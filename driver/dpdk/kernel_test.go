package dpdk

import (
	"bytes"
	"syscall"
	"testing"

	"github.com/pollux-net/pollux/driver"
)

// TestFramesCrossVeth: every frame arrives, once, in order and unchanged, both
// ways, through each driver that sits on a device of the kernel.
func TestFramesCrossVeth(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		t.Run(name, func(t *testing.T) {
			v := newVeth(t, 1)
			p := openIn(t, v.server, Config{Device: v.device, Driver: name})
			q, before := p.Queue(0), p.FreeFrames()
			const total = 5000
			buf := make([]byte, 2048)
			frames := make([]driver.Frame, 32)
			next := 0
			for i := range total {
				if _, err := syscall.Write(v.socket, numbered(60+i%1455, i)); err != nil {
					t.Fatal(err)
				}
				for n := q.Receive(frames); n > 0; n = q.Receive(frames) {
					for _, f := range frames[:n] {
						checkNumbered(t, f.Data, next)
						next++
					}
					driver.Free(frames[:n])
				}
			}
			within(t, "the last frames", func() bool {
				n := q.Receive(frames)
				for _, f := range frames[:n] {
					checkNumbered(t, f.Data, next)
					next++
				}
				driver.Free(frames[:n])
				return next == total
			})
			for i := range total {
				send(t, q, numbered(60+i%1455, i))
				n, err := syscall.Read(v.socket, buf)
				if err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				checkNumbered(t, buf[:n], i)
			}
			if after := p.FreeFrames(); after != before {
				t.Errorf("%d free frames before, %d after", before, after)
			}
			s := q.Statistics()
			if s.ReceivedFrames != total || s.TransmittedFrames != total {
				t.Errorf("counted %d received and %d transmitted, not %d", s.ReceivedFrames, s.TransmittedFrames, total)
			}
		})
	}
}

func checkNumbered(t testing.TB, b []byte, want int) {
	t.Helper()
	if !bytes.Equal(b, numbered(60+want%1455, want)) {
		t.Fatalf("frame %d is not as sent: number %d, %d bytes", want, number(b), len(b))
	}
}
