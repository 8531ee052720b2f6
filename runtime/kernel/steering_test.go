package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/kernel/napi/napitest"
)

var (
	nearAddress = netip.MustParsePrefix("10.98.0.1/24")
	farAddress  = netip.MustParsePrefix("10.98.0.2/24")
)

// veth is a pair of devices with addresses.
func veth(t *testing.T, queues int) *napitest.Veth {
	t.Helper()
	v := napitest.New(t, queues, true)
	for ns, address := range map[netns.NsHandle]netip.Prefix{v.Near: nearAddress, v.Far: farAddress} {
		within(t, ns, func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				if l.Type() == "veth" {
					a, err := netlink.ParseAddr(address.String())
					if err != nil {
						return err
					}
					if err := netlink.AddrAdd(l, a); err != nil {
						return err
					}
					return withoutTSO(l.Attrs().Name)
				}
			}
			return fmt.Errorf("no veth in %v", ns)
		})
	}
	return v
}

// withoutTSO has a device cut segments itself: what is larger would pass by the
// NAPI of a veth's other end.
func withoutTSO(name string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	return e.Change(name, map[string]bool{
		"tx-tcp-segmentation": false, "tx-tcp-ecn-segmentation": false, "tx-tcp-mangleid-segmentation": false, "tx-tcp6-segmentation": false,
	})
}

// within runs f on a thread of its own in a namespace.
func within(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	result := make(chan error)
	go func() {
		goruntime.LockOSThread() // and the thread ends with the goroutine
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// serveVeth serves an echo on the near end.
func serveVeth(t *testing.T, v *napitest.Veth, c Config, h polluxruntime.Handler) *Runtime {
	t.Helper()
	var r *Runtime
	c.Device = v.Name
	v.Do(t, func() (err error) {
		if r, err = New(c); err != nil {
			return err
		}
		if err = r.Listen(anywhere, h); err != nil {
			r.Discard()
		}
		return err
	})
	start(t, r)
	return r
}

// dialVeth connects from the far end.
func dialVeth(t *testing.T, v *napitest.Veth, r *Runtime) net.Conn {
	t.Helper()
	return dialFar(t, v, netip.AddrPortFrom(nearAddress.Addr(), r.Addresses()[0].Port()))
}

func dialFar(t *testing.T, v *napitest.Veth, to netip.AddrPort) (c net.Conn) {
	t.Helper()
	within(t, v.Far, func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 20*time.Second)
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func TestSteeredConnectionsComeFromTheirLoopsOwnQueue(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	cores = []int{cores[0], cores[len(cores)-1]}
	for _, mode := range []polluxruntime.Mode{polluxruntime.Vanilla, polluxruntime.KernelPolling} {
		for _, steered := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/steered=%v", mode, steered), func(t *testing.T) {
				logged := capture(t)
				v := veth(t, 2)
				r := serveVeth(t, v, Config{Mode: mode, Cores: cores, Unsteered: !steered}, &echo{})
				const connections = 60
				for i := range connections {
					if err := ask(dialVeth(t, v, r), fmt.Sprint("connection ", i)); err != nil {
						t.Fatal(err)
					}
				}
				var accepted, foreign uint64
				for _, s := range statistics(t, r) {
					accepted += s.Accepted
					foreign += s.NAPIForeign
					if s.NAPIUnknown > 0 {
						t.Errorf("shard %d: %d connections without NAPI", s.Shard, s.NAPIUnknown)
					}
					if s.Accepted == 0 {
						t.Errorf("shard %d got no connection", s.Shard)
					}
				}
				t.Logf("%d of %d connections come from another loop's queue", foreign, accepted)
				if accepted != connections {
					t.Errorf("%d connections were accepted", accepted)
				}
				if steered != (foreign == 0) {
					t.Errorf("%d connections are foreign", foreign)
				}
				if complained := strings.Contains(logged(), "another queue"); complained != (!steered && mode == polluxruntime.KernelPolling) {
					t.Errorf("the log says %q", logged())
				}
			})
		}
	}
}

