package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-net/pollux/runtime/kernel/napi"
	"golang.org/x/sys/unix"
)

// Directory is where the old settings of devices are written while they are
// changed. It is gone after a boot, as those changes are.
const Directory = "/run/pollux"

const recordPattern = "restore-*.json"

// A record is what a file holds. The process that made the changes keeps the
// file locked: the kernel unlocks it when that process ends, however it ends, so
// whoever gets the lock may put the settings back. A file is only ever replaced
// as a whole.
type record struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	// Start tells the process from a later one of that number.
	Start string `json:"start,omitempty"`
	// Namespace is the inode of /proc/PID/ns/net, to find it; Cookie makes sure
	// that it is not another one with that inode.
	Namespace uint64        `json:"namespace"`
	Cookie    uint64        `json:"cookie"`
	State     napi.State    `json:"state"`
	Epolls    []remoteEpoll `json:"epolls,omitempty"`

	path string
	file *os.File
}

// remoteEpoll is an epoll instance of another process.
type remoteEpoll struct {
	PID int `json:"pid"`
	// Start tells the process from a later one of that number.
	Start string           `json:"start"`
	FD    int              `json:"fd"`
	Old   napi.EpollParams `json:"old"`
	Set   napi.EpollParams `json:"set"`
}

// newRecord reserves a device for this process: no other can have a record of
// it at the same time. What a process that died left of the device is put back
// first.
func newRecord(c *napi.Conn, d napi.Device) (*record, error) {
	r := &record{PID: os.Getpid(), State: napi.State{Device: d}}
	if command, err := os.ReadFile("/proc/self/comm"); err == nil {
		r.Command = strings.TrimSpace(string(command))
	}
	var err error
	if r.Start, err = startOf(r.PID); err != nil {
		return nil, err
	}
	if r.Cookie, err = c.Namespace(); err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return nil, fmt.Errorf("look at this thread's network namespace: %w", err)
	}
	r.Namespace = stat.Ino
	r.path = filepath.Join(Directory, fmt.Sprintf("restore-%s-%d-%d.json", d.Name, r.Cookie, r.PID))
	if err := os.MkdirAll(Directory, 0o755); err != nil {
		return nil, fmt.Errorf("keep the device's settings to put them back: %w", err)
	}
	unlock, err := lockDirectory()
	if err != nil {
		return nil, err
	}
	defer unlock()
	paths, err := filepath.Glob(filepath.Join(Directory, recordPattern))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		other, err := lockRecord(path, false)
		for deadline := time.Now().Add(lockPatience); errors.Is(err, errHeld) && other.rivals(r) && other.dead() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond) // its watcher is putting things back
			other, err = lockRecord(path, false)
		}
		switch {
		case errors.Is(err, errHeld):
			if other.rivals(r) {
				return nil, fmt.Errorf("process %d (%s) has set it already; end that one first", other.PID, other.Command)
			}
		case err != nil:
			return nil, err
		case other == nil:
		case !other.rivals(r):
			other.file.Close()
		default:
			if _, err := other.restore(); err != nil {
				return nil, fmt.Errorf("put back what process %d left: %w", other.PID, err)
			}
		}
	}
	return r, r.write()
}

// rivals says whether both are of one device, whatever it is called by now.
func (r *record) rivals(other *record) bool {
	return r.Cookie == other.Cookie && r.State.Device.Index == other.State.Device.Index
}

// dead says whether the process that made it has ended. Its file can be locked a
// moment longer: until the last of its threads has ended, and while the settings
// are put back.
func (r *record) dead() bool {
	fields, err := statOf(r.PID)
	if err != nil {
		return errors.Is(err, napi.ErrGone)
	}
	return fields[0] == "Z" || fields[0] == "X" || r.Start != "" && fields[startField] != r.Start
}

// write replaces the file. The new one is locked before it has its name.
func (r *record) write() error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the device's settings to put them back: %w", err)
	}
	file, err := os.CreateTemp(Directory, ".new-*")
	if err != nil {
		return fmt.Errorf("keep the device's settings to put them back: %w", err)
	}
	_, err = file.Write(append(b, '\n'))
	if err == nil {
		err = flock(file, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(file.Name(), r.path)
	}
	if err != nil {
		os.Remove(file.Name())
		file.Close()
		return fmt.Errorf("keep the device's settings to put them back: %w", err)
	}
	if r.file != nil {
		r.file.Close()
	}
	r.file = file
	return nil
}

func (r *record) remove() error {
	err := os.Remove(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, r.file.Close())
}

// addEpoll notes the old parameters of another process's epoll instance.
func (r *record) addEpoll(pid, fd int, old, set napi.EpollParams) error {
	start, err := startOf(pid)
	if err != nil {
		return err
	}
	e := remoteEpoll{PID: pid, Start: start, FD: fd, Old: old, Set: set}
	for i := range r.Epolls {
		if r.Epolls[i].PID == pid && r.Epolls[i].FD == fd {
			r.Epolls[i] = e // the process closed the one before
			return r.write()
		}
	}
	r.Epolls = append(r.Epolls, e)
	return r.write()
}

// addNAPIs notes the settings of NAPI instances and interrupts that have come
// since. What one of them has of those that were set is left over from the one
// before it on its queue (a veth keeps irq_suspend_timeout), and so what that one
// had is to be put back.
func (r *record) addNAPIs(now napi.State, set napi.Settings) error {
	before := slices.Clone(r.State.NAPIs)
	for _, n := range now.NAPIs {
		if slices.ContainsFunc(r.State.NAPIs, func(old napi.NAPI) bool { return old.ID == n.ID }) {
			continue
		}
		old := napi.Settings{}
		if i := slices.IndexFunc(before, func(b napi.NAPI) bool { return b.Queue == n.Queue }); i >= 0 {
			old = before[i].Settings
		}
		if set.DeferHardIRQs != 0 && n.Settings.DeferHardIRQs == set.DeferHardIRQs {
			n.Settings.DeferHardIRQs = old.DeferHardIRQs
		}
		if set.GROFlushTimeout != 0 && n.Settings.GROFlushTimeout == set.GROFlushTimeout {
			n.Settings.GROFlushTimeout = old.GROFlushTimeout
		}
		if set.IRQSuspendTimeout != 0 && n.Settings.IRQSuspendTimeout == set.IRQSuspendTimeout {
			n.Settings.IRQSuspendTimeout = old.IRQSuspendTimeout
		}
		r.State.NAPIs = append(r.State.NAPIs, n)
		if cores, found := now.Threads[n.ID]; found {
			r.State.Threads[n.ID] = cores
		}
		if _, known := r.State.Interrupts[n.IRQ]; !known && n.IRQ > 0 {
			r.State.Interrupts[n.IRQ] = now.Interrupts[n.IRQ]
		}
	}
	return r.write()
}

