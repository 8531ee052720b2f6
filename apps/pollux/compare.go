package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/pollux-net/pollux/compare"
	"github.com/pollux-net/pollux/compare/load"
	"github.com/pollux-net/pollux/compare/report"
	"github.com/pollux-net/pollux/compare/result"
)

// compareFlags are those that need more than to be stored.
type compareFlags struct {
	quick, full         bool
	plan, against       string
	subjects, servers   []string
	serverCore, clients int
	rates, fractions    []float64
	address             string
}

func newCompareCommand() *cobra.Command {
	var config compare.Config
	var flags compareFlags
	command := &cobra.Command{
		Use:   "compare",
		Short: "Measure both paths in their modes, and say which one to use",
		Long: `Makes the lab, serves memcached on both paths in several modes and by others'
servers, each on one core, loads each from another core, and says which is better
by how much, with everything that makes a figure doubtful. Rounds are interleaved:
the first of every subject, then the second of every.

Subjects are PATH/MODE (user/poll, kernel/kernel-polling), user/MODE/handoff for
netstack's stock dispatch, memcached for Debian's, memcached+attach for the same
with kernel polling set from outside ("pollux attach"), and with --server any
command that serves memcached's protocol.

With --device it measures on a real NIC, with the load on another box, where
"pollux load" waits as an agent; what to run there is printed. The NIC is given
one queue, whose interrupt goes to the server's core, and its address belongs to
the path that is measured; all of that is put back.

Writes results.json to a directory after every visit of a subject, and report.md
and report.html at the end; --resume goes on with it. The first
interrupt, or the terminal's end, ends the run in order and writes what there is.`,
		Example: `  pollux compare
  pollux compare --full --out results/full
  pollux compare --subject user/poll,kernel/vanilla --duration 5s --repetitions 5
  pollux compare --server 'mine=/opt/mine/memcached -u root -l {host} -p {port}'
  pollux compare --against results/full/results.json
  pollux compare --device ens1f0 --address 10.0.0.1/24 --client 192.168.1.2:7070`,
		Args: cobra.NoArgs,
	}
	f := command.Flags()
	f.BoolVar(&flags.quick, "quick", false, "the plan for a first answer, under 4 minutes (default)")
	f.BoolVar(&flags.full, "full", false, "the whole matrix, with latency against offered load: about an hour")
	f.StringVar(&flags.plan, "plan", "", "read the plan from this TOML file; flags override it")
	f.StringSliceVar(&flags.subjects, "subject", nil, "subjects to measure instead of the plan's, separated by commas")
	f.StringArrayVar(&flags.servers, "server", nil, "one more subject, NAME=COMMAND; {host}, {port} and {device} are filled in; repeat for more")
	f.StringVar(&config.Dir, "out", filepath.Join("results", "latest"), "the directory to write to")
	f.BoolVar(&config.Resume, "resume", false, "go on with what an interrupted run of the same plan has left there")
	f.StringVar(&flags.against, "against", "", "compare with an earlier run's results.json")
	f.StringVar(&config.Lab, "name", compare.DefaultLab, "the name of the lab to make")
	f.Uint64Var(&config.Seed, "seed", 1, "of the load")
	f.StringVar(&config.Device, "device", "", "measure on this NIC instead of the lab, with --address and --client")
	f.StringVar(&flags.address, "address", "", "the NIC's address with its prefix length, like 10.0.0.1/24")
	f.StringVar(&config.Client, "client", "", "where, on the other box, pollux load ADDRESS:11211 --serve HOST:PORT waits; on another network than the NIC's")
	f.IntVar(&flags.serverCore, "server-core", -1, "the server's processor (default: the first)")
	f.IntVar(&flags.clients, "client-core", -1, "the client's processor (default: the second)")
	f.Float64SliceVar(&flags.rates, "rates", nil, "loads to offer in requests per second; 0 is the closed loop, as fast as replies come")
	f.Float64SliceVar(&flags.fractions, "load-fractions", nil, "loads to offer as parts of the highest closed-loop throughput, like 0.25,0.5,0.75")
	var given result.Plan
	f.BoolVar(&given.Search, "search", false, "search for the highest load that each subject follows, offered whether replies come or not")
	f.IntVar(&given.Repetitions, "repetitions", 0, "rounds of each subject (default: the plan's, as with all of these)")
	f.DurationVar(&given.Warmup, "warmup", 0, "load before each round; the server's costs are measured then")
	f.DurationVar(&given.Duration, "duration", 0, "measured load in each round")
	f.StringVar(&given.Workload.Kind, "workload", "", "what is asked for: mixed, get, set or etc")
	f.StringVar(&given.Workload.Engine, "engine", "", "what carries the load in the lab: user (the plans' default), our own stack, which costs less per request than the servers, or kernel, by whose cost few servers meet their limit (with --device: the agent's)")
	f.IntVar(&given.Workload.Connections, "connections", 0, "connections of the client")
	f.IntVar(&given.Workload.Depth, "depth", 0, "requests under way at a time on a connection")
	f.IntVar(&given.Workload.Keys, "keys", 0, "keys")
	f.IntVar(&given.Workload.ValueSize, "value-size", 0, "bytes of a value (not with --workload etc)")
	f.Float64Var(&given.Workload.SetRatio, "set-ratio", 0, "share of sets among the requests of --workload mixed")
	command.MarkFlagsMutuallyExclusive("quick", "full", "plan")
	command.AddCommand(newComparePacketCommand())
	command.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if config.Plan, err = flags.choosePlan(f, given); err != nil {
			return err
		}
		switch set := f.Changed; {
		case set("server-core") != set("client-core"):
			return errors.New("--server-core and --client-core go together")
		case set("server-core") && flags.serverCore == flags.clients:
			return errors.New("--server-core and --client-core must differ")
		case set("server-core"):
			config.ServerCore, config.ClientCore = flags.serverCore, flags.clients
		}
		if err := flags.chooseDevice(&config, f); err != nil {
			return err
		}
		var earlier *result.Results
		if flags.against != "" { // before anything is measured for nothing
			r, err := compare.ReadResults(flags.against)
			if err != nil {
				return fmt.Errorf("--against: %w", err)
			}
			earlier = &r
		}
		if config.Pollux, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program's file: %w", err)
		}
		config.Versions = dpdkVersion()
		config.Out = cmd.OutOrStdout()
		if term.IsTerminal(int(os.Stderr.Fd())) {
			config.Bar = os.Stderr
		}
		results, err := compare.Run(untilHangUp(cmd.Context()), config)
		if err != nil && len(results.Rows) == 0 {
			return err
		}
		return errors.Join(err, reportComparison(cmd.OutOrStdout(), config.Dir, &results, earlier))
	}
	return command
}

