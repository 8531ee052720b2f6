// Package forwarding compares who forwards packets, on one core: the kernel's own
// IP forwarding, the packet service's XDP twin, and the packet service in each of
// its modes. Each in turn is the router between two hosts of a test network, which
// a generator on another core floods with the shortest frames. Rounds are
// interleaved, and what counts is frames that arrive and processor time of the
// core that forwards.
package forwarding

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pollux-net/pollux/bpf/observe"
	"github.com/pollux-net/pollux/compare/measure"
)

// Config says what to compare.
type Config struct {
	// Subjects, in the order of their rows; all of them if there are none.
	Subjects []Subject
	// Pollux is this program's file, which is started for the packet service.
	Pollux string
	// Core is the router's processor, and Other the one of all else.
	Core, Other int
	// Rounds of each subject, of so long each.
	Rounds   int
	Duration time.Duration
	// Step, if not nil, is told what is about to happen.
	Step func(string)
}

// A Round is what a subject did in one. Times are in nanoseconds in JSON.
type Round struct {
	// Frames arrived at the server, of those Offered that the generator sent.
	Frames  uint64        `json:"frames"`
	Offered uint64        `json:"offered"`
	Elapsed time.Duration `json:"elapsed_ns"`
	// CPU is the router's time on its processor, interrupts and softirqs included,
	// polls that found nothing not. Foreign is the share that other programs took.
	CPU     time.Duration `json:"cpu_ns"`
	Foreign float64       `json:"foreign_share"`
	// Sleeps of the user path's loop.
	Sleeps uint64 `json:"sleeps"`
	// Idle is the share of the processor that was taken before the flood, while
	// nothing was to be forwarded.
	Idle float64 `json:"idle_share"`
}

// PerSecond is how many frames arrived in a second.
func (r Round) PerSecond() float64 { return float64(r.Frames) / r.Elapsed.Seconds() }

// Cost is the processor time of a frame.
func (r Round) Cost() time.Duration { return r.CPU / time.Duration(max(1, r.Frames)) }

// Busy is the share of its processor that the router used.
func (r Round) Busy() float64 { return r.CPU.Seconds() / r.Elapsed.Seconds() }

// Lost is the share of what was offered that did not arrive.
func (r Round) Lost() float64 { return max(0, 1-float64(r.Frames)/float64(max(1, r.Offered))) }

// A Row is a subject's rounds.
type Row struct {
	Subject Subject `json:"subject"`
	Rounds  []Round `json:"rounds"`
}

