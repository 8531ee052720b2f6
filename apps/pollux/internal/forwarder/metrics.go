package forwarder

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/apps/packet"
	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/driver"
)

// collector shows what a service counts, as Prometheus metrics.
type collector struct {
	service *packet.Service
	ports   []driver.Port
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*packet.Statistics) float64
}

func counter(name, help string, value func(*packet.Statistics) float64) metric {
	return metric{prometheus.NewDesc("pollux_packet_"+name, help, []string{"shard"}, nil), prometheus.CounterValue, value}
}

func gauge(name, help string, value func(*packet.Statistics) float64) metric {
	m := counter(name, help, value)
	m.kind = prometheus.GaugeValue
	return m
}

var shardMetrics = []metric{
	counter("received_total", "Frames received.", func(s *packet.Statistics) float64 { return float64(s.Received) }),
	counter("forwarded_total", "Frames forwarded to an output's queue.", func(s *packet.Statistics) float64 { return float64(s.Forwarded) }),
	counter("delivered_total", "Packets for the box itself.", func(s *packet.Statistics) float64 { return float64(s.Delivered) }),
	counter("resolved_total", "Frames of address resolution.", func(s *packet.Statistics) float64 { return float64(s.Resolved) }),
	counter("handed_out_total", "Frames handed to the shard that owns their translation.", func(s *packet.Statistics) float64 { return float64(s.HandedOut) }),
	counter("cache_hits_total", "Packets whose decision the flow cache held.", func(s *packet.Statistics) float64 { return float64(s.CacheHits) }),
	counter("cache_misses_total", "Packets that were decided by the tables.", func(s *packet.Statistics) float64 { return float64(s.CacheMisses) }),
	counter("originated_total", "Packets of the box's own.", func(s *packet.Statistics) float64 { return float64(s.Originated) }),
	counter("icmp_errors_total", "ICMP errors sent.", func(s *packet.Statistics) float64 { return float64(s.ICMPSent) }),
	counter("icmp_limited_total", "ICMP errors that the rate limit kept back.", func(s *packet.Statistics) float64 { return float64(s.ICMPLimited) }),
	counter("fragments_total", "Fragments made of larger packets.", func(s *packet.Statistics) float64 { return float64(s.Fragments) }),
	counter("snapshots_total", "States of the tables taken over.", func(s *packet.Statistics) float64 { return float64(s.Adopted) }),
	gauge("held", "Frames that wait for a neighbour.", func(s *packet.Statistics) float64 { return float64(s.Held) }),
	gauge("bindings", "Translations in use.", func(s *packet.Statistics) float64 { return float64(s.Bindings) }),
	counter("iterations_total", "Iterations of the loop.", func(s *packet.Statistics) float64 { return float64(s.Iterations) }),
	counter("empty_polls_total", "Iterations that found nothing to do.", func(s *packet.Statistics) float64 { return float64(s.EmptyPolls) }),
	counter("busy_seconds_total", "Time in iterations that did something.", func(s *packet.Statistics) float64 { return s.Busy.Seconds() }),
	counter("slept_seconds_total", "Time asleep.", func(s *packet.Statistics) float64 { return s.Slept.Seconds() }),
	counter("sleeps_total", "Sleeps.", func(s *packet.Statistics) float64 { return float64(s.Sleeps) }),
}

var (
	droppedDesc  = prometheus.NewDesc("pollux_packet_dropped_total", "Frames dropped, by cause.", []string{"shard", "cause"}, nil)
	queuedDesc   = prometheus.NewDesc("pollux_packet_queued", "Frames that wait for an output.", []string{"shard", "port"}, nil)
	portInDesc   = prometheus.NewDesc("pollux_packet_port_received_total", "Frames received, by port.", []string{"shard", "port"}, nil)
	portOutDesc  = prometheus.NewDesc("pollux_packet_port_transmitted_total", "Frames transmitted, by port.", []string{"shard", "port"}, nil)
	bytesInDesc  = prometheus.NewDesc("pollux_packet_port_received_bytes_total", "Bytes received, by port.", []string{"shard", "port"}, nil)
	bytesOutDesc = prometheus.NewDesc("pollux_packet_port_transmitted_bytes_total", "Bytes transmitted, by port.", []string{"shard", "port"}, nil)
	routesDesc   = prometheus.NewDesc("pollux_packet_routes", "Prefixes in the forwarding table.", nil, nil)
	inForceDesc  = prometheus.NewDesc("pollux_packet_tables_in_force", "Whether all shards forward by the newest tables, and nothing that older ones decided is waiting.", nil, nil)
	neighborDesc = prometheus.NewDesc("pollux_packet_neighbours", "Neighbours whose address is known.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range shardMetrics {
		out <- m.desc
	}
	for _, d := range []*prometheus.Desc{droppedDesc, queuedDesc, portInDesc, portOutDesc, bytesInDesc, bytesOutDesc, routesDesc, inForceDesc, neighborDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := c.service.Statistics(ctx)
	if err != nil {
		slog.Warn("metrics: no statistics from the loops", "error", err)
		return
	}
	control := c.service.Forwarder().Control()
	out <- prometheus.MustNewConstMetric(routesDesc, prometheus.GaugeValue, float64(control.Routes()))
	// Asked after the routes, so that these are in force if it says so.
	inForce := 0.0
	if control.Acknowledged(control.Generation()) {
		inForce = 1
	}
	out <- prometheus.MustNewConstMetric(inForceDesc, prometheus.GaugeValue, inForce)
	out <- prometheus.MustNewConstMetric(neighborDesc, prometheus.GaugeValue, float64(control.Neighbours()))
	for i := range all {
		s := &all[i]
		shard := strconv.Itoa(s.Shard)
		for _, m := range shardMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), shard)
		}
		for _, cause := range forward.Causes() {
			out <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(s.Dropped[cause]), shard, cause.String())
		}
		for k, p := range c.ports {
			q, name := s.Queues[k], p.Name()
			out <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, float64(s.Outputs[k].Frames), shard, name)
			out <- prometheus.MustNewConstMetric(portInDesc, prometheus.CounterValue, float64(q.ReceivedFrames), shard, name)
			out <- prometheus.MustNewConstMetric(portOutDesc, prometheus.CounterValue, float64(q.TransmittedFrames), shard, name)
			out <- prometheus.MustNewConstMetric(bytesInDesc, prometheus.CounterValue, float64(q.ReceivedBytes), shard, name)
			out <- prometheus.MustNewConstMetric(bytesOutDesc, prometheus.CounterValue, float64(q.TransmittedBytes), shard, name)
		}
	}
}
