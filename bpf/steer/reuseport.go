package steer

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// MaxWorkers is how many workers one Steer can choose from.
const MaxWorkers = 1024

// Config describes a Steer.
type Config struct {
	// Workers is how many there are, 1 to MaxWorkers. They are numbered from 0.
	Workers int
	// Closed refuses all connections until Open, as if nobody listened. A
	// connection stays where its SYN went, so that none must come before every
	// worker has its socket.
	Closed bool
}

// Steer chooses the worker for each new connection (TCP, when its SYN arrives;
// the connection stays) or for each datagram (UDP) of one SO_REUSEPORT group:
// the sockets of one protocol that share an address and a port, in one network
// namespace. A group with an IPv6 wildcard address that also takes IPv4 is one
// group.
//
// The worker is, in this order: the one that the NAPI instance which received
// the packet was given to (SetNAPI); the one that the processor was given to on
// which the kernel is processing it (SetCPU); the one that the kernel's own hash
// picks, which is also the case when the chosen worker has no socket. A packet
// has no NAPI instance if it came over loopback, through a veth without
// generic receive offload, or through a Spreader.
//
// Its methods may be called from several goroutines.
type Steer struct {
	objects reuseportObjects
	workers int
}

// Counts are choices since Load, by reason.
type Counts struct {
	// NAPI and CPU are, by worker, how many connections or datagrams it was
	// given because it owns the NAPI instance, and because it owns the
	// processor.
	NAPI, CPU []uint64
	// Fallback is how many were left to the kernel's hash.
	Fallback uint64
}

// Load loads the program, for no socket yet. It needs CAP_BPF, CAP_PERFMON
// (the program reads a kernel structure) and CAP_NET_ADMIN, or root, and Linux
// 6.2 with its type information (CONFIG_DEBUG_INFO_BTF).
func Load(c Config) (*Steer, error) {
	if c.Workers < 1 || c.Workers > MaxWorkers {
		return nil, fmt.Errorf("steer: %d workers: must be 1 to %d", c.Workers, MaxWorkers)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("steer: count processors: %w", err)
	}
	spec, err := loadReuseport()
	if err != nil {
		return nil, fmt.Errorf("steer: read the embedded object: %w", err)
	}
	spec.Maps[reuseportMapSockets].MaxEntries = uint32(c.Workers)
	spec.Maps[reuseportMapChoices].MaxEntries = uint32(c.Workers) + 1
	spec.Maps[reuseportMapCpus].MaxEntries = uint32(cpus)
	if err := spec.Variables[reuseportVarWorkers].Set(uint32(c.Workers)); err != nil {
		return nil, fmt.Errorf("steer: set the number of workers: %w", err)
	}
	if c.Closed {
		if err := spec.Variables[reuseportVarOpened].Set(uint32(0)); err != nil {
			return nil, fmt.Errorf("steer: set it closed: %w", err)
		}
	}
	s := &Steer{workers: c.Workers}
	if err := spec.LoadAndAssign(&s.objects, nil); err != nil {
		return nil, loading("steer", err)
	}
	return s, nil
}

// loading says what may be missing if a program does not load.
func loading(what string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: load the program: %w (needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)", what, err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: load the program: %w (needs Linux 6.2 or newer with CONFIG_DEBUG_INFO_BTF)", what, err)
	}
	return fmt.Errorf("%s: load the program: %w", what, err)
}

// Open lets connections in if they were refused so far (Config.Closed).
func (s *Steer) Open() error {
	if err := s.objects.Opened.Set(uint32(1)); err != nil {
		return fmt.Errorf("steer: let connections in: %w", err)
	}
	return nil
}

func (s *Steer) check(worker int) error {
	if worker < 0 || worker >= s.workers {
		return fmt.Errorf("steer: no worker %d: there are %d, from 0", worker, s.workers)
	}
	return nil
}

// SetNAPI gives what a NAPI instance receives to a worker. The id is what
// SO_INCOMING_NAPI_ID and the kernel's netdev family report. It may change when
// a device is set down and up, or gets another number of queues.
func (s *Steer) SetNAPI(id uint32, worker int) error {
	if err := s.check(worker); err != nil {
		return err
	}
	if id == 0 {
		return errors.New("steer: NAPI id 0 means that there is none")
	}
	if err := s.objects.Napis.Put(id, uint32(worker)); err != nil {
		return fmt.Errorf("steer: give NAPI %d to worker %d: %w", id, worker, err)
	}
	return nil
}

