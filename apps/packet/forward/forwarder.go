package forward

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pollux-net/pollux/apps/packet/nat"
	"github.com/pollux-net/pollux/apps/packet/queue"
	"github.com/pollux-net/pollux/driver"
)

// Config of a forwarder. The zero value of a field means its default.
type Config struct {
	// Ports that frames come in and go out by, at most 64. Each must have a
	// queue for every shard; queue i is shard i's.
	Ports []driver.Port
	// Names are what rules call the ports: their own names.
	Names []string
	// Interfaces are the kernel's interfaces whose addresses, routes and
	// neighbours are the ports': Names.
	Interfaces []string
	// Queue, if not nil, is asked for the queue of a port and a shard: to wrap it.
	Queue func(port, shard int) driver.Queue
	// Shards is how many cores share the work: 1.
	Shards int
	// Flows bounds the flow cache of each shard, for each family: 65,536,
	// rounded up to a power of two. Negative is none.
	Flows int
	// Output configures the virtual output queues.
	Output queue.Config
	// Bindings bounds the translations of each shard, see nat.Config.
	Bindings int
	Timeouts nat.Timeouts
	// Reserved are TCP ports of the box's own that translation leaves alone.
	Reserved []uint16
	// ICMPRate and ICMPBurst bound the errors that each shard sends: 1,000 a
	// second, 50 at once.
	ICMPRate, ICMPBurst int
	// Seed is of the hashes, so that nobody can aim at one place of a table; 0
	// is drawn at random.
	Seed uint64
	// Learned, if not nil, is called by a shard when Control.Tick has something
	// to take over. It must not block.
	Learned func()
}

// Forwarder is the shards and their control.
type Forwarder struct {
	config  Config
	ports   []driver.Port
	names   []string
	outputs []*queue.Output
	shards  []*Shard
	control *Control
	handed  [][]*ring[handed] // from, to
}

// New builds a forwarder, with no routes and everything permitted. The caller
// owns the ports and closes them after the shards.
func New(c Config) (*Forwarder, error) {
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.Flows == 0 {
		c.Flows = 1 << 16
	}
	if c.ICMPRate == 0 {
		c.ICMPRate = 1000
	}
	if c.ICMPBurst == 0 {
		c.ICMPBurst = 50
	}
	for c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if len(c.Ports) < 1 || len(c.Ports) > 64 {
		return nil, fmt.Errorf("%d ports: want 1 to 64", len(c.Ports))
	}
	if c.Names == nil {
		for _, p := range c.Ports {
			c.Names = append(c.Names, p.Name())
		}
	}
	if c.Interfaces == nil {
		c.Interfaces = c.Names
	}
	if len(c.Names) != len(c.Ports) || len(c.Interfaces) != len(c.Ports) {
		return nil, fmt.Errorf("%d names and %d interfaces for %d ports", len(c.Names), len(c.Interfaces), len(c.Ports))
	}
	for _, p := range c.Ports {
		if p.Queues() != c.Shards && c.Queue == nil {
			return nil, fmt.Errorf("%s has %d queues for %d cores: each core needs one of every port, and a queue without a core would lose its frames", p.Name(), p.Queues(), c.Shards)
		}
	}
	if c.Queue == nil {
		c.Queue = func(port, shard int) driver.Queue { return c.Ports[port].Queue(shard) }
	}
	f := &Forwarder{config: c, ports: c.Ports, names: c.Names}
	for range c.Ports {
		f.outputs = append(f.outputs, new(queue.Output))
	}
	for range c.Shards {
		to := make([]*ring[handed], c.Shards)
		for i := range to {
			to[i] = newRing[handed](256)
		}
		f.handed = append(f.handed, to)
	}
	f.control = newControl(f, c.Interfaces)
	for i := range c.Shards {
		f.shards = append(f.shards, newShard(f, i))
	}
	return f, nil
}

// Control is the control plane's side.
func (f *Forwarder) Control() *Control { return f.control }

// Shards is their number, and Shard the one at index i.
func (f *Forwarder) Shards() int        { return len(f.shards) }
func (f *Forwarder) Shard(i int) *Shard { return f.shards[i] }

// Names are what the ports are called.
func (f *Forwarder) Names() []string { return f.names }

// Never is a time that does not come.
const Never = time.Duration(1<<63 - 1)
