package main

import (
	"fmt"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/runtime"
	"golang.org/x/sys/unix"
)

// receiver takes in a stream and replies with its digest.
type receiver struct{}

type receiving struct {
	left uint64
	sum  *stream.Digest
}

func (receiver) Open(runtime.Conn)         {}
func (receiver) Close(runtime.Conn, error) {}

func (receiver) Data(c runtime.Conn, in []byte) int {
	r, ok := c.Context().(*receiving)
	taken := 0
	if !ok {
		h, ok := stream.ParseHeader(in)
		if !ok {
			return 0
		}
		r, taken = &receiving{left: h.Length, sum: stream.NewDigest()}, stream.HeaderSize
		c.SetContext(r)
	}
	n := min(r.left, uint64(len(in)-taken))
	r.sum.Write(in[taken : taken+int(n)])
	r.left -= n
	if r.left == 0 {
		c.Write(r.sum.Sum())
		c.Close()
	}
	return len(in)
}

// sender replies to a header with the stream that it describes. It leaves the
// last byte of the header, so that it is called again when there is room.
type sender struct{}

type sending struct {
	left   uint64
	source *stream.Source
	buffer [16 << 10]byte
}

func (sender) Open(runtime.Conn)         {}
func (sender) Close(runtime.Conn, error) {}

func (sender) Data(c runtime.Conn, in []byte) (consumed int) {
	s, ok := c.Context().(*sending)
	if !ok {
		h, ok := stream.ParseHeader(in)
		if !ok {
			return 0
		}
		s = &sending{left: h.Length, source: stream.NewSource(h.Seed)}
		c.SetContext(s)
		consumed = stream.HeaderSize - 1
	}
	for s.left > 0 && c.Buffered() < runtime.OutputLimit {
		p := s.buffer[:min(s.left, uint64(len(s.buffer)))]
		s.source.Read(p)
		c.Write(p)
		s.left -= uint64(len(p))
	}
	if s.left == 0 {
		return len(in)
	}
	return consumed
}

// echo returns each line behind the numbers of the shard and of the thread that
// handled it. A connection must stay on its thread. "bye" has echo close the
// connection, "reset" abort it.
type echo struct{}

func (echo) Open(c runtime.Conn) { c.SetContext(unix.Gettid()) }

func (echo) Close(c runtime.Conn, _ error) { stays(c) }

func stays(c runtime.Conn) (thread int) {
	if thread = unix.Gettid(); thread != c.Context() {
		panic(fmt.Sprintf("a connection of shard %d has gone from thread %v to %d", c.Shard(), c.Context(), thread))
	}
	return thread
}

func (echo) Data(c runtime.Conn, in []byte) (consumed int) {
	thread := stays(c)
	for i := range in {
		if in[i] != '\n' {
			continue
		}
		line := in[consumed : i+1]
		consumed = i + 1
		switch string(line) {
		case "bye\n":
			c.Close()
		case "reset\n":
			c.Abort()
		default:
			c.Write(fmt.Appendf(nil, "%d %d %s", c.Shard(), thread, line))
		}
	}
	return consumed
}