// restoreEpolls puts back the parameters of other processes' epoll instances
// that are still there and as they were set.
func (r *record) restoreEpolls() error {
	var failed []error
	for _, e := range r.Epolls {
		if err := e.restore(); err != nil && !errors.Is(err, napi.ErrGone) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (e remoteEpoll) restore() error {
	p, err := napi.OpenProcess(e.PID)
	if err != nil {
		return err
	}
	defer p.Close()
	if start, err := startOf(e.PID); err != nil || start != e.Start {
		return err
	}
	fd, err := p.Borrow(e.FD)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if is, err := napi.Epoll(fd); err != nil || is != e.Set {
		return nil // something else has its number now, or it was set by others
	}
	return napi.SetEpoll(fd, e.Old)
}

// startField is when a process started, in the kernel's ticks since boot.
const startField = 19

func startOf(pid int) (string, error) {
	fields, err := statOf(pid)
	if err != nil {
		return "", err
	}
	return fields[startField], nil
}

// statOf reads /proc/PID/stat from field 3, the state, on.
func statOf(pid int) ([]string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("look at process %d: %w", pid, napi.ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// The name, field 2, may hold anything; it ends at the last parenthesis.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) <= startField {
		return nil, fmt.Errorf("look at process %d: /proc tells %q", pid, b)
	}
	return fields, nil
}

// Watch starts a process that puts the device's settings back as soon as this
// one has ended, even by SIGKILL: command with the name of the file as a further
// argument, which calls RestoreWhenDead with it. It is in a session of its own
// and ends by itself after Restore. Where nothing was set, nothing is started.
func (a *Applied) Watch(command ...string) error {
	path := a.File()
	if path == "" {
		return nil
	}
	cmd := exec.Command(command[0], append(command[1:len(command):len(command)], path)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the process that puts the device's settings back: %w", err)
	}
	go cmd.Wait()
	return nil
}

// RestoreWhenDead waits for the end of the process that wrote the file, then
// puts back what it changed unless it has done so itself.
func RestoreWhenDead(path string) error {
	r, err := lockRecord(path, true)
	if err != nil || r == nil {
		return err
	}
	_, err = r.restore()
	return err
}

// Restored is what RestoreDead found of one process that has ended.
type Restored struct {
	File    string
	Device  string
	PID     int
	Command string
	// Changed says what was put back; none if all was as before, or if the
	// device or its network namespace is gone.
	Changed []string
	// Err is why the file remains.
	Err error
}

// Pending lists the files of processes that ended without putting back what
// they had changed.
func Pending() ([]Restored, error) { return eachDead(false) }

// RestoreDead puts back what processes that have ended had changed. Those that
// live are left alone.
func RestoreDead() ([]Restored, error) { return eachDead(true) }

func eachDead(restore bool) ([]Restored, error) {
	paths, err := filepath.Glob(filepath.Join(Directory, recordPattern))
	if err != nil || len(paths) == 0 {
		return nil, err
	}
	unlock, err := lockDirectory()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var list []Restored
	for _, path := range paths {
		r, err := lockRecord(path, false)
		if errors.Is(err, errHeld) || err == nil && r == nil {
			continue
		}
		if err != nil {
			list = append(list, Restored{File: path, Err: err})
			continue
		}
		found := Restored{File: path, Device: r.State.Device.Name, PID: r.PID, Command: r.Command}
		if restore {
			found.Changed, found.Err = r.restore()
		} else {
			r.file.Close()
		}
		list = append(list, found)
	}
	return list, nil
}

var errHeld = errors.New("its process lives")

// lockRecord reads and locks a file. It returns nil if the file is not there
// (any more); with errHeld, what is in it.
func lockRecord(path string, wait bool) (*record, error) {
	for {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("open what is to be put back: %w", err)
		}
		how := unix.LOCK_EX
		if !wait {
			how |= unix.LOCK_NB
		}
		held := flock(file, how)
		if held != nil && !errors.Is(held, unix.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, held)
		}
		if held == nil && !isAt(file, path) {
			file.Close() // it was removed or replaced meanwhile
			continue
		}
		r := &record{path: path, file: file}
		if err := json.NewDecoder(file).Decode(r); err != nil {
			file.Close()
			return nil, fmt.Errorf("read %s: %w; remove it if nothing else helps", path, err)
		}
		if held != nil {
			file.Close()
			return r, errHeld
		}
		return r, nil
	}
}

// isAt says whether an open file is the one of that name.
func isAt(file *os.File, path string) bool {
	a, errA := file.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// restore puts back what is in a locked record of a dead process and removes it.
func (r *record) restore() (changed []string, err error) {
	failed := r.restoreEpolls()
	if len(r.State.NAPIs) > 0 {
		err = withinNamespace(r.Namespace, func() error {
			c, err := napi.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			cookie, err := c.Namespace()
			if err != nil {
				return err
			}
			if cookie != r.Cookie {
				return errNoNamespace
			}
			changed, err = c.Restore(r.State)
			return err
		})
	}
	if errors.Is(err, errNoNamespace) {
		err = nil // and what was in it
	}
	if err := errors.Join(failed, err); err != nil {
		r.file.Close()
		return changed, err
	}
	return changed, r.remove()
}

// flock is flock(2), which a signal may interrupt.
func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// lockDirectory keeps other processes from reserving or restoring meanwhile.
func lockDirectory() (unlock func(), err error) {
	dir, err := os.Open(Directory)
	if err != nil {
		return nil, fmt.Errorf("open the directory of what is to be put back: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := flock(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			dir.Close()
			return nil, fmt.Errorf("lock %s: %w", Directory, err)
		}
	}
}

func closeFD(fd int) { unix.Close(fd) }
