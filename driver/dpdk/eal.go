package dpdk

/*
#cgo pkg-config: libdpdk
#cgo CFLAGS: -O3 -Wall -D_GNU_SOURCE
#cgo LDFLAGS: -ldl
#include <stdlib.h>
#include "eal.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// Options are settings of the EAL; the zero value needs no configuration of
// the machine at all.
type Options struct {
	// Memory is what the EAL may use for pools and rings, in MiB; 0 means 128.
	Memory int
	// HugePages takes Memory from hugepages (nothing needs to be mounted);
	// without it ordinary pages are used.
	HugePages bool
	// PCI names devices that the EAL may probe (0000:3b:00.0). Without any, the
	// PCI bus is left alone: probing it would try to take the machine's own NIC.
	PCI []string
	// LogLevel is the EAL's --log-level; empty means notice.
	LogLevel string
	// Arguments are further arguments of the EAL, for what is not foreseen here.
	Arguments []string
}

// DefaultMemory is the EAL's memory in MiB if Options.Memory is 0.
const DefaultMemory = 128

// ErrStarted says that Init was called a second time: the EAL can be started
// only once per process, whether or not that succeeded.
var ErrStarted = errors.New("dpdk: the EAL was already started in this process; it can be started only once")

// eal guards everything that the EAL does outside of the data path: its
// hot-plug and our bookkeeping of devices are not safe between threads.
var eal struct {
	sync.Mutex
	begun   bool // Init was called
	started bool // and succeeded
	options Options
	devices map[string]bool // keys of open devices
	serial  int             // of pools, for their names
}

// Init starts the EAL, once per process. Its main thread is one that Go uses
// for nothing else, so that no goroutine inherits the core it is pinned to.
func Init(o Options) error {
	eal.Lock()
	defer eal.Unlock()
	if eal.begun {
		return ErrStarted
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.Memory < 0 {
		return fmt.Errorf("dpdk: %d MiB of memory: must be positive", o.Memory)
	}
	if o.HugePages {
		if err := checkHugePages(o.Memory); err != nil {
			return err
		}
	}
	arguments, err := o.arguments()
	if err != nil {
		return err
	}
	eal.begun = true
	result := make(chan error)
	go func() {
		// Never unlocked and never left: the EAL pins this thread and keeps it
		// as its main lcore.
		runtime.LockOSThread()
		result <- start(arguments)
		select {}
	}()
	if err := <-result; err != nil {
		return err
	}
	C.px_log_libraries()
	eal.started, eal.options, eal.devices = true, o, map[string]bool{}
	return nil
}

func start(arguments []string) error {
	if rc := C.px_log_start(); rc != 0 {
		return fmt.Errorf("dpdk: catching the EAL's log: %w", errno(rc))
	}
	argv := C.malloc(C.size_t(len(arguments)+1) * C.size_t(unsafe.Sizeof(uintptr(0))))
	list := unsafe.Slice((**C.char)(argv), len(arguments)+1)
	for i, a := range arguments {
		list[i] = C.CString(a) // The EAL keeps them.
	}
	list[len(arguments)] = nil
	rc := C.px_eal_init(C.int(len(arguments)), (**C.char)(argv))
	if rc != 0 {
		return fmt.Errorf("dpdk: starting the EAL (%s): %w%s", strings.Join(arguments[1:], " "), errno(rc), saidSuffix())
	}
	return nil
}

// arguments is the EAL's command line.
func (o Options) arguments() ([]string, error) {
	core, err := firstCore()
	if err != nil {
		return nil, err
	}
	level := o.LogLevel
	if level == "" {
		level = "notice"
	}
	a := []string{"pollux", "-l", strconv.Itoa(core), "-m", strconv.Itoa(o.Memory), "--no-shconf", "--no-telemetry", "--log-level=" + level}
	if o.HugePages {
		// One file, or a vhost peer would be handed a descriptor for each page.
		a = append(a, "--in-memory", "--single-file-segments")
	} else {
		a = append(a, "--no-huge")
	}
	if len(o.PCI) == 0 {
		a = append(a, "--no-pci", "--iova-mode=va")
	}
	for _, p := range o.PCI {
		if !IsPCI(p) {
			return nil, fmt.Errorf("dpdk: %q is not a PCI address; write it like 0000:3b:00.0", p)
		}
		a = append(a, "-a", p)
	}
	return append(a, o.Arguments...), nil
}

// firstCore is the first core that this process may run on: the EAL insists on
// one for its main thread, which then does nothing.
func firstCore() (int, error) {
	var mask [128]uint64
	_, _, e := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	if e != 0 {
		return 0, fmt.Errorf("dpdk: reading the cores that this process may use: %w", e)
	}
	for i := range len(mask) * 64 {
		if mask[i/64]&(1<<(i%64)) != 0 {
			return i, nil
		}
	}
	return 0, errors.New("dpdk: this process may run on no core")
}

// checkHugePages fails if there are fewer free hugepages than needed.
func checkHugePages(need int) error {
	free := 0
	for _, size := range []int{2048, 1048576} {
		b, err := os.ReadFile(fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/free_hugepages", size))
		if err != nil {
			continue
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		free += n * size / 1024
	}
	if free < need {
		return fmt.Errorf("dpdk: %d MiB of hugepages are free, %d are needed; do without, or reserve them: echo %d > /proc/sys/vm/nr_hugepages", free, need, (need+1)/2)
	}
	return nil
}

// RegisterThread makes the calling thread known to the EAL, which gives it a
// cache of free frames of its own: without one every frame that is allocated or
// freed goes through the ring that all threads share. Call it on a locked
// thread after its affinity was set.
func RegisterThread() error {
	if rc := C.px_thread_register(); rc != 0 {
		return fmt.Errorf("dpdk: registering a thread with the EAL: %w", errno(rc))
	}
	return nil
}

// UnregisterThread ends what RegisterThread began, on the same thread.
func UnregisterThread() { C.px_thread_unregister() }

// errno turns a negative return value of C into an error.
func errno(rc C.int) error { return syscall.Errno(-rc) }

// said returns what the EAL and its drivers said since the last call, a line
// each.
func said() []string {
	const size = 16384
	buf := C.malloc(size)
	defer C.free(buf)
	n := C.px_log_take((*C.char)(buf), size)
	var lines []string
	for _, l := range strings.Split(C.GoStringN((*C.char)(buf), C.int(n)), "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return lines
}

// saidSuffix is said, made the end of an error message.
func saidSuffix() string {
	const most = 6
	lines := said()
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines[max(0, len(lines)-most):], "; ")
}

// freeMemory is the number of bytes that the EAL has left.
func freeMemory() int { return int(C.px_memory_free()) }
