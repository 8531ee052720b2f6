package measure

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Process is one of a session.
type Process struct {
	PID  int
	Nice int
}

// Session lists the processes of the session that a process leads: a server that is
// started by a shell, or starts others, is all of them. What has ended is not in it.
// One that makes a session of its own, as a daemon does, has left it.
func Session(leader int) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list the processes of session %d: %w", leader, err)
	}
	var list []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		// proc(5): the name, in brackets, may hold anything; after it come state,
		// parent, group and session, and the nice value as the 19th of all.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 17 || fields[0] == "Z" || fields[0] == "X" || fields[3] != strconv.Itoa(leader) {
			continue
		}
		nice, _ := strconv.Atoi(fields[16])
		list = append(list, Process{pid, nice})
	}
	return list, nil
}

// tasks lists the threads of a process, and of all others of the session that it
// leads, if it leads one.
func tasks(pid int) ([]int, error) {
	list, err := threads(pid)
	if err != nil {
		return nil, err
	}
	processes, err := Session(pid)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if p.PID == pid {
			continue
		}
		if more, err := threads(p.PID); err == nil { // or it has ended meanwhile
			list = append(list, more...)
		}
	}
	return list, nil
}

func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, fmt.Errorf("list the server's threads: %w", err)
	}
	var list []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, id)
		}
	}
	return list, nil
}
