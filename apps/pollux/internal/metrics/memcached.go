package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/apps/memcached"
	"github.com/pollux-net/pollux/apps/memcached/store"
)

// Memcached collects what a memcached counts, under the names that memcached's
// own exporter made familiar where there are any.
type Memcached struct{ Server *memcached.Server }

var (
	commandsDesc  = prometheus.NewDesc("memcached_commands_total", "Commands, by outcome.", []string{"command", "status"}, nil)
	mcConnsDesc   = prometheus.NewDesc("memcached_current_connections", "Connections open.", nil, nil)
	mcRefusedDesc = prometheus.NewDesc("memcached_connections_rejected_total", "Connections over the limit.", nil, nil)
	mcReadDesc    = prometheus.NewDesc("memcached_read_bytes_total", "Bytes of requests.", nil, nil)
	mcWrittenDesc = prometheus.NewDesc("memcached_written_bytes_total", "Bytes of replies.", nil, nil)
)

// storeMetrics tell of the items. The bytes of items are in memcached's measure;
// the limit covers more, see docs/memcached.md.
var storeMetrics = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *store.Stats) uint64
}{
	{prometheus.NewDesc("memcached_current_items", "Items held, expired ones included that were not found yet.", nil, nil), prometheus.GaugeValue,
		func(s *store.Stats) uint64 { return s.Items }},
	{prometheus.NewDesc("memcached_items_total", "Items ever stored.", nil, nil), prometheus.CounterValue,
		func(s *store.Stats) uint64 { return s.Total }},
	{prometheus.NewDesc("memcached_current_bytes", "Bytes of the items held.", nil, nil), prometheus.GaugeValue,
		func(s *store.Stats) uint64 { return s.Bytes }},
	{prometheus.NewDesc("memcached_limit_bytes", "The memory limit in bytes.", nil, nil), prometheus.GaugeValue,
		func(s *store.Stats) uint64 { return s.Memory }},
	{prometheus.NewDesc("memcached_used_bytes", "Bytes of the limit that items and values being received take, with what is unused at their ends.", nil, nil), prometheus.GaugeValue,
		func(s *store.Stats) uint64 { return s.UsedChunks * s.ChunkSize }},
	{prometheus.NewDesc("memcached_items_evicted_total", "Living items that made room.", nil, nil), prometheus.CounterValue,
		func(s *store.Stats) uint64 { return s.Evictions }},
	{prometheus.NewDesc("memcached_items_reclaimed_total", "Expired or flushed items that made room.", nil, nil), prometheus.CounterValue,
		func(s *store.Stats) uint64 { return s.Reclaimed }},
	{prometheus.NewDesc("memcached_items_swept_total", "Expired or flushed items that the background search found.", nil, nil), prometheus.CounterValue,
		func(s *store.Stats) uint64 { return s.Swept }},
	{prometheus.NewDesc("memcached_items_expired_total", "Lookups that found an expired item.", nil, nil), prometheus.CounterValue,
		func(s *store.Stats) uint64 { return s.Expired }},
}

// Describe implements prometheus.Collector.
func (c *Memcached) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{commandsDesc, mcConnsDesc, mcRefusedDesc, mcReadDesc, mcWrittenDesc} {
		out <- d
	}
	for _, m := range storeMetrics {
		out <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Memcached) Collect(out chan<- prometheus.Metric) {
	s := c.Server.Statistics()
	for _, m := range []struct {
		command, status string
		n               uint64
	}{
		{"get", "hit", s.GetHits}, {"get", "miss", s.GetMisses}, {"set", "all", s.Sets}, {"flush", "all", s.Flushes},
		{"touch", "hit", s.TouchHits}, {"touch", "miss", s.TouchMisses},
		{"delete", "hit", s.DeleteHits}, {"delete", "miss", s.DeleteMisses},
		{"incr", "hit", s.IncrHits}, {"incr", "miss", s.IncrMisses}, {"decr", "hit", s.DecrHits}, {"decr", "miss", s.DecrMisses},
		{"cas", "hit", s.CASHits}, {"cas", "miss", s.CASMisses}, {"cas", "badval", s.CASBad},
	} {
		out <- prometheus.MustNewConstMetric(commandsDesc, prometheus.CounterValue, float64(m.n), m.command, m.status)
	}
	out <- prometheus.MustNewConstMetric(mcConnsDesc, prometheus.GaugeValue, float64(s.Conns))
	out <- prometheus.MustNewConstMetric(mcRefusedDesc, prometheus.CounterValue, float64(s.ConnsRejected))
	out <- prometheus.MustNewConstMetric(mcReadDesc, prometheus.CounterValue, float64(s.BytesRead))
	out <- prometheus.MustNewConstMetric(mcWrittenDesc, prometheus.CounterValue, float64(s.BytesWritten))
	for _, m := range storeMetrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(&s.Store)))
	}
}
