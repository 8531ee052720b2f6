package user

import (
	"fmt"
	"net/netip"

	"github.com/pollux-net/pollux/driver"
)

// owner says which queue the device gives a connection to.
type owner struct{ rss driver.RSS }

// ownership reads the device's RSS and checks that it can be relied on. A port
// with one queue, or a device without RSS, has no owner.
func ownership(p driver.Port) (*owner, error) {
	n := p.Queues()
	if n == 1 {
		return nil, nil
	}
	rss, ok := p.RSS()
	if !ok {
		return nil, nil
	}
	if len(rss.Key) < 40 {
		return nil, fmt.Errorf("%s: its RSS key has %d bytes, 40 are needed to compute which queue a connection belongs to; use one core", p.Name(), len(rss.Key))
	}
	if !rss.TCP4 && !rss.TCP6 {
		return nil, fmt.Errorf("%s spreads neither IPv4 nor IPv6 TCP by addresses and ports (ethtool -n): all connections would meet on one core; use one core", p.Name())
	}
	covered := make([]bool, n)
	for i, q := range rss.Table {
		if int(q) >= n {
			return nil, fmt.Errorf("%s: entry %d of its RSS table leads to queue %d, which no shard serves: use as many cores as the device has queues, or ethtool -L", p.Name(), i, q)
		}
		covered[q] = true
	}
	for q, ok := range covered {
		if !ok {
			return nil, fmt.Errorf("%s: no entry of its RSS table leads to queue %d: a core would idle; use fewer cores, or ethtool -X", p.Name(), q)
		}
	}
	return &owner{rss}, nil
}

// owns says whether what remote sends to local is received by queue i. Of a family
// that the device does not hash by addresses and ports, nobody can tell: its
// segments find their shard as on a device without RSS.
func (o *owner) owns(i int, local, remote netip.AddrPort) bool {
	hashed := o.rss.TCP6
	if local.Addr().Unmap().Is4() {
		hashed = o.rss.TCP4
	}
	return !hashed || o.queue(local, remote) == i
}

// misdirectedLimit is how many SYNs of a queue must belong to another before the
// shards stop: a device that does not follow its RSS gives away every other one,
// while one or two may be left from before it was set up.
const misdirectedLimit = 8

// queue is the queue that receives what remote sends to local.
func (o *owner) queue(local, remote netip.AddrPort) int {
	return o.rss.Queue(o.rss.Hash(remote, local))
}
