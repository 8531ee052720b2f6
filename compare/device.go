package compare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/kernel/napi"
)

// devicePlace is a NIC of this machine, with the load's agent on another box. It
// changes three things of the NIC: it leaves it one queue and sends that queue's
// interrupt to the server's core, which makes a server of one core what it is, and
// it gives the address to the path that is measured. restore puts all back.
type devicePlace struct {
	device     string
	address    netip.Prefix
	agent      string // HOST:PORT of the load's agent
	serverCore int

	saved *nicState
}

// nicState is what a NIC's settings were.
type nicState struct {
	channels ethtool.Channels
	has      bool // it knows of channels at all
	napi     napi.State
	address  *deviceAddress
}

func (p *devicePlace) ready(path runtime.Path) ([]result.Setting, error) {
	link, err := netlink.LinkByName(p.device)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", p.device, err)
	}
	if link.Attrs().OperState == netlink.OperDown {
		return nil, fmt.Errorf("device %s is down: ip link set %s up", p.device, p.device)
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", p.device, err)
	}
	defer tool.Close()
	conn, err := napi.Open()
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", p.device, err)
	}
	defer conn.Close()
	if p.saved == nil {
		saved, err := saveNIC(tool, conn, p.device)
		if err != nil {
			return nil, err
		}
		if saved.address, err = saveAddress(p.device, p.address); err != nil {
			return nil, err
		}
		p.saved = saved // whole, or nothing is changed
	}
	if p.saved.has {
		if err := setChannels(tool, p.device, oneQueue(p.saved.channels)); err != nil {
			return nil, err
		}
	}
	d, err := conn.Device(p.device)
	if err != nil {
		return nil, err
	}
	list, err := conn.NAPIs(d)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		if n.IRQ <= 0 {
			continue
		}
		if err := napi.SetInterruptCores(n.IRQ, []int{p.serverCore}); err != nil {
			return nil, err
		}
		if cores, err := napi.InterruptCores(n.IRQ); err != nil || !slices.Equal(cores, []int{p.serverCore}) {
			return nil, errors.Join(fmt.Errorf("interrupt %d of %s goes to processors %v, not to %d: is irqbalance running?", n.IRQ, p.device, cores, p.serverCore), err)
		}
	}
	if err := p.saved.address.set(path == runtime.Kernel); err != nil {
		return nil, err
	}
	return p.describe(tool, conn, d, path)
}

var errUnreachable = errors.New("the load's agent cannot be reached")

// oneQueue is the fewest channels that a NIC works with.
func oneQueue(c ethtool.Channels) ethtool.Channels {
	if c.MaxCombined > 0 {
		c.CombinedCount, c.RxCount, c.TxCount = 1, 0, 0
	} else {
		c.RxCount, c.TxCount = min(1, c.MaxRx), min(1, c.MaxTx)
	}
	return c
}

// setChannels changes them if they are others, and reads them back: to change
// them, a driver stops the NIC for a moment.
func setChannels(tool *ethtool.Ethtool, device string, want ethtool.Channels) error {
	same := func() (ethtool.Channels, bool, error) {
		is, err := tool.GetChannels(device)
		return is, is.RxCount == want.RxCount && is.TxCount == want.TxCount && is.CombinedCount == want.CombinedCount, err
	}
	if _, yes, err := same(); err != nil || yes {
		return err
	}
	if _, err := tool.SetChannels(device, want); err != nil {
		return fmt.Errorf("set the queues of %s to %s: %w", device, channelsText(want), err)
	}
	if is, yes, err := same(); err != nil || !yes {
		return errors.Join(fmt.Errorf("%s has %s after they were set to %s", device, channelsText(is), channelsText(want)), err)
	}
	return nil
}

func channelsText(c ethtool.Channels) string {
	return fmt.Sprintf("%d combined, %d receive, %d transmit", c.CombinedCount, c.RxCount, c.TxCount)
}

func saveNIC(tool *ethtool.Ethtool, conn *napi.Conn, device string) (*nicState, error) {
	d, err := conn.Device(device)
	if err != nil {
		return nil, err
	}
	s := &nicState{}
	if s.napi, err = conn.Save(d); err != nil {
		return nil, fmt.Errorf("save the settings of %s: %w", device, err)
	}
	if c, err := tool.GetChannels(device); err == nil {
		s.channels, s.has = c, true
	}
	return s, nil
}

