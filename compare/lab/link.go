package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pollux-net/pollux/runtime"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ensureLink joins the two namespaces by a veth with the configured number of
// queues, unless they are.
func (l *Lab) ensureLink() (created bool, err error) {
	if l.linkFits() {
		return false, nil
	}
	for _, side := range Sides {
		if err := removeLink(l.config.Name, side); err != nil {
			return false, err
		}
	}
	client, err := netns.GetFromName(l.Namespace(Client))
	if err != nil {
		return false, fmt.Errorf("open network namespace %s: %w", l.Namespace(Client), err)
	}
	defer client.Close()
	err = l.Do(Server, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = ServerInterface
		attrs.MTU = MTU
		attrs.NumRxQueues = l.config.Queues
		attrs.NumTxQueues = l.config.Queues
		veth := netlink.NewVeth(attrs)
		veth.PeerName = ClientInterface
		veth.PeerNamespace = netlink.NsFd(client)
		veth.PeerNumRxQueues = uint32(l.config.Queues)
		veth.PeerNumTxQueues = uint32(l.config.Queues)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make the veth %s and %s with %d queues: %w", ServerInterface, ClientInterface, l.config.Queues, err)
		}
		return nil
	})
	return err == nil, err
}

// linkFits says whether both ends exist, are each other's peers, and have the
// right number of queues. Whatever else may be wrong can be mended in place.
func (l *Lab) linkFits() bool {
	var ends [2]*netlink.LinkAttrs
	for i, side := range Sides {
		err := l.Do(side, func() error {
			link, err := netlink.LinkByName(Interface(side))
			if err == nil && link.Type() == "veth" {
				ends[i] = link.Attrs()
			}
			return err
		})
		if err != nil || ends[i] == nil || ends[i].NumRxQueues != l.config.Queues || ends[i].NumTxQueues != l.config.Queues {
			return false
		}
	}
	return ends[0].ParentIndex == ends[1].Index && ends[1].ParentIndex == ends[0].Index
}

// removeLink removes a side's interface, and with it its peer. It is no error
// if there is none.
func removeLink(name string, side Side) error {
	namespace := namespaceOf(name, side)
	exists, err := namespaceExists(namespace)
	if err != nil || !exists {
		return err
	}
	return within(namespace, func() error {
		link, err := netlink.LinkByName(Interface(side))
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s from %s: %w", Interface(side), namespace, err)
		}
		return nil
	})
}

// The configuration lives in the alias of the server's interface: it is there
// exactly as long as the lab is, and ip link shows it.
const aliasMark = "pollux-lab"

// maxAlias is the longest alias that the kernel takes (IFALIASZ less the end).
const maxAlias = 255

func (c Config) alias() (string, error) {
	alias := fmt.Sprintf("%s path=%s client-path=%s queues=%d placement=%s server-cores=%s client-cores=%s", aliasMark,
		c.Path, c.ClientPath, c.Queues, c.Placement, FormatCores(c.ServerCores), FormatCores(c.ClientCores))
	if len(alias) > maxAlias {
		return "", fmt.Errorf("the lab's processors %s and %s are too scattered to be noted on %s; use fewer or adjacent ones",
			FormatCores(c.ServerCores), FormatCores(c.ClientCores), ServerInterface)
	}
	return alias, nil
}

func parseAlias(name, alias string) (Config, error) {
	c := Config{Name: name}
	fields := strings.Fields(alias)
	if len(fields) == 0 || fields[0] != aliasMark {
		return c, fmt.Errorf("%s carries no lab's configuration", ServerInterface)
	}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "path":
			c.Path = runtime.Path(value)
		case "client-path":
			c.ClientPath = runtime.Path(value)
		case "queues":
			c.Queues, err = strconv.Atoi(value)
		case "placement":
			c.Placement = Placement(value)
		case "server-cores":
			c.ServerCores, err = ParseCores(value)
		case "client-cores":
			c.ClientCores, err = ParseCores(value)
		default:
			err = fmt.Errorf("%q is unknown", key)
		}
		if err != nil {
			return c, fmt.Errorf("read the lab's configuration from %s: %w", ServerInterface, err)
		}
	}
	return c.complete()
}
