package compare

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
)

// A place is where servers and their load meet: the lab, or a NIC with another
// box behind it.
type place interface {
	// ready makes it what a path needs and returns every setting as it was
	// read back.
	ready(path runtime.Path) ([]result.Setting, error)
	// in runs a function on a thread in the server's network namespace, start a
	// program there.
	in(f func() error) error
	start(cmd *exec.Cmd) error
	// client takes over the load's agent; what it returns lets go of it.
	client(ctx context.Context) (*load.Remote, func() error, error)
	// server is where servers are: device and address.
	server() (device string, address netip.Prefix)
	// restore leaves everything as it was found.
	restore() error
}

// labPlace is the lab, with an agent in it that is started for each visit.
type labPlace struct {
	name       string
	pollux     string
	serverCore int // core
	clientCore int
	engine     load.Engine
	dir        string
	lab        *lab.Lab
}

func (p *labPlace) ready(path runtime.Path) ([]result.Setting, error) {
	config := lab.Config{Name: p.name, Path: path, ClientPath: runtime.Kernel, Queues: 1, ServerCores: []int{p.serverCore}, ClientCores: []int{p.clientCore}}
	if p.engine == load.User {
		config.ClientPath = runtime.User
	}
	l, err := lab.Up(config)
	if err != nil {
		return nil, err
	}
	p.lab = l
	settings, err := l.Verify()
	if err != nil {
		return nil, err
	}
	var list []result.Setting
	for _, s := range settings {
		list = append(list, result.Setting{Where: fmt.Sprintf("%s path, %s", path, s.Side), Name: s.Name, Value: s.Got})
	}
	return list, nil
}

func (p *labPlace) in(f func() error) error { return p.lab.Do(lab.Server, f) }

func (p *labPlace) start(cmd *exec.Cmd) error { return p.lab.Start(lab.Server, cmd) }

func (p *labPlace) server() (string, netip.Prefix) { return lab.ServerInterface, lab.ServerIPv4 }

func (p *labPlace) client(ctx context.Context) (*load.Remote, func() error, error) {
	argv := []string{p.pollux, "load", net.JoinHostPort(lab.ServerIPv4.Addr().String(), serverPort), "--serve", "-",
		"--engine", string(p.engine), "--cores", strconv.Itoa(p.clientCore)}
	if p.engine == load.User {
		argv = append(argv, "--device", lab.ClientInterface, "--address", lab.ClientIPv4.String())
	}
	c, err := start(func(cmd *exec.Cmd) error { return p.lab.Start(lab.Client, cmd) }, p.dir, "load", p.clientCore, argv, true)
	if err != nil {
		return nil, nil, err
	}
	remote, err := load.Attach(struct {
		io.Reader
		io.Writer
	}{c.stdout, c.stdin})
	if err != nil {
		stopped := c.stop()
		return nil, nil, c.explain(fmt.Errorf("%w (%v)", err, stopped))
	}
	return remote, c.stop, nil
}

func (p *labPlace) restore() error { return lab.Down(p.name) }
