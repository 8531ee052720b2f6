package dpdk

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/driver"
)

// TestCloseLeavesTheDeviceAsFound: no XDP program, no flag, no socket and no
// memory stays behind, and the device can be opened again.
func TestCloseLeavesTheDeviceAsFound(t *testing.T) {
	for _, name := range []string{AFXDP, AFPacket} {
		for _, flags := range []string{"down", "up", "promisc"} {
			t.Run(name+" "+flags, func(t *testing.T) {
				v := newVeth(t, 1)
				switch flags {
				case "down":
					run(t, "ip", "-n", v.server, "link", "set", v.device, "down")
				case "promisc":
					run(t, "ip", "-n", v.server, "link", "set", v.device, "promisc", "on")
				}
				// The driver of AF_XDP (22.11) and its library (libxdp 1.3) forget a
				// program, a map and a small structure each time. More is ours.
				allowedFiles, allowedBytes := 0, 0
				if name == AFXDP {
					allowedFiles, allowedBytes = 2, 256
				}
				before := state(t, v)
				var memory, files int
				for i := range 5 {
					p := openIn(t, v.server, Config{Device: v.device, Driver: name, Interrupts: true, Promiscuous: i%2 == 1})
					during := state(t, v)
					if name == AFXDP && !strings.Contains(during, "xdp") {
						t.Fatalf("no XDP program while open: %s", during)
					}
					if (i%2 == 1 || flags == "promisc") != strings.Contains(during, "PROMISC") {
						t.Errorf("promiscuous or not: %s", during)
					}
					if link, err := p.Link(); err != nil || !link.Up {
						t.Errorf("link %v, %v", link, err)
					}
					if _, err := syscall.Write(v.socket, numbered(60, i)); err != nil {
						t.Fatal(err)
					}
					q, f := p.Queue(0), make([]driver.Frame, 1)
					within(t, "a frame", func() bool { return q.Receive(f) == 1 })
					driver.Free(f)
					if err := p.Close(); err != nil {
						t.Fatal(err)
					}
					if after := state(t, v); after != before {
						t.Fatalf("found as\n%sleft as\n%s", before, after)
					}
					m, n := freeMemory(), openFiles(t)
					if i > 1 && (m < memory-allowedBytes || n > files+allowedFiles) {
						t.Errorf("round %d: %d bytes free after %d, %d files open after %d", i, m, memory, n, files)
					}
					memory, files = m, n
				}
			})
		}
	}
}

// state is how ip shows the server's device, less what changes by itself.
func state(t *testing.T, v *veth) string {
	// The kernel detaches a program that loses its last holder a moment later.
	time.Sleep(20 * time.Millisecond)
	s := run(t, "ip", "-n", v.server, "-d", "link", "show", v.device)
	return regexp.MustCompile(`state \S+|M-DOWN|,?NO-CARRIER,?|,?LOWER_UP`).ReplaceAllString(s, "")
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
