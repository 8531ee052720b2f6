package napi_test

import (
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"github.com/pollux-net/pollux/runtime/kernel/napi/napitest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// connect opens a Conn in the near end's namespace.
func connect(t *testing.T, v *napitest.Veth) (*napi.Conn, napi.Device) {
	t.Helper()
	var c *napi.Conn
	var d napi.Device
	v.Do(t, func() (err error) {
		if c, err = napi.Open(); err != nil {
			return err
		}
		d, err = c.Device(v.Name)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c, d
}

func TestEveryQueueHasItsNAPIInOrder(t *testing.T) {
	const queues = 40 // more than one message of the kernel holds
	c, d := connect(t, napitest.New(t, queues, false))
	list, err := c.NAPIs(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != queues {
		t.Fatalf("%d NAPIs for %d queues", len(list), queues)
	}
	for i, n := range list {
		if n.Queue != i || n.ID == 0 || n.Thread != 0 || i > 0 && n.ID <= list[i-1].ID {
			t.Errorf("queue %d: %+v", i, n)
		}
		again, err := c.NAPI(n.ID)
		n.Queue = -1
		if err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("%+v alone, %+v in the list; %v", again, n, err)
		}
	}
	q, err := c.Queues(d)
	if err != nil || len(q) != queues {
		t.Errorf("%d queues, %v", len(q), err)
	}
}

func TestOneNAPICanBeSetWithoutTheOthers(t *testing.T) {
	c, d := connect(t, napitest.New(t, 2, false))
	before, err := c.NAPIs(d)
	if err != nil {
		t.Fatal(err)
	}
	want := napi.Settings{DeferHardIRQs: 7, GROFlushTimeout: 5 * time.Second, IRQSuspendTimeout: 20 * time.Millisecond, Threaded: before[1].Settings.Threaded}
	if err := c.Set(before[1].ID, want); err != nil {
		t.Fatal(err)
	}
	after, err := c.NAPIs(d)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(after[0], before[0]) {
		t.Errorf("the other became %+v", after[0])
	}
	if !reflect.DeepEqual(after[1].Settings, want) {
		t.Errorf("set %+v, is %+v", want, after[1].Settings)
	}
}

func TestWhatWasSavedIsPutBack(t *testing.T) {
	v := napitest.New(t, 2, true)
	c, d := connect(t, v)
	saved, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(saved.Threads) != 2 {
		t.Fatalf("threads %v", saved.Threads)
	}
	for _, n := range saved.NAPIs {
		off := false
		// The thread of a NAPI ends up elsewhere only if it still has one.
		settings := napi.Settings{DeferHardIRQs: 3, GROFlushTimeout: 1, IRQSuspendTimeout: 2, Threaded: n.Settings.Threaded}
		if n.Queue == 1 {
			settings.Threaded = &off
		} else if err := napi.SetThreadCores(n.Thread, []int{1}); err != nil {
			t.Fatal(err)
		}
		if err := c.Set(n.ID, settings); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := c.Restore(saved); err != nil || len(changed) < 3 {
		t.Fatalf("put back %v, %v", changed, err)
	}
	again, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	for i := range again.NAPIs { // its thread may be a new one
		again.NAPIs[i].Thread = saved.NAPIs[i].Thread
	}
	if !reflect.DeepEqual(again, saved) {
		t.Errorf("was %+v\nis  %+v", saved, again)
	}
	if changed, err := c.Restore(saved); err != nil || len(changed) != 0 {
		t.Errorf("a second time: %v, %v", changed, err)
	}
}

func TestNothingIsPutBackOnAnotherDeviceOfTheSameName(t *testing.T) {
	c, d := connect(t, napitest.New(t, 1, false))
	saved, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(saved.NAPIs[0].ID, napi.Settings{DeferHardIRQs: 3}); err != nil {
		t.Fatal(err)
	}
	saved.Device.Index++
	if changed, err := c.Restore(saved); err != nil || len(changed) != 0 {
		t.Errorf("%v, %v", changed, err)
	}
}

func TestDefaultsOfADeviceCanBeSetWhereOneNAPICannot(t *testing.T) {
	v := napitest.New(t, 2, false)
	c, d := connect(t, v)
	was, err := c.Defaults(d)
	if err != nil || was != (napi.Defaults{}) {
		t.Fatalf("%+v, %v", was, err)
	}
	want := napi.Defaults{DeferHardIRQs: 100, GROFlushTimeout: 20 * time.Microsecond}
	if err := c.SetDefaults(d, want); err != nil {
		t.Fatal(err)
	}
	if is, err := c.Defaults(d); err != nil || is != want {
		t.Errorf("%+v, %v", is, err)
	}
	list, err := c.NAPIs(d)
	if err != nil || list[1].Settings.GROFlushTimeout != want.GROFlushTimeout {
		t.Errorf("%+v, %v", list, err)
	}
	saved, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	saved.Defaults = &napi.Defaults{} // as an older kernel's would be
	if changed, err := c.Restore(saved); err != nil || len(changed) != 1 {
		t.Errorf("%v, %v", changed, err)
	}
	if is, err := c.Defaults(d); err != nil || is != (napi.Defaults{}) {
		t.Errorf("%+v, %v", is, err)
	}
}

func TestADeviceThatIsCalledOtherwiseByNowIsPutBack(t *testing.T) {
	v := napitest.New(t, 1, false)
	c, d := connect(t, v)
	saved, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(saved.NAPIs[0].ID, napi.Settings{DeferHardIRQs: 3, GROFlushTimeout: 1}); err != nil {
		t.Fatal(err)
	}
	v.Do(t, func() error {
		link, err := netlink.LinkByName(v.Name)
		if err != nil {
			return err
		}
		address, err := net.ParseMAC("02:00:00:00:00:01")
		return errors.Join(err, netlink.LinkSetHardwareAddr(link, address), netlink.LinkSetName(link, "other0"))
	})
	if changed, err := c.Restore(saved); err != nil || len(changed) != 1 {
		t.Errorf("%v, %v", changed, err)
	}
	if n, err := c.NAPI(saved.NAPIs[0].ID); err != nil || !reflect.DeepEqual(n.Settings, saved.NAPIs[0].Settings) {
		t.Errorf("is %+v, was %+v, %v", n, saved.NAPIs[0], err)
	}
}

func TestWhatCannotBePutBackWhileTheDeviceIsDownIsAnError(t *testing.T) {
	v := napitest.New(t, 1, false)
	c, d := connect(t, v)
	saved, err := c.Save(d)
	if err != nil {
		t.Fatal(err)
	}
	v.SetUp(t, false)
	if changed, err := c.Restore(saved); !errors.Is(err, napi.ErrDown) || !strings.Contains(err.Error(), "ip link set "+v.Name+" up") {
		t.Errorf("%v, %v", changed, err)
	}
	v.SetUp(t, true)
	if _, err := c.Restore(saved); err != nil {
		t.Error(err)
	}
	v.SetUp(t, false)
	v.Do(t, func() error {
		link, err := netlink.LinkByName(v.Name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if changed, err := c.Restore(saved); err != nil || len(changed) != 0 {
		t.Errorf("a device that is gone: %v, %v", changed, err)
	}
}

func TestCoalescingIsSetAndPutBack(t *testing.T) {
	v := napitest.New(t, 1, false)
	var tap napi.Device
	c, _ := connect(t, v)
	v.Do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "tap0"
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP})
	})
	tap, err := c.Device("tap0")
	if err != nil {
		t.Fatal(err)
	}
	saved, err := c.Save(tap)
	if err != nil || saved.Coalescing == nil || saved.Coalescing.RxFrames == nil || saved.Coalescing.RxDelay != nil {
		t.Fatalf("a tap has a number of frames and no delay: %+v, %v", saved.Coalescing, err)
	}
	frames := *saved.Coalescing.RxFrames + 5
	if err := c.SetCoalescing(tap, napi.Coalescing{RxFrames: &frames}); err != nil {
		t.Fatal(err)
	}
	if is, err := c.Coalescing(tap); err != nil || is.RxFrames == nil || *is.RxFrames != frames {
		t.Errorf("%+v, %v", is, err)
	}
	delay := time.Millisecond
	if err := c.SetCoalescing(tap, napi.Coalescing{RxDelay: &delay}); err == nil || !strings.Contains(err.Error(), "unsupported") {
		t.Errorf("a delay on a tap, without the kernel's reason: %v", err)
	}
	if changed, err := c.Restore(saved); err != nil || len(changed) != 1 {
		t.Errorf("%v, %v", changed, err)
	}
	if is, err := c.Coalescing(tap); err != nil || !reflect.DeepEqual(is, *saved.Coalescing) {
		t.Errorf("%+v, %v", is, err)
	}
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	c, d := connect(t, napitest.New(t, 1, false))
	if _, err := c.Device("absent"); !errors.Is(err, napi.ErrGone) {
		t.Error(err)
	}
	if _, err := c.NAPI(1 << 30); !errors.Is(err, napi.ErrGone) {
		t.Error(err)
	}
	if _, err := c.Coalescing(d); !errors.Is(err, napi.ErrUnsupported) {
		t.Errorf("a veth has no coalescing: %v", err)
	}
	if _, err := napi.InterruptCores(1 << 20); !errors.Is(err, napi.ErrGone) {
		t.Error(err)
	}
	if _, err := napi.ThreadCores(1 << 30); !errors.Is(err, napi.ErrGone) {
		t.Error(err)
	}
	if _, err := napi.OpenProcess(1 << 30); !errors.Is(err, napi.ErrGone) {
		t.Error(err)
	}
	lo, err := c.Device("lo")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.NAPIs(lo); err != nil || len(list) != 0 {
		t.Errorf("the loopback's NAPIs: %v, %v", list, err)
	}
	if f, err := c.XDP(d); err != nil || f&(napi.XDPBasic|napi.XDPRedirect) != napi.XDPBasic|napi.XDPRedirect {
		t.Errorf("a veth's XDP: %v, %v", f, err)
	}
	if f, err := c.XDP(lo); err != nil || f != 0 || f.String() != "none" {
		t.Errorf("the loopback's XDP: %v, %v", f, err)
	}
	for name, ask := range map[string]func() (bool, error){"set one NAPI": c.CanSet, "bind memory": c.CanBindMemory} {
		if can, err := ask(); err != nil || !can {
			t.Errorf("this kernel can %s: %v, %v", name, can, err)
		}
	}
}

func TestAnEpollInstanceKeepsItsParameters(t *testing.T) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if p, err := napi.Epoll(fd); err != nil || p.Prefer || p.BusyPoll != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	want := napi.EpollParams{BusyPoll: 200 * time.Microsecond, Budget: 64, Prefer: true}
	if err := napi.SetEpoll(fd, want); err != nil {
		t.Fatal(err)
	}
	if p, err := napi.Epoll(fd); err != nil || p != want {
		t.Errorf("%+v, %v", p, err)
	}
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := napi.Epoll(pipe[0]); !errors.Is(err, napi.ErrUnsupported) {
		t.Errorf("a pipe's: %v", err)
	}
	if err := napi.EpollSupported(); err != nil {
		t.Error(err)
	}
}

func TestListsOfProcessorsAreReadAndWritten(t *testing.T) {
	for s, want := range map[string][]int{"": nil, "0": {0}, "0-3,8": {0, 1, 2, 3, 8}, "1,3": {1, 3}} {
		cores, err := napi.ParseCores(s)
		if err != nil || !slices.Equal(cores, want) || napi.FormatCores(cores) != s {
			t.Errorf("%q: %v, %v, %q", s, cores, err, napi.FormatCores(cores))
		}
	}
	for _, s := range []string{"x", "-1", "3-1", "0-99999999", "1,,2"} {
		if cores, err := napi.ParseCores(s); err == nil {
			t.Errorf("%q: %v", s, cores)
		}
	}
}
