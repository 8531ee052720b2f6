package doctor

import (
	"fmt"
)

// What each kernel version brought that Pollux uses.
var kernelFeatures = []struct {
	major, minor int
	level        Level
	without      string
}{
	{5, 9, Fail, "the lab and af_xdp need 5.9"},
	{5, 12, Warn, "the kernel path's threaded receive work needs 5.12"},
	{6, 8, Warn, "two labs at a time need 6.8"},
	{6, 13, Warn, "the kernel path's interrupt suspension and per-NAPI settings need 6.13"},
}

func (m Machine) kernel() []Finding {
	release := m.read("proc/sys/kernel/osrelease")
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return []Finding{{Warn, "kernel", fmt.Sprintf("version %q cannot be read", release), "mount /proc"}}
	}
	f := Finding{Level: OK, Subject: "kernel", Found: "Linux " + release}
	for _, feature := range kernelFeatures {
		if major > feature.major || major == feature.major && minor >= feature.minor {
			continue
		}
		f.Level = feature.level
		f.Mend = feature.without + "; install a newer kernel (Debian: linux-image-amd64 from backports)"
		break
	}
	return []Finding{f}
}
