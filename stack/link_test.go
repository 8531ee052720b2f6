package stack

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

// ownedQueue fails the test when two goroutines use it.
type ownedQueue struct {
	driver.Queue
	t     testing.TB
	mu    sync.Mutex
	owner string
}

func (q *ownedQueue) used(method string) {
	stack := make([]byte, 64)
	goroutine, _, _ := bytes.Cut(stack[:runtime.Stack(stack, false)], []byte(" ["))
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.owner == "" {
		q.owner = string(goroutine)
	}
	if q.owner != string(goroutine) {
		q.t.Errorf("%s called %s on the queue of %s", goroutine, method, q.owner)
	}
}

func (q *ownedQueue) Receive(f []driver.Frame) int {
	q.used("Receive")
	return q.Queue.Receive(f)
}

func (q *ownedQueue) Transmit(f []driver.Frame) int {
	q.used("Transmit")
	return q.Queue.Transmit(f)
}

func (q *ownedQueue) Allocate(f []driver.Frame, size int) int {
	q.used("Allocate")
	return q.Queue.Allocate(f, size)
}

// echoes has right give back what left sends, and checks it.
func echoes(t *testing.T, left, right *looper, network, host string, sent []byte) {
	t.Helper()
	l, address := listen(t, right, network)
	_, port, _ := net.SplitHostPort(address)
	go func() {
		if a, err := l.Accept(); err == nil {
			io.Copy(a, a)
			a.Close()
		}
	}()
	c, err := left.Dial(network, net.JoinHostPort(host, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		c.Write(sent)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s: %d of %d bytes came back, or others: %v", network, len(got), len(sent), err)
	}
}

func TestTheQueueIsUsedByItsLoopAlone(t *testing.T) {
	for _, dispatch := range []Dispatch{Inline, Handoff} {
		for _, segment := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/segments=%v", dispatch, segment), func(t *testing.T) {
				left, right := newPairOn(t, wire.Config{Ring: 4096, SegmentTCP: segment}, dispatch, nil, func(q driver.Queue) driver.Queue {
					return &ownedQueue{Queue: q, t: t}
				})
				echoes(t, left, right, "tcp4", rightHost, make([]byte, 1<<20))
			})
		}
	}
}

// fewLarge is a queue without frames larger than the MTU, as one whose driver
// still has all that were sent.
type fewLarge struct{ driver.Queue }

func (q fewLarge) Allocate(f []driver.Frame, size int) int {
	if size > 1514 {
		return 0
	}
	return q.Queue.Allocate(f, size)
}

func TestSegmentsGoOutWithoutLargeFrames(t *testing.T) {
	const seed = 11
	sent := make([]byte, 3<<20+17)
	rand.NewChaCha8([32]byte{seed}).Read(sent)
	// The receiver verifies each checksum of what was cut.
	w := wire.Config{Ring: 4096, SegmentTCP: true, ReceiveChecksum: true}
	left, right := newPairOn(t, w, Inline, nil, func(q driver.Queue) driver.Queue { return fewLarge{q} })
	echoes(t, left, right, "tcp4", rightHost, sent)
	echoes(t, left, right, "tcp6", rightHost6, sent)
	for _, l := range []*looper{left, right} {
		var s Statistics
		if err := l.gate.do(func() { s = l.Statistics() }); err != nil {
			t.Fatal(err)
		}
		if s.DroppedTransmit+s.DroppedChecksum+s.TCP.ChecksumErrors > 0 {
			t.Errorf("seed %d: %d not sent, %d and %d with a wrong checksum", seed, s.DroppedTransmit, s.DroppedChecksum, s.TCP.ChecksumErrors)
		}
	}
}
