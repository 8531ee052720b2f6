// Package lab is the test network: two network namespaces joined by a veth, so
// that a server and a client on one machine meet as they would on a wire. It
// knows what makes such a network fair for the path under test (offloads, where
// receive work runs, congestion control), sets it, reads it back and says what
// it found. A lab outlives the process that made it: its configuration is kept
// on the interface itself, and nothing else is left behind.
package lab

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pollux-net/pollux/runtime"
	"golang.org/x/sys/unix"
)

// Side is one end of the lab.
type Side string

const (
	Server Side = "server"
	Client Side = "client"
)

// Sides are both ends, the server's first.
var Sides = []Side{Server, Client}

// ParseSide checks that s names an end of the lab.
func ParseSide(s string) (Side, error) {
	for _, side := range Sides {
		if string(side) == s {
			return side, nil
		}
	}
	return "", fmt.Errorf("%q is not a side of the lab; use server or client", s)
}

// The interfaces, each in its own namespace, and what they are called by others.
const (
	ServerInterface = "pollux0"
	ClientInterface = "pollux1"
)

// The addresses of both ends. On the user path the server's are not the
// kernel's: the stack in user space answers ARP and neighbour discovery for
// them, and a kernel that owned them as well would answer first.
var (
	ServerIPv4 = netip.MustParsePrefix("10.99.0.1/24")
	ServerIPv6 = netip.MustParsePrefix("fd99::1/64")
	ClientIPv4 = netip.MustParsePrefix("10.99.0.2/24")
	ClientIPv6 = netip.MustParsePrefix("fd99::2/64")
)

// MTU of both ends in bytes, as on a wire.
const MTU = 1500

// Placement says on whose core the server end's receive work (NAPI) runs. A
// veth has no interrupt: left alone, it runs on the sender's core, which gives
// the server a second core for nothing.
type Placement string

const (
	// ServerCore: the server end's NAPI has threads of its own, on the server's
	// cores and above everything else there (SCHED_FIFO), as a NIC's interrupt
	// has. The default of the kernel path.
	ServerCore Placement = "server-core"
	// ClientCore: it runs where the client sends, standing for the NIC's own
	// DMA: a real NIC has no kernel receive work on the user path. The default
	// of the user path.
	ClientCore Placement = "client-core"
)

