package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Job is what an agent is asked to do: the part of a Config that describes the
// load. The server, the engine, its processors and its device are the agent's.
type Job struct {
	Workload    Workload      `json:"workload"`
	SetRatio    float64       `json:"set_ratio"`
	KeySize     string        `json:"key_size,omitempty"`
	ValueSize   string        `json:"value_size,omitempty"`
	Keys        int           `json:"keys,omitempty"`
	Connections int           `json:"connections,omitempty"`
	Depth       int           `json:"depth,omitempty"`
	Rate        float64       `json:"rate,omitempty"`
	Arrivals    string        `json:"arrivals,omitempty"`
	Duration    time.Duration `json:"duration_ns,omitempty"`
	Requests    uint64        `json:"requests,omitempty"`
	Timeout     time.Duration `json:"timeout_ns,omitempty"`
	NoStore     bool          `json:"no_store,omitempty"`
	Seed        uint64        `json:"seed,omitempty"`
	// Hold keeps the load in its warm-up until it is told to begin.
	Hold bool `json:"hold,omitempty"`
}

func (j Job) config(base Config) Config {
	c := base
	c.Workload, c.SetRatio, c.KeySize, c.ValueSize, c.Keys = j.Workload, j.SetRatio, j.KeySize, j.ValueSize, j.Keys
	c.Connections, c.Depth, c.Rate, c.Arrivals = j.Connections, j.Depth, j.Rate, j.Arrivals
	c.Duration, c.Requests, c.Timeout, c.NoStore, c.Seed = j.Duration, j.Requests, j.Timeout, j.NoStore, j.Seed
	c.Warmup, c.Churn, c.Zipf = 0, 0, 0
	return c
}

// agentVersion changes with the meaning of the messages.
const agentVersion = 2

// longestOrder is how many bytes an order may have, whoever sends it.
const longestOrder = 64 << 10

// The messages, one JSON object a line. The agent begins with a hello; each run
// is answered with one end, each question with one progress, whenever they come.
type (
	order struct {
		Do  string `json:"do"` // run, begin, progress
		Job *Job   `json:"job,omitempty"`
	}
	answer struct {
		Hello    *Hello    `json:"hello,omitempty"`
		Progress *Progress `json:"progress,omitempty"`
		End      *ending   `json:"end,omitempty"`
	}
	ending struct {
		Result Result `json:"result"`
		Error  string `json:"error,omitempty"`
	}
)

// Hello is what an agent says of itself.
type Hello struct {
	Version int    `json:"version"`
	Server  string `json:"server"` // that it loads, HOST:PORT
	Engine  Engine `json:"engine"`
	Threads int    `json:"threads"`
	Cores   []int  `json:"cores,omitempty"`
	// Nice is the agent's nice value, as the kernel has it.
	Nice int `json:"nice"`
}

// Progress is how many replies a running load has had, its warm-up included, by
// the agent's clock.
type Progress struct {
	Replies uint64        `json:"replies"`
	At      time.Duration `json:"at_ns"` // since the agent began
}

