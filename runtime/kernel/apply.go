package kernel

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pollux-net/pollux/bpf/steer"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"golang.org/x/sys/unix"
)

// ErrNoNAPI is wrapped where a device has no NAPI instance that could be set.
var ErrNoNAPI = errors.New("it has no NAPI instance")

// Applied is a device that has been set, until Restore. It may be used from
// several goroutines.
type Applied struct {
	settings Settings
	device   napi.Device
	place    []int // the processors for interrupts, if those are moved

	mu     sync.Mutex
	conn   *napi.Conn // nil if no device is named, or after Restore
	record *record    // nil if nothing was set
	napis  []napi.NAPI
	spread *steer.Spreader // nil if nothing is
	// coalescing is what the device made of Settings.Coalescing.
	coalescing napi.Coalescing
}

// Apply sets a device of the calling thread's network namespace, and its
// interrupts, as a mode needs it; cores are the application's. Either all of it
// is set, or nothing is and the error says what is missing. What was set before
// is written to a file first (see Restore and RestoreDead). Epoll instances are
// the caller's to set, to what Epoll returns.
//
// Settings that set nothing succeed on any device, also on none ("").
func Apply(device string, cores []int, s Settings) (*Applied, error) {
	a := &Applied{settings: s}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("settings of the device: %w", err)
	}
	if device == "" {
		if s.nothing() && len(s.Spread) == 0 {
			return a, nil
		}
		return nil, errors.New("no device is named whose receive work could be set; only mode " + string(runtime.Vanilla) + " does without")
	}
	if err := a.apply(device, cores); err != nil {
		return nil, fmt.Errorf("set device %s: %w", device, err)
	}
	return a, nil
}

// Check says whether Apply would succeed, and if not why, without changing
// anything. What only the kernel knows, it finds out when it is asked to.
func Check(device string, cores []int, s Settings) error {
	if err := s.Validate(); err != nil {
		return err
	}
	c, err := napi.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return (&Applied{settings: s}).prepare(c, device, cores)
}

// prepare finds the device and checks all that can be checked beforehand.
func (a *Applied) prepare(c *napi.Conn, device string, cores []int) (err error) {
	if a.device, err = c.Device(device); err != nil {
		return err
	}
	all, err := c.NAPIs(a.device)
	if err == nil {
		a.napis, err = receiving(a.device, all)
	}
	if a.settings.nothing() {
		return nil // not to know them is no harm then
	}
	if err != nil {
		return err
	}
	if err := mayAdminister(); err != nil {
		return err
	}
	if a.settings.PackInterrupts {
		if a.place, err = a.settings.interruptCores(cores); err != nil {
			return err
		}
	}
	if a.settings.polls() {
		if err := napi.EpollSupported(); err != nil {
			return err
		}
	}
	saved, err := c.Save(a.device)
	if err != nil {
		return err
	}
	return a.settings.check(saved, a.napis)
}

func (a *Applied) apply(device string, cores []int) (err error) {
	c, err := napi.Open()
	if err != nil {
		return err
	}
	defer func() {
		if a.conn == nil {
			err = errors.Join(err, a.gather())
			c.Close()
		}
	}()
	if len(a.settings.Spread) > 0 {
		// First of all: some drivers make new NAPI instances for a program. It
		// needs no record, as the kernel takes it off when this process ends.
		d, err := c.Device(device)
		if err != nil {
			return err
		}
		if a.spread, err = steer.Spread(d.Index, a.settings.Spread); err != nil {
			return err
		}
	}
	if err := a.prepare(c, device, cores); err != nil {
		return err
	}
	if a.settings.nothing() {
		a.conn = c
		return nil
	}
	r, err := newRecord(c, a.device)
	if err != nil {
		return err
	}
	// Only now does nobody else set the device; what an earlier process left
	// behind has been put back.
	saved, err := c.Save(a.device)
	if err == nil {
		a.napis, err = receiving(a.device, saved.NAPIs)
	}
	if err != nil {
		return errors.Join(err, r.remove())
	}
	r.State = saved
	if err := r.write(); err != nil {
		return errors.Join(err, r.remove())
	}
	if _, err := a.set(c, saved); err != nil {
		if _, undo := c.Restore(saved); undo != nil {
			return errors.Join(err, undo, r.file.Close()) // for RestoreDead
		}
		return errors.Join(err, r.remove())
	}
	a.conn, a.record = c, r
	return nil
}

// gather ends spreading.
func (a *Applied) gather() error {
	if a.spread == nil {
		return nil
	}
	err := a.spread.Close()
	a.spread = nil
	return err
}

