package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// FormatCores writes processor numbers as the kernel does: 0-3,8.
func FormatCores(cores []int) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(cores)))
	var parts []string
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(sorted[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", sorted[i], sorted[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// ParseCores reads what FormatCores writes. An empty string is no processor.
func ParseCores(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var cores []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("%q is not a list of processors; write it like 0-3,8", s)
		}
		for core := first; core <= last; core++ {
			cores = append(cores, int(core))
		}
	}
	return cores, nil
}