// chooseDevice reads what belongs to a NIC.
func (f *compareFlags) chooseDevice(c *compare.Config, set *pflag.FlagSet) (err error) {
	if c.Device == "" {
		if f.address != "" || c.Client != "" {
			return errors.New("--address and --client go with --device")
		}
		return nil
	}
	if f.address == "" || c.Client == "" {
		return errors.New("--device needs its --address, and a --client on another box to load it")
	}
	if set.Changed("engine") {
		return errors.New("--engine is the agent's: give it to pollux load --serve on the other box")
	}
	if c.Address, err = netip.ParsePrefix(f.address); err != nil || !c.Address.Addr().Is4() {
		return fmt.Errorf("--address %q is not an IPv4 address with a prefix length, like 10.0.0.1/24", f.address)
	}
	if _, _, err := net.SplitHostPort(c.Client); err != nil {
		return fmt.Errorf("--client %q is not HOST:PORT", c.Client)
	}
	return nil
}

// dpdkVersion finds the version in the name of the library that this process has
// loaded: librte_eal.so.23.0 is that of DPDK 22.11, for one.
func dpdkVersion() map[string]string {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	_, rest, found := strings.Cut(string(maps), "librte_eal.so.")
	if !found {
		return nil
	}
	abi, _, _ := strings.Cut(rest, "\n")
	return map[string]string{"dpdk": "ABI " + abi}
}

