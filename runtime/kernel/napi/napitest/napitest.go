// Package napitest makes network devices with NAPI instances for tests: both
// ends of a veth in namespaces of their own, which have no names and end with
// the test. It needs root.
package napitest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Veth is a pair of devices that are up, without addresses.
type Veth struct {
	// Name is that of the near end, with generic receive offload on, which
	// gives it one NAPI for each of its queues.
	Name string
	// Near and Far are the namespaces of the ends.
	Near, Far netns.NsHandle
}

// New makes a pair of so many queues; threaded gives each NAPI a thread.
func New(t testing.TB, queues int, threaded bool) *Veth {
	t.Helper()
	v := &Veth{Name: fmt.Sprintf("n%d", os.Getpid()%1_000_000)}
	onSpareThread(t, func() error {
		var err error
		if v.Near, err = netns.New(); err != nil {
			return err
		}
		if v.Far, err = netns.New(); err != nil {
			return err
		}
		return nil
	})
	t.Cleanup(func() { v.Near.Close(); v.Far.Close() })
	v.Do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues = v.Name, queues, queues
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: "far", PeerNamespace: netlink.NsFd(v.Far),
			PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth: %w", err)
		}
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		if err := e.Change(v.Name, map[string]bool{"rx-gro": true}); err != nil {
			return fmt.Errorf("turn receive offload on: %w", err)
		}
		return up(v.Name)
	})
	within(t, v.Far, func() error { return up("far") })
	if threaded {
		v.Do(t, func() error { return thread(v.Name) })
	}
	return v
}

func up(name string) error {
	for _, n := range []string{"lo", name} {
		link, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", n, err)
		}
	}
	return nil
}

func thread(name string) error {
	c, err := napi.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := c.Device(name)
	if err != nil {
		return err
	}
	list, err := c.NAPIs(d)
	if err != nil {
		return err
	}
	for _, n := range list {
		threaded := true
		n.Settings.Threaded = &threaded
		if err := c.Set(n.ID, n.Settings); err != nil {
			return err
		}
	}
	return nil
}

// SetUp sets the near end up, with new NAPI instances, or down.
func (v *Veth) SetUp(t testing.TB, up bool) {
	t.Helper()
	v.Do(t, func() error {
		link, err := netlink.LinkByName(v.Name)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// Do runs f on a thread in the near end's namespace and fails the test on an
// error.
func (v *Veth) Do(t testing.TB, f func() error) {
	t.Helper()
	within(t, v.Near, f)
}

func within(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	onSpareThread(t, func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// onSpareThread runs f on a thread that ends afterwards.
func onSpareThread(t testing.TB, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}
