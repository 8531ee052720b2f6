package doctor

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

func (m Machine) processors() []Finding {
	online := countList(m.read("sys/devices/system/cpu/online"))
	allowed := countList(field(m.read("proc/self/status"), "Cpus_allowed_list"))
	f := Finding{Level: OK, Subject: "processors"}
	if online == 0 || allowed == 0 {
		return []Finding{{Warn, f.Subject, "the number of processors cannot be read", "mount /sys and /proc"}}
	}
	f.Found = fmt.Sprintf("%d, of which this process may use %d", online, allowed)
	limit, limited := m.processorLimit()
	if limited {
		f.Found += fmt.Sprintf(", limited by its control group to %.4g", limit)
	}
	switch {
	case limited && limit < 1:
		f.Level = Warn
		f.Mend = "a loop that polls is stopped for part of every period; raise the control group's limit to at least 1"
	case allowed < 2:
		f.Level = Warn
		f.Mend = "server, client and Go's own threads share one processor; use --mode interrupt, and expect no comparable figures"
	case limited && limit < 2:
		f.Level = Warn
		f.Mend = "one polling core uses up the control group's limit; raise it to at least 2"
	}
	return []Finding{f}
}

// countList counts what "0-3,8" holds.
func countList(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		n += max(0, last-first+1)
	}
	return n
}

// processorLimit is the smallest quota of this process's control group and
// those above it, in processors; version 2 (cpu.max) or 1 (cpu.cfs_quota_us).
func (m Machine) processorLimit() (limit float64, limited bool) {
	take := func(quota, period string) {
		q, errQ := strconv.ParseFloat(quota, 64)
		p, errP := strconv.ParseFloat(period, 64)
		if errQ != nil || errP != nil || q <= 0 || p <= 0 {
			return // "max" and -1 are no limit
		}
		if !limited || q/p < limit {
			limit, limited = q/p, true
		}
	}
	for _, g := range m.controlGroups() {
		for dir := g.path; ; dir = path.Dir(dir) {
			at := path.Join(g.mount, dir)
			if g.unified {
				quota, period, _ := strings.Cut(m.read(at, "cpu.max"), " ")
				take(quota, period)
			} else {
				take(m.read(at, "cpu.cfs_quota_us"), m.read(at, "cpu.cfs_period_us"))
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return limit, limited
}

type controlGroup struct {
	mount, path string
	unified     bool
}

// controlGroups finds this process's groups that can limit processor time:
// /proc/self/cgroup names them, /proc/self/mountinfo where they are.
func (m Machine) controlGroups() []controlGroup {
	type hierarchy struct{ mount, root string }
	var unified, processor hierarchy
	for line := range strings.Lines(m.read("proc/self/mountinfo")) {
		before, after, found := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch {
		case right[0] == "cgroup2":
			unified = hierarchy{left[4], left[3]}
		case right[0] == "cgroup" && hasWord(right[2], "cpu"):
			processor = hierarchy{left[4], left[3]}
		}
	}
	var groups []controlGroup
	for line := range strings.Lines(m.read("proc/self/cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		h, isUnified := processor, false
		if parts[0] == "0" && parts[1] == "" {
			h, isUnified = unified, true
		} else if !hasWord(parts[1], "cpu") {
			continue
		}
		if h.mount == "" {
			continue
		}
		within := parts[2]
		if h.root != "/" { // a container sees only its own part of the tree
			within = strings.TrimPrefix(within, h.root)
		}
		groups = append(groups, controlGroup{h.mount, path.Join("/", within), isUnified})
	}
	return groups
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}
