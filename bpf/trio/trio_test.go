package trio

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestTheEndsReachEachOtherOnlyIfTheRouterForwards(t *testing.T) {
	for name, forwarding := range map[string]bool{"forwarding": true, "not forwarding": false} {
		t.Run(name, func(t *testing.T) {
			n := New(t, Options{Queues: 2, MTU: 1400, Forwarding: forwarding})
			for _, address := range []string{n.RouterPorts[0].V4.Addr().String(), n.RouterPorts[0].V6.Addr().String()} {
				n.Client.Run(t, "ping", "-c", "1", "-W", "5", address)
			}
			for _, address := range []string{n.ServerPort.V4.Addr().String(), n.ServerPort.V6.Addr().String()} {
				out, err := n.Client.Try("ping", "-c", "1", "-W", "1", address)
				if (err == nil) != forwarding {
					t.Errorf("ping %s: %v\n%s", address, err, out)
				}
			}
			if out := n.Router.Run(t, "ip", "link", "show", "router1"); !strings.Contains(out, "mtu 1400") {
				t.Errorf("the second link has another MTU: %s", out)
			}
		})
	}
}

func TestACommandSeesItsHostsInterfacesAlsoInSys(t *testing.T) {
	n := New(t, Options{})
	cmd := exec.Command("ls", "/sys/class/net")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Server.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "lo\nserver0\n" {
		t.Errorf("%v, %q", err, out.String())
	}
	if _, err := os.Stat("/sys/class/net/server0"); err == nil {
		t.Error("the host's interface shows outside")
	}
}
