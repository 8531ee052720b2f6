package endtoend

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
)

func portOf(address netip.Prefix, port uint16) string {
	return netip.AddrPortFrom(address.Addr(), port).String()
}

const mib = 1 << 20

// upload sends a stream to the station and returns whether that has the same digest.
func upload(l *lab.Lab, address netip.Prefix, h stream.Header) error {
	conn, err := dial(l, lab.Client, portOf(address, stream.ReceivePort), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(bulkPatience))
	sum := stream.NewDigest()
	w := bufio.NewWriterSize(conn, 256<<10)
	w.Write(h.Bytes())
	_, err = io.Copy(w, io.TeeReader(io.LimitReader(stream.NewSource(h.Seed), int64(h.Length)), sum))
	if err = errors.Join(err, w.Flush()); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	// The digest, and nothing more.
	got, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("read the digest: %w", err)
	}
	return compare(got, sum.Sum())
}

// download takes a stream from the station, which must be the seed's.
func download(l *lab.Lab, address netip.Prefix, h stream.Header) error {
	conn, err := dial(l, lab.Client, portOf(address, stream.SendPort), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(bulkPatience))
	if _, err := conn.Write(h.Bytes()); err != nil {
		return err
	}
	sum := stream.NewDigest()
	if n, err := io.CopyBuffer(sum, io.LimitReader(conn, int64(h.Length)), make([]byte, 256<<10)); err != nil || n != int64(h.Length) {
		return fmt.Errorf("received %d of %d bytes: %w", n, h.Length, err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
		return fmt.Errorf("%d bytes more than %d, then %w", n, h.Length, err)
	}
	want := stream.NewDigest()
	if _, err := io.Copy(want, io.LimitReader(stream.NewSource(h.Seed), int64(h.Length))); err != nil {
		return err
	}
	return compare(sum.Sum(), want.Sum())
}

func compare(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the digest is %x, want %x", got, want)
	}
	return nil
}

// bulkPatience is for a connection that carries much, with faults.
const bulkPatience = 4 * patience

// carry transfers streams of length bytes each at the same time, with seeds from
// seed on, and says how fast that went.
func carry(t *testing.T, what string, streams int, h stream.Header, transfer func(stream.Header) error) {
	t.Helper()
	began := time.Now()
	results := make(chan error)
	for i := range streams {
		go func() {
			h := stream.Header{Seed: h.Seed + uint64(i), Length: h.Length}
			err := transfer(h)
			if err != nil {
				err = fmt.Errorf("stream of seed %d: %w", h.Seed, err)
			}
			results <- err
		}()
	}
	for range streams {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	took := time.Since(began)
	t.Logf("%s: %d times %d MiB in %.1f s, %.2f Gbit/s", what, streams, h.Length/mib, took.Seconds(), 8*float64(streams)*float64(h.Length)/took.Seconds()/1e9)
}

func TestAGibibyteEachWayArrivesWhole(t *testing.T) {
	l := newLab(t, 1)
	s := serveStation(t, l, plainStation)
	for _, c := range []struct {
		address netip.Prefix
		length  uint64
	}{{lab.ServerIPv4, 1024 * mib}, {lab.ServerIPv6, 64 * mib}} {
		h := stream.Header{Seed: 1, Length: c.length}
		carry(t, "to "+c.address.String(), 1, h, func(h stream.Header) error { return upload(l, c.address, h) })
		carry(t, "from "+c.address.String(), 1, h, func(h stream.Header) error { return download(l, c.address, h) })
	}
	s.stop(t)
}

// The same gibibyte over many connections: one that loses 2 % of its segments
// spends most of its time in retransmission timeouts, which many spend together.
// Those of the station are as short as suits the round trips here.
func TestAGibibyteEachWayArrivesWholeThroughLossReorderingAndDuplication(t *testing.T) {
	l := newLab(t, 1)
	const seed, share = 7, 0.02
	s := serveStation(t, l, plainStation, "-min-rto", "20ms", "-impair", "-seed", strconv.Itoa(seed),
		"-loss", fmt.Sprint(share), "-reorder", fmt.Sprint(share), "-duplicate", fmt.Sprint(share))
	t.Log("faults of seed", seed)
	const streams = 128
	h := stream.Header{Seed: 1, Length: 1024 * mib / streams}
	carry(t, "to the user path", streams, h, func(h stream.Header) error { return upload(l, lab.ServerIPv4, h) })
	carry(t, "from the user path", streams, h, func(h stream.Header) error { return download(l, lab.ServerIPv4, h) })

	// It has really happened, to every kind of frame and both ways.
	happened := map[string]uint64{}
	r := s.report(t)
	for _, d := range r.Device {
		happened[d.Name] = d.Value
	}
	for _, direction := range []string{"transmit", "receive"} {
		lost, twice, late := happened[direction+" lost"], happened[direction+" duplicated"], happened[direction+" reordered"]
		frames := happened[direction+" carried"] - twice + lost
		t.Logf("%s: %d frames, %d lost, %d reordered, %d duplicated", direction, frames, lost, late, twice)
		for _, n := range []uint64{lost, twice, late} {
			if got := float64(n) / float64(frames); got < share*0.9 || got > share*1.1 {
				t.Errorf("%s: a share of %.4f, want %v", direction, got, share)
			}
		}
	}
	tcp := r.Shards[0].Stack.TCP
	t.Logf("%d segments sent, %d again, %d timeouts", tcp.SegmentsSent, tcp.Retransmits, tcp.Timeouts)
	s.stop(t)
}

// A handler that stops at the output limit must be called again even if the
// stack takes its output at once and never runs full.
func TestAStreamGoesOnWhileTheSendBufferIsLargerThanTheOutputLimit(t *testing.T) {
	l := newLab(t, 1)
	s := serveStation(t, l, station, "-send-buffer", strconv.Itoa(4*mib))
	carry(t, "from the user path", 1, stream.Header{Seed: 4, Length: 16 * mib}, func(h stream.Header) error { return download(l, lab.ServerIPv4, h) })
	s.stop(t)
}
