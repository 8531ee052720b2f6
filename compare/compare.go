// Package compare measures servers on both network paths on one machine, in one
// run, and says which one to use. It makes the lab, runs every subject of a plan
// as a process on one core, loads it from another, interleaves the rounds,
// measures what each request costs, checks that each mode was really in force,
// and writes everything down: results.json, a table, a verdict.
package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/result"
	"github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
)

// DefaultLab is the name of the lab that a run makes.
const DefaultLab = "pollux-compare"

// Config says what to run and where to put it.
type Config struct {
	Plan result.Plan
	// Seed of the load; default 1.
	Seed uint64
	// Dir is the directory for results.json.
	Dir string
	// Resume goes on with what Dir has of the same plan.
	Resume bool
	// Pollux is the file of this program, which is started as server and client.
	Pollux string
	// Lab is the lab's name, default DefaultLab. It must not be up.
	Lab string
	// Device is a NIC to measure on instead of the lab; Address is its address,
	// with the prefix length, and Client where the load's agent on another box
	// listens, HOST:PORT, on another network than the device's.
	Device  string
	Address netip.Prefix
	Client  string
	// ServerCore and ClientCore; if both are 0, the first two that may be used.
	// With a Device, ClientCore has what is neither server nor client.
	ServerCore, ClientCore int
	// Versions are added to those that are found.
	Versions map[string]string
	// Out gets a few lines about the run; nil is nowhere.
	Out io.Writer
	// Bar gets a progress bar with the time left; nil is none.
	Bar io.Writer
}

// Run carries a plan out. If ctx ends, it takes everything down, writes what it
// has, and returns that with the context's error.
func Run(ctx context.Context, c Config) (_ result.Results, err error) {
	if c.Lab == "" {
		c.Lab = DefaultLab
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if err := Validate(c.Plan); err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	if err := c.chooseCores(); err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	settle(&c.Plan.Workload)
	c.Plan.Device, c.Plan.Placement = c.Device, c.placement()
	if c.Device != "" {
		if c.Plan.Workload.Engine, err = c.awaitAgent(ctx); err != nil {
			return result.Results{}, fmt.Errorf("compare: %w", err)
		}
	}
	machine, err := describeMachine(c.ServerCore, c.Pollux, c.Versions)
	if err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	results := &result.Results{Schema: result.Schema, Started: time.Now().UTC(), Seed: c.Seed, Plan: c.Plan, Machine: machine}
	if c.Resume {
		if results, err = resume(c.Dir, c.Plan, c.Seed, machine); err != nil {
			return result.Results{}, fmt.Errorf("compare: %w", err)
		}
	}
	if c.Device == "" {
		if state, err := lab.Status(c.Lab); err != nil {
			return result.Results{}, fmt.Errorf("compare: %w", err)
		} else if !state.Down {
			return result.Results{}, fmt.Errorf("compare: lab %s is up already, somebody may be using it: pollux lab down --name %s, or choose another name", c.Lab, c.Lab)
		}
	}
	dir, err := os.MkdirTemp("", "pollux-compare-")
	if err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	defer os.RemoveAll(dir)
	restore, err := affinity.Confine(c.ClientCore)
	if err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	defer func() { err = errors.Join(err, restore()) }()
	calm, err := hurry()
	if err != nil {
		return result.Results{}, fmt.Errorf("compare: %w", err)
	}
	defer func() { err = errors.Join(err, calm()) }()
	where := c.place(dir)
	defer func() { err = errors.Join(err, where.restore()) }()
	b := &bench{place: where, pollux: c.Pollux, server: c.ServerCore, helper: c.ClientCore, plan: c.Plan, seed: c.Seed, dir: dir}
	b.know(results)
	save := func() error {
		results.Finished = time.Now().UTC()
		results.Machine.Settings = b.settingsList()
		conclude(results)
		return writeResults(c.Dir, results)
	}
	fmt.Fprintf(c.Out, "%d subjects, %d rounds of each, interleaved: about %v.\n%s\n", len(c.Plan.Subjects), c.Plan.Repetitions, Estimate(c.Plan).Round(time.Second), results.Plan.Placement)
	bar := newProgress(c.Bar, Estimate(c.Plan))
	r := &run{results: results, stage: b, save: save, step: bar.step}
	ran := r.all(ctx)
	bar.end()
	return *results, errors.Join(ran, save())
}

func (c *Config) place(dir string) place {
	if c.Device != "" {
		return c.nic()
	}
	return &labPlace{name: c.Lab, pollux: c.Pollux, serverCore: c.ServerCore, clientCore: c.ClientCore, engine: load.Engine(c.Plan.Workload.Engine), dir: dir}
}

func (c *Config) nic() *devicePlace {
	return &devicePlace{device: c.Device, address: c.Address, agent: c.Client, serverCore: c.ServerCore}
}

// awaitAgent waits until the load's agent can be reached, says what to run if it
// cannot, and returns the agent's engine.
func (c *Config) awaitAgent(ctx context.Context) (engine string, err error) {
	p := c.nic()
	for told := false; ; {
		remote, leave, err := p.client(ctx)
		if err == nil {
			return string(remote.Hello.Engine), leave()
		}
		if !errors.Is(err, errUnreachable) || ctx.Err() != nil {
			return "", err
		}
		if !told {
			told = true
			fmt.Fprintf(c.Out, "Waiting for the load at %s. On the other box, run:\n  %s\n", c.Client, p.agentCommand())
		}
		if err := sleep(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// chooseCores takes one core for each side.
func (c *Config) chooseCores() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return fmt.Errorf("ask which processors may be used: %w", err)
	}
	var allowed []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			allowed = append(allowed, i)
		}
	}
	if c.ServerCore == c.ClientCore {
		if len(allowed) < 2 {
			return fmt.Errorf("server and client need a processor each, this process may use %v", allowed)
		}
		c.ServerCore, c.ClientCore = allowed[0], allowed[1]
	}
	for _, core := range []int{c.ServerCore, c.ClientCore} {
		if core < 0 || core >= len(set)*64 || !set.IsSet(core) {
			return fmt.Errorf("processor %d: this process may use %v", core, allowed)
		}
	}
	return nil
}

// placement says what runs where.
func (c *Config) placement() string {
	if c.Device != "" {
		return fmt.Sprintf("Server and the only interrupt of %s on core %d, what measures it on core %d; the load comes from %s.", c.Device, c.ServerCore, c.ClientCore, c.Client)
	}
	return fmt.Sprintf("Server on core %d, client on core %d, nothing else of ours. Receive work of the server's end: on the %s path on the server's core, in a thread above all others that stands for a NIC's interrupt; on the %s path on the client's core, where it stands for a NIC's DMA.",
		c.ServerCore, c.ClientCore, runtime.Kernel, runtime.User)
}
