package memcached_test

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/driver/wire"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

// A memcached in this process, on the kernel's stack: TCP, and UDP as well.
func Example_kernelPath() {
	server, err := memcached.New(memcached.Options{Memory: 64 << 20, IdleTimeout: time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	r, err := kernel.New(kernel.Config{})
	if err != nil {
		log.Fatal(err)
	}
	address := netip.MustParseAddrPort("127.0.0.1:0")
	if err := errors.Join(r.Listen(address, server), r.ListenPacket(address, server), r.Start()); err != nil {
		log.Fatal(err)
	}
	defer r.Shutdown(context.Background())

	client := memcache.New(r.Addresses()[0].String())
	client.Set(&memcache.Item{Key: "greeting", Value: []byte("hello")})
	item, err := client.Get("greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", item.Value)
	// Output: hello
}

// The same on the user path: a device, and a stack with an address of its own.
// The device is a wire in memory here, so that the example runs anywhere; dpdk
// opens a real one.
func Example_userPath() {
	link, err := wire.New(wire.Config{})
	if err != nil {
		log.Fatal(err)
	}
	server, err := memcached.New(memcached.Options{Memory: 64 << 20, IdleTimeout: time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	r, err := user.New(link.Port(wire.A), user.Config{Stack: stack.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}}})
	if err != nil {
		log.Fatal(err)
	}
	address := netip.MustParseAddrPort("10.99.0.1:11211")
	if err := errors.Join(r.Listen(address, server), r.ListenPacket(address, server), r.Start()); err != nil {
		log.Fatal(err)
	}
	defer r.Shutdown(context.Background())

	// The client is at the wire's other end, with a stack of its own.
	other, err := user.New(link.Port(wire.B), user.Config{Stack: stack.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := other.Start(); err != nil {
		log.Fatal(err)
	}
	defer other.Shutdown(context.Background())
	client := memcache.New(address.String())
	client.Timeout = 10 * time.Second
	client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return other.Stack(0).DialContext(ctx, network, address)
	}
	client.Set(&memcache.Item{Key: "greeting", Value: []byte("hello")})
	item, err := client.Get("greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", item.Value)
	// Output: hello
}

// Whatever counts and shows metrics can take a snapshot at any time.
func ExampleServer_Statistics() {
	server, err := memcached.New(memcached.Options{Memory: 64 << 20})
	if err != nil {
		log.Fatal(err)
	}
	expvar.Publish("memcached", expvar.Func(func() any { return server.Statistics() }))
	fmt.Println(server.Statistics().Store.Memory)
	// Output: 67108864
}
