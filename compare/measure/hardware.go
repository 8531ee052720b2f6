package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counters are of the processor's hardware, of everything on a core.
type Counters struct{ Cycles, Instructions uint64 }

type counters struct{ cycles, instructions *os.File }

// Hardware says whether a core has hardware counters: nil, or why not.
func Hardware(core int) error {
	c, err := openCounters(core)
	if err != nil {
		return err
	}
	c.close()
	return nil
}

func openCounters(core int) (*counters, error) {
	c := &counters{}
	for _, e := range []struct {
		to     **os.File
		config uint64
	}{{&c.cycles, unix.PERF_COUNT_HW_CPU_CYCLES}, {&c.instructions, unix.PERF_COUNT_HW_INSTRUCTIONS}} {
		f, err := openEvent(unix.PERF_TYPE_HARDWARE, e.config, -1, core)
		if err != nil {
			c.close()
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
				err = fmt.Errorf("no PMU: %w", err)
			}
			return nil, err
		}
		*e.to = f
	}
	return c, nil
}

// openEvent opens a counter that counts from now on.
func openEvent(kind uint32, config uint64, pid, core int) (*os.File, error) {
	attr := unix.PerfEventAttr{Type: kind, Config: config}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, pid, core, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a counter of the processor: %w", err)
	}
	return os.NewFile(uintptr(fd), "perf event"), nil
}

func readEvent(f *os.File) (uint64, error) {
	var b [8]byte
	if _, err := f.Read(b[:]); err != nil {
		return 0, fmt.Errorf("read a counter of the processor: %w", err)
	}
	return binary.NativeEndian.Uint64(b[:]), nil
}

func (c *counters) read() (n Counters, err error) {
	if n.Cycles, err = readEvent(c.cycles); err != nil {
		return n, err
	}
	n.Instructions, err = readEvent(c.instructions)
	return n, err
}

func (c *counters) close() {
	if c == nil {
		return
	}
	for _, f := range []*os.File{c.cycles, c.instructions} {
		if f != nil {
			f.Close()
		}
	}
}
