// Package stream is what the end-to-end tests and their station agree on: ports,
// the header that begins a stream, its bytes, which a seed gives, and the digest
// of them. Both come from the standard library's assembly, so that they cost
// little beside the transport, with the race detector too.
package stream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/runtime/user"
)

// The station's ports.
const (
	ReceivePort = 9001 // takes a Header and its stream, replies with the digest
	SendPort    = 9002 // takes a Header, replies with its stream
	EchoPort    = 9003 // takes lines, returns each after the shard's number
)

// Header describes a stream.
type Header struct{ Seed, Length uint64 }

// HeaderSize is that of a header on the wire.
const HeaderSize = 16

// Bytes is the header as it is sent.
func (h Header) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, h.Seed), h.Length)
}

// ParseHeader reads a header; false if b is too short.
func ParseHeader(b []byte) (Header, bool) {
	if len(b) < HeaderSize {
		return Header{}, false
	}
	return Header{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, true
}

// Source gives the bytes of a seed's stream.
type Source struct{ stream cipher.Stream }

// NewSource begins a stream.
func NewSource(seed uint64) *Source {
	var key, start [16]byte
	binary.BigEndian.PutUint64(key[:], seed)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key's size is right
	}
	return &Source{cipher.NewCTR(block, start[:])}
}

// Read fills p with what is next; it never fails.
func (s *Source) Read(p []byte) (int, error) {
	clear(p)
	s.stream.XORKeyStream(p, p)
	return len(p), nil
}

// Digest is a stream's.
type Digest struct{ hash hash.Hash }

// DigestSize is that of Sum in bytes.
const DigestSize = sha256.Size

// NewDigest begins a digest.
func NewDigest() *Digest { return &Digest{sha256.New()} }

// Write takes in bytes; it never fails.
func (d *Digest) Write(p []byte) (int, error) { return d.hash.Write(p) }

// Sum is the digest of what was written.
func (d *Digest) Sum() []byte { return d.hash.Sum(nil) }

// Report is what the station says of itself.
type Report struct {
	Shards []user.Statistics
	Device []driver.Statistic
	// Endpoints of all shards' stacks, and the process's goroutines.
	Endpoints, Goroutines int
	// FreeFrames of the port, now and when it had been opened.
	FreeFrames, OpeningFrames int
}
