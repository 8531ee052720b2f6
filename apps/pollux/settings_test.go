package main

import (
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/pollux-net/pollux/runtime"
)

func TestTimersThatAreGivenByFlagNeverGiveWayToCoalescing(t *testing.T) {
	for _, c := range []struct {
		args    []string
		standIn bool
		flush   time.Duration
	}{
		{nil, true, 200 * time.Microsecond},
		{[]string{"--coalescing=80us"}, true, 80 * time.Microsecond},
		{[]string{"--coalescing=0"}, true, 200 * time.Microsecond},
		{[]string{"--coalescing=80us", "--gro-flush-timeout=30us"}, false, 30 * time.Microsecond},
		{[]string{"--defer-hard-irqs=5"}, false, 200 * time.Microsecond},
	} {
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		settings := addModeFlags(f)
		if err := f.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		s, err := settings(runtime.IRQSuppression)
		if err != nil || s.TimersStandIn != c.standIn || s.GROFlushTimeout != c.flush {
			t.Errorf("%v: %+v, %v", c.args, s, err)
		}
	}
}
