package napi

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Device is a network device in the namespace of a Conn.
type Device struct {
	Name string `json:"name"`
	// Index tells it from all others of the namespace, as long as it is there; its
	// name and address may change.
	Index   int    `json:"index"`
	Address string `json:"address,omitempty"`
}

// Device finds one by name; the error is ErrGone if there is none.
func (c *Conn) Device(name string) (Device, error) {
	link, err := c.route.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return Device{}, fmt.Errorf("find device %q: %w in this network namespace", name, ErrGone)
	}
	if err != nil {
		return Device{}, fmt.Errorf("find device %q: %w", name, err)
	}
	a := link.Attrs()
	return Device{Name: a.Name, Index: a.Index, Address: a.HardwareAddr.String()}, nil
}

// deviceOf finds one by its index, as it is called now, and says whether it is
// up; the error is ErrGone if there is none.
func (c *Conn) deviceOf(index int) (d Device, up bool, err error) {
	link, err := c.route.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return Device{}, false, fmt.Errorf("find device %d: %w in this network namespace", index, ErrGone)
	}
	if err != nil {
		return Device{}, false, fmt.Errorf("find device %d: %w", index, err)
	}
	a := link.Attrs()
	return Device{Name: a.Name, Index: a.Index, Address: a.HardwareAddr.String()}, a.Flags&net.FlagUp != 0, nil
}

// Devices lists those of the namespace.
func (c *Conn) Devices() ([]Device, error) {
	links, err := c.route.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	list := make([]Device, len(links))
	for i, l := range links {
		a := l.Attrs()
		list[i] = Device{Name: a.Name, Index: a.Index, Address: a.HardwareAddr.String()}
	}
	return list, nil
}

// XDPFeatures is what a device's driver can do with XDP (enum netdev_xdp_act).
type XDPFeatures uint64

const (
	XDPBasic        XDPFeatures = 1 << iota // pass, drop, transmit, abort
	XDPRedirect                             // redirect from it
	XDPTransmit                             // redirect to it
	XDPZeroCopy                             // AF_XDP without copies
	XDPOffload                              // programs in the device
	XDPFragments                            // frames of several buffers
	XDPTransmitMany                         // redirect those to it
)

func (f XDPFeatures) String() string {
	names := []string{"basic", "redirect", "transmit", "zero-copy", "offload", "fragments", "transmit-fragments"}
	var set []string
	for i, name := range names {
		if f&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	if len(set) == 0 {
		return "none"
	}
	return strings.Join(set, " ")
}

// XDP asks what the driver can do natively; the kernel's generic XDP works on
// any device. It needs Linux 6.3.
func (c *Conn) XDP(d Device) (XDPFeatures, error) {
	const ifindex, features = 1, 3
	a, err := c.do(netdev, netdevDevGet, nl.NewRtAttr(ifindex, nl.Uint32Attr(uint32(d.Index))))
	if err != nil {
		return 0, fmt.Errorf("ask for the XDP features of %s: %w", d.Name, err)
	}
	return XDPFeatures(a.uint(features)), nil
}
