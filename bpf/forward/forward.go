// Package forward is the twin of package apps/packet/forward inside the kernel:
// an XDP program that forwards IPv4 and IPv6 by the kernel's own routes and
// neighbours (bpf_fib_lookup) and redirects frames from driver to driver, under
// access rules of the same form. What needs more than a new header is left to
// the kernel's stack: packets to the box, next hops that must be asked for,
// packets too large or at the end of their life (it sends the ICMP errors). The
// kernel must forward, too: net.ipv4.conf.*.forwarding, net.ipv6.conf.*.
// forwarding.
//
// On a veth, the other end must be ready to take frames from XDP: with an XDP
// program of its own (one that passes everything does), or with GRO on (ethtool
// -K PEER gro on), which gives it NAPI; else what is sent there is counted as
// OutputUnready and lost. And it must not leave checksums or segments to be made
// by hardware (ethtool -K PEER tx off tso off gso off), for a frame that is
// redirected has lost the note that says so.
package forward

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I../include" -type number -type axis -type rules -type count -type port forward forward.c

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// MaxInterfaces is how many interfaces one Forwarder can join (PORTS_MAX in
// forward.h).
const MaxInterfaces = 64

// Config says between which interfaces to forward.
type Config struct {
	// Interfaces are indices of Ethernet interfaces with native XDP, in the
	// network namespace of the calling thread.
	Interfaces []int
}

// Forwarder forwards until it is closed or its process ends, however that
// happens. Its methods may be called from any goroutine, but for Close.
type Forwarder struct {
	objects    forwardObjects
	inner      *ebpf.MapSpec
	interfaces []int
	links      []link.Link
}

// Load loads the program and attaches it to all interfaces. It permits
// everything until SetRules.
func Load(c Config) (_ *Forwarder, err error) {
	f := &Forwarder{interfaces: slices.Clone(c.Interfaces)}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if len(f.interfaces) == 0 || len(f.interfaces) > MaxInterfaces {
		return nil, fmt.Errorf("forward: between %d interfaces: must be 1 to %d", len(f.interfaces), MaxInterfaces)
	}
	ports := make([]forwardPort, len(f.interfaces))
	for i, index := range f.interfaces {
		if slices.Contains(f.interfaces[:i], index) {
			return nil, fmt.Errorf("forward: interface %d is named twice", index)
		}
		device, err := net.InterfaceByIndex(index)
		if err != nil {
			return nil, fmt.Errorf("forward: find interface %d in this network namespace: %w", index, err)
		}
		ports[i].Slot = uint32(i)
		if len(device.HardwareAddr) != len(ports[i].Mac) {
			return nil, fmt.Errorf("forward: interface %s has no Ethernet address", device.Name)
		}
		copy(ports[i].Mac[:], device.HardwareAddr)
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	for i, index := range f.interfaces {
		if err := f.objects.Ports.Put(uint32(index), &ports[i]); err != nil {
			return nil, fmt.Errorf("forward: tell the program of interface %d: %w", index, err)
		}
		if err := f.objects.Outputs.Put(uint32(index), uint32(index)); err != nil {
			return nil, fmt.Errorf("forward: make interface %d an output: %w", index, err)
		}
	}
	for _, p := range []*ebpf.Program{f.objects.Transmitted, f.objects.Failed} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return nil, fmt.Errorf("forward: count what outputs drop: %w", err)
		}
		f.links = append(f.links, l)
	}
	for _, index := range f.interfaces {
		l, err := link.AttachXDP(link.XDPOptions{Program: f.objects.Forward, Interface: index, Flags: link.XDPDriverMode})
		if err != nil {
			hint := ""
			switch {
			case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
				hint = " (it has an XDP program already)"
			case errors.Is(err, unix.EOPNOTSUPP):
				hint = " (its driver has no native XDP)"
			}
			return nil, fmt.Errorf("forward: attach to interface %d: %w%s", index, err, hint)
		}
		f.links = append(f.links, l)
	}
	return f, nil
}

// load loads the programs, attached to nothing.
func (f *Forwarder) load() error {
	spec, err := loadForward()
	if err != nil {
		return fmt.Errorf("forward: read the embedded object: %w", err)
	}
	f.inner = spec.Maps["access"].InnerMap
	// Made before the programs, which must know it by its identity.
	outputs, err := ebpf.NewMap(spec.Maps["outputs"])
	if err != nil {
		return loading(err)
	}
	defer outputs.Close()
	info, err := outputs.Info()
	if err != nil {
		return fmt.Errorf("forward: identify the outputs: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return fmt.Errorf("forward: identify the outputs: %w", ebpf.ErrNotSupported)
	}
	cookie, err := namespaceCookie()
	if err != nil {
		return err
	}
	err = errors.Join(
		spec.Variables["outputs_id"].Set(uint32(id)),
		spec.Variables["namespace_cookie"].Set(cookie),
	)
	if err != nil {
		return fmt.Errorf("forward: set the constants: %w", err)
	}
	options := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"outputs": outputs}}
	if err := spec.LoadAndAssign(&f.objects, options); err != nil {
		return loading(err)
	}
	return nil
}

// loading explains why programs cannot be loaded.
func loading(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("forward: load the programs: %w (it takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)", err)
	}
	return fmt.Errorf("forward: load the programs: %w", err)
}

// namespaceCookie identifies the network namespace of the calling thread.
func namespaceCookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("forward: open a socket: %w", err)
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("forward: identify the network namespace: %w", err)
	}
	return cookie, nil
}

// Close takes the program off the interfaces; from then on the kernel's stack
// forwards by itself, if it may.
func (f *Forwarder) Close() error {
	var errs []error
	for _, l := range slices.Backward(f.links) {
		errs = append(errs, l.Close())
	}
	f.links = nil
	if f.objects.Forward != nil {
		errs = append(errs, f.objects.Close())
		f.objects = forwardObjects{}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forward: close: %w", err)
	}
	return nil
}
