package napi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	// ErrUnsupported is wrapped where kernel or device cannot do what is asked.
	ErrUnsupported = errors.New("not supported")
	// ErrPrivilege is wrapped where more privilege would help.
	ErrPrivilege = errors.New("not permitted")
	// ErrGone is wrapped where what is asked for is not there.
	ErrGone = errors.New("not there")
	// ErrDown is wrapped where a device has to be up for what is asked.
	ErrDown = errors.New("the device is down")
)

// The generic netlink families that are used.
const (
	netdev     = "netdev"
	ethtool    = "ethtool"
	controller = "nlctrl"
)

// The family nlctrl, which knows the others (linux/genetlink.h).
const (
	controllerID        = 0x10
	controllerGetFamily = 3
	familyID            = 1
	familyName          = 2
	familyOperations    = 6
	operationID         = 1
)

// timeoutSeconds is how long an answer of the kernel is waited for; it answers
// at once unless something holds the network's lock.
const timeoutSeconds = 10

// Conn is bound to the network namespace of the thread that opened it, and can
// then be used from any thread, but by one goroutine at a time.
type Conn struct {
	socket   *nl.NetlinkSocket
	route    *netlink.Handle
	families map[string]family
	// sysfs is the namespace's own, or -1 and why.
	sysfs      int
	sysfsError error
}

type family struct {
	id       uint16
	commands []uint8
}

// Open connects to the kernel in the calling thread's network namespace. The
// caller closes it.
func Open() (*Conn, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	err = errors.Join(socket.SetReceiveTimeout(&unix.Timeval{Sec: timeoutSeconds}), socket.SetExtAck(true))
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("set up a netlink socket: %w", err)
	}
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	c := &Conn{socket: socket, route: route, families: make(map[string]family)}
	c.sysfs, c.sysfsError = openSysfs()
	return c, nil
}

// Close closes it. It is no error to close it again.
func (c *Conn) Close() error {
	c.socket.Close()
	c.route.Close()
	if c.sysfs >= 0 {
		unix.Close(c.sysfs)
		c.sysfs, c.sysfsError = -1, errors.New("closed")
	}
	return nil
}

// Namespace returns a number of the network namespace that no other one ever
// has until the next boot (SO_NETNS_COOKIE, Linux 5.14).
func (c *Conn) Namespace() (uint64, error) {
	cookie, err := unix.GetsockoptUint64(c.socket.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's number: %w", err)
	}
	return cookie, nil
}

// attributes are those of one answer, by type.
type attributes map[uint16][]byte

func (a attributes) has(t uint16) bool { _, ok := a[t]; return ok }

// uint reads an unsigned number of any size, 0 if there is none.
func (a attributes) uint(t uint16) uint64 {
	switch v := a[t]; len(v) {
	case 1:
		return uint64(v[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(v))
	case 4:
		return uint64(binary.NativeEndian.Uint32(v))
	case 8:
		return binary.NativeEndian.Uint64(v)
	}
	return 0
}

func parse(b []byte) (attributes, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, fmt.Errorf("understand the kernel's answer: %w", err)
	}
	a := make(attributes, len(list))
	for _, l := range list {
		a[l.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = l.Value
	}
	return a, nil
}

// do sends a request and returns the one answer, which may be empty.
func (c *Conn) do(name string, command uint8, request ...*nl.RtAttr) (attributes, error) {
	answers, err := c.exchange(name, command, unix.NLM_F_ACK, request)
	if err != nil || len(answers) == 0 {
		return nil, err
	}
	return answers[0], nil
}

// dump sends a request and returns all the answers.
func (c *Conn) dump(name string, command uint8, request ...*nl.RtAttr) ([]attributes, error) {
	return c.exchange(name, command, unix.NLM_F_DUMP, request)
}

func (c *Conn) exchange(name string, command uint8, flags int, request []*nl.RtAttr) ([]attributes, error) {
	f, err := c.family(name)
	if err != nil {
		return nil, err
	}
	if name != controller && !slices.Contains(f.commands, command) {
		return nil, fmt.Errorf("%w: this kernel's netlink family %s has no command %d", ErrUnsupported, name, command)
	}
	r := nl.NewNetlinkRequest(int(f.id), flags)
	r.AddData(header{command, 1})
	for _, a := range request {
		r.AddData(a)
	}
	if err := c.socket.Send(r); err != nil {
		return nil, fmt.Errorf("ask the kernel: %w", err)
	}
	// The library's own way to execute a request ends at the first message that
	// is not marked as one of many, and the family netdev marks none: what ends
	// a dump is its last message, and what ends anything else the kernel's
	// acknowledgement.
	var answers []attributes
	for {
		messages, _, err := c.socket.Receive()
		if err != nil {
			return nil, fmt.Errorf("wait for the kernel's answer: %w", err)
		}
		for _, m := range messages {
			if m.Header.Seq != r.Seq {
				continue // of a request that was given up
			}
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return answers, refusal(m.Header.Flags, m.Header.Type, m.Data)
			}
			if len(m.Data) < nl.SizeofGenlmsg {
				return nil, errors.New("understand the kernel's answer: it is too short")
			}
			a, err := parse(m.Data[nl.SizeofGenlmsg:])
			if err != nil {
				return nil, err
			}
			answers = append(answers, a)
		}
	}
}

