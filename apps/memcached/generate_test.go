package memcached

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// generate makes a random command with its value: most are good, some are bad in
// one word, some are garbage. Nothing in it depends on the time of day.
func generate(rng *rand.Rand) string {
	key := func() string {
		switch rng.IntN(40) {
		case 0:
			return strings.Repeat("k", 245+rng.IntN(10))
		case 1:
			return "tab\tkey"
		}
		return fmt.Sprintf("key%d", rng.IntN(12))
	}
	end := func() string {
		if rng.IntN(12) == 0 {
			return "\n"
		}
		return "\r\n"
	}
	noreply := func() string {
		switch rng.IntN(12) {
		case 0:
			return " noreply"
		case 1:
			return " "
		case 2:
			return " surplus"
		case 3:
			return " a b"
		}
		return ""
	}
	expiry := func() string {
		return pick(rng, "0", "0", "0", "0", "0", "0", "1000", "-1", "2592000", "2592001", "2000000000", "+7000", "4294967296", "x", "-2147483649")
	}
	value := func() string {
		switch rng.IntN(6) {
		case 0:
			return fmt.Sprint(rng.Uint64() >> rng.IntN(64))
		case 1:
			return fmt.Sprint(rng.IntN(110))
		case 2:
			return strings.Repeat("v", rng.IntN(400))
		case 3:
			if rng.IntN(10) == 0 {
				// Lines, lest memcached closes the connection when it comes to
				// read them as commands, and drops replies not yet sent.
				return strings.Repeat("0123456789abcde\n", rng.IntN(4000))
			}
			return pick(rng, "0", "9 ", "007", "18446744073709551615", "-5", "+5", "5 x", "\r\n.", "a\r\nget b", "99999999999999999999999")
		}
		return fmt.Sprintf("value%d", rng.IntN(1000))
	}
	switch rng.IntN(24) {
	case 0, 1, 2, 3, 4:
		name := pick(rng, "get", "gets", "get", "gets", "gat "+expiry(), "gats "+expiry())
		line := name
		for range 1 + rng.IntN(3)*rng.IntN(10) {
			// Not too long: in a pipeline, memcached then loses the replies of
			// the commands before. Pollux does not, so it is compared by hand.
			k := key()
			line += pick(rng, " ", " ", " ", "  ") + k[:min(len(k), 250)]
		}
		return line + pick(rng, "", "", " ") + end()
	case 5, 6, 7, 8, 9, 10, 11, 12:
		v := value()
		size := fmt.Sprint(len(v))
		if rng.IntN(40) == 0 {
			size = pick(rng, "x", "-1", "1", "9", "300", "")
		}
		flags := pick(rng, "0", "0", "0", "1", "77", "4294967295", "4294967296", "-1", "\t5", "y")
		if rng.IntN(2) == 0 {
			flags = "0"
		}
		name := pick(rng, "set", "set", "set", "set", "add", "replace", "append", "prepend", "cas")
		line := fmt.Sprintf("%s %s %s %s %s", name, key(), flags, expiry(), size)
		if name == "cas" {
			line += fmt.Sprint(" ", rng.IntN(400))
		}
		return line + noreply() + end() + v + pick(rng, "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "xx", "y\r\n")
	case 13, 14, 15, 16:
		delta := pick(rng, "1", "1", "5", "10", "99999", "18446744073709551615", "18446744073709551616", "-1", "x", "+3", "-0")
		return pick(rng, "incr ", "decr ") + key() + " " + delta + noreply() + end()
	case 17, 18:
		return "delete " + key() + pick(rng, "", "", "", " 0", " 1", " noreply", " 0 noreply", " 1 noreply", " 0 0 0") + end()
	case 19, 20:
		return "touch " + key() + " " + expiry() + noreply() + end()
	case 21:
		if rng.IntN(6) == 0 {
			return "flush_all" + pick(rng, "", " 0", " -1", " noreply", " 0 noreply", " x", " x noreply", " 0 0 0") + end()
		}
		return pick(rng, "version", "verbosity 1", "verbosity", "verbosity x", "verbosity 0 noreply") + end()
	case 22:
		return pick(rng, "", " ", "a", "get", "gets", "gat", "gat 0", "set", "set a", "set a 0 0", "cas a 0 0 1", "incr", "incr a", "delete",
			"touch", "touch a", "GET a", "gett a", "stats nonsense", "shutdown", "\x00", "get \x00x", "get key1\x00 key2", "stats detail", "bget key1") + end()
	default:
		garbage := make([]byte, rng.IntN(60))
		for i := range garbage {
			garbage[i] = pick[byte](rng, ' ', 'a', 'g', 'e', 't', 's', '\r', 0, '\t', 0xff, '0', '1', '-')
		}
		return "x" + string(garbage) + end()
	}
}

// generateMany makes a sequence of commands.
func generateMany(rng *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(generate(rng))
	}
	return b.String()
}
