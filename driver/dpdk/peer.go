package dpdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// Attributes and messages of rtnetlink that package syscall lacks
// (linux/if_link.h, linux/net_namespace.h).
const (
	iflaLinkNetNSID = 37
	iflaXDP         = 43
	iflaXDPProgID   = 4
	iflaInfoKind    = 1
	rtmGetNSID      = 90
	netnsaNSID      = 1
	netnsaFD        = 3
)

// errHidden says that the other end of a veth cannot be looked at.
var errHidden = errors.New("the peer is out of reach")

// checkPeer fails if the device is a veth whose other end hands over frames
// that no wire would carry: with checksums left to be computed, or larger than
// the MTU. The kernel's stack would not notice; a stack that reads from the
// driver gets wrong checksums and frames that are cut. A peer that cannot be
// looked at passes, but is suspect.
func (d *netdev) checkPeer() (suspect bool, _ error) {
	peer, err := d.peer()
	if err != nil || peer == nil {
		return err != nil, nil
	}
	defer peer.close()
	var on []string
	for _, o := range []struct {
		command uint32
		name    string
	}{{ethtoolGetTxChecksum, "transmit checksumming"}, {ethtoolGetTSO, "TCP segmentation offload"}} {
		value := struct{ command, data uint32 }{command: o.command}
		if ethtool(peer.socket, peer.name, unsafe.Pointer(&value)) == nil && value.data != 0 {
			on = append(on, o.name)
		}
	}
	if len(on) == 0 {
		return false, nil
	}
	where := ""
	if peer.where != "" {
		where = " in network namespace " + peer.where
	}
	return false, fmt.Errorf("its peer %s%s has %s on and would send frames with wrong checksums or too large; run there: ethtool -K %s tx off tso off gso off",
		peer.name, where, strings.Join(on, " and "), peer.name)
}

// peer is the other end of a veth.
type peer struct {
	name   string
	where  string // its network namespace, empty if that is ours
	socket int    // in that namespace
}

func (p *peer) close() { syscall.Close(p.socket) }

// peer finds the other end of a veth; nil if the device is none, errHidden if
// it lies in a network namespace that we cannot find or enter.
func (d *netdev) peer() (*peer, error) {
	link, err := linkOf(d.index)
	if err != nil || link.kind != "veth" || link.peer == 0 {
		return nil, err
	}
	if !link.elsewhere {
		return peerHere(link.peer, "")
	}
	for _, path := range namespaces() {
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		id, err := namespaceID(file)
		if err != nil || id != link.namespace {
			file.Close()
			continue
		}
		var found *peer
		err = inNamespace(file.Fd(), func() (err error) {
			found, err = peerHere(link.peer, filepath.Base(path))
			return err
		})
		file.Close()
		return found, err
	}
	return nil, errHidden
}

// peerHere finds a device by index in the calling thread's namespace.
func peerHere(index int, where string) (*peer, error) {
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var r ifreq
	*(*int32)(unsafe.Pointer(&r.data)) = int32(index)
	if err := ioctl(s, siocgifname, &r); err != nil {
		syscall.Close(s)
		return nil, err
	}
	name, _, _ := strings.Cut(string(r.name[:]), "\x00")
	return &peer{name: name, where: where, socket: s}, nil
}

// namespaces lists where network namespaces can be found: those that have a
// name, then those of processes.
func namespaces() []string {
	named, _ := filepath.Glob("/run/netns/*")
	docker, _ := filepath.Glob("/run/docker/netns/*")
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	seen := map[uint64]bool{}
	var all []string
	for _, path := range append(append(named, docker...), processes...) {
		var s syscall.Stat_t
		if syscall.Stat(path, &s) == nil && !seen[s.Ino] {
			seen[s.Ino] = true
			all = append(all, path)
		}
	}
	return all
}

// link is what rtnetlink tells of a device.
type link struct {
	kind      string
	peer      int  // index of the device at the other end
	elsewhere bool // which is in another namespace:
	namespace int32
	program   uint32 // XDP program on the device, 0 if none
}

func linkOf(index int) (link, error) {
	table, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return link{}, err
	}
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return link{}, err
	}
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != syscall.RTM_NEWLINK || (*syscall.IfInfomsg)(unsafe.Pointer(&m.Data[0])).Index != int32(index) {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return link{}, err
		}
		var l link
		for _, a := range attributes {
			switch a.Attr.Type {
			case syscall.IFLA_LINK:
				l.peer = int(int32(binary.NativeEndian.Uint32(a.Value)))
			case iflaLinkNetNSID:
				l.elsewhere, l.namespace = true, int32(binary.NativeEndian.Uint32(a.Value))
			case syscall.IFLA_LINKINFO:
				kind, _, _ := strings.Cut(string(nested(a.Value, iflaInfoKind)), "\x00")
				l.kind = kind
			case iflaXDP:
				if id := nested(a.Value, iflaXDPProgID); len(id) == 4 {
					l.program = binary.NativeEndian.Uint32(id)
				}
			}
		}
		return l, nil
	}
	return link{}, syscall.ENODEV
}

// nested finds the value of an attribute among those in b.
func nested(b []byte, kind uint16) []byte {
	for len(b) >= syscall.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < syscall.SizeofRtAttr || n > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return b[syscall.SizeofRtAttr:n]
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return nil
}

// namespaceID is the number by which the calling thread's network namespace
// knows another one, -1 if it knows it by none.
func namespaceID(file *os.File) (int32, error) {
	s, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(s)
	const header, family, attribute = syscall.NLMSG_HDRLEN, 4, 8
	request := make([]byte, header+family+attribute)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], rtmGetNSID)
	binary.NativeEndian.PutUint16(request[6:], syscall.NLM_F_REQUEST)
	binary.NativeEndian.PutUint16(request[header+family:], attribute)
	binary.NativeEndian.PutUint16(request[header+family+2:], netnsaFD)
	binary.NativeEndian.PutUint32(request[header+family+4:], uint32(file.Fd()))
	if err := syscall.Sendto(s, request, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return -1, err
	}
	reply := make([]byte, 512)
	n, _, err := syscall.Recvfrom(s, reply, 0)
	if err != nil {
		return -1, err
	}
	if n < header+family+attribute || binary.NativeEndian.Uint16(reply[4:]) == syscall.NLMSG_ERROR ||
		binary.NativeEndian.Uint16(reply[header+family+2:]) != netnsaNSID {
		return -1, syscall.EINVAL
	}
	return int32(binary.NativeEndian.Uint32(reply[header+family+4:])), nil
}