// Serve runs loads as they are ordered over a connection, one at a time, with
// what base says of server, engine and processors. It returns when the other
// side hangs up, which ends a load, or with ctx.
func Serve(ctx context.Context, conn io.ReadWriter, base Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &agent{base: base, began: time.Now(), out: json.NewEncoder(conn)}
	hello := Hello{Version: agentVersion, Server: base.Address, Engine: base.Engine, Threads: max(1, base.Threads), Cores: base.Cores}
	// The system call's value counts from 20 down.
	if priority, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		hello.Nice = 20 - priority
	}
	if err := a.say(answer{Hello: &hello}); err != nil {
		return err
	}
	defer a.running.Wait()
	defer cancel()
	// Reading may not end with ctx; then it ends with the connection.
	orders, ended := make(chan order), make(chan error, 1)
	go func() {
		in := bufio.NewScanner(conn)
		for in.Buffer(nil, longestOrder); in.Scan(); {
			var o order
			if err := json.Unmarshal(in.Bytes(), &o); err != nil {
				ended <- err
				return
			}
			select {
			case orders <- o:
			case <-ctx.Done():
				return
			}
		}
		ended <- in.Err() // nil is the end of what it is told
	}()
	for {
		select {
		case o := <-orders:
			if err := a.obey(ctx, o); err != nil {
				return err
			}
		case err := <-ended:
			if err == nil {
				return nil
			}
			return fmt.Errorf("read what to do: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

// agent is one connection's.
type agent struct {
	base    Config
	began   time.Time
	replies atomic.Uint64
	running sync.WaitGroup
	begin   chan struct{} // of the run that is on

	mu  sync.Mutex
	out *json.Encoder
	on  bool
}

func (a *agent) say(m answer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.End != nil {
		a.on = false
	}
	if err := a.out.Encode(m); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

func (a *agent) obey(ctx context.Context, o order) error {
	switch o.Do {
	case "progress":
		return a.say(answer{Progress: &Progress{a.replies.Load(), time.Since(a.began)}})
	case "begin":
		if a.begin != nil {
			close(a.begin)
			a.begin = nil
		}
		return nil
	case "run":
		a.mu.Lock()
		busy := a.on
		a.on = true
		a.mu.Unlock()
		switch {
		case busy:
			return errors.New("told to run a load while another runs")
		case o.Job == nil:
			return errors.New("told to run a load without being told which")
		}
		a.running.Wait()
		c := o.Job.config(a.base)
		a.begin = nil
		if o.Job.Hold {
			a.begin = make(chan struct{})
			c.Begin = a.begin
		}
		a.replies.Store(0)
		c.Replies = &a.replies
		a.running.Go(func() {
			r, err := Run(ctx, c)
			e := &ending{Result: r}
			if err != nil {
				e.Error = err.Error()
			}
			_ = a.say(answer{End: e}) // whoever hung up does not hear it
		})
		return nil
	}
	return fmt.Errorf("told to do %q, which it does not know: versions differ", o.Do)
}

// Remote is the other side of Serve. One goroutine at a time may use it.
type Remote struct {
	Hello Hello

	out      *json.Encoder
	progress chan Progress
	ends     chan ending
	broken   chan struct{} // closed once err is set
	err      error
}

// answerTimeout is how long an agent may take to answer.
const answerTimeout = 20 * time.Second

// Attach takes over an agent at the other end of a connection. The caller closes
// the connection, which ends whatever runs.
func Attach(conn io.ReadWriter) (*Remote, error) {
	r := &Remote{out: json.NewEncoder(conn), progress: make(chan Progress, 1), ends: make(chan ending, 1), broken: make(chan struct{})}
	hellos := make(chan Hello, 1)
	go r.listen(json.NewDecoder(conn), hellos)
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case r.Hello = <-hellos:
	case <-r.broken:
		return nil, fmt.Errorf("attach to the load's agent: %w", r.err)
	case <-timer.C:
		return nil, fmt.Errorf("attach to the load's agent: it says nothing within %v; it serves one at a time", answerTimeout)
	}
	if r.Hello.Version != agentVersion {
		return nil, fmt.Errorf("attach to the load's agent: its version is %d, this program's %d; use the same on both sides", r.Hello.Version, agentVersion)
	}
	return r, nil
}

func (r *Remote) listen(in *json.Decoder, hellos chan<- Hello) {
	defer close(r.broken)
	for {
		var m answer
		if r.err = in.Decode(&m); r.err != nil {
			r.err = fmt.Errorf("hear from the load's agent: %w", r.err)
			return
		}
		switch {
		case m.Hello != nil:
			hellos <- *m.Hello
		case m.Progress != nil:
			r.progress <- *m.Progress
		case m.End != nil:
			r.ends <- *m.End
		}
	}
}

func (r *Remote) tell(o order) error {
	if err := r.out.Encode(o); err != nil {
		return fmt.Errorf("tell the load's agent to %s: %w", o.Do, err)
	}
	return nil
}

// Run begins a load; Wait tells how it went.
func (r *Remote) Run(j Job) error { return r.tell(order{Do: "run", Job: &j}) }

// Begin ends the warm-up of a load that is held in it.
func (r *Remote) Begin() error { return r.tell(order{Do: "begin"}) }

// Progress asks how far the load is.
func (r *Remote) Progress() (Progress, error) {
	if err := r.tell(order{Do: "progress"}); err != nil {
		return Progress{}, err
	}
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case p := <-r.progress:
		return p, nil
	case <-r.broken:
		return Progress{}, r.err
	case <-timer.C:
		return Progress{}, fmt.Errorf("the load's agent does not answer within %v", answerTimeout)
	}
}

// Ended says whether the load that was begun is over, without waiting.
func (r *Remote) Ended() bool { return len(r.ends) > 0 }

// Wait waits for the end of the load that was begun. The error says that it
// could not begin or ended early; of errors and wrong replies the result tells.
// If ctx ends first, the load goes on until the connection is closed.
func (r *Remote) Wait(ctx context.Context) (Result, error) {
	select {
	case e := <-r.ends:
		if e.Error != "" {
			return e.Result, errors.New(e.Error)
		}
		return e.Result, nil
	case <-r.broken:
		return Result{}, r.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}
