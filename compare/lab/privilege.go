package lab

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrPrivilege is wrapped by errors that more privilege would mend.
var ErrPrivilege = errors.New("not permitted")

var needed = []struct {
	bit  uint
	name string
	why  string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to make namespaces"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to make and set interfaces"},
	{unix.CAP_SYS_NICE, "CAP_SYS_NICE", "to place receive work on processors"},
}

// checkPrivilege names everything that the calling thread lacks, at once, and
// before anything has been done.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("ask for this process's capabilities: %w", err)
	}
	var missing []string
	for _, n := range needed {
		if data[n.bit/32].Effective&(1<<(n.bit%32)) == 0 {
			missing = append(missing, fmt.Sprintf("%s (%s)", n.name, n.why))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: the lab needs %s; run as root", ErrPrivilege, strings.Join(missing, ", "))
	}
	return nil
}
