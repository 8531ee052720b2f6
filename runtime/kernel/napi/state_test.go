package napi

import (
	"reflect"
	"testing"
	"time"
)

func TestADelayIsNeverPutBackTogetherWithADeviceThatChoosesByItself(t *testing.T) {
	on, off := true, false
	delay, frames := 50*time.Microsecond, 64
	for _, c := range []struct {
		name string
		old  Coalescing
		want []Coalescing
	}{
		{"it chose by itself", Coalescing{&delay, &frames, &on}, []Coalescing{{&delay, &frames, &off}, {AdaptiveRx: &on}}},
		{"it did not", Coalescing{&delay, &frames, &off}, []Coalescing{{&delay, &frames, &off}}},
		{"it cannot", Coalescing{RxDelay: &delay}, []Coalescing{{RxDelay: &delay}}},
		{"it does nothing else", Coalescing{AdaptiveRx: &on}, []Coalescing{{AdaptiveRx: &on}}},
	} {
		if got := steps(c.old); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	if !on {
		t.Error("what was saved was changed")
	}
}
