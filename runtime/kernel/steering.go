package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pollux-net/pollux/bpf/steer"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// steering is who owns what the device's queues receive.
type steering struct {
	owners map[uint32]int // the shard of each NAPI instance; nil if they have none
	spread bool           // over processors: those decide, not NAPI instances
	cores  []int
	shards int
	groups []*group // one for each address
	loaded bool     // the program decides, not the kernel's hash
}

// prepare sets the device as the mode needs it, the epoll instances with it, and
// decides which shard owns which queue.
func (r *Runtime) prepare() error {
	c := &r.config
	settings, err := SettingsOf(c.Mode)
	if err != nil {
		return err
	}
	if c.Settings != nil {
		settings = *c.Settings
	}
	if settings.PackInterrupts && c.Cores == nil {
		return fmt.Errorf("mode %s keeps interrupts off the application's cores: name those", c.Mode)
	}
	if r.applied, err = Apply(c.Device, c.Cores, settings); err != nil {
		return fmt.Errorf("mode %s: %w", c.Mode, err)
	}
	s := &r.steering
	s.cores, s.shards = c.Cores, len(r.loops)
	napis := r.applied.NAPIs()
	if r.applied.Polls() && len(napis) != s.shards {
		return fmt.Errorf("mode %s: %s has %d receive queues for %d cores, and a loop polls one queue: set as many queues as there are cores (ethtool -L %s combined %d, or rx %d)",
			c.Mode, c.Device, len(napis), s.shards, c.Device, s.shards, s.shards)
	}
	s.spread = len(settings.Spread) > 0
	s.owners = s.own(napis)
	if s.owners == nil && !s.spread && c.Device != "" && !c.Unsteered {
		slog.Info("connections go to cores by the kernel's hash: there are fewer queues than cores", "device", c.Device, "queues", len(napis), "cores", s.shards)
	}
	s.loaded = (s.owners != nil || s.spread) && s.shards > 1 && !c.Unsteered
	for i, l := range r.loops {
		l.polls, l.suspend, l.owners = r.applied.Polls(), settings.IRQSuspendTimeout, s.owners
		if len(napis) == s.shards && !s.spread {
			l.napi = napis[i].ID
		}
		if l.polls {
			if err := napi.SetEpoll(l.epoll, r.applied.Epoll()); err != nil {
				return err
			}
		}
	}
	return nil
}

// group has the owner of the receiving queue get what comes to a group of
// sockets, one a shard. A nil group leaves that to the kernel's hash.
type group struct{ program *steer.Steer }

// load makes a group whose sockets are to be opened, which lets nothing in before
// they are.
func (s *steering) load() (*group, error) {
	if !s.loaded {
		return nil, nil
	}
	k, err := steer.Load(steer.Config{Workers: s.shards, Closed: true})
	if err != nil {
		return nil, unsteered(err)
	}
	g := &group{k}
	s.groups = append(s.groups, g)
	for id, shard := range s.owners {
		if err := k.SetNAPI(id, shard); err != nil {
			return nil, unsteered(err)
		}
	}
	for shard, core := range s.cores { // what no queue received: over loopback, or spread
		if err := k.SetCPU(core, shard); err != nil {
			return nil, unsteered(err)
		}
	}
	return g, nil
}

// attach puts the program in charge of the first socket, which others join.
func (g *group) attach(first int) error {
	if g == nil {
		return nil
	}
	return unsteered(g.program.Attach(first))
}

// open lets in what comes to the sockets, all of which listen.
func (g *group) open(sockets []int) error {
	if g == nil {
		return nil
	}
	for shard, fd := range sockets {
		if err := g.program.Add(shard, fd); err != nil {
			return unsteered(err)
		}
	}
	return unsteered(g.program.Open())
}

func unsteered(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("steer connections to the core that polls their queue (or do without: --steer=false): %w", err)
}

// own gives each NAPI instance to a shard; nil if they are too few for that, or
// not what decides.
func (s *steering) own(napis []napi.NAPI) map[uint32]int {
	if len(napis) < s.shards || s.spread {
		return nil
	}
	owners := map[uint32]int{}
	for i, n := range napis {
		owners[n.ID] = i % s.shards
	}
	return owners
}

// change has the groups' programs go by other owners.
func (s *steering) change(owners map[uint32]int) error {
	var errs []error
	for _, g := range s.groups {
		for id := range s.owners {
			if _, kept := owners[id]; !kept {
				errs = append(errs, g.program.ForgetNAPI(id))
			}
		}
		for id, shard := range owners {
			errs = append(errs, g.program.SetNAPI(id, shard))
		}
	}
	s.owners = owners
	return errors.Join(errs...)
}

// renewInterval is how often it is looked whether the device is still as it was
// set.
const renewInterval = time.Second

// keep has the device set again whenever something took the mode out of force,
// and connections steered by the queues that there are then. It ends, at the
// latest in a moment, when stop is called.
func (r *Runtime) keep() (stop func()) {
	if r.applied.File() == "" && !r.steering.loaded {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		complained := ""
		for tick := time.NewTicker(renewInterval); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
			}
			changed, err := r.renew()
			said := ""
			if err != nil {
				said = err.Error()
			}
			if said != "" && said != complained {
				changed = true
				slog.Error("the device is not as the mode needs it", "device", r.config.Device, "mode", r.config.Mode, "error", err)
			}
			complained = said
			if changed {
				for _, l := range r.loops {
					l.mailbox.post(func() { l.counters.DeviceChanges++ })
				}
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (r *Runtime) renew() (changed bool, err error) {
	found, err := r.applied.Renew()
	if len(found) == 0 {
		return false, err
	}
	slog.Warn("the device was not as the mode had set it any more, and is set again", "device", r.config.Device, "mode", r.config.Mode, "found", found)
	napis := r.applied.NAPIs()
	owners := r.steering.own(napis)
	err = errors.Join(err, r.steering.change(owners))
	if r.applied.Polls() && len(napis) != len(r.loops) {
		err = errors.Join(err, fmt.Errorf("it has %d receive queues for %d loops by now, and a loop polls one queue: set as many (ethtool -L %s)", len(napis), len(r.loops), r.config.Device))
	}
	for i, l := range r.loops {
		l.mailbox.post(func() {
			l.owners, l.napi = owners, 0
			if len(napis) == len(r.loops) && !r.steering.spread {
				l.napi = napis[i].ID
			}
		})
	}
	return true, err
}

// giveBack undoes prepare and steer. It may be called again.
func (r *Runtime) giveBack() error {
	var errs []error
	for _, g := range r.steering.groups {
		errs = append(errs, g.program.Close())
	}
	r.steering.groups = nil
	if r.applied != nil {
		if err := r.applied.Restore(); err != nil {
			errs = append(errs, fmt.Errorf("put the device's settings back (pollux doctor --restore tries again): %w", err))
		}
	}
	return errors.Join(errs...)
}
