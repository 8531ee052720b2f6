package doctor

import (
	"fmt"
	"path/filepath"
	"strings"
)

func (m Machine) dpdk() []Finding {
	const mend = "make deps, or apt-get install libdpdk-dev"
	var found []string
	for _, pattern := range []string{"usr/lib/*/pkgconfig", "usr/lib*/pkgconfig", "usr/local/lib/*/pkgconfig", "usr/local/lib*/pkgconfig"} {
		files, _ := filepath.Glob(m.path(pattern, "libdpdk.pc"))
		found = append(found, files...)
	}
	if len(found) == 0 {
		// A binary needs only the libraries, a build also the development files.
		if libraries, _ := filepath.Glob(m.path("usr/lib/*/librte_eal.so.*")); len(libraries) > 0 {
			return []Finding{{Warn, "dpdk", "libraries are installed (" + filepath.Base(libraries[0]) + "), development files are not", "to build: " + mend}}
		}
		return []Finding{{Fail, "dpdk", "not installed", mend}}
	}
	relative, err := filepath.Rel(m.Root, found[0])
	if err != nil {
		relative = found[0]
	}
	version := field(m.read(relative), "Version")
	f := Finding{Level: OK, Subject: "dpdk", Found: "version " + version}
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || major < 22 || major == 22 && minor < 11 {
		f.Level, f.Mend = Warn, "Pollux is tested with 22.11 and newer"
	}
	libraries := filepath.Dir(filepath.Dir(found[0]))
	var missing []string
	for _, pmd := range []string{"af_xdp", "af_packet", "tap", "virtio", "vhost", "memif"} {
		if files, _ := filepath.Glob(filepath.Join(libraries, "librte_net_"+pmd+".*")); len(files) == 0 {
			missing = append(missing, pmd)
		}
	}
	if len(missing) > 0 {
		f.Level = Warn
		f.Found += ", without drivers " + strings.Join(missing, ", ")
		f.Mend = "install a DPDK that has them (Debian's does)"
	}
	return []Finding{f}
}
