package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// busyPollPackets reads BusyPollRxPackets of a network namespace: the packets
// that busy polling received (/proc/net/netstat has a line of names and one of
// values for each prefix).
func busyPollPackets(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read the network's counters: %w", err)
	}
	return counterOf(string(b), "TcpExt:", "BusyPollRxPackets")
}

func counterOf(text, prefix, name string) (uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != prefix {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.ParseUint(fields[i], 10, 64)
			}
		}
		break
	}
	return 0, fmt.Errorf("the kernel has no counter %s", name)
}
