package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Start starts cmd in the side's network namespace, with a /sys that shows that
// namespace's interfaces; everything else, open files included, is as usual. The
// caller waits for it. Do not set Pdeathsig: the thread that starts the command
// ends at once, and the signal would be sent then.
func (l *Lab) Start(side Side, cmd *exec.Cmd) error {
	return onSpareThread(func() error {
		if err := l.enter(side); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// Exec runs argv in the side's network namespace as Start does, with this
// process's input and output, and waits for it. If the command ran and failed
// the error is an *exec.ExitError.
func (l *Lab) Exec(side Side, argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command to run in the lab")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := l.Start(side, cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Replace turns this process into argv, in the side's network namespace:
// signals, terminal and exit code are then the command's own. It returns only
// if that failed.
func (l *Lab) Replace(side Side, argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command to run in the lab")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find the command to run in the lab: %w", err)
	}
	return onSpareThread(func() error {
		if err := l.enter(side); err != nil {
			return err
		}
		return fmt.Errorf("run %s: %w", path, unix.Exec(path, argv, os.Environ()))
	})
}

// enter moves the calling thread for good into the side's network namespace and
// into a mount namespace of its own that has a fitting /sys.
func (l *Lab) enter(side Side) error {
	namespace := l.Namespace(side)
	handle, err := netns.GetFromName(namespace)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w; is the lab up?", namespace, err)
	}
	defer handle.Close()
	if err := netns.Set(handle); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", namespace, err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// Mounts made here must not be seen outside.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach the mount namespace: %w", err)
	}
	return replaceSys()
}

// replaceSys puts the namespace's own sysfs over /sys and then back what was
// mounted below it: a server must still find its control group.
func replaceSys() error {
	below, err := mountsBelow("/sys")
	if err != nil {
		return err
	}
	trees := make(map[string]int)
	defer func() {
		for _, fd := range trees {
			unix.Close(fd)
		}
	}()
	for _, path := range below {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.O_CLOEXEC)
		if err != nil {
			return fmt.Errorf("copy the mount at %s: %w", path, err)
		}
		trees[path] = fd
	}
	root, err := sysfs()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/sys", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the namespace's sysfs at /sys: %w", err)
	}
	for _, path := range below {
		err := unix.MoveMount(trees[path], "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mount again at %s: %w", path, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points directly on the file system mounted at
// root; what is mounted deeper comes along with them.
func mountsBelow(root string) ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	// Fields: mount ID, parent's ID, device, root, mount point, … (proc(5)).
	var lines [][]string
	id := ""
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if fields[4] == root {
			id = fields[0] // the last one is on top
		}
		lines = append(lines, fields)
	}
	var paths []string
	for _, fields := range lines {
		if fields[1] == id && strings.HasPrefix(fields[4], root+"/") {
			paths = append(paths, fields[4])
		}
	}
	return paths, nil
}
