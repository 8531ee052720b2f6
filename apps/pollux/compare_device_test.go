package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-net/pollux/compare"
)

// twoBoxes makes two network namespaces that stand for two boxes: "wire" between
// them, and another network beside it for what controls the load.
func twoBoxes(t *testing.T) (server, client string) {
	t.Helper()
	server, client = fmt.Sprintf("t%d-box1", os.Getpid()), fmt.Sprintf("t%d-box2", os.Getpid())
	for _, name := range []string{server, client} {
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	}
	for line := range strings.Lines(strings.NewReplacer("SERVER", server, "CLIENT", client).Replace(`ip netns add SERVER
ip netns add CLIENT
ip -n SERVER link add wire numrxqueues 2 numtxqueues 2 type veth peer name wire netns CLIENT numrxqueues 2 numtxqueues 1
ip -n SERVER link add beside type veth peer name beside netns CLIENT
ip -n SERVER addr add 10.98.0.1/24 dev wire
ip -n CLIENT addr add 10.98.0.2/24 dev wire
ip -n SERVER addr add 10.97.0.1/24 dev beside
ip -n CLIENT addr add 10.97.0.2/24 dev beside
ip netns exec SERVER ethtool -K wire gro on tso off
ip netns exec CLIENT ethtool -K wire tx off tso off gso off gro on
ip -n SERVER link set lo up
ip -n SERVER link set wire up
ip -n CLIENT link set wire up
ip -n SERVER link set beside up
ip -n CLIENT link set beside up
ip -n SERVER route add 10.96.0.0/24 via 10.98.0.2 dev wire`)) {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), err, out)
		}
	}
	return server, client
}

func in(namespace string, argv ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", namespace}, argv...)...)
}

// settingsOf reads what a NIC's owner would look at afterwards.
func settingsOf(t *testing.T, namespace string) (list []string) {
	t.Helper()
	for _, argv := range [][]string{{"ethtool", "-l", "wire"}, {"ethtool", "-k", "wire"}, {"ip", "-4", "addr", "show", "dev", "wire"}, {"ip", "route"}} {
		out, err := in(namespace, argv...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
		list = append(list, slices.Collect(strings.Lines(string(out)))...)
	}
	return list
}

// One box has the server and the NIC, the other the load: here each is a
// namespace, and the NIC a veth.
func TestCompareMeasuresOnADeviceWithTheLoadOnAnotherBox(t *testing.T) {
	server, client := twoBoxes(t)
	before := settingsOf(t, server)
	file, dir := build(t), t.TempDir()
	out, err := os.Create(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said := func() string {
		b, _ := os.ReadFile(dir + "/out")
		return string(b)
	}
	command := in(server, file, "compare", "--device", "wire", "--address", "10.98.0.1/24", "--client", "10.97.0.2:7070", "--out", dir,
		"--subject", "user/poll,kernel/kernel-polling", "--repetitions", "1", "--warmup", "1500ms", "--duration", "1s", "--connections", "16", "--keys", "1000")
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- command.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		command.Process.Signal(syscall.SIGTERM) // so that it ends its servers
		select {
		case <-ended:
		case <-time.After(time.Minute):
			command.Process.Kill()
		}
	})

	// It says what to run on the other box, and waits for it.
	const wanted = "pollux load 10.98.0.1:11211 --serve 10.97.0.2:7070"
	eventually(t, "it asks for "+wanted, func() bool { return strings.Contains(said(), wanted) })
	agent := in(client, file, "load", "10.98.0.1:11211", "--serve", "10.97.0.2:7070")
	agent.Stdout, agent.Stderr = os.Stderr, os.Stderr
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		agent.Process.Signal(syscall.SIGTERM)
		if err := agent.Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("%v\n%s", err, said())
		}
	case <-time.After(3 * time.Minute):
		t.Fatalf("not within 3 minutes\n%s", said())
	}

	r, err := compare.ReadResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete || r.Plan.Device != "wire" || len(r.Rows) != 2 {
		t.Fatalf("complete %v, device %q, %d rows\n%s", r.Complete, r.Plan.Device, len(r.Rows), said())
	}
	for _, row := range r.Rows {
		m := row.Median
		if m.Requests == 0 || m.Server.CPU <= 0 || m.Observed <= 0 || !m.Proof.Active || row.Idle == nil {
			t.Errorf("%s: %+v\n%s", row.Subject, row, said())
		}
	}
	settings := fmt.Sprint(r.Machine.Settings)
	for _, want := range []string{"{user path, wire driver veth}", "{user path, wire queues 0 combined, 1 receive, 1 transmit}", "{client engine kernel}"} {
		if !strings.Contains(settings, want) {
			t.Errorf("the settings do not have %s: %s", want, settings)
		}
	}
	after := settingsOf(t, server)
	for i := range before {
		if after[i] != before[i] {
			t.Errorf("%q was before the run, %q is after it", before[i], after[i])
		}
	}
	if !strings.Contains(r.Verdict, "on wire") {
		t.Errorf("the verdict does not say where: %s", r.Verdict)
	}
}
