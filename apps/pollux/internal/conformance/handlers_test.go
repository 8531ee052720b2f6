package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/runtime"
)

// The ports of the server.
const (
	echoPort      = 7001 // gives back what it gets
	floodPort     = 7002 // gives floodSize bytes for each byte
	linesPort     = 7003 // does what a line says, see lines
	sevensPort    = 7004 // takes seven bytes at a time, and says "." to each seven
	greeterPort   = 7005 // speaks first
	mirrorPort    = 7006 // UDP: gives datagrams back
	memcachedPort = 11211
)

// record is what the server notes, and is asked for.
type record struct {
	Opened, Closed int
	// Ended says how, by class: see classify.
	Ended map[string]int
	// Most is the most output that was ever buffered behind a flood.
	Most int
	// Violations of what the runtime promises to handlers.
	Violations []string
}

// watched is a handler whose calls are checked against the promises.
type watched struct {
	runtime.Handler
	book *book
}

type book struct {
	mu sync.Mutex
	record
}

// watch is the state of a connection of a watched handler; its own is inside.
type watch struct {
	runtime.Conn
	inner         any
	thread, shard int
	left          []byte // what the handler left
	over          bool   // Close or Abort was called
	ended         bool
	book          *book
}

func (w *watch) Context() any     { return w.inner }
func (w *watch) SetContext(v any) { w.inner = v }
func (w *watch) Close() error     { w.over = true; return w.Conn.Close() }
func (w *watch) Abort()           { w.over = true; w.Conn.Abort() }

func (b *book) violation(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.Violations) < 10 {
		b.Violations = append(b.Violations, fmt.Sprintf(format, args...))
	}
}

func (h watched) Open(c runtime.Conn) {
	h.book.mu.Lock()
	h.book.Opened++
	h.book.mu.Unlock()
	w := &watch{Conn: c, thread: unix.Gettid(), shard: c.Shard(), book: h.book}
	c.SetContext(w)
	h.Handler.Open(w)
}

func (h watched) of(c runtime.Conn, method string) *watch {
	w := c.Context().(*watch)
	if thread := unix.Gettid(); thread != w.thread || c.Shard() != w.shard {
		h.book.violation("%s on thread %d and shard %d, opened on %d and %d", method, thread, c.Shard(), w.thread, w.shard)
	}
	if w.ended {
		h.book.violation("%s after Close", method)
	}
	return w
}

func (h watched) Data(c runtime.Conn, in []byte) int {
	w := h.of(c, "Data")
	switch {
	case w.over:
		h.book.violation("Data after the handler closed the connection")
	case len(in) == 0:
		h.book.violation("Data without data")
	case !bytes.HasPrefix(in, w.left):
		h.book.violation("what was left is not handed over again")
	}
	n := h.Handler.Data(w, in)
	if n < 0 || n > len(in) {
		h.book.violation("the handler took %d of %d bytes", n, len(in))
	}
	w.left = append(w.left[:0], in[n:]...)
	return n
}

func (h watched) Close(c runtime.Conn, err error) {
	w := h.of(c, "Close")
	w.ended = true
	h.Handler.Close(w, err)
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	h.book.Closed++
	if h.book.Ended == nil {
		h.book.Ended = map[string]int{}
	}
	h.book.Ended[classify(err)]++
}

const (
	inOrder = "in order"
	reset   = "reset by the peer"
	other   = "for another reason" // the handler's Abort
)

func classify(err error) string {
	switch {
	case err == nil:
		return inOrder
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reset
	}
	return other
}

// silent has the methods that most handlers do not need.
type silent struct{}

func (silent) Open(runtime.Conn)         {}
func (silent) Close(runtime.Conn, error) {}

type echo struct{ silent }

func (echo) Data(c runtime.Conn, in []byte) int {
	n := min(len(in), max(0, runtime.OutputLimit-c.Buffered()))
	c.Write(in[:n])
	return n
}

// flood gives floodSize bytes for a byte, all of them with its value.
type flood struct {
	silent
	book *book
}

const floodSize = 64 << 10

func (f flood) Data(c runtime.Conn, in []byte) int {
	n := 0
	for n < len(in) && c.Buffered() < runtime.OutputLimit {
		c.Write(bytes.Repeat(in[n:n+1], floodSize))
		n++
	}
	f.book.mu.Lock()
	f.book.Most = max(f.book.Most, c.Buffered())
	f.book.mu.Unlock()
	return n
}

// lines does what a line says: "addresses" and "shard" are answered, "bye" is
// repeated and the connection closed, "abort" aborts it, "big N" is answered by N
// bytes and the connection closed. Other lines are repeated.
type lines struct {
	silent
	book *book
}

func (h lines) Data(c runtime.Conn, in []byte) (consumed int) {
	for {
		end := bytes.IndexByte(in[consumed:], '\n')
		if end < 0 {
			return consumed
		}
		line := string(in[consumed : consumed+end])
		consumed += end + 1
		var size int
		switch {
		case line == "addresses":
			c.Write(fmt.Appendf(nil, "%v %v\n", c.LocalAddr(), c.RemoteAddr()))
		case line == "bye":
			c.Write([]byte("bye\n"))
			h.over(c)
			return consumed // whatever follows is dropped
		case line == "abort":
			c.Write(make([]byte, 1000))
			c.Abort()
			return consumed
		case scan(line, "big %d", &size):
			c.Write(bytes.Repeat([]byte("b"), size))
			h.over(c)
			return consumed
		default:
			c.Write(append([]byte(line), '\n'))
		}
	}
}

func scan(line, format string, to ...any) bool {
	n, err := fmt.Sscanf(line, format, to...)
	return err == nil && n == len(to)
}

// over closes, and checks that nothing can be written or closed afterwards.
func (h lines) over(c runtime.Conn) {
	if err := c.Close(); err != nil {
		h.book.violation("Close: %v", err)
	}
	if n, err := c.Write([]byte("too late")); err == nil {
		h.book.violation("%d bytes could be written after Close", n)
	}
	if err := c.Close(); err == nil {
		h.book.violation("a connection could be closed twice")
	}
}

type sevens struct{ silent }

func (sevens) Data(c runtime.Conn, in []byte) int {
	if len(in) < 7 {
		return 0
	}
	c.Write([]byte("."))
	return 7
}

// greeter speaks first, and leaves after one line.
type greeter struct{ silent }

func (greeter) Open(c runtime.Conn) { c.Write([]byte("hello\n")) }

func (greeter) Data(c runtime.Conn, in []byte) int {
	if bytes.IndexByte(in, '\n') < 0 {
		return 0
	}
	c.Write([]byte("good bye\n"))
	c.Close()
	return len(in)
}

// mirror gives a datagram back, or the address that it was sent to.
type mirror struct{}

func (mirror) Packet(c runtime.PacketConn, from netip.AddrPort, in []byte) {
	if string(in) == "where" {
		in = fmt.Append(nil, c.LocalAddr())
	}
	c.WriteTo(in, from)
}
