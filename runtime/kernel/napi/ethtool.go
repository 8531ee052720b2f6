package napi

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The family ethtool: Documentation/networking/ethtool-netlink.rst.
const (
	ethtoolRingsGet    = 15
	ethtoolCoalesceGet = 19
	ethtoolCoalesceSet = 20

	headerIndex = 1

	ringsHeader   = 1
	ringsRx       = 6
	ringsTCPSplit = 11

	coalesceHeader     = 1
	coalesceRxUsecs    = 2
	coalesceRxFrames   = 3
	coalesceAdaptiveRx = 11
)

// Coalescing is how long a device waits before it interrupts for what it
// received. What it does not have is nil, and left alone by SetCoalescing.
type Coalescing struct {
	// RxDelay is since the first frame, in whole microseconds.
	RxDelay *time.Duration `json:"rx_delay,omitempty"`
	// RxFrames is the number of frames that it waits for at most.
	RxFrames *int `json:"rx_frames,omitempty"`
	// AdaptiveRx: the device chooses by itself.
	AdaptiveRx *bool `json:"adaptive_rx,omitempty"`
}

// Coalescing reads a device's; the error is ErrUnsupported if it has none.
func (c *Conn) Coalescing(d Device) (Coalescing, error) {
	a, err := c.do(ethtool, ethtoolCoalesceGet, device(coalesceHeader, d))
	if err != nil {
		return Coalescing{}, fmt.Errorf("read the interrupt coalescing of %s: %w", d.Name, err)
	}
	var s Coalescing
	if a.has(coalesceRxUsecs) {
		delay := time.Duration(a.uint(coalesceRxUsecs)) * time.Microsecond
		s.RxDelay = &delay
	}
	if a.has(coalesceRxFrames) {
		frames := int(a.uint(coalesceRxFrames))
		s.RxFrames = &frames
	}
	if a.has(coalesceAdaptiveRx) {
		adaptive := a.uint(coalesceAdaptiveRx) != 0
		s.AdaptiveRx = &adaptive
	}
	return s, nil
}

// SetCoalescing changes what is not nil.
func (c *Conn) SetCoalescing(d Device, s Coalescing) error {
	request := []*nl.RtAttr{device(coalesceHeader, d)}
	if s.RxDelay != nil {
		request = append(request, nl.NewRtAttr(coalesceRxUsecs, nl.Uint32Attr(uint32(s.RxDelay.Microseconds()))))
	}
	if s.RxFrames != nil {
		request = append(request, nl.NewRtAttr(coalesceRxFrames, nl.Uint32Attr(uint32(*s.RxFrames))))
	}
	if s.AdaptiveRx != nil {
		value := uint8(0)
		if *s.AdaptiveRx {
			value = 1
		}
		request = append(request, nl.NewRtAttr(coalesceAdaptiveRx, nl.Uint8Attr(value)))
	}
	if _, err := c.do(ethtool, ethtoolCoalesceSet, request...); err != nil {
		return fmt.Errorf("set the interrupt coalescing of %s: %w", d.Name, err)
	}
	return nil
}

// HeaderSplit is whether a device puts TCP's headers and data into separate
// buffers, as memory of another device needs it (enum ethtool_tcp_data_split).
type HeaderSplit int

const (
	HeaderSplitUnknown HeaderSplit = iota // the device cannot, or does not tell
	HeaderSplitOff
	HeaderSplitOn
)

// Rings are a device's receive rings.
type Rings struct {
	// Receive is the number of descriptors of each.
	Receive int
	Split   HeaderSplit
}

// Rings reads a device's; the error is ErrUnsupported if it has none.
func (c *Conn) Rings(d Device) (Rings, error) {
	a, err := c.do(ethtool, ethtoolRingsGet, device(ringsHeader, d))
	if err != nil {
		return Rings{}, fmt.Errorf("read the rings of %s: %w", d.Name, err)
	}
	return Rings{Receive: int(a.uint(ringsRx)), Split: HeaderSplit(a.uint(ringsTCPSplit))}, nil
}

// device is the header that names the device that is meant.
func device(attribute int, d Device) *nl.RtAttr {
	header := nl.NewRtAttr(attribute|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(headerIndex, nl.Uint32Attr(uint32(d.Index)))
	return header
}
