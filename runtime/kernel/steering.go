package kernel

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/pollux-net/pollux/bpf/steer"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// steering is who owns what the device's queues receive.
type steering struct {
	owners map[uint32]int // the shard of each NAPI instance; nil if they have none
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
	if len(napis) >= s.shards {
		s.owners = map[uint32]int{}
		for i, n := range napis {
			s.owners[n.ID] = i % s.shards
		}
	} else if c.Device != "" && !c.Unsteered {
		slog.Info("connections go to cores by the kernel's hash: there are fewer queues than cores", "device", c.Device, "queues", len(napis), "cores", s.shards)
	}
	s.loaded = s.owners != nil && s.shards > 1 && !c.Unsteered
	for i, l := range r.loops {
		l.polls, l.suspend, l.owners = r.applied.Polls(), settings.IRQSuspendTimeout, s.owners
		if len(napis) == s.shards {
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
	for shard, core := range s.cores { // what no queue received, over loopback say
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