func TestEachModeServesOnADevice(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range polluxruntime.Modes(polluxruntime.Kernel) {
		t.Run(string(mode), func(t *testing.T) {
			v := veth(t, 1)
			before := state(t, v)
			var r *Runtime
			t.Run("served", func(t *testing.T) {
				r = serveVeth(t, v, Config{Mode: mode, Cores: cores[:1]}, &echo{})
				c := dialVeth(t, v, r)
				for i := range 200 {
					if err := ask(c, fmt.Sprintf("request %d", i)); err != nil {
						t.Fatal(err)
					}
					if i%50 == 0 {
						time.Sleep(30 * time.Millisecond) // longer than any timer
					}
				}
				s := statistics(t, r)[0]
				if s.NAPI == 0 || s.NAPI != before.NAPIs[0].ID || s.NAPIForeign+s.NAPIUnknown > 0 {
					t.Errorf("the queue's NAPI is %d, the loop has %+v", before.NAPIs[0].ID, s)
				}
			})
			if after := state(t, v); !reflect.DeepEqual(after, before) {
				t.Errorf("was %+v\nis  %+v", before, after)
			}
		})
	}
}

func TestAModeThatCannotBeIsRefusedAndSaysWhy(t *testing.T) {
	v := veth(t, 2)
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{Mode: polluxruntime.KernelPolling}, "no device is named"},
		{Config{Mode: polluxruntime.BusyPoll, Device: "lo"}, "no NAPI"},
		{Config{Mode: polluxruntime.IRQSuppression, Device: "absent0"}, "absent0"},
		{Config{Mode: polluxruntime.IRQPacking, Device: v.Name}, "cores"},
		{Config{Mode: polluxruntime.KernelPolling, Device: v.Name, Cores: []int{0}}, "2 receive queues for 1 cores"},
		{Config{Mode: polluxruntime.KernelPolling, Device: v.Name, Cores: []int{0, 1}, Settings: &Settings{IRQSuspendTimeout: time.Hour}}, "IRQ suspend timeout"},
	} {
		before := state(t, v)
		v.Do(t, func() error {
			r, err := New(c.config)
			if err == nil {
				r.Discard()
				t.Errorf("%s on %q was accepted", c.config.Mode, c.config.Device)
			} else if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s on %q: %v; want %q", c.config.Mode, c.config.Device, err, c.want)
			}
			return nil
		})
		if after := state(t, v); !reflect.DeepEqual(after, before) {
			t.Errorf("%s on %q: was %+v\nis  %+v", c.config.Mode, c.config.Device, before, after)
		}
	}
}

func TestConnectionsThatArriveDuringTheStartComeFromTheirLoopsOwnQueue(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	cores = []int{cores[0], cores[len(cores)-1]}
	v := veth(t, 2)
	to := netip.AddrPortFrom(nearAddress.Addr(), 4321)
	stop := make(chan struct{})
	var dialing sync.WaitGroup
	var mu sync.Mutex
	var connections []net.Conn
	for range 2 {
		dialing.Add(1)
		go func() {
			defer dialing.Done()
			goruntime.LockOSThread() // and the thread ends with the goroutine
			if err := netns.Set(v.Far); err != nil {
				t.Error(err)
				return
			}
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond):
				}
				if c, err := net.DialTimeout("tcp", to.String(), time.Second); err == nil {
					mu.Lock()
					connections = append(connections, c)
					mu.Unlock()
				}
			}
		}()
	}
	var r *Runtime
	v.Do(t, func() (err error) {
		r, err = New(Config{Mode: polluxruntime.Vanilla, Device: v.Name, Cores: cores})
		if err == nil {
			err = r.Listen(to, &echo{})
		}
		return err
	})
	start(t, r)
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(connections) > 30
	}
	eventually(t, "connections", enough)
	close(stop)
	dialing.Wait()
	for _, c := range connections {
		if err := ask(c, "hello"); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	for _, s := range statistics(t, r) {
		if s.NAPIForeign > 0 || s.NAPIUnknown > 0 || s.Accepted == 0 {
			t.Errorf("shard %d: %d of %d connections come from another loop's queue, %d from none", s.Shard, s.NAPIForeign, s.Accepted, s.NAPIUnknown)
		}
	}
}

