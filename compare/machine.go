package compare

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/compare/measure"
	"github.com/pollux-net/pollux/compare/result"
)

// describeMachine is where it runs and what, as far as it can be read; what cannot is
// left empty, but for the program's file, without which nothing runs.
func describeMachine(core int, pollux string, versions map[string]string) (result.Machine, error) {
	m := result.Machine{Cores: goruntime.NumCPU(), Versions: map[string]string{"go": goruntime.Version()}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.CPU, m.Virtual = processor()
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = uint64(info.Totalram) * uint64(info.Unit)
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		m.Versions["pollux"] = build.Main.Version
		for _, s := range build.Settings {
			if s.Key == "vcs.revision" {
				m.Versions["pollux"] = s.Value
			}
		}
		for _, d := range build.Deps {
			if d.Path == "gvisor.dev/gvisor" {
				m.Versions["gvisor"] = d.Version
			}
		}
	}
	if out, err := exec.Command("memcached", "-V").Output(); err == nil {
		m.Versions["memcached"] = strings.TrimPrefix(strings.TrimSpace(string(out)), "memcached ")
	}
	for k, v := range versions {
		m.Versions[k] = v
	}
	// A version says little of what is built from a work tree.
	program, err := os.ReadFile(pollux)
	if err != nil {
		return m, fmt.Errorf("read this program's file: %w", err)
	}
	sum := sha256.Sum256(program)
	m.Versions["pollux binary"] = hex.EncodeToString(sum[:6])
	if err := measure.Hardware(core); err != nil {
		m.PMUMissing = err.Error()
	} else {
		m.PMU = true
	}
	return m, nil
}

// processor reads the model's name, and what virtual machine this is.
func processor() (model, virtual string) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", ""
	}
	virtual = "none"
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(string(line), ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			if strings.Contains(value+" ", " hypervisor ") {
				virtual = "yes"
			}
		}
	}
	if virtual == "yes" {
		// It names what virtual machine it is, where it is installed.
		if out, err := exec.Command("systemd-detect-virt", "--vm").Output(); err == nil {
			virtual = strings.TrimSpace(string(out))
		}
	}
	return model, virtual
}
