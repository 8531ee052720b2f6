package measure

import (
	"fmt"
	"time"
)

// AskForwarder asks a packet service, at its --metrics address, for what its loops
// count, as AskLoops does a server.
func AskForwarder(address string) (Loops, error) {
	families, err := metricsOf(address)
	if err != nil {
		return Loops{}, fmt.Errorf("ask the packet service for its metrics: %w", err)
	}
	sum := func(name string) (total float64) {
		for _, m := range families["pollux_packet_"+name].GetMetric() {
			total += m.GetCounter().GetValue()
		}
		return total
	}
	seconds := func(name string) time.Duration { return time.Duration(sum(name) * float64(time.Second)) }
	return Loops{
		Iterations: sum("iterations_total"), EmptyPolls: sum("empty_polls_total"), Sleeps: sum("sleeps_total"),
		Busy: seconds("busy_seconds_total"), Slept: seconds("slept_seconds_total"),
	}, nil
}
