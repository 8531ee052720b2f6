package metrics

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/runtime"
)

func TestMetricsTellHowFullAMemcachedIs(t *testing.T) {
	const limit = 2 << 20
	server, err := memcached.New(memcached.Options{Memory: limit, MaxItem: 64 << 10, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{}
	server.Open(c)
	ask := func(request string) { server.Data(c, []byte(request)) }
	ask("set dead 0 -1 1\r\nx\r\nget dead\r\n")
	for i := range 100 {
		ask(fmt.Sprintf("set %d 0 0 50000\r\n%s\r\n", i, strings.Repeat("v", 50000)))
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(&Memcached{server}); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	items := got["memcached_current_items"]
	if items < 30 || items > 42 || got["memcached_items_evicted_total"] != 100-items || got["memcached_items_total"] != 101 || got["memcached_items_expired_total"] != 1 {
		t.Errorf("items: %v", got)
	}
	if got["memcached_limit_bytes"] != limit || got["memcached_current_bytes"] < 50000*items || got["memcached_used_bytes"] < got["memcached_current_bytes"] || got["memcached_used_bytes"] > limit {
		t.Errorf("bytes: %v", got)
	}
}

// conn is a connection of which the server needs nothing but its place.
type conn struct {
	runtime.Conn
	context any
}

func (c *conn) Write(p []byte) (int, error) { return len(p), nil }
func (c *conn) Buffered() int               { return 0 }
func (c *conn) Shard() int                  { return 0 }
func (c *conn) Context() any                { return c.context }
func (c *conn) SetContext(v any)            { c.context = v }
func (c *conn) LocalAddr() netip.AddrPort   { return netip.AddrPort{} }
func (c *conn) RemoteAddr() netip.AddrPort  { return netip.AddrPort{} }
