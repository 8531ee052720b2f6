package doctor

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What each capability is needed for. Without a vital one neither the lab nor
// the default driver works.
var capabilities = []struct {
	bit   uint
	name  string
	vital bool
	why   string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", true, "to set interfaces and attach XDP programs"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", true, "to open af_xdp and af_packet sockets"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", true, "to make the lab's namespaces"},
	{unix.CAP_SYS_NICE, "CAP_SYS_NICE", true, "to place and prioritise threads"},
	{unix.CAP_BPF, "CAP_BPF", false, "to load eBPF programs without CAP_SYS_ADMIN"},
	{unix.CAP_PERFMON, "CAP_PERFMON", false, "to count processor time by eBPF without CAP_SYS_ADMIN"},
	{unix.CAP_IPC_LOCK, "CAP_IPC_LOCK", false, "to lock memory beyond the limit"},
	{unix.CAP_SYS_RAWIO, "CAP_SYS_RAWIO", false, "to drive a NIC through uio"},
}

// effective is the mask of capabilities that this process holds.
func (m Machine) effective() (uint64, error) {
	return strconv.ParseUint(field(m.read("proc/self/status"), "CapEff"), 16, 64)
}

func (m Machine) holds(bit uint) bool {
	mask, err := m.effective()
	return err == nil && mask&(1<<bit) != 0
}

func (m Machine) capabilities() []Finding {
	mask, err := m.effective()
	if err != nil {
		return []Finding{{Warn, "capabilities", "they cannot be read", "mount /proc"}}
	}
	var held, missing, why []string
	f := Finding{Level: OK, Subject: "capabilities"}
	for _, c := range capabilities {
		if mask&(1<<c.bit) != 0 {
			held = append(held, c.name)
			continue
		}
		missing = append(missing, c.name)
		why = append(why, c.name+" "+c.why)
		if c.vital {
			f.Level = Fail
		} else if f.Level == OK {
			f.Level = Warn
		}
	}
	switch {
	case len(held) == 0:
		f.Found = "none of those that are needed"
	default:
		f.Found = "held: " + strings.Join(held, ", ")
	}
	if len(missing) > 0 {
		f.Found += "; missing: " + strings.Join(missing, ", ")
		f.Mend = "run as root (sudo), or grant " + strings.Join(why, ", ")
	}
	return []Finding{f}
}
