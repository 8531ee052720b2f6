package serve

import (
	"fmt"
	"log/slog"
	goruntime "runtime"

	"github.com/safchain/ethtool"
	"go.uber.org/automaxprocs/maxprocs"

	"github.com/pollux-net/pollux/runtime/affinity"
)

// chooseCores decides how many cores to take and which: the first ones that the
// process may use.
func chooseCores(c *Config) ([]int, error) {
	if _, err := maxprocs.Set(); err != nil {
		slog.Warn("the cgroup's CPU limit cannot be read", "error", err)
	}
	allowed, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	limit := min(goruntime.GOMAXPROCS(0), len(allowed))
	n := c.Cores
	switch {
	case n == 0:
		n = min(queues(c.Device), limit)
	case n < 0:
		return nil, fmt.Errorf("--cores %d: a server needs at least one", n)
	case n > limit:
		return nil, fmt.Errorf("--cores %d: this process may use %d (CPU affinity and cgroup limit)", n, limit)
	}
	return allowed[:n], nil
}

// queues is the number of receive queues of a network device of the kernel, 1 if
// it does not say.
func queues(device string) int {
	if device == "" {
		return 1
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return 1
	}
	defer e.Close()
	channels, err := e.GetChannels(device)
	if err != nil {
		return 1
	}
	return max(1, int(channels.CombinedCount+channels.RxCount))
}
