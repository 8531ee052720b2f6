package metrics

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/runtime/kernel"
)

// KernelShards collects what the shards of a kernel.Runtime count.
type KernelShards struct{ Runtime *kernel.Runtime }

// kernelMetric is one number of a shard.
type kernelMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*kernel.Statistics) float64
}

func kernelCounter(name, help string, value func(*kernel.Statistics) float64) kernelMetric {
	return kernelMetric{prometheus.NewDesc("pollux_"+name, help, []string{"shard"}, nil), prometheus.CounterValue, value}
}

func kernelGauge(name, help string, value func(*kernel.Statistics) float64) kernelMetric {
	m := kernelCounter(name, help, value)
	m.kind = prometheus.GaugeValue
	return m
}

type kstats = kernel.Statistics

// Names that the user path has too mean the same here.
var kernelMetrics = []kernelMetric{
	kernelCounter("iterations_total", "Iterations of the loop.", func(s *kstats) float64 { return float64(s.Iterations) }),
	kernelCounter("epoll_waits_total", "Calls for events.", func(s *kstats) float64 { return float64(s.Waits) }),
	kernelCounter("epoll_waits_blocking_total", "Calls for events that might sleep.", func(s *kstats) float64 { return float64(s.BlockingWaits) }),
	kernelCounter("epoll_waits_empty_total", "Calls for events that found none.", func(s *kstats) float64 { return float64(s.EmptyWaits) }),
	kernelCounter("epoll_events_total", "Events.", func(s *kstats) float64 { return float64(s.Events) }),
	kernelCounter("busy_seconds_total", "Time in iterations that did something.", func(s *kstats) float64 { return s.Busy.Seconds() }),
	kernelCounter("waited_seconds_total", "Time in calls for events: asleep, or polling the device.", func(s *kstats) float64 { return s.Waited.Seconds() }),
	kernelGauge("longest_iteration_seconds", "The longest time between two calls for events.", func(s *kstats) float64 { return s.Longest.Seconds() }),
	kernelCounter("overdue_iterations_total", "Iterations longer than the device's interrupts stay off.", func(s *kstats) float64 { return float64(s.Overdue) }),
	kernelGauge("connections", "Connections open.", func(s *kstats) float64 { return float64(s.Connections) }),
	kernelCounter("accepted_connections_total", "Connections accepted.", func(s *kstats) float64 { return float64(s.Accepted) }),
	kernelCounter("accept_refused_total", "Times that no connection could be accepted for want of descriptors or memory.", func(s *kstats) float64 { return float64(s.AcceptsRefused) }),
	kernelCounter("reads_total", "Calls to read.", func(s *kstats) float64 { return float64(s.Reads) }),
	kernelCounter("reads_empty_total", "Calls to read that found nothing.", func(s *kstats) float64 { return float64(s.ReadsRefused) }),
	kernelCounter("writes_total", "Calls to write.", func(s *kstats) float64 { return float64(s.Writes) }),
	kernelCounter("writes_refused_total", "Calls to write that found no room.", func(s *kstats) float64 { return float64(s.WritesRefused) }),
	kernelCounter("read_bytes_total", "Bytes read.", func(s *kstats) float64 { return float64(s.ReadBytes) }),
	kernelCounter("written_bytes_total", "Bytes written.", func(s *kstats) float64 { return float64(s.WrittenBytes) }),
	kernelCounter("datagrams_received_total", "Datagrams received.", func(s *kstats) float64 { return float64(s.PacketsReceived) }),
	kernelCounter("datagrams_sent_total", "Datagrams sent.", func(s *kstats) float64 { return float64(s.PacketsSent) }),
	kernelCounter("datagrams_dropped_total", "Datagrams that could not be sent.", func(s *kstats) float64 { return float64(s.PacketsDropped) }),
	kernelCounter("napi_foreign_connections_total", "Connections received by another queue than the loop polls.", func(s *kstats) float64 { return float64(s.NAPIForeign) }),
	kernelCounter("napi_unknown_connections_total", "Connections from a device that cannot be polled.", func(s *kstats) float64 { return float64(s.NAPIUnknown) }),
	kernelCounter("device_changes_total", "Times that the device was found not as the mode had set it.", func(s *kstats) float64 { return float64(s.DeviceChanges) }),
}

// Describe implements prometheus.Collector.
func (c *KernelShards) Describe(out chan<- *prometheus.Desc) {
	for _, m := range kernelMetrics {
		out <- m.desc
	}
	out <- modeDesc
}

// Collect implements prometheus.Collector.
func (c *KernelShards) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := c.Runtime.Statistics(ctx)
	if err != nil {
		slog.Warn("metrics: no statistics from the loops", "error", err)
		return
	}
	for i := range all {
		shard := strconv.Itoa(all[i].Shard)
		for _, m := range kernelMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&all[i]), shard)
		}
		out <- prometheus.MustNewConstMetric(modeDesc, prometheus.GaugeValue, 1, shard, string(all[i].Mode))
	}
}
