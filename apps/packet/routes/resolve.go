package routes

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Resolve makes the kernel ask for a neighbour, as ip neighbour add … use does;
// an answer comes as a Neighbour. It costs some system calls and blocks for no
// answer: for a control goroutine, at most some times a second for a neighbour.
// The package comment says on which ports the kernel can get one. It acts in the
// network namespace of the calling thread.
func Resolve(link int, address netip.Addr) error {
	family := unix.AF_INET
	if address.Is6() {
		family = unix.AF_INET6
	}
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link, Family: family, IP: address.AsSlice(), State: unix.NUD_INCOMPLETE, Flags: unix.NTF_USE,
	})
	if err != nil {
		return fmt.Errorf("ask the kernel for neighbour %s on interface %d: %w", address, link, err)
	}
	return nil
}
