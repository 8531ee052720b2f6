package measure

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// answerTimeout is how long an answer of the server's own accounts may take.
const answerTimeout = 5 * time.Second

// AskLoops asks a server of ours, at its --metrics address, for what its loops
// count. It must be called on a thread in the server's network namespace. Each
// question is a connection of its own: between two, a server may hang up.
func AskLoops(address string) (Loops, error) {
	families, err := metricsOf(address)
	if err != nil {
		return Loops{}, fmt.Errorf("ask the server for its metrics: %w", err)
	}
	return loopsOf(families, "pollux_"), nil
}

// AskForwarder asks a packet service for the same. It has no epoll and tells no mode.
func AskForwarder(address string) (Loops, error) {
	families, err := metricsOf(address)
	if err != nil {
		return Loops{}, fmt.Errorf("ask the packet service for its metrics: %w", err)
	}
	return loopsOf(families, "pollux_packet_"), nil
}

func metricsOf(address string) (map[string]*dto.MetricFamily, error) {
	// Not by http.Get, whose connections are made on threads of their own.
	conn, err := net.DialTimeout("tcp4", address, answerTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTimeout))
	request, err := http.NewRequest(http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it says %s", response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// loopsOf sums the loops' counters, whose names begin with a prefix.
func loopsOf(families map[string]*dto.MetricFamily, prefix string) Loops {
	sum := func(name string) (total float64) {
		for _, m := range families[prefix+name].GetMetric() {
			total += m.GetCounter().GetValue()
		}
		return total
	}
	seconds := func(name string) time.Duration { return time.Duration(sum(name) * float64(time.Second)) }
	l := Loops{
		Iterations: sum("iterations_total"), EmptyPolls: sum("empty_polls_total"), Sleeps: sum("sleeps_total"),
		Busy: seconds("busy_seconds_total"), Slept: seconds("slept_seconds_total"),
		Waits: sum("epoll_waits_total"), EmptyWaits: sum("epoll_waits_empty_total"), Blocking: sum("epoll_waits_blocking_total"),
	}
	_, l.Kernel = families[prefix+"epoll_waits_total"]
	l.Calls = l.Waits + sum("reads_total") + sum("writes_total")
	for _, m := range families[prefix+"mode"].GetMetric() {
		for _, label := range m.GetLabel() {
			if label.GetName() == "mode" {
				l.Mode = label.GetValue()
			}
		}
	}
	return l
}