func TestALinkThatWentDownAndUpIsSetAndSteeredAgain(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	cores = []int{cores[0], cores[len(cores)-1]}
	logged := capture(t)
	v := veth(t, 2)
	want := mustSettings(t, polluxruntime.KernelPolling)
	t.Run("served", func(t *testing.T) {
		r := serveVeth(t, v, Config{Mode: polluxruntime.KernelPolling, Cores: cores}, &echo{})
		before := state(t, v)
		v.SetUp(t, false)
		v.SetUp(t, true)
		if now := state(t, v); now.NAPIs[0].ID == before.NAPIs[0].ID {
			t.Fatal("it has the NAPI instances that it had: this shows nothing")
		}
		eventually(t, "the device is set again", func() bool {
			for _, n := range state(t, v).NAPIs {
				if n.Settings.IRQSuspendTimeout != want.IRQSuspendTimeout || n.Settings.GROFlushTimeout != want.GROFlushTimeout {
					return false
				}
			}
			return true
		})
		eventually(t, "that is counted", func() bool { return statistics(t, r)[1].DeviceChanges > 0 })
		const connections = 60
		for i := range connections {
			if err := ask(dialVeth(t, v, r), fmt.Sprint("connection ", i)); err != nil {
				t.Fatal(err)
			}
		}
		now := state(t, v)
		for i, s := range statistics(t, r) {
			if s.NAPIForeign+s.NAPIUnknown > 0 || s.Accepted == 0 || s.NAPI != now.NAPIs[i].ID {
				t.Errorf("NAPI %d: %+v", now.NAPIs[i].ID, s)
			}
		}
		if !strings.Contains(logged(), "set again") {
			t.Errorf("the log says %q", logged())
		}
	})
	for _, n := range state(t, v).NAPIs {
		if n.Settings.IRQSuspendTimeout != 0 || n.Settings.GROFlushTimeout != 0 || n.Settings.DeferHardIRQs != 0 {
			t.Errorf("left %+v", n)
		}
	}
}

func TestWhatOneQueueReceivesIsSpreadOverProcessorsAndServedThere(t *testing.T) {
	cores, err := affinity.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	if len(cores) < 2 {
		t.Skip("needs two processors")
	}
	cores = cores[:2]
	v := veth(t, 1)
	within(t, v.Far, func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return e.Change("far", map[string]bool{"tx-checksum-ip-generic": false}) // nobody would compute them
	})
	settings := Settings{Spread: cores}
	t.Run("served", func(t *testing.T) {
		r := serveVeth(t, v, Config{Mode: polluxruntime.Vanilla, Cores: cores, Settings: &settings}, &echo{})
		const connections = 60
		for i := range connections {
			if err := ask(dialVeth(t, v, r), fmt.Sprint("connection ", i)); err != nil {
				t.Fatal(err)
			}
		}
		frames, spread, err := r.Applied().SpreadCounts()
		if err != nil || !spread {
			t.Fatal(spread, err)
		}
		chosen, err := r.steering.groups[0].program.Counts()
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range statistics(t, r) {
			t.Logf("processor %d took %d frames and %d connections", cores[i], frames.Frames[i], s.Accepted)
			if frames.Frames[i] < connections || s.Accepted == 0 || chosen.CPU[i] < s.Accepted {
				t.Errorf("shard %d has %d connections; its processor took %d frames, %d SYNs among them", i, s.Accepted, frames.Frames[i], chosen.CPU[i])
			}
		}
		if chosen.Fallback > 0 || xdp(t, v) == 0 {
			t.Errorf("%d connections were not steered; program %d", chosen.Fallback, xdp(t, v))
		}
	})
	if id := xdp(t, v); id != 0 {
		t.Errorf("program %d is left on the device", id)
	}
	polling := mustSettings(t, polluxruntime.KernelPolling)
	polling.Spread = cores
	if err := polling.Validate(); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Errorf("spreading what is to be polled: %v", err)
	}
	v.Do(t, func() error {
		if _, err := New(Config{Mode: polluxruntime.IRQPacking, Cores: []int{0, 1}, Device: v.Name, Settings: &Settings{PackInterrupts: true, InterruptCores: []int{0}, Spread: cores}}); err == nil {
			t.Error("interrupts on the application's processors were accepted")
		}
		return nil
	})
	if id := xdp(t, v); id != 0 {
		t.Errorf("program %d is left on the device after a refusal", id)
	}
}

// xdp is the program on the near end, 0 if there is none.
func xdp(t *testing.T, v *napitest.Veth) (id uint32) {
	t.Helper()
	v.Do(t, func() error {
		link, err := netlink.LinkByName(v.Name)
		if err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
			id = link.Attrs().Xdp.ProgId
		}
		return err
	})
	return id
}