// Config describes a lab. The zero value is a good one.
type Config struct {
	// Name is the prefix of the namespaces: NAME-server and NAME-client.
	// Default "pollux". Labs of different names do not see each other.
	Name string
	// Path is whose stack the server has. With user (the default) pollux0 has
	// no address, no ARP and no IPv6, and the client computes checksums and
	// segments itself, since no stack behind it would. With kernel, pollux0
	// owns the server's addresses.
	Path runtime.Path
	// ClientPath is whose stack the client has: kernel (the default), or user
	// for a load generator on a stack of its own, with pollux1 as pollux0 is
	// on the user path. The client end's receive work then has threads on the
	// client's cores, before the client itself: it stands for the client's
	// NIC, and must neither run on the server's cores nor wait for a client
	// that polls.
	ClientPath runtime.Path
	// Queues is the number of receive and of transmit queues at both ends;
	// default 1. Use as many as the server has shards: frames for a queue that
	// nobody holds are lost.
	Queues int
	// Placement of the server end's receive work; the default depends on Path.
	//
	// ServerCore on the user path turns generic receive offload on at pollux0,
	// because without it a veth has no NAPI to place. That is right for
	// af_xdp, which takes frames before it; af_packet would see merged frames
	// that are larger than the MTU.
	Placement Placement
	// ServerCores and ClientCores are the processors of both ends, by number, in
	// any order; the receive work of queue i runs on the i-th in ascending order,
	// again from the start if there are fewer. Default: the server has the first of those that this
	// process may use, one for each queue, but leaves at least one, and the
	// client has the rest. With one processor they share it.
	ServerCores, ClientCores []int
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// DefaultName is the name of a lab that was not given one.
const DefaultName = "pollux"

// maxQueues is what the kernel allows a veth.
const maxQueues = 4096

func checkName(name string) (string, error) {
	if name == "" {
		return DefaultName, nil
	}
	if !validName.MatchString(name) {
		return "", fmt.Errorf("%q cannot name a lab; use up to 64 letters, digits, dots, dashes and underscores", name)
	}
	return name, nil
}

// complete fills in the defaults and refuses what cannot work.
func (c Config) complete() (Config, error) {
	var err error
	if c.Name, err = checkName(c.Name); err != nil {
		return c, err
	}
	switch c.Path {
	case "":
		c.Path = runtime.User
	case runtime.User, runtime.Kernel:
	default:
		return c, fmt.Errorf("%q is not a path; use %s or %s", c.Path, runtime.User, runtime.Kernel)
	}
	switch c.ClientPath {
	case "":
		c.ClientPath = runtime.Kernel
	case runtime.User, runtime.Kernel:
	default:
		return c, fmt.Errorf("%q is not a path for the client; use %s or %s", c.ClientPath, runtime.User, runtime.Kernel)
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 1 || c.Queues > maxQueues {
		return c, fmt.Errorf("a lab cannot have %d queues; use 1 to %d", c.Queues, maxQueues)
	}
	switch c.Placement {
	case "":
		c.Placement = ClientCore
		if c.Path == runtime.Kernel {
			c.Placement = ServerCore
		}
	case ServerCore, ClientCore:
	default:
		return c, fmt.Errorf("%q is not a placement; use %s or %s", c.Placement, ServerCore, ClientCore)
	}
	if len(c.ServerCores) == 0 || len(c.ClientCores) == 0 {
		allowed, err := allowedCores()
		if err != nil {
			return c, err
		}
		server, client := shareCores(allowed, c.Queues)
		if len(c.ServerCores) == 0 {
			c.ServerCores = server
		}
		if len(c.ClientCores) == 0 {
			c.ClientCores = client
		}
	}
	c.ServerCores = slices.Compact(slices.Sorted(slices.Values(c.ServerCores)))
	c.ClientCores = slices.Compact(slices.Sorted(slices.Values(c.ClientCores)))
	for _, core := range slices.Concat(c.ServerCores, c.ClientCores) {
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", core)); err != nil {
			return c, fmt.Errorf("processor %d does not exist; this machine has %s", core, onlineCores())
		}
	}
	return c, nil
}

// allowedCores are the calling thread's. The process's first thread is no measure:
// a goroutine that was locked to it and pinned leaves it parked where it was.
func allowedCores() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("ask which processors may be used: %w", err)
	}
	var cores []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores, nil
}

func onlineCores() string {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return "an unknown number"
	}
	return strings.TrimSpace(string(b))
}

func shareCores(allowed []int, queues int) (server, client []int) {
	if len(allowed) < 2 {
		return allowed, allowed
	}
	n := min(queues, len(allowed)-1)
	return allowed[:n], allowed[n:]
}

// A Lab is one that is up. It holds nothing open: it may be forgotten at any
// time, found again with Open, and used from several goroutines.
type Lab struct {
	config Config
}

// Config returns the configuration with the defaults filled in.
func (l *Lab) Config() Config { return l.config }

// Namespace is the name of a side's network namespace, as ip netns knows it.
func (l *Lab) Namespace(s Side) string { return namespaceOf(l.config.Name, s) }

func namespaceOf(name string, s Side) string { return name + "-" + string(s) }

// Interface is the name of a side's end of the veth.
func Interface(s Side) string {
	if s == Server {
		return ServerInterface
	}
	return ClientInterface
}

// Addresses are a side's addresses, whoever answers for them.
func Addresses(s Side) []netip.Prefix {
	if s == Server {
		return []netip.Prefix{ServerIPv4, ServerIPv6}
	}
	return []netip.Prefix{ClientIPv4, ClientIPv6}
}

// other is the opposite end.
func (s Side) other() Side {
	if s == Server {
		return Client
	}
	return Server
}

func (c Config) path(s Side) runtime.Path {
	if s == Server {
		return c.Path
	}
	return c.ClientPath
}

func (c Config) cores(s Side) []int {
	if s == Server {
		return c.ServerCores
	}
	return c.ClientCores
}
