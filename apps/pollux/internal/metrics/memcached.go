package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/apps/memcached"
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

// Describe implements prometheus.Collector.
func (c *Memcached) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{commandsDesc, mcConnsDesc, mcRefusedDesc, mcReadDesc, mcWrittenDesc} {
		out <- d
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
}
