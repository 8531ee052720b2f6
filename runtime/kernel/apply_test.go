package kernel

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"github.com/pollux-net/pollux/runtime/kernel/napi/napitest"
	"golang.org/x/sys/unix"
)

// state reads all that can be set of the near end.
func state(t *testing.T, v *napitest.Veth) (s napi.State) {
	t.Helper()
	v.Do(t, func() error {
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := c.Device(v.Name)
		if err != nil {
			return err
		}
		s, err = c.Save(d)
		return err
	})
	return s
}

// unusual gives the device settings that no mode has and that are not the
// kernel's own, so that putting zeros back is seen.
func unusual(t *testing.T, v *napitest.Veth) napi.State {
	t.Helper()
	s := state(t, v)
	v.Do(t, func() error {
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		for i, n := range s.NAPIs {
			n.Settings.DeferHardIRQs, n.Settings.GROFlushTimeout, n.Settings.IRQSuspendTimeout = 3+i, 7*time.Microsecond, 9*time.Millisecond
			if err := c.Set(n.ID, n.Settings); err != nil {
				return err
			}
			if n.Thread > 0 {
				if err := napi.SetThreadCores(n.Thread, []int{0}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return state(t, v)
}

func apply(t *testing.T, v *napitest.Veth, s Settings) (a *Applied, err error) {
	t.Helper()
	v.Do(t, func() error {
		a, err = Apply(v.Name, []int{0}, s)
		return nil
	})
	return a, err
}

func mustSettings(t *testing.T, mode runtime.Mode) Settings {
	t.Helper()
	s, err := SettingsOf(mode)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func records(t *testing.T, v *napitest.Veth) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(Directory, "restore-"+v.Name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestEachModeSetsItsTableAndPutsBackWhatWas(t *testing.T) {
	for _, mode := range runtime.Modes(runtime.Kernel) {
		t.Run(string(mode), func(t *testing.T) {
			v := napitest.New(t, 2, true)
			before := unusual(t, v)
			s := mustSettings(t, mode)
			a, err := apply(t, v, s)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.NAPIs()) != 2 || a.NAPIs()[0].Queue != 0 || a.Epoll() != s.Epoll() || a.Polls() != (s.Budget > 0) {
				t.Errorf("%+v", a)
			}
			during := state(t, v)
			for i, n := range during.NAPIs {
				want := before.NAPIs[i].Settings
				if s.timers() { // a veth has no coalescing: they stand for it
					want = napi.Settings{DeferHardIRQs: s.DeferHardIRQs, GROFlushTimeout: s.GROFlushTimeout, IRQSuspendTimeout: s.IRQSuspendTimeout, Threaded: want.Threaded}
				}
				if !reflect.DeepEqual(n.Settings, want) {
					t.Errorf("NAPI %d: %+v, want %+v", n.ID, n.Settings, want)
				}
				cores := []int{0}
				if s.PackInterrupts {
					cores = []int{1}
				}
				if !reflect.DeepEqual(during.Threads[n.ID], cores) {
					t.Errorf("NAPI %d's thread is on %v, want %v", n.ID, during.Threads[n.ID], cores)
				}
			}
			if set := len(records(t, v)) == 1; set != (mode != runtime.Vanilla) || set != (a.File() != "") {
				t.Errorf("files %v, %q", records(t, v), a.File())
			}
			for range 2 {
				if err := a.Restore(); err != nil {
					t.Fatal(err)
				}
			}
			if after := state(t, v); !reflect.DeepEqual(after, before) {
				t.Errorf("was %+v\nis  %+v", before, after)
			}
			if left := records(t, v); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestAModeThatCannotWorkIsRefusedAndLeavesNothing(t *testing.T) {
	veth := napitest.New(t, 1, false)
	before := unusual(t, veth)
	kernelPolling := mustSettings(t, runtime.KernelPolling)
	coalescingOnly := Settings{Coalescing: time.Millisecond}
	coalescingToo := kernelPolling
	coalescingToo.Coalescing = time.Millisecond
	overlapping := Settings{PackInterrupts: true, InterruptCores: []int{0, 1}}
	absent := Settings{PackInterrupts: true, InterruptCores: []int{4000}}
	for _, c := range []struct {
		name, device string
		settings     Settings
		want         string
		is           error
	}{
		{"a device without NAPI", "lo", kernelPolling, "gro on", ErrNoNAPI},
		{"no such device", "absent", kernelPolling, `"absent"`, napi.ErrGone},
		{"no device named", "", kernelPolling, "no device", nil},
		{"interrupts to move where there are none", veth.Name, mustSettings(t, runtime.IRQPacking), "no interrupt", napi.ErrUnsupported},
		{"coalescing where there is none", veth.Name, coalescingOnly, "coalescing", napi.ErrUnsupported},
		{"coalescing besides polling where there is none", veth.Name, coalescingToo, "coalescing", napi.ErrUnsupported},
		{"interrupts on the application's processors", veth.Name, overlapping, "processor 0", nil},
		{"processors that are not there", veth.Name, absent, "", nil},
		{"invalid settings", veth.Name, Settings{Budget: 65}, "64", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var err error
			veth.Do(t, func() error {
				_, err = Apply(c.device, []int{0}, c.settings)
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if after := state(t, veth); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
	if left := records(t, veth); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	// Vanilla needs nothing of the device, nor a device.
	for _, device := range []string{"lo", "", veth.Name} {
		veth.Do(t, func() error {
			a, err := Apply(device, nil, mustSettings(t, runtime.Vanilla))
			if err != nil {
				return err
			}
			return a.Restore()
		})
	}
}

func TestAnErrorHalfWayUndoesAll(t *testing.T) {
	v := napitest.New(t, 2, true)
	before := unusual(t, v)
	s := mustSettings(t, runtime.KernelPolling)
	// The first thread can be moved, the second cannot, after all timers are set.
	s.PackInterrupts, s.InterruptCores = true, []int{1, 4000}
	if _, err := apply(t, v, s); err == nil || !strings.Contains(err.Error(), "4000") {
		t.Fatalf("got %v", err)
	}
	if after := state(t, v); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
	if left := records(t, v); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestWithoutPrivilegeTheCapabilityIsNamed(t *testing.T) {
	v := napitest.New(t, 1, true)
	before := state(t, v)
	v.Do(t, func() error {
		// The thread ends after this, and its privilege with it.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		if _, err := Apply(v.Name, []int{0}, mustSettings(t, runtime.KernelPolling)); !errors.Is(err, napi.ErrPrivilege) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if after := state(t, v); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
	if left := records(t, v); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestADeviceIsSetByOneAtATime(t *testing.T) {
	v := napitest.New(t, 1, true)
	a, err := apply(t, v, mustSettings(t, runtime.BusyPoll))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply(t, v, mustSettings(t, runtime.KernelPolling)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	other := napitest.New(t, 1, true) // of the same name in another namespace
	b, err := apply(t, other, mustSettings(t, runtime.KernelPolling))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Restore(), b.Restore()); err != nil {
		t.Fatal(err)
	}
	if c, err := apply(t, v, mustSettings(t, runtime.KernelPolling)); err != nil {
		t.Error(err)
	} else if err := c.Restore(); err != nil {
		t.Error(err)
	}
}

// What the processes of the tests below do, by environment.
const (
	asServer  = "POLLUX_KERNEL_TEST_SERVER"  // apply the mode named here, and wait
	asWatcher = "POLLUX_KERNEL_TEST_WATCHER" // be the server's watcher if not empty
)

func TestProcess(t *testing.T) {
	device, mode, found := strings.Cut(os.Getenv(asServer), " ")
	if !found {
		return
	}
	if flag.NArg() > 0 {
		if err := RestoreWhenDead(flag.Arg(0)); err != nil {
			t.Fatal(err)
		}
		return
	}
	a, err := Apply(device, []int{0}, mustSettings(t, runtime.Mode(mode)))
	if err == nil && os.Getenv(asWatcher) != "" {
		err = a.Watch(os.Args[0], "-test.run=^TestProcess$", "--")
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	select {} // until killed
}

// killedServer applies a mode in another process and kills that.
func killedServer(t *testing.T, v *napitest.Veth, mode runtime.Mode, watched bool, during func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestProcess$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), asServer+"="+v.Name+" "+string(mode), "GORACE=atexit_sleep_ms=0")
	if watched {
		cmd.Env = append(cmd.Env, asWatcher+"=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.Do(t, cmd.Start)
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the server said %q, %v", line, err)
	}
	during()
}

func TestSIGKILLLeavesNothingSetInAnyMode(t *testing.T) {
	for _, mode := range runtime.Modes(runtime.Kernel) {
		for _, how := range []string{"watched", "doctor", "next"} {
			t.Run(string(mode)+"/"+how, func(t *testing.T) {
				v := napitest.New(t, 2, true)
				before := unusual(t, v)
				killedServer(t, v, mode, how == "watched", func() {
					if changed := !reflect.DeepEqual(state(t, v), before); changed != (mode != runtime.Vanilla) {
						t.Errorf("changed: %v", changed)
					}
					if _, err := RestoreDead(); err != nil {
						t.Error(err)
					}
					if changed := !reflect.DeepEqual(state(t, v), before); changed != (mode != runtime.Vanilla) {
						t.Error("a living process's settings were put back")
					}
				})
				switch how {
				case "watched":
					for deadline := time.Now().Add(30 * time.Second); len(records(t, v)) > 0; time.Sleep(10 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatal("the watcher did nothing")
						}
					}
				case "doctor":
					if mode != runtime.Vanilla && len(records(t, v)) != 1 {
						t.Fatalf("files %v", records(t, v))
					}
					list, err := RestoreDead()
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range list {
						if r.Device == v.Name && (r.Err != nil || len(r.Changed) == 0) {
							t.Errorf("%+v", r)
						}
					}
				case "next":
					a, err := apply(t, v, mustSettings(t, runtime.BusyPoll))
					if err != nil {
						t.Fatal(err)
					}
					if err := a.Restore(); err != nil {
						t.Fatal(err)
					}
					if mode == runtime.Vanilla {
						return
					}
				}
				if after := state(t, v); !reflect.DeepEqual(after, before) {
					t.Errorf("was %+v\nis  %+v", before, after)
				}
				if left := records(t, v); len(left) > 0 {
					t.Errorf("left %v", left)
				}
			})
		}
	}
}

func TestANamespaceThatCannotBeSeenIsNotTakenForGone(t *testing.T) {
	v := napitest.New(t, 1, true)
	killedServer(t, v, runtime.KernelPolling, false, func() {})
	r, err := lockRecord(records(t, v)[0], false)
	if err != nil || r == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Namespace = 1                      // of no process
	other := exec.Command("sleep", "60") // in a namespace that not everybody may look at
	v.Do(t, other.Start)
	defer other.Wait()
	defer other.Process.Kill()
	if err := errors.Join(r.write(), r.file.Close()); err != nil {
		t.Fatal(err)
	}
	blind := make(chan []Restored, 1)
	go func() {
		goruntime.LockOSThread() // it ends without privilege
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		list, err := RestoreDead()
		if err != nil {
			t.Error(err)
		}
		blind <- list
	}()
	said := false
	for _, r := range <-blind {
		said = said || r.Device == v.Name && errors.Is(r.Err, napi.ErrPrivilege) && strings.Contains(r.Err.Error(), "CAP_SYS_PTRACE")
	}
	if left := records(t, v); !said || len(left) != 1 {
		t.Errorf("said: %v; left %v", said, left)
	}
	if _, err := RestoreDead(); err != nil {
		t.Error(err)
	}
	if left := records(t, v); len(left) != 0 {
		t.Errorf("left of a namespace that is gone: %v", left)
	}
}

func TestARestartIsNotRefusedInTheNameOfADeadProcess(t *testing.T) {
	v := napitest.New(t, 1, true)
	before := unusual(t, v)
	killedServer(t, v, runtime.KernelPolling, false, func() {})
	// Its file is still locked, by its watcher, say.
	r, err := lockRecord(records(t, v)[0], false)
	if err != nil || r == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	time.AfterFunc(300*time.Millisecond, func() { r.file.Close() })
	a, err := apply(t, v, mustSettings(t, runtime.BusyPoll))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(); err != nil {
		t.Fatal(err)
	}
	if after := state(t, v); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
}

func TestWhatADeviceThatIsDownKeepsIsPutBackOnceItIsUp(t *testing.T) {
	v := napitest.New(t, 1, false)
	a, err := apply(t, v, mustSettings(t, runtime.KernelPolling))
	if err != nil {
		t.Fatal(err)
	}
	v.SetUp(t, false)
	if err := a.Restore(); !errors.Is(err, napi.ErrDown) || len(records(t, v)) != 1 {
		t.Errorf("while it is down: %v, files %v", err, records(t, v))
	}
	v.SetUp(t, true)
	if err := a.Restore(); err != nil || len(records(t, v)) != 0 {
		t.Errorf("once it is up: %v, files %v", err, records(t, v))
	}
}

func TestWhatOthersChangeMeanwhileIsSetAgain(t *testing.T) {
	v := napitest.New(t, 2, true)
	before := unusual(t, v)
	s := mustSettings(t, runtime.KernelPolling)
	s.PackInterrupts = true
	a, err := apply(t, v, s)
	if err != nil {
		t.Fatal(err)
	}
	during := state(t, v)
	if changed, err := a.Renew(); err != nil || len(changed) != 0 {
		t.Errorf("nothing has changed: %v, %v", changed, err)
	}
	v.Do(t, func() error {
		c, err := napi.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return errors.Join(c.Set(during.NAPIs[1].ID, napi.Settings{}), napi.SetThreadCores(during.NAPIs[0].Thread, []int{0}))
	})
	if changed, err := a.Renew(); err != nil || len(changed) != 2 {
		t.Errorf("two things have changed: %v, %v", changed, err)
	}
	if now := state(t, v); !reflect.DeepEqual(now, during) {
		t.Errorf("was %+v\nis  %+v", during, now)
	}
	if err := a.Restore(); err != nil {
		t.Fatal(err)
	}
	if after := state(t, v); !reflect.DeepEqual(after, before) {
		t.Errorf("was %+v\nis  %+v", before, after)
	}
}

func TestCoalescingStandsForTheTimersOnlyWhereNothingPollsOrSuspends(t *testing.T) {
	for _, mode := range runtime.Modes(runtime.Kernel) {
		s := mustSettings(t, mode)
		s.Coalescing = 50 * time.Microsecond
		if on, want := s.timersOn(true), s.timers() && mode != runtime.IRQSuppression; on != want {
			t.Errorf("%s: timers on a device that coalesces: %v, want %v", mode, on, want)
		}
		if on := s.timersOn(false); on != s.timers() {
			t.Errorf("%s: timers on a device that does not: %v, want %v", mode, on, s.timers())
		}
	}
	polling := mustSettings(t, runtime.IRQSuppression)
	polling.Budget, polling.Prefer = 64, true
	if !polling.timersOn(true) {
		t.Error("suppression that polls has no timers")
	}
	wanted := mustSettings(t, runtime.IRQSuppression)
	wanted.TimersStandIn = false
	if !wanted.timersOn(true) {
		t.Error("timers that are wanted for themselves are left out")
	}
}

func TestSettingsThatCannotWorkAreNamed(t *testing.T) {
	good := mustSettings(t, runtime.KernelPolling)
	for _, c := range []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.IRQSuspendTimeout = MaxSuspend + 1 }, "IRQ suspend timeout of 1.000000001s"},
		{func(s *Settings) { s.IRQSuspendTimeout = -1 }, "IRQ suspend timeout"},
		{func(s *Settings) { s.DeferHardIRQs, s.GROFlushTimeout = 0, 0 }, "does nothing without"},
		{func(s *Settings) { s.GROFlushTimeout = 0 }, "nobody would poll"},
		{func(s *Settings) { s.DeferHardIRQs = 0 }, "nobody would poll"},
		{func(s *Settings) { s.DeferHardIRQs = -1 }, "-1 empty polls"},
		{func(s *Settings) { s.GROFlushTimeout = time.Minute }, "GRO flush timeout of 1m0s"},
		{func(s *Settings) { s.Budget = 65 }, "a budget of 65"},
		{func(s *Settings) { s.Budget = 0 }, "without a budget"},
		{func(s *Settings) { s.BusyPoll = 100 * time.Nanosecond }, "whole microseconds"},
		{func(s *Settings) { s.Prefer = false }, "preferred busy polling"},
		{func(s *Settings) { s.Coalescing = 2 * time.Second }, "coalescing of 2s"},
		{func(s *Settings) { s.InterruptCores = []int{1} }, "not to be moved"},
		{func(s *Settings) { s.PackInterrupts, s.InterruptCores = true, []int{-1} }, "processor -1"},
	} {
		s := good
		c.change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", s, err, c.want)
		}
	}
	for _, mode := range runtime.Modes(runtime.Kernel) {
		if err := mustSettings(t, mode).Validate(); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if _, err := SettingsOf(runtime.Poll); err == nil || !strings.Contains(err.Error(), "kernel-polling") {
		t.Errorf("a mode of the user path: %v", err)
	}
}
