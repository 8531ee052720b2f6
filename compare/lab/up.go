package lab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// Up makes a lab, or turns the one of that name into what is asked for: what is
// already right is left alone, so a second Up changes nothing. With another
// number of queues the interfaces are made anew. Everything is read back before
// Up returns. If it fails, what this call made is removed again.
func Up(c Config) (*Lab, error) {
	c, err := c.complete()
	if err != nil {
		return nil, fmt.Errorf("bring the lab up: %w", err)
	}
	l := &Lab{config: c}
	if err := l.up(); err != nil {
		return nil, fmt.Errorf("bring lab %s up: %w", c.Name, err)
	}
	return l, nil
}

func (l *Lab) up() (err error) {
	alias, err := l.config.alias()
	if err != nil {
		return err
	}
	if err := checkPrivilege(); err != nil {
		return err
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()

	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	for _, side := range Sides {
		created, err := ensureNamespace(l.Namespace(side))
		if err != nil {
			return err
		}
		if created {
			undo = append(undo, func() error { return removeNamespace(l.Namespace(side)) })
		}
	}
	created, err := l.ensureLink()
	if err != nil {
		return err
	}
	if created {
		undo = append(undo, func() error { return removeLink(l.config.Name, Server) })
	}
	// The note goes first: if a setting fails in a lab that was there before,
	// Status then tells what is wrong with the lab that was asked for.
	err = l.Do(Server, func() error {
		link, err := netlink.LinkByName(ServerInterface)
		if err == nil && link.Attrs().Alias != alias {
			err = netlink.LinkSetAlias(link, alias)
		}
		if err != nil {
			return fmt.Errorf("note the configuration on %s: %w", ServerInterface, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, side := range Sides {
		if err := l.apply(side); err != nil {
			return fmt.Errorf("%s's side: %w", side, err)
		}
	}
	_, err = l.Verify()
	return err
}

// Down removes the lab of that name ("" is the default one): both interfaces
// and both namespaces, or what there is of them. Processes in the namespaces go
// on, without a network. It is no error if there is no such lab.
func Down(name string) error {
	name, err := checkName(name)
	if err != nil {
		return fmt.Errorf("take the lab down: %w", err)
	}
	if err := checkPrivilege(); err != nil {
		return fmt.Errorf("take lab %s down: %w", name, err)
	}
	unlock, err := lock()
	if err != nil {
		return fmt.Errorf("take lab %s down: %w", name, err)
	}
	defer unlock()
	var failed error
	for _, side := range Sides {
		failed = errors.Join(failed, removeLink(name, side))
	}
	for _, side := range Sides {
		failed = errors.Join(failed, removeNamespace(namespaceOf(name, side)))
	}
	if failed != nil {
		return fmt.Errorf("take lab %s down: %w", name, failed)
	}
	return nil
}

// ErrDown is wrapped by errors about a lab that is not up.
var ErrDown = errors.New("the lab is not up")

// Open finds a lab that is up, made by this process or another. It does not
// verify it.
func Open(name string) (*Lab, error) {
	name, err := checkName(name)
	if err != nil {
		return nil, fmt.Errorf("open the lab: %w", err)
	}
	if err := checkPrivilege(); err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	missing, err := missingNamespaces(name)
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("open lab %s: %w; use pollux lab up", name, ErrDown)
	}
	var alias string
	err = within(namespaceOf(name, Server), func() error {
		link, err := netlink.LinkByName(ServerInterface)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("%w: %s is missing; use pollux lab up", ErrDown, ServerInterface)
		}
		if err == nil {
			alias = link.Attrs().Alias
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	c, err := parseAlias(name, alias)
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	return &Lab{config: c}, nil
}

func missingNamespaces(name string) ([]string, error) {
	var missing []string
	for _, side := range Sides {
		exists, err := namespaceExists(namespaceOf(name, side))
		if err != nil {
			return nil, err
		}
		if !exists {
			missing = append(missing, namespaceOf(name, side))
		}
	}
	return missing, nil
}

// A State is what there is of a lab.
type State struct {
	// Up: the lab is there and every setting is as it should be.
	Up bool
	// Down: nothing of it is there.
	Down bool
	// Problem says what is wrong if it is neither.
	Problem error
	// Config and Settings are empty while the lab cannot be opened.
	Config   Config
	Settings []Setting
}

// Status looks at the lab of that name ("" is the default one). The error is
// about looking, not about what was seen.
func Status(name string) (State, error) {
	name, err := checkName(name)
	if err != nil {
		return State{}, fmt.Errorf("look at the lab: %w", err)
	}
	if err := checkPrivilege(); err != nil {
		return State{}, fmt.Errorf("look at lab %s: %w", name, err)
	}
	missing, err := missingNamespaces(name)
	if err != nil {
		return State{}, fmt.Errorf("look at lab %s: %w", name, err)
	}
	if len(missing) == len(Sides) {
		return State{Down: true}, nil
	}
	if len(missing) > 0 {
		return State{Problem: fmt.Errorf("network namespace %s is missing; pollux lab up mends it, pollux lab down removes the rest", missing[0])}, nil
	}
	l, err := Open(name)
	if err != nil {
		return State{Problem: err}, nil
	}
	state := State{Config: l.config}
	state.Settings, state.Problem = l.Verify()
	state.Up = state.Problem == nil
	return state, nil
}