// header is struct genlmsghdr: command, version and two reserved bytes, which
// the kernel wants to be zero and the library's own type leaves to chance.
type header [nl.SizeofGenlmsg]byte

func (h header) Len() int          { return len(h) }
func (h header) Serialize() []byte { return h[:] }

// refusal turns the last message of an answer into an error, with the kernel's
// own words if there are any (NLMSGERR_ATTR_MSG of the extended acknowledgement).
func refusal(flags, kind uint16, data []byte) error {
	const (
		attributeMessage = 1
		errorSize        = 4
		// An error repeats the request, or only its header if capped.
		capped, extended = 0x100, 0x200
	)
	if len(data) < errorSize {
		return nil
	}
	number := int32(binary.NativeEndian.Uint32(data))
	if number >= 0 {
		return nil
	}
	err := explain(unix.Errno(-number))
	if flags&extended == 0 {
		return err
	}
	rest := data[errorSize:]
	if kind == unix.NLMSG_ERROR {
		if len(rest) < unix.NLMSG_HDRLEN {
			return err
		}
		skip := unix.NLMSG_HDRLEN
		if flags&capped == 0 {
			skip = (int(binary.NativeEndian.Uint32(rest)) + 3) &^ 3
		}
		if skip > len(rest) {
			return err
		}
		rest = rest[skip:]
	}
	if a, e := parse(rest); e == nil && a.has(attributeMessage) {
		return fmt.Errorf("%w (%s)", err, bytes.TrimRight(a[attributeMessage], "\x00"))
	}
	return err
}

// explain says what an error number means here.
func explain(e unix.Errno) error {
	switch e {
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("%w: CAP_NET_ADMIN is needed: %w", ErrPrivilege, e)
	case unix.EOPNOTSUPP:
		return fmt.Errorf("%w: %w", ErrUnsupported, e)
	case unix.ENOENT, unix.ENODEV:
		return fmt.Errorf("%w: %w", ErrGone, e)
	}
	return e
}

// family finds a family and what it can do.
func (c *Conn) family(name string) (family, error) {
	if name == controller {
		return family{id: controllerID}, nil
	}
	if f, ok := c.families[name]; ok {
		return f, nil
	}
	answer, err := c.do(controller, controllerGetFamily, nl.NewRtAttr(familyName, nl.ZeroTerminated(name)))
	if errors.Is(err, ErrGone) {
		return family{}, fmt.Errorf("%w: this kernel (%s) has no netlink family %s; netdev needs Linux 6.3 and its queues 6.8", ErrUnsupported, release(), name)
	}
	if err != nil {
		return family{}, fmt.Errorf("find netlink family %s: %w", name, err)
	}
	f := family{id: uint16(answer.uint(familyID))}
	operations, err := parse(answer[familyOperations])
	if err != nil {
		return family{}, err
	}
	for _, o := range operations {
		a, err := parse(o)
		if err != nil {
			return family{}, err
		}
		f.commands = append(f.commands, uint8(a.uint(operationID)))
	}
	c.families[name] = f
	return f, nil
}

// has says whether a family has a command.
func (c *Conn) has(name string, command uint8) (bool, error) {
	f, err := c.family(name)
	if errors.Is(err, ErrUnsupported) {
		return false, nil
	}
	return slices.Contains(f.commands, command), err
}

// release is the running kernel's version, for messages.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
