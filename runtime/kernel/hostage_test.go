package kernel

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/kernel/napi/napitest"
)

// plainServer echoes on a socket of its own, as a program that knows nothing of
// kernel polling would, behind the same queue.
func plainServer(t *testing.T, v *napitest.Veth) netip.AddrPort {
	t.Helper()
	var l net.Listener
	v.Do(t, func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(nearAddress.Addr(), 0).String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// While a handler does not come back, the queue is the kernel's again once
// irq_suspend_timeout has passed: others behind it wait that long, not longer.
func TestAHandlerThatSleepsDoesNotTakeTheQueueHostage(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	const slumber = 2 * time.Second
	delay := func(suspend time.Duration) time.Duration {
		logged := capture(t)
		v := veth(t, 1)
		settings, err := SettingsOf(polluxruntime.KernelPolling)
		if err != nil {
			t.Fatal(err)
		}
		settings.IRQSuspendTimeout = suspend
		var sleeping atomic.Bool
		r := serveVeth(t, v, Config{Mode: polluxruntime.KernelPolling, Cores: cores[:1], Settings: &settings},
			function(func(c polluxruntime.Conn, in []byte) int {
				if in[len(in)-1] == 's' {
					sleeping.Store(true)
					time.Sleep(slumber)
					sleeping.Store(false)
				}
				c.Write(in)
				return len(in)
			}))
		plain := plainServer(t, v)
		other := dialFar(t, v, plain)
		sleeper := dialVeth(t, v, r)
		for range 100 { // the loop has the queue
			if err := ask(sleeper, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if err := ask(other, "x"); err != nil {
			t.Fatal(err)
		}
		// It is busy when the request that it sleeps at comes, so that it has
		// polled and not been interrupted.
		for range 300 {
			if _, err := sleeper.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := sleeper.Write([]byte("s")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the handler sleeps", sleeping.Load)
		asked := time.Now()
		if err := ask(other, "is anybody there?"); err != nil {
			t.Fatal(err)
		}
		waited := time.Since(asked)
		if !sleeping.Load() {
			t.Errorf("with a timeout of %v the other socket was served only when the handler had come back", suspend)
		}
		if _, err := io.ReadFull(sleeper, make([]byte, 301)); err != nil {
			t.Error(err)
		}
		eventually(t, "the delay is noted", func() bool { return statistics(t, r)[0].Overdue > 0 })
		if n := strings.Count(logged(), "irq-suspend-timeout"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, logged())
		}
		return waited
	}
	// Twenty milliseconds and what a busy machine adds; once is enough.
	const soon = 250 * time.Millisecond
	short := delay(20 * time.Millisecond)
	for try := 0; short >= soon && try < 3; try++ {
		short = delay(20 * time.Millisecond)
	}
	long := delay(MaxSuspend)
	// Without this the above would show nothing: the queue is really the loop's.
	// Should an interrupt have come before the loop could poll, it was not.
	for try := 0; long < MaxSuspend/4 && try < 5; try++ {
		long = delay(MaxSuspend)
	}
	t.Logf("the other socket waited %v with a timeout of 20 ms, %v with one of %v", short, long, MaxSuspend)
	if long < MaxSuspend/4 {
		t.Errorf("the other socket waited %v: were interrupts off at all?", long)
	}
	if short >= soon {
		t.Errorf("the other socket waited %v with a timeout of 20 ms", short)
	}
}
