package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/kernel"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

// asServer has the test binary be the server; its value is a serverConfig.
const asServer = "POLLUX_CONFORMANCE_SERVER"

// serverConfig is how the server runs.
type serverConfig struct {
	Path runtime.Path
	Mode runtime.Mode
}

// path is what both runtimes have.
type path interface {
	Listen(netip.AddrPort, runtime.Handler) error
	ListenPacket(netip.AddrPort, runtime.PacketHandler) error
	Start() error
	Shutdown(context.Context) error
	Done() <-chan struct{}
}

// serve is the server: commands come in on standard input, one a line, and each
// is answered by a record in JSON.
func serve(config string) error {
	var c serverConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	cache, err := memcached.New(memcached.Options{})
	if err != nil {
		return err
	}
	p, closePath, err := open(c, cache.Tick)
	if err != nil {
		return err
	}
	b := &book{}
	for port, h := range map[uint16]runtime.Handler{
		echoPort: echo{}, floodPort: flood{book: b}, linesPort: lines{book: b}, sevensPort: sevens{}, greeterPort: greeter{}, memcachedPort: cache,
	} {
		if err := p.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), watched{h, b}); err != nil {
			return err
		}
	}
	if err := p.ListenPacket(netip.AddrPortFrom(netip.IPv6Unspecified(), mirrorPort), mirror{}); err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	answer := func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		return json.NewEncoder(os.Stdout).Encode(b.record)
	}
	if err := answer(); err != nil { // it serves
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan() && in.Text() != "stop"; {
		if err := answer(); err != nil {
			return err
		}
	}
	select {
	case <-p.Done():
		return errors.New("the loops ended by themselves")
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(p.Shutdown(ctx), closePath(), answer())
}

// open opens a path on the server's end of the lab.
func open(c serverConfig, tick func(time.Time)) (path, func() error, error) {
	cores, err := affinity.Allowed()
	if err != nil {
		return nil, nil, err
	}
	switch c.Path {
	case runtime.Kernel:
		r, err := kernel.New(kernel.Config{Mode: c.Mode, Cores: cores[:1], Device: lab.ServerInterface, Tick: tick})
		return r, func() error { return nil }, err
	case runtime.User:
		if err := dpdk.Init(dpdk.Options{Memory: dpdk.DefaultMemory}); err != nil {
			return nil, nil, err
		}
		port, err := dpdk.Open(dpdk.Config{Device: lab.ServerInterface, Queues: 1, Interrupts: true})
		if err != nil {
			return nil, nil, err
		}
		r, err := user.New(port, user.Config{
			Mode: c.Mode, Cores: cores[:1], Tick: tick, Stack: stack.Config{Addresses: lab.Addresses(lab.Server)},
			EnterThread: func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() },
		})
		return r, port.Close, err
	}
	return nil, nil, fmt.Errorf("no such path: %q", c.Path)
}
