package dpdk

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"unsafe"
)

// Domains of the sockets that drivers receive from.
const (
	domainPacket = syscall.AF_PACKET
	domainXDP    = 44
	soDomain     = 39
)

// sockets lists this process's sockets of a domain: inodes by file descriptor.
// Drivers do not tell which one they receive from, but one that is new is theirs.
func sockets(domain int) (map[int]uint64, error) {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("listing open files to find the driver's socket: %w", err)
	}
	all := map[int]uint64{}
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if inode, ok := socketInode(fd, domain); ok {
			all[fd] = inode
		}
	}
	return all, nil
}

// socketInode identifies a socket; false if fd is none of that domain.
func socketInode(fd, domain int) (uint64, bool) {
	var s syscall.Stat_t
	if d, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, soDomain); err != nil || d != domain || syscall.Fstat(fd, &s) != nil {
		return 0, false
	}
	return s.Ino, true
}

// newSockets returns the sockets that a driver opened for the port since the
// last call, in the order of file descriptors, which is that of its queues.
func (p *Port) newSockets() ([]int, error) {
	now, err := sockets(p.domain)
	if err != nil {
		return nil, err
	}
	var fds []int
	for fd, inode := range now {
		if p.sockets[fd] != inode && p.serves(fd) {
			fds = append(fds, fd)
			p.opened[fd] = inode
			if p.domain == domainPacket {
				if err := ignoreOutgoing(fd); err != nil {
					return nil, err
				}
			}
		}
	}
	p.sockets = now
	slices.Sort(fds)
	return fds, nil
}

// ignoreOutgoing keeps from a packet socket what the kernel itself sends through
// the device, which did not arrive there. It is a filter because the option for
// this has no effect on a socket that is in a fanout, as the driver's are.
func ignoreOutgoing(fd int) error {
	const packetType, outgoing = 0xfffff000 + 4, 4 // SKF_AD_OFF + SKF_AD_PKTTYPE, PACKET_OUTGOING
	filter := []syscall.SockFilter{
		{Code: syscall.BPF_LD | syscall.BPF_W | syscall.BPF_ABS, K: packetType},
		{Code: syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K, K: outgoing, Jf: 1},
		{Code: syscall.BPF_RET | syscall.BPF_K, K: 0},
		{Code: syscall.BPF_RET | syscall.BPF_K, K: 0xffffffff},
	}
	program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := setsockopt(fd, syscall.SOL_SOCKET, syscall.SO_ATTACH_FILTER, unsafe.Pointer(&program), unsafe.Sizeof(program)); err != nil {
		return fmt.Errorf("filtering the driver's socket: %w", err)
	}
	return nil
}

func setsockopt(s, level, option int, value unsafe.Pointer, size uintptr) error {
	if _, _, e := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(s), uintptr(level), uintptr(option), uintptr(value), size, 0); e != 0 {
		return e
	}
	return nil
}

// serves says whether a new socket can be one that was opened for this port:
// packet sockets that others opened meanwhile are bound elsewhere.
func (p *Port) serves(fd int) bool {
	if p.domain != domainPacket {
		return true
	}
	a, err := syscall.Getsockname(fd)
	l, ok := a.(*syscall.SockaddrLinklayer)
	return err == nil && ok && l.Ifindex == p.netdev.index
}

// closeSockets closes what the drivers left open: that of AF_XDP forgets the
// socket of a queue that it gives up or could not set up, and with it the
// kernel's hold on the queue.
func (p *Port) closeSockets() {
	for fd, inode := range p.opened {
		if now, ok := socketInode(fd, p.domain); ok && now == inode {
			syscall.Close(fd)
		}
	}
}
