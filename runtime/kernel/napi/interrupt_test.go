package napi

import (
	"maps"
	"testing"
)

func TestInterruptsOfReceiveQueuesAreFoundByName(t *testing.T) {
	const text = `           CPU0       CPU1
 37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config
 38:          0       4983 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
 39:       4520          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0
 40:          0          0 PCI-MSIX-0000:00:03.0   3-edge      virtio2-input.1
 41:          0          0 PCI-MSIX-0000:00:04.0   1-edge      virtio22-input.0
 50:          0          0 PCI-MSI 1-edge      eth0-rx-0
 51:          0          0 PCI-MSI 2-edge      eth0-tx-0
 52:          0          0 PCI-MSI 2-edge      eth01-rx-0
 60:          0          0 PCI-MSI 1-edge      i40e-ens1f0-TxRx-0
 61:          0          0 PCI-MSI 1-edge      i40e-ens1f0-TxRx-11
 62:          0          0 PCI-MSI 1-edge      i40e-0000:3b:00.0:misc
NMI:          0          0   Non-maskable interrupts
`
	for _, c := range []struct {
		name, device string
		want         map[int]int
	}{
		{"ens3", "virtio2", map[int]int{0: 38, 1: 40}},
		{"eth0", "0000:01:00.0", map[int]int{0: 50}},
		{"ens1f0", "0000:3b:00.0", map[int]int{0: 60, 11: 61}},
		{"ens9", "0000:3c:00.0", nil},
	} {
		if got := receiveInterrupts(text, c.name, c.device); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestQueuesAreThoseThatTheDriverTellsElseByOrder(t *testing.T) {
	for _, c := range []struct {
		name   string
		queues []Queue
		want   []int
	}{
		{"told", []Queue{{0, 9}, {1, 7}}, []int{1, -1, 0}},
		{"one each", []Queue{{0, 0}, {1, 0}, {2, 0}}, []int{0, 1, 2}},
		{"more instances than queues", []Queue{{0, 0}, {1, 0}}, []int{-1, -1, -1}},
	} {
		list := []NAPI{{ID: 7}, {ID: 8}, {ID: 9}}
		assign(list, c.queues)
		for i, n := range list {
			if n.Queue != c.want[i] {
				t.Errorf("%s: NAPI %d serves queue %d, want %d", c.name, n.ID, n.Queue, c.want[i])
			}
		}
	}
}
