package load

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"
)

// agentOf starts an agent that loads a server, and attaches to it.
func agentOf(t *testing.T, address string) (remote *Remote, hangUp func(), served <-chan error) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Serve(t.Context(), far, Config{Address: address, Engine: Kernel})
		far.Close()
	}()
	r, err := Attach(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return r, func() { near.Close() }, done
}

func TestAnAgentLoadsAsItIsToldAndHoldsItsWarmUp(t *testing.T) {
	address := memcached(t)
	r, hangUp, served := agentOf(t, address)
	if r.Hello.Server != address || r.Hello.Engine != Kernel {
		t.Errorf("it says of itself %+v", r.Hello)
	}
	job := Job{Workload: Mixed, SetRatio: 0.1, Keys: 100, Connections: 4, Requests: 100, Seed: 3}
	if err := r.Run(job); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Wait(t.Context()); err != nil || got.Requests != 100 || !got.Valid {
		t.Fatalf("%d requests, valid %v, %v; want 100", got.Requests, got.Valid, err)
	}
	// Held, it goes on however long it takes, and nothing of that counts.
	job.Hold, job.NoStore, job.Requests, job.Duration = true, true, 50, time.Minute
	if err := r.Run(job); err != nil {
		t.Fatal(err)
	}
	for {
		p, err := r.Progress()
		if err != nil {
			t.Fatal(err)
		}
		if r.Ended() {
			t.Fatal("the load ended in its warm-up")
		}
		if p.Replies > 200 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Wait(t.Context()); err != nil || got.Requests != 50 || !got.Valid {
		t.Errorf("%d requests were measured, valid %v, %v; want 50", got.Requests, got.Valid, err)
	}
	hangUp()
	if err := <-served; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

func TestAnAgentsLoadEndsWithTheConnection(t *testing.T) {
	r, hangUp, served := agentOf(t, memcached(t))
	if err := r.Run(Job{Workload: Get, Keys: 10, Connections: 2, Duration: time.Hour, Seed: 1, Hold: true}); err != nil {
		t.Fatal(err)
	}
	hangUp()
	select {
	case <-served:
	case <-time.After(time.Minute):
		t.Fatal("the agent goes on without anybody")
	}
	if _, err := r.Wait(context.Background()); err == nil {
		t.Error("a load whose agent is gone has a result")
	}
}

func TestAnAgentTellsWhyALoadCouldNotBegin(t *testing.T) {
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	r, _, _ := agentOf(t, closed.Addr().String())
	if err := r.Run(Job{Workload: Get, Keys: 10, Connections: 1, Requests: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("loading what is not there: %v", err)
	}
}

func TestAnAgentHangsUpOnWhatIsNoOrder(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{"GET / HTTP/1.1\r\n\r\n", "read what to do"},
		{`{"do": "` + strings.Repeat("x", 2*longestOrder) + "\"}\n", "too long"},
		{`{"do": "dance"}` + "\n", "dance"},
		{`{"do": "run"}` + "\n", "without being told which"},
		{"", ""},
	} {
		near, far := net.Pipe()
		served := make(chan error, 1)
		go func() {
			served <- Serve(t.Context(), far, Config{Address: "127.0.0.1:1", Engine: Kernel})
			far.Close()
		}()
		if _, err := near.Read(make([]byte, 1000)); err != nil { // its hello
			t.Fatal(err)
		}
		near.Write([]byte(c.said)) // that it does not read all is its right
		near.Close()
		if err := <-served; c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("told %.20q it ends with %v, want %q", c.said, err, c.want)
		}
	}
}

func TestAnAgentOfAnotherVersionIsRefused(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go json.NewEncoder(far).Encode(answer{Hello: &Hello{Version: agentVersion + 1}})
	if _, err := Attach(near); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("attached: %v", err)
	}
}
