package routes

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A dumper lists what the kernel has.
type dumper struct{ sockets map[int]*nl.SocketHandle }

func openDumper() (*dumper, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := socket.SetReceiveTimeout(&unix.Timeval{Sec: 30}); err != nil {
		socket.Close()
		return nil, fmt.Errorf("set a timeout on a netlink socket: %w", err)
	}
	return &dumper{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}}, nil
}

func (d *dumper) close() {
	for _, s := range d.sockets {
		s.Close()
	}
}

// list calls f with each of the kernel's messages of a kind.
func (d *dumper) list(get, kind int, header nl.NetlinkRequestData, f func([]byte) error) error {
	request := nl.NewNetlinkRequest(get, unix.NLM_F_DUMP)
	request.Sockets = d.sockets
	request.AddData(header)
	var failed error
	err := request.ExecuteIter(unix.NETLINK_ROUTE, uint16(kind), func(b []byte) bool {
		failed = f(b)
		return failed == nil
	})
	// Torn: what changed meanwhile is also told, and applied on top.
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return err
	}
	return failed
}

// dump lists everything into a table. Links come first: if one goes down while
// routes are listed, its notification shows that (see table.message).
func (d *dumper) dump() (*table, error) {
	t := newTable()
	for _, part := range []struct {
		what         string
		get, message int
		header       nl.NetlinkRequestData
	}{
		{"links", unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC)},
		{"addresses", unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfInfomsg(unix.AF_UNSPEC)},
		{"IPv4 routes", unix.RTM_GETROUTE, unix.RTM_NEWROUTE, routesOf(unix.AF_INET)},
		{"IPv6 routes", unix.RTM_GETROUTE, unix.RTM_NEWROUTE, routesOf(unix.AF_INET6)},
		{"neighbours", unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, neighboursOf(unix.AF_UNSPEC)},
	} {
		err := d.list(part.get, part.message, part.header, func(b []byte) error {
			// The kernel lists equal routes in its order.
			return t.message(uint16(part.message), unix.NLM_F_APPEND, b)
		})
		if err != nil {
			return nil, fmt.Errorf("list the kernel's %s: %w", part.what, err)
		}
	}
	t.changes = [2]int{}
	return t, nil
}

func routesOf(family uint8) nl.NetlinkRequestData {
	return &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}}
}

// neighboursOf is a struct ndmsg with a family.
func neighboursOf(family uint8) nl.NetlinkRequestData {
	return raw(append([]byte{family}, make([]byte, unix.SizeofNdMsg-1)...))
}

type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }
