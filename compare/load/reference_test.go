package load

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

func TestReferenceNoticesWrongReplies(t *testing.T) {
	first := make(map[string][]byte)
	for name, c := range map[string]struct {
		liar *liar
		want string
	}{
		"a changed byte": {&liar{lie: func(_ *liar, k string, v []byte) (string, []byte) {
			v[len(v)-1] ^= 0x20
			return k, v
		}}, "byte 39 of 40"},
		"a lost byte": {&liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { return k, v[:len(v)-1] }}, "39 bytes, not 40"},
		"another key": {&liar{lie: func(_ *liar, k string, v []byte) (string, []byte) { return "x" + k, v }}, `is for "xpollux-`},
		"another key's value": {&liar{lie: func(l *liar, k string, _ []byte) (string, []byte) {
			other := "pollux-0"
			if k == other {
				other = "pollux-1"
			}
			return k, l.items[other]
		}}, "differs from what was stored"},
		"flags that were not set": {&liar{flags: 5}, "flags 5"},
		"a value that was replaced": {&liar{lie: func(_ *liar, k string, v []byte) (string, []byte) {
			if first[k] == nil {
				first[k] = v
			}
			return k, first[k]
		}}, "has version "},
		"a value from the future": {&liar{lie: func(_ *liar, k string, _ []byte) (string, []byte) {
			n, _ := strconv.Atoi(strings.TrimPrefix(k, "pollux-"))
			return k, newValues(1, 40).make(n, 1<<40)
		}}, "version 1099511627776, not one of"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Run(t.Context(), Config{Engine: Reference, Address: c.liar.serve(t), Connections: 3, Requests: 400, SetRatio: 0.5, Keys: 5, ValueSize: "40"})
			if err != nil {
				t.Fatal(err)
			}
			if r.Wrong == 0 || r.Err() == nil || !strings.Contains(r.FirstWrong, c.want) || !strings.Contains(r.String(), c.want) {
				t.Errorf("want %q, got\n%v", c.want, r)
			}
		})
	}
}

func TestAnyDamageToAReferenceValueShows(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, 0))
	v := newValues(seed, 300)
	for range 2000 {
		key, version := random.IntN(1000), random.Uint64N(1000)
		value := v.make(key, version)
		if got, err := v.check(key, value); err != nil || got != version {
			t.Fatalf("seed %d: version %d came back as %d, %v", seed, version, got, err)
		}
		value[versionSize+random.IntN(300-versionSize)] ^= 1 << random.IntN(8)
		if _, err := v.check(key, value); err == nil {
			t.Fatalf("seed %d: a changed bit was not noticed", seed)
		}
	}
}
