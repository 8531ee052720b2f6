package kernel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
)

// tcp is a client's connection.
type tcp struct{ *net.TCPConn }

// says expects s.
func (c *tcp) says(s string) error {
	b := make([]byte, len(s))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != s {
		return fmt.Errorf("got %q, want %q: %w", b[:n], s, err)
	}
	return nil
}

// ends expects the end of the stream, in order or by an error, and nothing before.
func (c *tcp) ends(t *testing.T, want error) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); n > 0 || !errors.Is(err, want) {
		t.Errorf("%d bytes more and then %v, want %v", n, err, want)
	}
}
