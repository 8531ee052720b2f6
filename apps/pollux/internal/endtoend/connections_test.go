package endtoend

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
)

// ways are those in which a connection ends.
var ways = []struct {
	name string
	end  func(net.Conn) error
}{
	{"the client closes", func(net.Conn) error { return nil }},
	{"the server closes", func(c net.Conn) error { return last(c, "bye\n") }},
	{"the server resets", func(c net.Conn) error {
		if err := last(c, "reset\n"); err == nil {
			return fmt.Errorf("the connection ended in order, want a reset")
		}
		return nil
	}},
	{"the client resets", func(c net.Conn) error { return c.(*net.TCPConn).SetLinger(0) }},
}

// last sends a line to which the server replies by ending the connection.
func last(c net.Conn, line string) error {
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// use opens a connection, has a line echoed and ends the connection in a way, once
// all others have come as far.
func use(l *lab.Lab, i int, used chan<- struct{}, end <-chan struct{}) (err error) {
	way := ways[i%len(ways)]
	defer func() {
		if err != nil {
			err = fmt.Errorf("connection %d (%s): %w", i, way.name, err)
		}
	}()
	var conn net.Conn
	few(func() { conn, err = echoed(l, i) })
	used <- struct{}{}
	if err != nil {
		return err
	}
	<-end
	few(func() {
		conn.SetDeadline(time.Now().Add(patience))
		err = errors.Join(way.end(conn), conn.Close())
	})
	return err
}

// few has not many do something at once: a veth holds 256 frames for a side that
// does not get to run.
func few(do func()) {
	turn <- struct{}{}
	do()
	<-turn
}

var turn = make(chan struct{}, 50)

// echoed opens a connection and has a line echoed on it.
func echoed(l *lab.Lab, i int) (_ net.Conn, err error) {
	conn, err := dial(l, lab.Client, portOf(lab.ServerIPv4, stream.EchoPort), patience)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	conn.SetDeadline(time.Now().Add(patience))
	var shard, thread, got int
	if _, err := fmt.Fprintf(conn, "%d\n", i); err != nil {
		return nil, err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return nil, err
	}
	if n, err := fmt.Sscan(reply, &shard, &thread, &got); n != 3 || got != i {
		return nil, fmt.Errorf("the reply is %q: %v", reply, err)
	}
	return conn, nil
}

func TestAThousandConnectionsTenTimesLeaveNothingBehind(t *testing.T) {
	const connections, rounds = 1000, 10
	l := newLab(t, 1)
	// A reset that a veth drops under load is never repeated: what is left of its
	// connection only a keepalive finds.
	s := serveStation(t, l, station, "-time-wait", "100ms", "-keepalive", "20s")
	round := func(n int) {
		used, end, results := make(chan struct{}), make(chan struct{}), make(chan error)
		for i := range n {
			go func() { results <- use(l, i, used, end) }()
		}
		for range n {
			<-used
		}
		if open := s.report(t).Shards[0].Connections; open != n {
			t.Errorf("%d connections are open, want %d", open, n)
		}
		close(end)
		for range n {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		await(t, s, func(r *stateOf) bool { return r.connections == 0 })
	}
	// Neighbours are resolved, pools of the runtime filled.
	round(10)
	quiet := func(r *stateOf) bool { return r.connections == 0 && r.sockets == listening }
	await(t, s, quiet)
	before := await(t, s, quiet)
	for range rounds {
		round(connections)
	}
	// Until the last TIME-WAIT has passed.
	after := await(t, s, func(r *stateOf) bool { return quiet(r) && r.endpoints == before.endpoints })
	if after.accepted-before.accepted != connections*rounds {
		t.Errorf("%d connections were accepted, want %d", after.accepted-before.accepted, connections*rounds)
	}
	tcp := s.report(t).Shards[0].Stack.TCP
	t.Logf("%d SYN cookies sent, %d came back; %d SYNs more than the backlog held; %d segments sent again",
		tcp.SYNCookiesSent, tcp.SYNCookiesReceived, tcp.ListenOverflows, tcp.Retransmits)
	t.Logf("before %+v", *before)
	t.Logf("after  %+v", *after)
	if after.goroutines != before.goroutines {
		t.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
	}
	if after.flows != before.flows {
		t.Errorf("%d flows in the cache, %d before", after.flows, before.flows)
	}
	// The stack keeps up to a burst of empty frames at hand.
	if missing := before.opening - after.frames; missing < 0 || missing > spareFrames {
		t.Errorf("%d frames are free, %d were when the port was opened", after.frames, before.opening)
	}
	s.stop(t) // and then all of them must be
}

// listening is the number of sockets of a station without connections, and
// spareFrames what its stack may hold.
const listening, spareFrames = 6, 32

// stateOf is what must be the same before and after.
type stateOf struct {
	connections, sockets, endpoints, flows, goroutines, frames, opening int
	accepted                                                            uint64
}

// await waits until the station is in a state.
func await(t *testing.T, s *stationProcess, reached func(*stateOf) bool) *stateOf {
	t.Helper()
	var state stateOf
	var sockets map[string]int
	defer func() {
		if t.Failed() {
			t.Logf("%+v, %v", state, sockets)
		}
	}()
	eventually(t, "the station is at rest", func() bool {
		r := s.report(t)
		state = stateOf{
			endpoints: r.Endpoints, goroutines: r.Goroutines, frames: r.FreeFrames, opening: r.OpeningFrames,
		}
		for _, shard := range r.Shards {
			state.connections += shard.Connections
			state.flows += shard.Stack.Flows
			state.accepted += shard.Accepted
			sockets = shard.Stack.Sockets
			for _, n := range sockets {
				state.sockets += n
			}
		}
		return reached(&state)
	})
	return &state
}
