package forwarder

import (
	"reflect"
	"testing"

	"github.com/pollux-net/pollux/driver/dpdk"
)

func TestPortsOfAllKindsArePlannedTogether(t *testing.T) {
	var devices []device
	for _, text := range []string{"eth1", "af_packet:eth2@lan0", "tap:pollux0@wan0", "0000:3b:00.0@lan1", "3b:00.1", "net_memif0,role=server,socket=/run/m@lan2"} {
		devices = append(devices, parseDevice(text, ""))
	}
	options, ports := plan(Config{}, devices, 2)
	if want := []string{"0000:3b:00.0", "3b:00.1"}; !reflect.DeepEqual(options.PCI, want) {
		t.Errorf("the EAL may take %v, want %v", options.PCI, want)
	}
	for i, want := range []dpdk.Config{
		{Device: "eth1"}, {Device: "eth2", Driver: dpdk.AFPacket}, {Device: "pollux0", Driver: dpdk.TAP},
		{Device: "0000:3b:00.0"}, {Device: "3b:00.1"}, {Device: "net_memif0,role=server,socket=/run/m"},
	} {
		want.Queues, want.Interrupts = 2, true
		if ports[i] != want {
			t.Errorf("port %d is %+v, want %+v", i, ports[i], want)
		}
	}
	for i, want := range []string{"", "lan0", "wan0", "lan1", "", "lan2"} {
		if devices[i].inter != want {
			t.Errorf("port %d has the interface %q, want %q", i, devices[i].inter, want)
		}
	}
	// --driver is for network devices of the kernel that name none, and for nobody else.
	for text, want := range map[string]string{"eth1": "tap", "af_xdp:eth1": "af_xdp", "0000:3b:00.0": "", "net_null0": ""} {
		if got := parseDevice(text, "tap").driver; got != want {
			t.Errorf("%s is driven by %q, want %q", text, got, want)
		}
	}
}
