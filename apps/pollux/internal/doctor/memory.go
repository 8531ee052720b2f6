package doctor

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// leastMemory is what a server with the smallest settings takes, in MiB: 128
// for the frames, as much again for the store, and Go.
const leastMemory = 384

func (m Machine) memory() []Finding {
	kib, err := strconv.Atoi(strings.TrimSuffix(field(m.read("proc/meminfo"), "MemAvailable"), " kB"))
	if err != nil {
		return []Finding{{Warn, "memory", "how much is available cannot be read", "mount /proc"}}
	}
	f := Finding{Level: OK, Subject: "memory", Found: fmt.Sprintf("%d MiB available", kib>>10)}
	if kib>>10 < leastMemory {
		f.Level, f.Mend = Fail, fmt.Sprintf("free some: a server takes at least %d MiB", leastMemory)
	}
	return []Finding{f}
}

func (m Machine) hugepages() []Finding {
	const dir = "sys/kernel/mm/hugepages"
	var parts []string
	free := 0
	for _, name := range m.list(dir) {
		size, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(name, "hugepages-"), "kB"))
		if err != nil {
			continue
		}
		total, _ := strconv.Atoi(m.read(dir, name, "nr_hugepages"))
		unused, _ := strconv.Atoi(m.read(dir, name, "free_hugepages"))
		if total > 0 {
			parts = append(parts, fmt.Sprintf("%d of %d MiB (%d free)", total, size>>10, unused))
		}
		free += unused
	}
	f := Finding{Level: OK, Subject: "hugepages", Found: strings.Join(parts, ", ")}
	switch {
	case len(parts) == 0:
		f.Level, f.Found = Warn, "none; ordinary pages are used, which virtual devices can do with"
		f.Mend = "for a NIC: echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	case free == 0:
		f.Level, f.Mend = Warn, "all are in use; end who holds them or add more to nr_hugepages"
	}
	return []Finding{f}
}

func (m Machine) lockedMemory() []Finding {
	for line := range strings.Lines(m.read("proc/self/limits")) {
		rest, found := strings.CutPrefix(line, "Max locked memory")
		if !found {
			continue
		}
		limits := strings.Fields(rest)
		if len(limits) == 0 {
			break
		}
		f := Finding{Level: OK, Subject: "locked memory", Found: limits[0]}
		if bytes, err := strconv.ParseUint(limits[0], 10, 64); err == nil {
			f.Found = fmt.Sprintf("at most %d MiB", bytes>>20)
			switch {
			case m.holds(unix.CAP_IPC_LOCK):
				f.Found += ", which does not bind a holder of CAP_IPC_LOCK"
			case bytes < leastMemory<<20:
				f.Level, f.Mend = Warn, "af_xdp and vfio lock the frames' memory: ulimit -l unlimited, or hold CAP_IPC_LOCK"
			}
		}
		return []Finding{f}
	}
	return []Finding{{Warn, "locked memory", "the limit cannot be read", "mount /proc"}}
}
