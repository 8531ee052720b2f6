package napi

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
)

// State is all that this package can change of a device. It can be written as
// JSON and put back by another process.
type State struct {
	Device Device `json:"device"`
	NAPIs  []NAPI `json:"napis"`
	// Defaults is set where the kernel has no settings of one NAPI.
	Defaults *Defaults `json:"defaults,omitempty"`
	// Interrupts and Threads hold the processors of each interrupt, and of each
	// NAPI's thread by the NAPI's number.
	Interrupts map[int][]int    `json:"interrupts,omitempty"`
	Threads    map[uint32][]int `json:"threads,omitempty"`
	// Coalescing is nil if the device has none.
	Coalescing *Coalescing `json:"coalescing,omitempty"`
}

// Save reads the present state of a device.
func (c *Conn) Save(d Device) (State, error) {
	s := State{Device: d, Interrupts: make(map[int][]int), Threads: make(map[uint32][]int)}
	var err error
	if s.NAPIs, err = c.NAPIs(d); err != nil {
		return State{}, err
	}
	perNAPI, err := c.CanSet()
	if err != nil {
		return State{}, err
	}
	if !perNAPI {
		defaults, err := c.Defaults(d)
		if err != nil {
			return State{}, err
		}
		s.Defaults = &defaults
	}
	for _, n := range s.NAPIs {
		if n.IRQ > 0 {
			if s.Interrupts[n.IRQ], err = InterruptCores(n.IRQ); err != nil {
				return State{}, err
			}
		}
		if n.Thread > 0 {
			if s.Threads[n.ID], err = ThreadCores(n.Thread); err != nil {
				return State{}, err
			}
		}
	}
	switch coalescing, err := c.Coalescing(d); {
	case err == nil:
		s.Coalescing = &coalescing
	case !errors.Is(err, ErrUnsupported):
		return State{}, err
	}
	return s, nil
}

// Restore puts back what is not as it was, and goes on after an error. What is
// no longer there is left out: its settings went with it. It returns what it
// changed, in words. The device is known by its index, whatever it is called by
// now; while it is down its queues cannot be set, which is an error (ErrDown).
func (c *Conn) Restore(s State) (changed []string, err error) {
	d, up, err := c.deviceOf(s.Device.Index)
	if errors.Is(err, ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var failed []error
	note := func(err error, format string, args ...any) {
		if err != nil {
			failed = append(failed, err)
			return
		}
		changed = append(changed, fmt.Sprintf(format, args...))
	}
	list, err := c.NAPIs(d)
	if err != nil {
		return nil, err
	}
	present := make(map[int]bool)
	missing := 0
	for _, old := range s.NAPIs {
		i := slices.IndexFunc(list, func(n NAPI) bool { return n.ID == old.ID })
		if i < 0 {
			missing++
			continue
		}
		now := list[i]
		if old.Settings.Threaded == nil {
			now.Settings.Threaded = nil
		}
		if s.Defaults == nil && !reflect.DeepEqual(old.Settings, now.Settings) {
			note(c.Set(old.ID, old.Settings), "NAPI %d", old.ID)
		}
		present[now.IRQ] = true
		if cores, saved := s.Threads[old.ID]; saved && now.Thread > 0 {
			if is, err := ThreadCores(now.Thread); err != nil || !slices.Equal(is, cores) {
				note(SetThreadCores(now.Thread, cores), "thread of NAPI %d", old.ID)
			}
		}
	}
	for irq, cores := range s.Interrupts {
		// An interrupt that no NAPI of the device has any more may by now be
		// another device's.
		if !present[irq] {
			continue
		}
		if is, err := InterruptCores(irq); err != nil || !slices.Equal(is, cores) {
			note(SetInterruptCores(irq, cores), "interrupt %d", irq)
		}
	}
	if s.Defaults != nil {
		if is, err := c.Defaults(d); err != nil || is != *s.Defaults {
			note(c.SetDefaults(d, *s.Defaults), "timers of %s", d.Name)
		}
	}
	if s.Coalescing != nil {
		if is, err := c.Coalescing(d); err != nil || !reflect.DeepEqual(is, *s.Coalescing) {
			var err error
			for _, step := range steps(*s.Coalescing) {
				err = errors.Join(err, c.SetCoalescing(d, step))
			}
			note(err, "interrupt coalescing of %s", d.Name)
		}
	}
	if missing > 0 && !up {
		// Drivers keep the settings of queues that are not to be seen meanwhile.
		failed = append(failed, fmt.Errorf("%w: %d of its %d NAPI instances cannot be set back until it is up (ip link set %s up)", ErrDown, missing, len(s.NAPIs), d.Name))
	}
	if err := errors.Join(failed...); err != nil {
		return changed, fmt.Errorf("put the settings of %s back: %w", d.Name, err)
	}
	return changed, nil
}

// steps are the requests that put coalescing back. Drivers (ice, iavf) refuse a
// delay together with the device choosing by itself, as it would overrule the
// delay: that is turned on alone, afterwards.
func steps(s Coalescing) []Coalescing {
	if s.AdaptiveRx == nil || !*s.AdaptiveRx || s.RxDelay == nil && s.RxFrames == nil {
		return []Coalescing{s}
	}
	adaptive := s.AdaptiveRx
	s.AdaptiveRx = new(bool)
	return []Coalescing{s, {AdaptiveRx: adaptive}}
}
