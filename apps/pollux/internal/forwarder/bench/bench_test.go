package bench

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const rounds = 15

// series are the rounds of one contestant.
type series struct {
	name    string
	mpps    []float64
	percore []float64 // by processor time
	refused []float64 // share of what was offered that did not come out
	offered []float64 // by the generator
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// contestant is one of those that are compared.
type contestant struct {
	series
	processes []*os.Process
	run       func() rate // its turn; the processes run
}

// compete has every contestant run in each round, in an order that changes, with
// all others stopped.
func compete(title string, all []*contestant) {
	for round := range rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			for _, p := range c.processes {
				resume(p)
			}
			r := c.run()
			for _, p := range c.processes {
				pause(p)
			}
			c.mpps = append(c.mpps, r.mpps())
			c.percore = append(c.percore, float64(r.Frames)/r.Busy.Seconds()/1e6)
			if r.Offered > 0 {
				c.offered = append(c.offered, float64(r.Offered)/r.Elapsed.Seconds()/1e6)
				c.refused = append(c.refused, max(0, 1-float64(r.Frames)/float64(r.Offered)))
			}
		}
	}
	print(title, all)
	for _, c := range all {
		for _, p := range c.processes {
			resume(p)
		}
	}
}

// print shows the medians, and each against the first.
func print(title string, all []*contestant) {
	fmt.Printf("\n%s\n%-40s %8s %8s %8s   %s\n", title, "", "Mpps", "per core", "of first", "rounds")
	for _, s := range all {
		fmt.Printf("%-40s %8.2f %8.2f %8.2f  ", s.name, median(s.mpps), median(s.percore), median(s.mpps)/median(all[0].mpps))
		for _, m := range s.mpps {
			fmt.Printf(" %.2f", m)
		}
		if len(s.refused) > 0 {
			fmt.Printf("; of the %.2f offered %.0f %% did not pass", median(s.offered), 100*median(s.refused))
		}
		fmt.Println()
	}
}

const measure = 120 * time.Millisecond

// BenchmarkNull: a device that makes frames, and takes them, for nothing. What is
// left is a burst's calls into the driver, a mempool's get and put, and the
// forwarder. Ours also writes the frame that it is to forward; testpmd's stays as
// it is. The limit of the path.
func BenchmarkNull(b *testing.B) {
	for b.Loop() {
		t := startTestpmd(b, "loop", "net_null0,size=60")
		pause(t.cmd.Process)
		all := []*contestant{{series: series{name: "testpmd macswap"}, processes: []*os.Process{t.cmd.Process},
			run: func() rate { return t.watch(b, 1, measure) }}}
		var actors []*actor
		for _, v := range variants {
			a := perform(b, part{Role: "forwarder", Variant: v.name, Devices: []string{"net_null0,size=60", "net_null1,size=60"}, Stamp: true, Measure: measure})
			pause(a.cmd.Process)
			actors = append(actors, a)
			all = append(all, &contestant{series: series{name: v.name}, processes: []*os.Process{a.cmd.Process}, run: func() rate {
				return a.tell(b, goOn)
			}})
		}
		compete("net_null, 64-byte frames, one core", all)
		t.quit(b)
		for _, a := range actors {
			a.leave(b)
		}
	}
}

// BenchmarkMemif: shared memory between two processes. The same generator, on the
// other core, sends by one wire and counts what comes back by another.
func BenchmarkMemif(b *testing.B) {
	for b.Loop() {
		var all []*contestant
		var leave []func(testing.TB)
		for i := range 1 + len(variants) {
			ours, theirs := memif(b)
			name, traffic := "testpmd macswap", variants[0].name
			var process *os.Process
			var end func(testing.TB)
			if i == 0 {
				t := startTestpmd(b, "paired", ours...)
				process, end = t.cmd.Process, t.quit
			} else {
				name, traffic = variants[i-1].name, variants[i-1].name
				a := perform(b, part{Role: "forwarder", Variant: name, Devices: ours})
				process, end = a.cmd.Process, a.leave
			}
			g := perform(b, part{Role: "generator", Variant: traffic, Devices: theirs, Measure: measure})
			pause(process)
			pause(g.cmd.Process)
			leave = append(leave, func(b testing.TB) { g.tell(b, stop) }, end, g.leave)
			all = append(all, &contestant{series: series{name: name}, processes: []*os.Process{process, g.cmd.Process}, run: func() rate {
				return watchGenerator(b, g, process.Pid)
			}})
		}
		compete("memif to a generator on the other core, 64-byte frames, one core each", all)
		for _, f := range leave {
			f(b)
		}
	}
}

// memif describes two wires, for both of their ends.
func memif(b *testing.B) (ours, theirs []string) {
	dir, err := os.MkdirTemp("", "pollux-memif-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	for i := range 2 {
		wire := fmt.Sprintf("socket=%s,socket-abstract=no,id=%d", filepath.Join(dir, fmt.Sprint(i)), i)
		address := mac(i, 1)
		ours = append(ours, fmt.Sprintf("net_memif%d,role=server,mac=%v,%s", i, net.HardwareAddr(address[:]), wire))
		theirs = append(theirs, fmt.Sprintf("net_memif%d,role=client,%s", i, wire))
	}
	return ours, theirs
}

// watchGenerator is what a generator measures, and what the thread that forwards
// has spent meanwhile.
func watchGenerator(b testing.TB, g *actor, pid int) (r rate) {
	b.Helper()
	time.Sleep(measure / 4)
	before, err1 := busiest(pid)
	begin := time.Now()
	r = g.tell(b, goOn)
	after, err2 := busiest(pid)
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	share := (after - before).Seconds() / time.Since(begin).Seconds()
	r.Busy = time.Duration(share * float64(r.Elapsed))
	return r
}