// Median is that of a figure over the rounds.
func (r Row) Median(figure func(Round) float64) float64 {
	var all []float64
	for _, x := range r.Rounds {
		all = append(all, figure(x))
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// Cost is the median processor time of a frame, in nanoseconds.
func (r Row) Cost() float64 { return r.Median(func(x Round) float64 { return float64(x.Cost()) }) }

// PerSecond is the median of the frames that arrived in a second.
func (r Row) PerSecond() float64 { return r.Median(Round.PerSecond) }

// Spread is the distance from the slowest to the fastest round, as a share of the
// median.
func (r Row) Spread() float64 {
	if len(r.Rounds) == 0 {
		return 0
	}
	least, most := r.Rounds[0].PerSecond(), r.Rounds[0].PerSecond()
	for _, x := range r.Rounds {
		least, most = min(least, x.PerSecond()), max(most, x.PerSecond())
	}
	return (most - least) / r.PerSecond()
}

// ParseSubjects reads names of subjects; none stands for all.
func ParseSubjects(names []string) ([]Subject, error) {
	if len(names) == 0 {
		return Subjects, nil
	}
	var list []Subject
	for _, name := range names {
		s := Subject(name)
		if !slices.Contains(Subjects, s) {
			return nil, fmt.Errorf("subject %q: use some of %v", name, Subjects)
		}
		if slices.Contains(list, s) {
			return nil, fmt.Errorf("subject %q is named twice", name)
		}
		list = append(list, s)
	}
	return list, nil
}

// The least that makes a figure, and what is waited for before one is taken.
const (
	leastDuration = 200 * time.Millisecond
	settling      = 250 * time.Millisecond
	idleTime      = 500 * time.Millisecond
)

func (c Config) validate() error {
	switch {
	case c.Rounds < 1:
		return fmt.Errorf("%d rounds; use at least one", c.Rounds)
	case c.Duration < leastDuration:
		return fmt.Errorf("rounds of %v; use at least %v", c.Duration, leastDuration)
	case c.Core == c.Other:
		return fmt.Errorf("the router and all else are both to have processor %d: two are needed", c.Core)
	}
	return nil
}

// Run compares. Nothing is left behind, also after an error or when ctx ends; the
// rows have what was measured until then.
func Run(ctx context.Context, c Config) (rows []Row, err error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if len(c.Subjects) == 0 {
		c.Subjects = Subjects
	}
	for _, s := range c.Subjects {
		rows = append(rows, Row{Subject: s})
	}
	for number := 1; number <= c.Rounds; number++ {
		for i, s := range c.Subjects {
			if c.Step != nil {
				c.Step(fmt.Sprintf("round %d of %d: %s", number, c.Rounds, s))
			}
			round, err := c.round(ctx, s)
			if err != nil {
				return rows, fmt.Errorf("%s, round %d: %w", s, number, err)
			}
			rows[i].Rounds = append(rows[i].Rounds, round)
		}
	}
	return rows, nil
}

// round has a subject forward in a network of its own.
func (c Config) round(ctx context.Context, s Subject) (round Round, err error) {
	if ctx.Err() != nil {
		return Round{}, ctx.Err()
	}
	r, err := startRouter(s, c.Pollux, c.Core, c.Other)
	if err != nil {
		return Round{}, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	idle, err := r.observe(ctx, c.Core, idleTime)
	if err != nil {
		return Round{}, err
	}
	var end atomic.Bool
	flood := make(chan error, 1)
	go func() { flood <- r.source.flood(r.network, c.Other, &end) }()
	defer func() {
		end.Store(true)
		err = errors.Join(err, <-flood)
	}()
	if err := sleep(ctx, settling); err != nil {
		return Round{}, err
	}
	o, err := r.observe(ctx, c.Core, c.Duration)
	if err != nil {
		return Round{}, err
	}
	if o.Frames == 0 {
		return Round{}, errors.New("no frame arrived at the server")
	}
	o.Idle = idle.all.Seconds() / idle.Elapsed.Seconds()
	return o.Round, nil
}

// observed is a round with all of the processor's time, polls in vain included.
type observed struct {
	Round
	all time.Duration
}

// observe measures the router for a while.
func (r *router) observe(ctx context.Context, core int, while time.Duration) (o observed, err error) {
	tasks, err := r.tasks()
	if err != nil {
		return o, err
	}
	observer, err := observe.Start(observe.Config{CPUs: []int{core}, Threads: tasks})
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, observer.Close()) }()
	before, err := r.mark(observer)
	if err != nil {
		return o, err
	}
	if err := sleep(ctx, while); err != nil {
		return o, err
	}
	after, err := r.mark(observer)
	if err != nil {
		return o, err
	}
	o.Elapsed = after.at.Sub(before.at)
	o.Frames, o.Offered = after.arrived-before.arrived, after.offered-before.offered
	d := after.snapshot.Sub(before.snapshot)
	foreign := d.CPUs[0].Thread
	for _, t := range d.Threads {
		foreign -= t.Running
	}
	foreign = max(0, foreign)
	o.all, o.Foreign = d.CPUs[0].Busy()-foreign, foreign.Seconds()/o.Elapsed.Seconds()
	o.CPU = o.all
	if _, user := r.subject.mode(); user {
		// What is neither busy nor asleep looked in vain.
		o.Sleeps = uint64(after.loops.Sleeps - before.loops.Sleeps)
		if awake := o.Elapsed - (after.loops.Slept - before.loops.Slept); awake > 0 {
			o.CPU = time.Duration(float64(o.all) * min(1, float64(after.loops.Busy-before.loops.Busy)/float64(awake)))
		}
	}
	return o, nil
}

// mark is everything at a moment.
type mark struct {
	at               time.Time
	snapshot         observe.Snapshot
	arrived, offered uint64
	loops            measure.Loops
}

func (r *router) mark(observer *observe.Observer) (m mark, err error) {
	if _, user := r.subject.mode(); user {
		if m.loops, err = r.loops(); err != nil {
			return m, err
		}
	}
	if m.arrived, err = r.sink.total(); err != nil {
		return m, err
	}
	if m.offered, err = r.source.total(); err != nil {
		return m, err
	}
	m.at = time.Now()
	m.snapshot, err = observer.Read()
	return m, err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
