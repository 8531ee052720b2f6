package memcached

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestRandomBinaryRequestsAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 21))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		var history []string
		for i := range 3000 {
			request, _ := generateBinary(rng, true)
			history = append(history, clip(request))
			compare(t, fmt.Sprintf("seed %d request %d", seed, i), request, ours(t, s, request), reference.answer(t, request))
			if t.Failed() {
				t.Fatalf("the requests before: %q", history[max(0, len(history)-60):])
			}
		}
		compareStatistics(t, seed, reference, s)
	}
}

func TestRandomBinaryPipelinesAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 22))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		for batch := range 10 {
			var b strings.Builder
			for range 200 {
				request, valid := generateBinary(rng, false)
				for !valid {
					request, valid = generateBinary(rng, false)
				}
				b.WriteString(request)
			}
			compare(t, fmt.Sprintf("seed %d batch %d", seed, batch), b.String(), ours(t, s, b.String()), reference.answer(t, b.String()))
			if t.Failed() {
				return
			}
		}
		compareStatistics(t, seed, reference, s)
	}
}

func TestBothProtocolsSeeTheSameItems(t *testing.T) {
	reference := startReference(t)
	s := newServer(t, Options{Stripes: 1})
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 23))
		for i := range 1500 {
			var request string
			switch rng.IntN(3) {
			case 0:
				request = generate(rng)
			case 1:
				request = generateMeta(rng, true)
			default:
				request, _ = generateBinary(rng, true)
			}
			s.Tick(time.Now())
			compareButTimes(t, fmt.Sprintf("seed %d request %d", seed, i), request, ours(t, s, request), reference.answer(t, request))
			if t.Failed() {
				return
			}
		}
	}
}

// What memcached does not survive in step: it reads on in the middle of a value
// that its command has no use for.
func TestAnUnusedValueOfABinaryRequestIsSkipped(t *testing.T) {
	for _, request := range []string{
		packet(opStat, "sizes", "", "value", 0, 1), packet(opTouch, "key", bigEndian(0), "value", 0, 1), packet(opGAT, "key", bigEndian(0), "value", 0, 1),
		packet(0x50, "key", "extra", "value", 0, 1), packet(0x50, "", "", "value", 0, 1), packet(opSASLAuth, "PLAIN", "", "value", 0, 1),
	} {
		c := dial(newServer(t, Options{}), 0)
		got := c.ask(t, request+packet(opVersion, "", "", "", 0, 2))
		if !strings.HasSuffix(got, "\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x001.6.18") {
			t.Errorf("after %q the next request is answered %q", request, got)
		}
	}
}

// A request may announce four gigabytes: they are not waited for in memory.
func TestABinaryValueOfAnyLengthIsSwallowed(t *testing.T) {
	s := newServer(t, Options{})
	c := dial(s, 0)
	header := []byte(packet(opSet, "key", bigEndian(0, 0), "", 0, 1))
	copy(header[8:], "\xff\xff\xff\xff")
	got := c.ask(t, string(header))
	if !strings.Contains(got, "Too large.") {
		t.Errorf("got %q", got)
	}
	piece := strings.Repeat("x", 1<<20)
	for range 100 {
		if c.deliver(t, piece); len(c.left) > 0 {
			t.Fatalf("%d bytes are left", len(c.left))
		}
	}
	if c.ended || len(c.out) != len(got) {
		t.Errorf("ended %v, answered %q", c.ended, c.out[len(got):])
	}
}
