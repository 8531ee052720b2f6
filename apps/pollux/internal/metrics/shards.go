package metrics

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/runtime/user"
)

// Shards collects what the shards of a user.Runtime and their port count.
type Shards struct {
	Runtime *user.Runtime
	Port    driver.Port
}

// shardMetric is one number of a shard.
type shardMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*user.Statistics) float64
}

func counter(name, help string, value func(*user.Statistics) float64) shardMetric {
	return shardMetric{prometheus.NewDesc("pollux_"+name, help, []string{"shard"}, nil), prometheus.CounterValue, value}
}

func gauge(name, help string, value func(*user.Statistics) float64) shardMetric {
	m := counter(name, help, value)
	m.kind = prometheus.GaugeValue
	return m
}

type stats = user.Statistics

var shardMetrics = []shardMetric{
	counter("received_frames_total", "Frames received.", func(s *stats) float64 { return float64(s.Queue.ReceivedFrames) }),
	counter("received_bytes_total", "Bytes received, Ethernet headers included.", func(s *stats) float64 { return float64(s.Queue.ReceivedBytes) }),
	counter("transmitted_frames_total", "Frames transmitted.", func(s *stats) float64 { return float64(s.Queue.TransmittedFrames) }),
	counter("transmitted_bytes_total", "Bytes transmitted, Ethernet headers included.", func(s *stats) float64 { return float64(s.Queue.TransmittedBytes) }),
	counter("transmit_refused_total", "Frames that the device's full ring gave back, to be tried again.", func(s *stats) float64 { return float64(s.Queue.TransmitRefused) }),
	counter("iterations_total", "Iterations of the loop.", func(s *stats) float64 { return float64(s.Iterations) }),
	counter("empty_polls_total", "Iterations that found nothing to do.", func(s *stats) float64 { return float64(s.Counters.EmptyPolls) }),
	counter("busy_seconds_total", "Time in iterations that did something.", func(s *stats) float64 { return s.Busy.Seconds() }),
	counter("slept_seconds_total", "Time asleep.", func(s *stats) float64 { return s.Slept.Seconds() }),
	counter("sleeps_total", "Sleeps.", func(s *stats) float64 { return float64(s.Sleeps) }),
	gauge("adaptive_spin_seconds", "What the adaptive mode polls for before it sleeps.", func(s *stats) float64 { return s.Spin.Seconds() }),
	gauge("connections", "Connections open.", func(s *stats) float64 { return float64(s.Connections) }),
	counter("accepted_connections_total", "Connections accepted.", func(s *stats) float64 { return float64(s.Accepted) }),
	counter("flow_cache_hits_total", "Frames that the flow cache led to their connection.", func(s *stats) float64 { return float64(s.Stack.FlowHits) }),
	gauge("flow_cache_entries", "Connections in the flow cache.", func(s *stats) float64 { return float64(s.Stack.Flows) }),
	counter("stray_segments_total", "Segments handed to a sibling shard.", func(s *stats) float64 { return float64(s.Stack.Strays) }),
	counter("tcp_segments_received_total", "TCP segments received.", func(s *stats) float64 { return float64(s.Stack.TCP.SegmentsReceived) }),
	counter("tcp_segments_sent_total", "TCP segments sent.", func(s *stats) float64 { return float64(s.Stack.TCP.SegmentsSent) }),
	counter("tcp_retransmits_total", "TCP segments sent again.", func(s *stats) float64 { return float64(s.Stack.TCP.Retransmits) }),
	counter("tcp_timeouts_total", "TCP retransmission timeouts.", func(s *stats) float64 { return float64(s.Stack.TCP.Timeouts) }),
	counter("tcp_resets_sent_total", "TCP resets sent.", func(s *stats) float64 { return float64(s.Stack.TCP.ResetsSent) }),
	counter("tcp_resets_received_total", "TCP resets received.", func(s *stats) float64 { return float64(s.Stack.TCP.ResetsReceived) }),
	counter("tcp_syn_cookies_sent_total", "SYN cookies sent.", func(s *stats) float64 { return float64(s.Stack.TCP.SYNCookiesSent) }),
}

var (
	droppedDesc = prometheus.NewDesc("pollux_dropped_total", "Frames and packets dropped, by cause.", []string{"shard", "cause"}, nil)
	wokenDesc   = prometheus.NewDesc("pollux_woken_total", "Ends of sleeps, by cause.", []string{"shard", "cause"}, nil)
	socketsDesc = prometheus.NewDesc("pollux_tcp_sockets", "TCP sockets, by state.", []string{"shard", "state"}, nil)
	modeDesc    = prometheus.NewDesc("pollux_mode", "1 for the mode in force.", []string{"shard", "mode"}, nil)
	deviceDesc  = prometheus.NewDesc("pollux_device_statistic", "The device's own counters.", []string{"device", "name"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Shards) Describe(out chan<- *prometheus.Desc) {
	for _, m := range shardMetrics {
		out <- m.desc
	}
	for _, d := range []*prometheus.Desc{droppedDesc, wokenDesc, socketsDesc, modeDesc, deviceDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Shards) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := c.Runtime.Statistics(ctx)
	if err != nil {
		slog.Warn("metrics: no statistics from the loops", "error", err)
		return
	}
	for i := range all {
		collectShard(&all[i], out)
	}
	statistics, err := c.Port.Statistics()
	if err != nil {
		slog.Warn("metrics: no statistics from the device", "error", err)
	}
	seen := map[string]bool{}
	for _, s := range statistics {
		if !seen[s.Name] {
			seen[s.Name] = true
			out <- prometheus.MustNewConstMetric(deviceDesc, prometheus.UntypedValue, float64(s.Value), c.Port.Name(), s.Name)
		}
	}
}

func collectShard(s *stats, out chan<- prometheus.Metric) {
	shard := strconv.Itoa(s.Shard)
	for _, m := range shardMetrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), shard)
	}
	for cause, n := range map[string]uint64{
		"short": s.Stack.DroppedShort, "checksum": s.Stack.DroppedChecksum + s.Stack.TCP.ChecksumErrors, "other-host": s.Stack.DroppedOtherHost,
		"malformed-segment": s.Stack.TCP.InvalidSegments, "malformed-packet": s.Stack.IPMalformed,
		"address": s.Stack.IPInvalidAddress, "receive-buffer": s.Stack.DroppedReceiveBuffer, "transmit": s.Stack.DroppedTransmit,
		"queue": s.Queue.ReceiveDropped, "no-frame": s.Queue.AllocationFailures, "listen-overflow": s.Stack.TCP.ListenOverflows,
		"mailbox": s.SharedDropped,
	} {
		out <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(n), shard, cause)
	}
	for cause, n := range map[string]uint64{"frame": s.WokenByFrame, "post": s.WokenByPost, "time": s.WokenByTime} {
		out <- prometheus.MustNewConstMetric(wokenDesc, prometheus.CounterValue, float64(n), shard, cause)
	}
	for state, n := range s.Stack.Sockets {
		out <- prometheus.MustNewConstMetric(socketsDesc, prometheus.GaugeValue, float64(n), shard, state)
	}
	out <- prometheus.MustNewConstMetric(modeDesc, prometheus.GaugeValue, 1, shard, string(s.Mode))
}
