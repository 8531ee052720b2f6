package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pollux-net/pollux/runtime"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Setting is one thing that makes the lab what it is, as it was found.
type Setting struct {
	Side Side
	// Name says what, e.g. "pollux0 gro".
	Name string
	// Want is what it has to be and Got what it is.
	Want, Got string
	// Err says why it could not be read, else nil.
	Err error
}

// OK says whether the setting is as it has to be.
func (s Setting) OK() bool { return s.Err == nil && s.Got == s.Want }

func (s Setting) String() string {
	switch {
	case s.Err != nil:
		return fmt.Sprintf("FAIL  %s  %-44s %v", s.Side, s.Name, s.Err)
	case s.Got != s.Want:
		return fmt.Sprintf("FAIL  %s  %-44s %s, not %s", s.Side, s.Name, orNone(s.Got), orNone(s.Want))
	}
	return fmt.Sprintf("OK    %s  %-44s %s", s.Side, s.Name, orNone(s.Got))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// A knob is a setting together with how to read and how to set it; both run on
// a thread in the side's network namespace.
type knob struct {
	name, want string
	get        func() (string, error)
	set        func() error
}

// The lab is one list of knobs: Up turns each that is not as it should be, in
// this order, and Verify reads all of them.
func (c Config) knobs(side Side) []knob {
	ifname := Interface(side)
	user := c.path(side) == runtime.User
	peerUser := c.path(side.other()) == runtime.User

	list := []knob{
		linkFlag("lo", "up", unix.IFF_UP, true),
		linkNumber(ifname, "receive queues", c.Queues, func(a *netlink.LinkAttrs) int { return a.NumRxQueues }, nil),
		linkNumber(ifname, "transmit queues", c.Queues, func(a *netlink.LinkAttrs) int { return a.NumTxQueues }, nil),
		linkNumber(ifname, "mtu", MTU, func(a *netlink.LinkAttrs) int { return a.MTU }, netlink.LinkSetMTU),

		// Nothing may be sent that was not asked for, and an address must work
		// at once: no router solicitations, no duplicate address detection.
		sysctl("net/ipv6/conf/"+ifname+"/accept_ra", "0"),
		sysctl("net/ipv6/conf/"+ifname+"/autoconf", "0"),
		sysctl("net/ipv6/conf/"+ifname+"/router_solicitations", "0"),
		sysctl("net/ipv6/conf/"+ifname+"/accept_dad", "0"),
		sysctl("net/ipv6/conf/"+ifname+"/dad_transmits", "0"),
	}

	// The kernel must not answer for a stack in user space.
	mode, disabled := "0", "0"
	if user {
		mode, disabled = "1", "1" // no link-local address, no IPv6 at all
	}
	list = append(list,
		sysctl("net/ipv6/conf/"+ifname+"/addr_gen_mode", mode),
		sysctl("net/ipv6/conf/"+ifname+"/disable_ipv6", disabled),
		linkFlag(ifname, "arp", unix.IFF_NOARP, !user))

	// A veth hands over checksums that are not computed and segments that are
	// not cut, which only a kernel on the other side understands. TSO is off
	// everywhere: with it, a veth goes past its NAPI.
	list = append(list,
		offloadKnob(ifname, transmitChecksum, !peerUser),
		offloadKnob(ifname, segmentTCP, false),
		offloadKnob(ifname, segmentGeneric, !peerUser))

	threaded := side == Client || c.Placement == ServerCore
	if !threaded {
		// While there still is a NAPI: without one, it cannot be changed.
		list = append(list, threadedKnob(ifname, false))
	}
	list = append(list,
		// GRO is what gives a veth a NAPI, and there must be one to give it a
		// thread. A stack in user space gets one with its XDP program, and must
		// not be given merged frames; the program takes them before that.
		mergeKnob(ifname, threaded || !user),
		linkFlag(ifname, "up", unix.IFF_UP, true))

	var addresses []netip.Prefix
	if !user {
		addresses = Addresses(side)
	}
	list = append(list, addressKnob(ifname, addresses), routeKnob(ifname, addresses))

	if !threaded {
		return list
	}
	list = append(list, threadedKnob(ifname, true))
	how := asPeer
	if side == Server || user {
		// A client that polls would not let it run otherwise.
		how = asInterrupt
	}
	cores := c.cores(side)
	for queue := range c.Queues {
		list = append(list,
			coreKnob(ifname, queue, cores[queue%len(cores)]),
			schedulingKnob(ifname, queue, how))
	}
	return list
}

// apply turns every knob of a side that is not as it should be.
func (l *Lab) apply(side Side) error {
	return l.Do(side, func() error {
		for _, k := range l.config.knobs(side) {
			got, err := k.get()
			if err == nil && got == k.want {
				continue
			}
			if k.set == nil {
				return fmt.Errorf("%s is %s, not %s, and cannot be changed", k.name, orNone(got), orNone(k.want))
			}
			if err := k.set(); err != nil {
				return fmt.Errorf("set %s to %s: %w", k.name, orNone(k.want), err)
			}
		}
		return nil
	})
}

// Verify reads back everything that makes the lab what it is. It returns all
// that it read, and an error that names what is not as it should be.
func (l *Lab) Verify() ([]Setting, error) {
	var settings []Setting
	var failed []string
	for _, side := range Sides {
		err := l.Do(side, func() error {
			for _, k := range l.config.knobs(side) {
				s := Setting{Side: side, Name: k.name, Want: k.want}
				s.Got, s.Err = k.get()
				if !s.OK() {
					failed = append(failed, fmt.Sprintf("%s (%s)", s.Name, side))
				}
				settings = append(settings, s)
			}
			return nil
		})
		if err != nil {
			return settings, fmt.Errorf("verify lab %s: %w", l.config.Name, err)
		}
	}
	if len(failed) > 0 {
		return settings, fmt.Errorf("lab %s is not as it should be: %s; pollux lab up mends it", l.config.Name, strings.Join(failed, ", "))
	}
	return settings, nil
}

func sysctl(key, want string) knob {
	path := filepath.Join("/proc/sys", key)
	return knob{
		name: strings.ReplaceAll(key, "/", "."), want: want,
		get: func() (string, error) {
			b, err := os.ReadFile(path)
			return strings.TrimSpace(string(b)), err
		},
		set: func() error { return os.WriteFile(path, []byte(want), 0) },
	}
}

func linkNumber(ifname, what string, want int, get func(*netlink.LinkAttrs) int, set func(netlink.Link, int) error) knob {
	k := knob{
		name: ifname + " " + what, want: strconv.Itoa(want),
		get: func() (string, error) {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return "", err
			}
			return strconv.Itoa(get(link.Attrs())), nil
		},
	}
	if set != nil {
		k.set = func() error {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return err
			}
			return set(link, want)
		}
	}
	return k
}