// restore puts back what was changed, in every respect that it can, and reads it
// back.
func (p *devicePlace) restore() error {
	if p.saved == nil {
		return nil
	}
	if err := errors.Join(p.restoreNIC(), p.saved.address.restore()); err != nil {
		return fmt.Errorf("put the settings of %s back: %w", p.device, err)
	}
	p.saved = nil
	return nil
}

func (p *devicePlace) restoreNIC() error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer tool.Close()
	conn, err := napi.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	var failed []error // that one thing cannot be put back is no reason to leave another
	if p.saved.has {
		failed = append(failed, setChannels(tool, p.device, p.saved.channels))
	}
	_, err = conn.Restore(p.saved.napi)
	failed = append(failed, err)
	now, err := saveNIC(tool, conn, p.device)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for irq, cores := range p.saved.napi.Interrupts {
		if is, there := now.napi.Interrupts[irq]; there && !slices.Equal(is, cores) {
			failed = append(failed, fmt.Errorf("interrupt %d goes to processors %v, not to %v", irq, is, cores))
		}
	}
	if !reflect.DeepEqual(now.napi.Coalescing, p.saved.napi.Coalescing) {
		failed = append(failed, fmt.Errorf("coalescing is %+v, not %+v", now.napi.Coalescing, p.saved.napi.Coalescing))
	}
	return errors.Join(failed...)
}

// described are the features that decide what a packet costs a kernel.
var described = []string{"rx-gro", "rx-gro-hw", "rx-lro", "rx-checksum", "tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-tcp-segmentation", "tx-generic-segmentation", "rx-hashing", "rx-ntuple-filter"}

// describe reads the NIC's own settings.
func (p *devicePlace) describe(tool *ethtool.Ethtool, conn *napi.Conn, d napi.Device, path runtime.Path) ([]result.Setting, error) {
	var list []result.Setting
	add := func(name, format string, args ...any) {
		list = append(list, result.Setting{Where: fmt.Sprintf("%s path, %s", path, p.device), Name: name, Value: fmt.Sprintf(format, args...)})
	}
	if driver, err := tool.DriverName(p.device); err == nil {
		add("driver", "%s", driver)
	}
	link, err := netlink.LinkByName(p.device)
	if err != nil {
		return nil, err
	}
	add("mtu", "%d", link.Attrs().MTU)
	add("address", "%s", p.address)
	now, err := saveNIC(tool, conn, p.device)
	if err != nil {
		return nil, err
	}
	if now.has {
		add("queues", "%s", channelsText(now.channels))
	}
	for _, n := range now.napi.NAPIs {
		add(fmt.Sprintf("NAPI %d", n.ID), "interrupt %d on processors %s, defer %d, flush %v, suspend %v", n.IRQ,
			napi.FormatCores(now.napi.Interrupts[n.IRQ]), n.Settings.DeferHardIRQs, n.Settings.GROFlushTimeout, n.Settings.IRQSuspendTimeout)
	}
	if now.napi.Coalescing != nil {
		add("coalescing", "%+v", *now.napi.Coalescing)
	}
	features, err := tool.Features(p.device)
	if err != nil {
		return nil, fmt.Errorf("read the features of %s: %w", p.device, err)
	}
	for _, name := range described {
		if on, there := features[name]; there {
			add(name, "%s", map[bool]string{false: "off", true: "on"}[on])
		}
	}
	return list, nil
}

func (p *devicePlace) in(f func() error) error { return f() }

func (p *devicePlace) start(cmd *exec.Cmd) error { return cmd.Start() }

func (p *devicePlace) server() (string, netip.Prefix) { return p.device, p.address }

func (p *devicePlace) client(ctx context.Context) (*load.Remote, func() error, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", p.agent)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w; on the other box run: %s", errUnreachable, err, p.agentCommand())
	}
	remote, err := load.Attach(conn)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	if want := p.serverAddress(); remote.Hello.Server != want {
		return nil, nil, errors.Join(fmt.Errorf("the load's agent at %s loads %s, not %s; run there: %s", p.agent, remote.Hello.Server, want, p.agentCommand()), conn.Close())
	}
	return remote, conn.Close, nil
}

func (p *devicePlace) serverAddress() string {
	return net.JoinHostPort(p.address.Addr().String(), serverPort)
}

// agentCommand is what to run on the other box.
func (p *devicePlace) agentCommand() string {
	return fmt.Sprintf("pollux load %s --serve %s", p.serverAddress(), p.agent)
}