// reportComparison prints what a run came to, and writes the reports.
func reportComparison(out io.Writer, dir string, results *result.Results, earlier *result.Results) error {
	// First the files: a terminal that went away is no reason not to write them.
	var paths []string
	var err error
	if earlier != nil {
		paths, err = report.WriteAgainst(dir, earlier, results)
	} else {
		paths, err = report.Write(dir, results)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := report.Table(out, results); err != nil {
		return err
	}
	printSaturation(out, results)
	if earlier != nil {
		fmt.Fprintf(out, "\n%s", report.Compare(earlier, results))
	}
	fmt.Fprintln(out)
	for _, path := range append(paths, filepath.Join(dir, "results.json")) {
		fmt.Fprintln(out, path)
	}
	return nil
}

// printSaturation says what a search has found.
func printSaturation(out io.Writer, results *result.Results) {
	for _, row := range results.Rows {
		switch s := row.Saturation; {
		case s == nil:
		case s.Rate == 0:
			fmt.Fprintf(out, "Saturation of %s: not found: %s\n", row.Subject, cmp.Or(s.Why, "no load that was offered was followed"))
		default:
			fmt.Fprintf(out, "Saturation of %s: follows %.0f requests/s offered (p99 %v), not %.0f; %s\n", row.Subject, s.Rate, s.Latency.P99.Round(time.Microsecond), s.Beyond, s.Whose())
		}
	}
}

// choosePlan takes a plan and what flags say instead.
func (f *compareFlags) choosePlan(set *pflag.FlagSet, given result.Plan) (p result.Plan, err error) {
	switch {
	case f.plan != "":
		if p, err = compare.Load(f.plan); err != nil {
			return p, fmt.Errorf("--plan: %w", err)
		}
	case f.full:
		p = compare.Full()
	default:
		p = compare.Quick()
	}
	if len(f.subjects) > 0 {
		if p.Subjects, err = compare.ParseSubjects(f.subjects); err != nil {
			return p, fmt.Errorf("--subject: %w", err)
		}
	}
	for _, s := range f.servers {
		name, command, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return p, fmt.Errorf("--server %q: write NAME=COMMAND", s)
		}
		subject, err := compare.External(name, command)
		if err != nil {
			return p, fmt.Errorf("--server: %w", err)
		}
		p.Subjects = append(p.Subjects, subject)
	}
	for name, take := range map[string]func(){
		"rates":          func() { p.Rates = f.rates },
		"load-fractions": func() { p.Fractions = f.fractions },
		"repetitions":    func() { p.Repetitions = given.Repetitions },
		"warmup":         func() { p.Warmup = given.Warmup },
		"duration":       func() { p.Duration = given.Duration },
		"workload":       func() { p.Workload.Kind = given.Workload.Kind },
		"search":         func() { p.Search = given.Search },
		"engine":         func() { p.Workload.Engine = given.Workload.Engine },
		"connections":    func() { p.Workload.Connections = given.Workload.Connections },
		"depth":          func() { p.Workload.Depth = given.Workload.Depth },
		"keys":           func() { p.Workload.Keys = given.Workload.Keys },
		"set-ratio":      func() { p.Workload.SetRatio = given.Workload.SetRatio },
	} {
		if set.Changed(name) {
			take()
		}
	}
	if set.Changed("set-ratio") && p.Workload.Kind != string(load.Mixed) {
		return p, fmt.Errorf("--set-ratio is for --workload %s; %s has its own", load.Mixed, p.Workload.Kind)
	}
	switch {
	case set.Changed("value-size"):
		p.Workload.ValueSize = given.Workload.ValueSize
	case p.Workload.Kind == "etc":
		p.Workload.ValueSize = 0 // as published
	}
	if err := compare.Validate(p); err != nil {
		return p, err
	}
	return p, nil
}