// linkFlag is "up" (IFF_UP) or "arp" (not IFF_NOARP).
func linkFlag(ifname, what string, flag uint32, want bool) knob {
	turn := map[string]map[bool]func(netlink.Link) error{
		"up":  {true: netlink.LinkSetUp, false: netlink.LinkSetDown},
		"arp": {true: netlink.LinkSetARPOn, false: netlink.LinkSetARPOff},
	}[what][want]
	return knob{
		name: ifname + " " + what, want: onOff(want),
		get: func() (string, error) {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return "", err
			}
			on := link.Attrs().RawFlags&flag != 0
			if flag == unix.IFF_NOARP {
				on = !on
			}
			return onOff(on), nil
		},
		set: func() error {
			link, err := netlink.LinkByName(ifname)
			if err != nil {
				return err
			}
			return turn(link)
		},
	}
}

func offloadKnob(ifname string, o offload, want bool) knob {
	return knob{
		name: ifname + " " + o.name, want: onOff(want),
		get: func() (string, error) {
			on, err := o.read(ifname)
			return onOff(on), err
		},
		set: func() error { return o.write(ifname, want) },
	}
}

// mergeKnob is about GRO as it was asked for: before Linux 6.9 an XDP program
// turns it on for as long as it is attached, which does no harm, since the
// program sees every frame before it is merged.
func mergeKnob(ifname string, want bool) knob {
	k := offloadKnob(ifname, receiveMerge, want)
	k.get = func() (string, error) {
		on, err := receiveMerge.read(ifname)
		if err != nil || on == want {
			return onOff(on), err
		}
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return "", err
		}
		if xdp := link.Attrs().Xdp; on && xdp != nil && xdp.Attached {
			on = false
		}
		return onOff(on), nil
	}
	return k
}

func threadedKnob(ifname string, want bool) knob {
	path := "class/net/" + ifname + "/threaded"
	value := map[bool]string{false: "0", true: "1"}[want]
	return knob{
		name: ifname + " threaded", want: value,
		get: func() (string, error) {
			f, err := openSysfs(path, unix.O_RDONLY)
			if err != nil {
				return "", err
			}
			defer f.Close()
			b := make([]byte, 16)
			n, err := f.Read(b)
			return strings.TrimSpace(string(b[:n])), err
		},
		set: func() error {
			f, err := openSysfs(path, unix.O_WRONLY)
			if err != nil {
				return err
			}
			_, err = f.WriteString(value)
			return errors.Join(err, f.Close())
		},
	}
}

// threadOf finds the thread that does the receive work of a queue.
func threadOf(ifname string, queue int) (int, error) {
	list, err := napis(ifname)
	if err != nil {
		return 0, err
	}
	if queue >= len(list) {
		return 0, fmt.Errorf("queue %d of %s has no receive work of its own: %d of that kind", queue, ifname, len(list))
	}
	if list[queue].thread == 0 {
		return 0, fmt.Errorf("the receive work of queue %d of %s has no thread that is visible here", queue, ifname)
	}
	return list[queue].thread, nil
}

func coreKnob(ifname string, queue, core int) knob {
	return knob{
		name: fmt.Sprintf("%s queue %d processor", ifname, queue), want: strconv.Itoa(core),
		get: func() (string, error) {
			thread, err := threadOf(ifname, queue)
			if err != nil {
				return "", err
			}
			return coresOf(thread)
		},
		set: func() error {
			thread, err := threadOf(ifname, queue)
			if err != nil {
				return err
			}
			return pin(thread, core)
		},
	}
}

func schedulingKnob(ifname string, queue int, want scheduling) knob {
	return knob{
		name: fmt.Sprintf("%s queue %d scheduling", ifname, queue), want: want.String(),
		get: func() (string, error) {
			thread, err := threadOf(ifname, queue)
			if err != nil {
				return "", err
			}
			got, err := schedulingOf(thread)
			return got.String(), err
		},
		set: func() error {
			thread, err := threadOf(ifname, queue)
			if err != nil {
				return err
			}
			return want.apply(thread)
		},
	}
}
