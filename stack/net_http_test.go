package stack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestHTTPServesManyClients(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		const clients, size = 20, 1 << 20
		l, address := listen(t, right, "tcp")
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			sum := sha256.Sum256(body)
			w.Header().Set("Digest", hex.EncodeToString(sum[:]))
			w.Write(body)
		})}
		go server.Serve(l)
		defer server.Close()
		transport := &http.Transport{DialContext: left.DialContext, MaxIdleConnsPerHost: clients}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}

		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				body := make([]byte, size)
				random := rand.NewChaCha8([32]byte{byte(i)})
				random.Read(body)
				want := sha256.Sum256(body)
				for round := range 2 { // the second on a kept connection
					if err := roundTrip(client, address, body, want); err != nil {
						t.Errorf("client %d, round %d: %v", i, round, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func roundTrip(client *http.Client, address string, body []byte, want [32]byte) error {
	r, err := client.Post("http://"+address+"/", "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	back := sha256.New()
	n, err := io.Copy(back, r.Body)
	if err != nil {
		return err
	}
	if r.Header.Get("Digest") != hex.EncodeToString(want[:]) || !bytes.Equal(back.Sum(nil), want[:]) {
		return fmt.Errorf("status %s, %d bytes with another digest", r.Status, n)
	}
	return nil
}

func TestConnectionsLeaveNothingBehind(t *testing.T) {
	eachDispatch(t, func(t *testing.T, left, right *looper) {
		l, address := listen(t, right, "tcp")
		leftBefore, rightBefore, before := left.endpoints(t), right.endpoints(t), runtime.NumGoroutine()
		const n, at = 1000, 50
		var servers, clients sync.WaitGroup
		servers.Go(func() {
			for range n {
				c, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				servers.Go(func() { io.Copy(c, c); c.Close() })
			}
		})
		for worker := range at {
			clients.Go(func() {
				for i := range n / at {
					if err := useOnce(left, address, i); err != nil {
						t.Errorf("worker %d, connection %d: %v", worker, i, err)
					}
				}
			})
		}
		clients.Wait()
		servers.Wait()
		eventually(t, func() string {
			l, r, g := left.endpoints(t), right.endpoints(t), runtime.NumGoroutine()
			if l != leftBefore || r != rightBefore || g > before {
				return fmt.Sprintf("%d and %d endpoints, %d goroutines; before: %d, %d, %d", l, r, g, leftBefore, rightBefore, before)
			}
			return ""
		})
		for _, side := range []*looper{left, right} {
			var inside, flows int
			side.gate.do(func() { inside, flows = len(side.gate.inside), side.Statistics().Flows })
			if want := map[bool]int{true: 1}[side == right]; inside != want || flows != 0 {
				t.Errorf("the loop still knows %d connections and %d flows", inside, flows)
			}
		}
	})
}

// useOnce opens a connection, has a line echoed, and closes it in one of the
// ways that a program may.
func useOnce(s *looper, address string, way int) error {
	c, err := s.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	line := fmt.Appendf(nil, "line of %v\n", c.LocalAddr())
	if _, err := c.Write(line); err != nil {
		return err
	}
	if way%3 == 2 {
		return nil // with the echo unread: a reset
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, line) {
		return fmt.Errorf("%q came back as %q", line, got)
	}
	if way%3 == 1 {
		c.(interface{ CloseWrite() error }).CloseWrite()
		if _, err := c.Read(got); err != io.EOF {
			return fmt.Errorf("after both FINs: %v", err)
		}
	}
	return nil
}
