package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openAll opens n sockets on address, which share it by SO_REUSEPORT if there are
// several, and says where they are bound. Port 0 is one that is free. Those for
// streams listen; attach is called with the first one before it does. (The kernel
// lets nothing be attached later on: not while others are bound, and do not yet
// listen.)
func openAll(address netip.AddrPort, kind, n int, attach func(fd int) error) (fds []int, bound netip.AddrPort, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	if n > 1 && address.Port() != 0 {
		// Another server's sockets might let these in beside them, and it would
		// go on getting a part of the connections: one that shares nothing asks
		// whether the address is free.
		fd, _, err := bind(address, kind, false)
		if err != nil {
			return nil, bound, err
		}
		unix.Close(fd)
	}
	for i := range n {
		fd, at, err := bind(address, kind, n > 1)
		if err != nil {
			return fds, bound, err
		}
		fds, bound = append(fds, fd), at
		address = at // the others share the port that was free
		if i == 0 {
			if err := attach(fd); err != nil {
				return fds, bound, err
			}
		}
		if kind != unix.SOCK_STREAM {
			continue
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return fds, bound, fmt.Errorf("listen on %v: %w", bound, os.NewSyscallError("listen", err))
		}
	}
	return fds, bound, nil
}

// backlog is as long as the kernel allows (net.core.somaxconn).
const backlog = 1 << 16

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// bind opens a socket on address that others may share by SO_REUSEPORT if that is
// wanted, and says where it is bound. The unspecified IPv6 address stands for all
// addresses of both families, or for those of IPv4 where the kernel has no IPv6.
// The protocol is named: what package net opens is MPTCP, on which reuseport
// programs fail.
func bind(address netip.AddrPort, kind int, shared bool) (fd int, bound netip.AddrPort, err error) {
	protocol, name := unix.IPPROTO_TCP, "TCP"
	if kind == unix.SOCK_DGRAM {
		protocol, name = unix.IPPROTO_UDP, "UDP"
	}
	address = netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	family := unix.AF_INET6
	if address.Addr().Is4() {
		family = unix.AF_INET
	}
	flags := kind | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	fd, err = unix.Socket(family, flags, protocol)
	if family == unix.AF_INET6 && address.Addr().IsUnspecified() && errors.Is(err, unix.EAFNOSUPPORT) {
		family, address = unix.AF_INET, netip.AddrPortFrom(netip.IPv4Unspecified(), address.Port())
		fd, err = unix.Socket(family, flags, protocol)
	}
	if err != nil {
		return -1, bound, fmt.Errorf("open a %s socket: %w", name, os.NewSyscallError("socket", err))
	}
	if err = configure(fd, family, kind, address, shared); err == nil {
		bound, err = boundTo(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, bound, fmt.Errorf("bind %s to %v: %w", name, address, err)
	}
	return fd, bound, nil
}

func configure(fd, family, kind int, address netip.AddrPort, shared bool) error {
	type option struct{ level, name, value int }
	var options []option
	if shared {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	if kind == unix.SOCK_STREAM {
		// A restarted server binds while connections of the last one are in
		// TIME-WAIT. Accepted sockets inherit that replies are not delayed.
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}, option{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1})
	}
	if family == unix.AF_INET6 {
		only6 := 1
		if address.Addr().IsUnspecified() {
			only6 = 0
		}
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6})
		if kind == unix.SOCK_DGRAM {
			options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1})
		}
	} else if kind == unix.SOCK_DGRAM {
		options = append(options, option{unix.IPPROTO_IP, unix.IP_PKTINFO, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	var to unix.Sockaddr
	if family == unix.AF_INET {
		to = &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	} else {
		scope, err := scopeOf(address.Addr())
		if err != nil {
			return err
		}
		to = &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16(), ZoneId: scope}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, to))
}

func boundTo(fd int) (netip.AddrPort, error) {
	var name unix.RawSockaddrAny
	if errno := localName(fd, &name); errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	return fromRaw(&name), nil
}

// Network byte order of the port in a raw socket address.
func port(p *uint16) []byte { return (*[2]byte)(unsafe.Pointer(p))[:] }

// fromRaw reads a socket address; IPv4 that was mapped into IPv6 is IPv4 again.
func fromRaw(name *unix.RawSockaddrAny) netip.AddrPort {
	switch name.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), binary.BigEndian.Uint16(port(&in.Port)))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(name))
		a := netip.AddrFrom16(in.Addr).Unmap()
		if in.Scope_id != 0 && a.Is6() {
			a = a.WithZone(strconv.FormatUint(uint64(in.Scope_id), 10))
		}
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port(&in.Port)))
	}
	return netip.AddrPort{}
}

// toRaw writes a socket address for a socket of a family and returns its size.
func toRaw(name *unix.RawSockaddrAny, family uint16, to netip.AddrPort) (uint32, error) {
	a := to.Addr()
	if family == unix.AF_INET {
		if a = a.Unmap(); !a.Is4() {
			return 0, unix.EAFNOSUPPORT
		}
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*in = unix.RawSockaddrInet4{Family: family, Addr: a.As4()}
		binary.BigEndian.PutUint16(port(&in.Port), to.Port())
		return unix.SizeofSockaddrInet4, nil
	}
	if !a.IsValid() {
		return 0, unix.EDESTADDRREQ
	}
	scope, err := scopeOf(a)
	if err != nil {
		return 0, err
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(name))
	*in = unix.RawSockaddrInet6{Family: family, Addr: a.As16(), Scope_id: scope} // As16 maps IPv4
	binary.BigEndian.PutUint16(port(&in.Port), to.Port())
	return unix.SizeofSockaddrInet6, nil
}

// scopeOf is the index of the interface that a link-local address's zone names.
func scopeOf(a netip.Addr) (uint32, error) {
	if a.Zone() == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
		return uint32(n), nil
	}
	request, err := unix.NewIfreq(a.Zone())
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", a.Zone(), err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", a.Zone(), err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("zone %q names no interface: %w", a.Zone(), err)
	}
	return request.Uint32(), nil
}
