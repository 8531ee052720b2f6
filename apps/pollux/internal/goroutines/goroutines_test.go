package goroutines

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/pollux-net/pollux/apps/memcached"
)

// start serves memcached until the test ends.
func start(t *testing.T, o memcached.Options) string {
	t.Helper()
	server, err := memcached.New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(server).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestManyClientsAreServed(t *testing.T) {
	address := start(t, memcached.Options{Shards: 1})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			c := memcache.New(address)
			defer c.Close()
			for j := range 50 {
				item := &memcache.Item{Key: fmt.Sprint(i, "-", j), Value: bytes.Repeat([]byte{byte(j)}, j*4000)}
				if err := c.Set(item); err != nil {
					t.Error(err)
					return
				}
				got, err := c.Get(item.Key)
				if err != nil || !bytes.Equal(got.Value, item.Value) {
					t.Errorf("%s: %v", item.Key, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

func TestAPipelineBeyondTheOutputLimitIsAnsweredWhole(t *testing.T) {
	address := start(t, memcached.Options{Shards: 1})
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	value := bytes.Repeat([]byte("v"), 100_000)
	fmt.Fprintf(c, "set k 0 0 %d\r\n%s\r\n", len(value), value)
	const gets = 20
	want := len("STORED\r\n") + gets*(len(fmt.Sprintf("VALUE k 0 %d\r\n", len(value)))+len(value)+len("\r\nEND\r\n"))
	go c.Write(bytes.Repeat([]byte("get k\r\n"), gets))
	got, buf := 0, make([]byte, 64<<10)
	for got < want {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%d of %d bytes: %v", got, want, err)
		}
		got += n
	}
	fmt.Fprint(c, "quit\r\n")
	if n, err := c.Read(buf); n != 0 || err == nil {
		t.Errorf("after quit: %d bytes, %v", n, err)
	}
}