// ForgetNAPI takes a NAPI instance, which may be gone, from its worker.
func (s *Steer) ForgetNAPI(id uint32) error {
	if err := s.objects.Napis.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("steer: forget NAPI %d: %w", id, err)
	}
	return nil
}

// SetCPU gives what a processor receives, by no known NAPI instance, to a
// worker. On a device with interrupts the processor is the one that handles the
// queue's; over loopback it is the sender's.
func (s *Steer) SetCPU(cpu, worker int) error {
	if err := s.check(worker); err != nil {
		return err
	}
	if cpu < 0 || cpu >= int(s.objects.Cpus.MaxEntries()) {
		return fmt.Errorf("steer: no processor %d: there are at most %d, from 0", cpu, s.objects.Cpus.MaxEntries())
	}
	if err := s.objects.Cpus.Put(uint32(cpu), uint32(worker)+1); err != nil {
		return fmt.Errorf("steer: give processor %d to worker %d: %w", cpu, worker, err)
	}
	return nil
}

// Add makes a socket its worker's: a TCP socket that listens, or a UDP socket
// that is bound, with SO_REUSEPORT set before. It takes the place of the
// worker's socket before, if there was one. The descriptor stays the caller's;
// a socket that is closed leaves by itself.
func (s *Steer) Add(worker, fd int) error {
	if err := s.check(worker); err != nil {
		return err
	}
	if err := s.objects.Sockets.Put(uint32(worker), uint64(fd)); err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.EINVAL):
			hint = " (it must have SO_REUSEPORT, and listen or be bound)"
		case errors.Is(err, unix.EBUSY):
			hint = " (it is another worker's already)"
		case errors.Is(err, errNotSupp), errors.Is(err, unix.EOPNOTSUPP):
			hint = " (it must be a TCP or UDP socket; an MPTCP socket, which net.Listen opens, is not one)"
		}
		return fmt.Errorf("steer: add socket %d for worker %d: %w%s", fd, worker, err, hint)
	}
	return nil
}

// Attach puts the program in charge of the group that a socket is in, those
// that join later included. The socket need not listen yet, nor be bound. Sockets that were not added get nothing unless the
// kernel's hash decides. The program stays, also after Close, until Detach or
// until the last socket of the group is closed: at the latest when the process
// ends.
func (s *Steer) Attach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, s.objects.Steer.FD()); err != nil {
		hint := ""
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) {
			hint = " (it must have SO_REUSEPORT and not be an MPTCP socket, which net.Listen opens)"
		}
		return fmt.Errorf("steer: attach to the group of socket %d: %w%s", fd, err, hint)
	}
	return nil
}

// Detach gives the group that a socket is in back to the kernel's hash.
func Detach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0); err != nil {
		return fmt.Errorf("steer: detach from the group of socket %d: %w", fd, err)
	}
	return nil
}

// Counts reads what was chosen so far.
func (s *Steer) Counts() (Counts, error) {
	c := Counts{NAPI: make([]uint64, s.workers), CPU: make([]uint64, s.workers)}
	for worker := range s.workers + 1 {
		var each []reuseportChosen
		if err := s.objects.Choices.Lookup(uint32(worker), &each); err != nil {
			return Counts{}, fmt.Errorf("steer: read the counts: %w", err)
		}
		for _, e := range each {
			if worker == s.workers {
				c.Fallback += e.By[byFallback]
				continue
			}
			c.NAPI[worker] += e.By[byNAPI]
			c.CPU[worker] += e.By[byCPU]
		}
	}
	return c, nil
}

// errNotSupp is the kernel's own ENOTSUPP, which it also lets out to users.
const errNotSupp = unix.Errno(524)

// enum reason in reuseport.c.
const (
	byNAPI = iota
	byCPU
	byFallback
)

// Close lets go of the program. Groups that it was attached to keep it: see
// Attach.
func (s *Steer) Close() error {
	if err := s.objects.Close(); err != nil {
		return fmt.Errorf("steer: close: %w", err)
	}
	return nil
}
