package memcached

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// times are what a reply tells about time, and the class of an item, which is
// memcached's own affair.
var times = regexp.MustCompile(`( t| l| la=| exp=)(-?\d+)|( cls=)(\d+)`)

// alignTimes gives the times in got the values of those in want if they are no
// more than two seconds apart, so that the two can be compared byte for byte.
func alignTimes(got, want string) string {
	wants := times.FindAllStringSubmatch(want, -1)
	i := -1
	return times.ReplaceAllStringFunc(got, func(s string) string {
		if i++; i >= len(wants) {
			return s
		}
		w := wants[i]
		if w[3] != "" && strings.HasPrefix(s, w[3]) {
			return w[0]
		}
		if w[1] == "" || !strings.HasPrefix(s, w[1]) {
			return s
		}
		a, err1 := strconv.ParseInt(s[len(w[1]):], 10, 64)
		b, err2 := strconv.ParseInt(w[2], 10, 64)
		if err1 != nil || err2 != nil || a-b > 2 || b-a > 2 {
			return s
		}
		return w[0]
	})
}

func compareButTimes(t testing.TB, what, input, got, want string) {
	t.Helper()
	compare(t, what, input, alignTimes(got, want), want)
}

func TestRandomMetaCommandsAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 11))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		var history []string
		for i := range 3000 {
			command := generateMeta(rng, true)
			if rng.IntN(4) == 0 {
				command = generate(rng)
			}
			history = append(history, clip(command))
			s.Tick(time.Now())
			compareButTimes(t, fmt.Sprintf("seed %d command %d", seed, i), command, ours(t, s, command), reference.answer(t, command))
			if t.Failed() {
				t.Fatalf("the commands before: %q", history[max(0, len(history)-60):])
			}
		}
		compareStatistics(t, seed, reference, s, "bytes_written") // numbers of seconds differ in length
	}
}

func TestRandomMetaPipelinesAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 12))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		for batch := range 10 {
			var b strings.Builder
			for range 200 {
				b.WriteString(generateMeta(rng, false))
			}
			b.WriteString(strings.Repeat("\r\nget none\r\n", 40))
			s.Tick(time.Now())
			compareButTimes(t, fmt.Sprintf("seed %d batch %d", seed, batch), b.String(), ours(t, s, b.String()), reference.answer(t, b.String()))
			if t.Failed() {
				return
			}
		}
		compareStatistics(t, seed, reference, s, "bytes_written") // numbers of seconds differ in length
	}
}

// Sequences that random commands rarely make. Each begins with servers that have
// given no CAS value yet.
func TestHandWrittenSequencesAreAnsweredAsByMemcached(t *testing.T) {
	short := []byte(packet(opSet, "key", bigEndian(0, 0), "", 0, 1))
	short[11] = 9 // a body that holds key or extras, but not both
	for _, input := range []string{
		// Who has won keeps it when a value older than the invalidation comes.
		"ms a 1\r\nx\r\nmd a I T30\r\nmg a v c\r\nms a 1 C1 I T1000 c\r\ny\r\nmg a v c t\r\nmg a v\r\nms a 1 C3 I\r\nz\r\nmg a v\r\n",
		"ms a 1\r\nx\r\nms a 1 C1 I\r\ny\r\nmg a v c\r\nms a 1 C9 I\r\nz\r\nms a 1 C1 I q c k\r\nz\r\nmg a v c\r\nmg a v\r\n",
		"ms a 1 T50\r\nx\r\nms a 1 T60\r\ny\r\nms a 1 T70 C1 I\r\nz\r\nmg a t\r\nmg a t\r\n",
		// An invalid item that is stored anew is a new item.
		"ms a 1\r\nx\r\nmd a I\r\nmg a\r\nset a 0 0 1\r\ny\r\nmg a\r\nmd a I\r\nmg a\r\nmd a I C1\r\nmg a\r\nmd a I\r\nmg a\r\n",
		"mg a N0\r\nmg a\r\nms a 1 C1 c\r\nx\r\nmg a v\r\nmg a R30\r\ntouch a 20\r\nmg a R30\r\nmg a R30\r\ntouch a 10\r\nmg a R30\r\n",
		"mg a t N30 t\r\nmg a N30 t\r\nma b t N30 J7 v\r\nma b t v\r\nmg a T0 t\r\nmg a t T9\r\nmg a t\r\n",
		packet(opSet, "a", bigEndian(0, 0), "1", 0, 1) + string(short),
	} {
		s := newServer(t, Options{Stripes: 1})
		compareButTimes(t, "by hand", input, ours(t, s, input), startReference(t).answer(t, input))
	}
}

// Arithmetic sets a TTL where the number does not become longer; where it does,
// memcached sets that of the item which it has just replaced (see
// TestMetaCommandsTellAndSetTimes). One connection each: while memcached has a
// reply to send that refers to the item, it replaces it in any case.
func TestArithmeticSetsTheTTLAsInMemcached(t *testing.T) {
	reference, s := startReference(t), newServer(t, Options{Stripes: 1})
	for _, input := range []string{
		"ms n 2 T30\r\n10\r\n", "ma n T100 t v\r\n", "mg n t\r\n", "ma n t T50\r\n", "mg n t\r\n",
		"ma n MD D9 T0 t\r\n", "mg n v t s\r\n", "ma n T-1 v\r\n", "mg n v\r\n",
	} {
		s.Tick(time.Now())
		compareButTimes(t, "by hand", input, ours(t, s, input), reference.answer(t, input))
	}
}
