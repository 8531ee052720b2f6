package endtoend

import (
	"bufio"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-net/pollux/apps/pollux/internal/endtoend/stream"
	"github.com/pollux-net/pollux/compare/lab"
	"github.com/pollux-net/pollux/runtime"
)

func TestEachConnectionIsServedByItsOwnShardAndBothShardsServe(t *testing.T) {
	l := newLab(t, 2)
	s := serveStation(t, l, station, "-cores", "2")
	const connections, requests = 200, 5
	type client struct {
		shard, thread int
	}
	threads := map[int]int{} // by shard
	landed := map[int]uint64{}
	for i := range connections {
		address := []netip.Prefix{lab.ServerIPv4, lab.ServerIPv6}[i%2]
		conn := connect(t, l, portOf(address, stream.EchoPort))
		in := bufio.NewReader(conn)
		var first client
		for n := range requests {
			var c client
			reply := exchange(t, conn, in, fmt.Sprintf("%d\n", n))
			if k, err := fmt.Sscan(reply, &c.shard, &c.thread); k != 2 {
				t.Fatalf("the reply is %q: %v", reply, err)
			}
			if n == 0 {
				first = c
				landed[c.shard]++
			}
			if c != first {
				t.Fatalf("connection %d was served by shard %d on thread %d, then by %d on %d", i, first.shard, first.thread, c.shard, c.thread)
			}
		}
		if thread, ok := threads[first.shard]; ok && thread != first.thread {
			t.Fatalf("shard %d runs on threads %d and %d", first.shard, thread, first.thread)
		}
		threads[first.shard] = first.thread
	}
	if len(threads) != 2 || threads[0] == threads[1] {
		t.Fatalf("the shards' threads are %v, want two", threads)
	}
	open, accepted := 0, uint64(0)
	for _, shard := range s.report(t).Shards {
		if shard.Accepted != landed[shard.Shard] || shard.Accepted < connections/5 {
			t.Errorf("shard %d accepted %d connections, served %d of %d", shard.Shard, shard.Accepted, landed[shard.Shard], connections)
		}
		if shard.Deliveries != landed[shard.Shard]*requests {
			t.Errorf("shard %d: %d deliveries, want %d", shard.Shard, shard.Deliveries, landed[shard.Shard]*requests)
		}
		open += shard.Connections
		accepted += shard.Accepted
		t.Logf("shard %d: %d connections, %d strays", shard.Shard, shard.Accepted, shard.Stack.Strays)
	}
	if open != connections || accepted != connections {
		t.Errorf("%d connections are open and %d were accepted, want %d", open, accepted, connections)
	}
	s.stop(t)
}

func TestTwoShardsAnswerNeighboursAndPings(t *testing.T) {
	l := newLab(t, 2)
	s := serveMemcached(t, l, pollux, memcachedArgs(runtime.Adaptive, 2)...)
	for i := range 5 {
		// From a cold cache: the address is resolved again each time.
		must(t, l, lab.Client, "ip", "neigh", "flush", "dev", lab.ClientInterface)
		for _, host := range []string{"10.99.0.1", "fd99::1"} {
			out := must(t, l, lab.Client, "ping", "-n", "-c", "3", "-i", "0.05", "-W", "10", host)
			if !strings.Contains(out, "3 received") || strings.Contains(out, "DUP!") {
				t.Fatalf("round %d: %s", i, out)
			}
			neighbours := must(t, l, lab.Client, "ip", "neigh", "show", host, "dev", lab.ClientInterface)
			if !strings.Contains(neighbours, "lladdr") {
				t.Fatalf("round %d: %s is not resolved: %s", i, host, neighbours)
			}
		}
	}
	// A connection to either shard, from a cold cache on both sides' part: the
	// shards must have heard of the client, whoever received its answer.
	const connections = 40
	for range connections {
		conn := connect(t, l, memcached4)
		if got := exchange(t, conn, bufio.NewReader(conn), "get absent\r\n"); got != "END\r\n" {
			t.Fatalf("the reply is %q", got)
		}
	}
	m, sum := scrape(t, l), 0.0
	for shard := range 2 {
		n := m.get(t, `pollux_accepted_connections_total{shard="`+strconv.Itoa(shard)+`"}`)
		if n == 0 {
			t.Errorf("shard %d has accepted no connection", shard)
		}
		sum += n
	}
	if sum != connections {
		t.Errorf("%v connections were accepted, want %d", sum, connections)
	}
	s.terminate(t)
}