// SpreadCounts are the frames that were spread (Settings.Spread) so far; false if
// none are to be.
func (a *Applied) SpreadCounts() (steer.SpreadCounts, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spread == nil {
		return steer.SpreadCounts{}, false, nil
	}
	counts, err := a.spread.Counts()
	return counts, true, err
}

// mayAdminister says whether this thread may set devices.
func mayAdminister() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("ask for this thread's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("%w: CAP_NET_ADMIN is needed", napi.ErrPrivilege)
	}
	return nil
}

// receiving lists the NAPI instances of a device's receive queues, in their
// order; all that it has if the kernel does not tell which those are.
func receiving(d napi.Device, all []napi.NAPI) ([]napi.NAPI, error) {
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: the device is down, or of a kind without (the loopback), or it is a veth whose receive offload is off (ethtool -K %s gro on)", ErrNoNAPI, d.Name)
	}
	known := slices.DeleteFunc(slices.Clone(all), func(n napi.NAPI) bool { return n.Queue < 0 })
	if len(known) > 0 {
		return known, nil
	}
	return all, nil
}

// check refuses what kernel or device cannot do.
func (s Settings) check(saved napi.State, napis []napi.NAPI) error {
	perNAPI := saved.Defaults == nil
	if s.IRQSuspendTimeout > 0 && !perNAPI {
		return fmt.Errorf("%w: interrupt suspension (irq_suspend_timeout of one NAPI) needs Linux 6.13", napi.ErrUnsupported)
	}
	if s.Coalescing > 0 && !coalesces(saved) && !(s.TimersStandIn && s.timers()) {
		return fmt.Errorf("%w: the device has no interrupt coalescing, and no timers are given to stand for it", napi.ErrUnsupported)
	}
	for _, n := range napis {
		if s.PackInterrupts && n.IRQ == 0 && n.Thread == 0 {
			return fmt.Errorf("%w: NAPI %d (queue %d) has no interrupt to be moved that the kernel knows of; a veth's receive work runs where its peer sends unless it has threads (pollux lab up --path kernel)", napi.ErrUnsupported, n.ID, n.Queue)
		}
	}
	return nil
}

func coalesces(s napi.State) bool { return s.Coalescing != nil && s.Coalescing.RxDelay != nil }

