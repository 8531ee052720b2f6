// Package runtime says what an application is (Handler), what a connection is
// to it (Conn) and what a mode is (Mode). It does no I/O: runtime/user carries
// an application's bytes over a user-space stack, runtime/kernel over epoll, and
// the application cannot tell which.
package runtime

import (
	"net/netip"
	"time"
)

// Handler is an application: it serves one connection at a time, on the core
// that owns it. One Handler value may serve several shards, so what connections
// share must be safe between cores; what belongs to one connection goes into
// Conn.SetContext and needs no lock.
type Handler interface {
	// Open announces a new connection, before its first Data.
	Open(c Conn)
	// Data hands over bytes that have arrived and returns how many of them it
	// consumed. What it leaves is handed over again, followed by newer bytes,
	// once more have arrived or once room for output is free again (see
	// Conn.Buffered). In is valid only during the call. After Close or Abort
	// on c the rest is discarded.
	Data(c Conn, in []byte) (consumed int)
	// Close announces the end: nil after the peer closed its side or the
	// handler called Close, else the reason. C must not be used afterwards.
	Close(c Conn, err error)
}

// Ticker is a Handler or PacketHandler that also acts by the clock: one that
// closes idle connections, say.
type Ticker interface {
	// TickShard tells a shard's time of day, on its core: the shard's
	// connections may be used as from inside the Handler's other methods. It is
	// called about ten times a second while the shard has work, and about once
	// a second while it has none; more often if it was passed to Listen more
	// than once.
	TickShard(shard int, now time.Time)
}

// TickInterval is the longest time between two calls of a Ticker, but for what
// a handler takes.
const TickInterval = time.Second

// Conn is one connection. It belongs to one core: its methods may be called
// only from inside the Handler's methods for a connection of the same shard.
type Conn interface {
	// Write copies p into the connection's output, which is sent when the
	// handler returns. It never blocks. It fails only once the connection is
	// closed. Output beyond OutputLimit is accepted, but a Handler should stop
	// consuming input when Buffered reaches it: Data is called again when the
	// peer has taken enough, and until then nothing is read.
	Write(p []byte) (int, error)
	// Buffered is the number of bytes written that the stack has not taken yet.
	Buffered() int
	// Close sends what is buffered, then closes both directions.
	Close() error
	// Abort drops what is buffered and resets the connection.
	Abort()
	LocalAddr() netip.AddrPort
	RemoteAddr() netip.AddrPort
	// Shard is the index of the shard that owns the connection.
	Shard() int
	// Context returns what SetContext stored: the handler's state of this
	// connection.
	Context() any
	SetContext(v any)
}

// OutputLimit is the number of buffered output bytes at which a connection
// stops being read, so that a slow reader cannot make the server grow.
const OutputLimit = 256 << 10
