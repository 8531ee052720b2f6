// Command station is what the end-to-end tests serve on the user path besides
// memcached: it receives and sends seeded streams, echoes, and says which shard
// it is asked on. Standard input carries commands ("report", "mode poll",
// "stop"), standard output one line of JSON for each. It is a program of its own
// so that bulk is carried without the race detector, whatever the tests run with.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/dpdk"
	"github.com/pollux-net/pollux/driver/wire"
	polluxruntime "github.com/pollux-net/pollux/runtime"
	"github.com/pollux-net/pollux/runtime/affinity"
	"github.com/pollux-net/pollux/runtime/user"
	"github.com/pollux-net/pollux/stack"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "station:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var (
		config    user.Config
		faults    wire.Faults
		addresses = flag.String("addresses", "", "with prefix lengths, separated by commas")
		device    = flag.String("device", "", "the kernel's name of the network device")
		cores     = flag.Int("cores", 1, "loops, each on a core of its own")
		mode      = flag.String("mode", string(polluxruntime.Adaptive), "how loops wait")
		impaired  = flag.Bool("impair", false, "put faults between device and stack, both ways")
		seed      = flag.Uint64("seed", 1, "of the faults")
	)
	flag.DurationVar(&config.Stack.TimeWait, "time-wait", 0, "how long TIME-WAIT lasts (default: the stack's)")
	dispatch := flag.String("dispatch", "", "the stack's: inline or handoff")
	flag.DurationVar(&config.Stack.Keepalive, "keepalive", 0, "silence before a peer is probed, and between probes (default: the stack's)")
	flag.DurationVar(&config.Stack.MinRTO, "min-rto", 0, "least retransmission timeout (default: the stack's)")
	flag.IntVar(&config.Stack.SendBuffer.Default, "send-buffer", 0, "bytes of the send buffer (default: the stack's)")
	flag.Float64Var(&faults.Loss, "loss", 0, "share of frames lost each way")
	flag.Float64Var(&faults.Duplicate, "duplicate", 0, "share of frames duplicated each way")
	flag.Float64Var(&faults.Reorder, "reorder", 0, "share of frames reordered each way")
	flag.DurationVar(&faults.ReorderDelay, "reorder-delay", 200*time.Microsecond, "how long a reordered frame is held back")
	flag.Parse()
	config.Stack.KeepaliveInterval = config.Stack.Keepalive

	for _, s := range strings.Split(*addresses, ",") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("-addresses: %w", err)
		}
		config.Stack.Addresses = append(config.Stack.Addresses, p)
	}
	config.Stack.Dispatch = stack.Dispatch(*dispatch)
	config.Mode = polluxruntime.Mode(*mode)
	allowed, err := affinity.Allowed()
	if err != nil {
		return err
	}
	if *cores > len(allowed) {
		return fmt.Errorf("-cores %d: there are %d", *cores, len(allowed))
	}
	config.Cores = allowed[:*cores]
	config.EnterThread = func() (func(), error) { return dpdk.UnregisterThread, dpdk.RegisterThread() }

	if err := dpdk.Init(dpdk.Options{Memory: dpdk.DefaultMemory + 32*(*cores-1)}); err != nil {
		return err
	}
	opened, err := dpdk.Open(dpdk.Config{Device: *device, Queues: *cores, Interrupts: true})
	if err != nil {
		return err
	}
	var port driver.Port = opened
	if *impaired {
		started := time.Now()
		port, err = wire.Impair(opened, wire.Config{Seed: *seed, Ring: 8192, Faults: [2]wire.Faults{faults, faults}},
			func() time.Duration { return time.Since(started) })
		if err != nil {
			return errors.Join(err, opened.Close())
		}
	}
	s := &station{port: port, opening: port.FreeFrames()}
	defer func() { err = errors.Join(err, port.Close()) }()
	if s.runtime, err = user.New(port, config); err != nil {
		return err
	}
	for number, h := range map[uint16]polluxruntime.Handler{
		stream.ReceivePort: receiver{}, stream.SendPort: sender{}, stream.EchoPort: echo{},
	} {
		if err := s.runtime.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), number), h); err != nil {
			s.runtime.Discard()
			return err
		}
	}
	if err := s.runtime.Start(); err != nil {
		return err
	}
	served := s.serve()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := errors.Join(served, s.runtime.Shutdown(ctx)); err != nil {
		return err
	}
	if *impaired {
		drain(port)
	}
	// Everything is closed: the last report must show the opening state.
	return json.NewEncoder(os.Stdout).Encode(stream.Report{OpeningFrames: s.opening, FreeFrames: port.FreeFrames()})
}

// drain takes what is still under way between the device and the stack that was
// there: those frames are nobody's.
func drain(p driver.Port) {
	var frames [32]driver.Frame
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
		for i := range p.Queues() {
			driver.Free(frames[:p.Queue(i).Receive(frames[:])])
		}
	}
}

// station is a runtime and what it is asked about.
type station struct {
	runtime *user.Runtime
	port    driver.Port
	opening int // free frames when the port had been opened
}

// serve carries out commands until it is told to stop, or the runtime ends.
func (s *station) serve() error {
	out := json.NewEncoder(os.Stdout)
	commands := make(chan string)
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			commands <- in.Text()
		}
		close(commands)
	}()
	if err := out.Encode("serving"); err != nil {
		return err
	}
	for {
		var command string
		select {
		case <-s.runtime.Done():
			return errors.New("the loops ended by themselves")
		case command = <-commands:
		}
		verb, argument, _ := strings.Cut(command, " ")
		var reply any = "ok"
		switch verb {
		case "report":
			report, err := s.report()
			if err != nil {
				return err
			}
			reply = report
		case "mode":
			if err := s.runtime.SetMode(polluxruntime.Mode(argument)); err != nil {
				return err
			}
		case "stop", "": // also the end of input
			return nil
		default:
			return fmt.Errorf("no such command: %q", command)
		}
		if err := out.Encode(reply); err != nil {
			return err
		}
	}
}

func (s *station) report() (*stream.Report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	shards, err := s.runtime.Statistics(ctx)
	if err != nil {
		return nil, err
	}
	r := &stream.Report{OpeningFrames: s.opening, Shards: shards}
	for i := range shards {
		n := make(chan int, 1)
		k := s.runtime.Stack(i)
		if !k.Post(func() { n <- k.Endpoints() }) {
			return nil, user.ErrStopped
		}
		r.Endpoints += <-n
	}
	if r.Device, err = s.port.Statistics(); err != nil {
		return nil, err
	}
	runtime.GC() // Goroutines that have ended are gone; what they held is freed.
	r.Goroutines = runtime.NumGoroutine()
	r.FreeFrames = s.port.FreeFrames()
	return r, nil
}