// set changes what is not as the settings say, says what that was, and stops at
// the first error.
func (a *Applied) set(c *napi.Conn, now napi.State) (changed []string, err error) {
	s := a.settings
	if s.Coalescing > 0 && coalesces(now) && !reflect.DeepEqual(*now.Coalescing, a.coalescing) {
		want := napi.Coalescing{RxDelay: &s.Coalescing}
		if now.Coalescing.AdaptiveRx != nil {
			want.AdaptiveRx = new(bool) // or the device would go on choosing by itself
		}
		if err := c.SetCoalescing(now.Device, want); err != nil {
			return changed, err
		}
		// Some round what they are told.
		if a.coalescing, err = c.Coalescing(now.Device); err != nil {
			return changed, err
		}
		changed = append(changed, "interrupt coalescing")
	}
	if s.timersOn(coalesces(now)) {
		timers, err := s.setTimers(c, now, a.napis)
		changed = append(changed, timers...)
		if err != nil {
			return changed, err
		}
	}
	if s.PackInterrupts {
		for i, n := range a.napis {
			moved, err := moveInterrupt(now, n, []int{a.place[i%len(a.place)]})
			changed = append(changed, moved...)
			if err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

func (s Settings) setTimers(c *napi.Conn, now napi.State, napis []napi.NAPI) (changed []string, err error) {
	if now.Defaults != nil {
		want := napi.Defaults{DeferHardIRQs: s.DeferHardIRQs, GROFlushTimeout: s.GROFlushTimeout}
		if *now.Defaults == want {
			return nil, nil
		}
		return []string{"timers"}, c.SetDefaults(now.Device, want)
	}
	want := s.napi()
	for _, n := range napis {
		is := n.Settings
		is.Threaded = nil
		if is == want {
			continue
		}
		if err := c.Set(n.ID, want); err != nil {
			return changed, err
		}
		changed = append(changed, fmt.Sprintf("timers of NAPI %d", n.ID))
	}
	return changed, nil
}

// moveInterrupt puts a queue's interrupt on a processor, or the thread that
// stands for it (lab's, on a veth), or both.
func moveInterrupt(now napi.State, n napi.NAPI, core []int) (changed []string, err error) {
	if n.IRQ > 0 && !slices.Equal(now.Interrupts[n.IRQ], core) {
		if err := napi.SetInterruptCores(n.IRQ, core); err != nil {
			return changed, err
		}
		changed = append(changed, fmt.Sprintf("place of interrupt %d", n.IRQ))
	}
	if n.Thread > 0 && !slices.Equal(now.Threads[n.ID], core) {
		if err := napi.SetThreadCores(n.Thread, core); err != nil {
			return changed, err
		}
		changed = append(changed, fmt.Sprintf("place of the thread of NAPI %d", n.ID))
	}
	return changed, nil
}

// Renew looks whether the device is still as it was set, and sets again what is
// not. A link that goes down and up, another number of queues (ethtool -L) and a
// driver's reset give it new NAPI instances, with settings of the kernel's own;
// others (irqbalance) move interrupts. What the new ones had is written down
// first, for Restore. It says what was not as it should be; with an error, as
// while the device is down, the mode is not in force.
func (a *Applied) Renew() (changed []string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		return nil, nil
	}
	now, err := a.conn.Save(a.device)
	if err != nil {
		return nil, err
	}
	napis, err := receiving(a.device, now.NAPIs)
	if err != nil {
		return nil, err
	}
	for _, n := range napis {
		if !slices.ContainsFunc(a.napis, func(old napi.NAPI) bool { return old.ID == n.ID }) {
			changed = append(changed, fmt.Sprintf("new NAPI %d", n.ID))
		}
	}
	for _, old := range a.napis {
		if !slices.ContainsFunc(napis, func(n napi.NAPI) bool { return n.ID == old.ID }) {
			changed = append(changed, fmt.Sprintf("NAPI %d gone", old.ID))
		}
	}
	a.napis = napis
	if a.record == nil {
		return changed, nil
	}
	if err := a.settings.check(now, napis); err != nil {
		return changed, err
	}
	if len(changed) > 0 {
		if err := a.record.addNAPIs(now, a.settings.napi()); err != nil {
			return changed, err
		}
	}
	set, err := a.set(a.conn, now)
	return append(changed, set...), err
}

// Epoll returns what is to be set on epoll instances that wait for the device's
// sockets (napi.SetEpoll), each for those of one NAPI.
func (a *Applied) Epoll() napi.EpollParams { return a.settings.Epoll() }

// Polls says whether Epoll has anything to be set: whether sockets must come
// from a NAPI.
func (a *Applied) Polls() bool { return a.settings.polls() }

// Settings returns what was applied.
func (a *Applied) Settings() Settings { return a.settings }

// NAPIs lists the instances of the device's receive queues in their order, as
// they were found last, by Apply or Renew; none if it has none, or no device was
// named.
func (a *Applied) NAPIs() []napi.NAPI {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.napis
}

// File is where the old settings are written, "" if nothing was set.
func (a *Applied) File() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record == nil {
		return ""
	}
	return a.record.path
}

// SetEpoll sets an epoll instance of another process as Epoll says, which
// Restore and RestoreDead put back unless it has been set otherwise since. It is
// false if it was so already.
func (a *Applied) SetEpoll(p *napi.Process, fd int) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record == nil {
		return false, errors.New("set an epoll instance: nothing is applied")
	}
	borrowed, err := p.Borrow(fd)
	if err != nil {
		return false, err
	}
	defer closeFD(borrowed)
	old, err := napi.Epoll(borrowed)
	if err != nil {
		return false, fmt.Errorf("process %d: %w", p.PID, err)
	}
	if old == a.settings.Epoll() {
		return false, nil
	}
	if err := a.record.addEpoll(p.PID, fd, old, a.settings.Epoll()); err != nil {
		return false, err
	}
	if err := napi.SetEpoll(borrowed, a.settings.Epoll()); err != nil {
		return false, fmt.Errorf("process %d: %w", p.PID, err)
	}
	return true, nil
}

// Restore puts back all that Apply and SetEpoll changed, and removes the file;
// after an error the file remains. It may be called again, and does nothing if
// nothing was set.
func (a *Applied) Restore() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		return nil
	}
	if a.record != nil {
		_, err := a.conn.Restore(a.record.State)
		if err := errors.Join(err, a.record.restoreEpolls()); err != nil {
			return err
		}
		if err := a.record.remove(); err != nil {
			return err
		}
	}
	a.conn.Close()
	a.conn, a.record = nil, nil
	return a.gather()
}

// onlineCores lists the machine's processors that are in use.
func onlineCores() ([]int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("find the machine's processors: %w", err)
	}
	cores, err := napi.ParseCores(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("find the machine's processors: %w", err)
	}
	return cores, nil
}

// lockPatience is how long a process waits for another one that is applying or
// restoring at the moment.
const lockPatience = 10 * time.Second
