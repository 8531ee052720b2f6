package memcached

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// oddKeys are base64 at the edge of what memcached decodes.
var oddKeys = []string{"!!", "====", "a=b=", "AAA", "AA==BBBB", "A-A=", "a2V5M\tQ==", "AAAA", "/+8=", "====AAAA", "AAA====="}

// generateMeta makes a random meta command, with its value. No arithmetic is
// among them that lengthens a number and sets its TTL at the same time: there
// memcached 1.6.18 sets the TTL of the item that it has just replaced.
func generateMeta(rng *rand.Rand, arithmetic bool) string {
	var flags []string
	key := fmt.Sprintf("key%d", rng.IntN(12))
	switch rng.IntN(24) {
	case 0:
		key = strings.Repeat("k", 245+rng.IntN(10))
	case 1, 2, 3:
		key = base64.StdEncoding.EncodeToString([]byte(key))
		flags = append(flags, "b")
	case 4:
		key = oddKeys[rng.IntN(len(oddKeys))]
		flags = append(flags, "b")
	}
	number := func() string {
		return pick(rng, "", "0", "0", "1", "5", "30", "100", "2592000", "-1", "x", "4294967296", "18446744073709551615", "18446744073709551616", fmt.Sprint(rng.IntN(400)))
	}
	time := func() string {
		return pick(rng, "0", "30", "100", "1000", "-1", "2592001", "x", "")
	}
	// No time to live that is drawn passes one of these within seconds: that would
	// turn on whose clock ticks first.
	left := func() string {
		return pick(rng, "0", "20", "60", "500", "-1", "2592001", "x", "")
	}
	command := pick(rng, "mg", "mg", "mg", "mg", "ms", "ms", "ms", "md", "me", "ma", "mn", "mx")
	if !arithmetic && command == "ma" {
		command = "mg"
	}
	some := "bcfhklqstuvOTNRCIMPLFJDS"
	usual := map[string]string{"mg": "cfhklqstuvOTNRP", "ms": "ckkOOqFTCIM", "md": "kOqCIT", "ma": "tcvkOqNJDMC", "me": "", "mn": "", "mx": "k"}[command]
	for range rng.IntN(6) {
		letter := some[rng.IntN(len(some))]
		if len(usual) > 0 && rng.IntN(12) > 0 {
			letter = usual[rng.IntN(len(usual))]
		}
		if command == "ma" && letter == 'T' || letter == 'b' {
			continue
		}
		flag := string(letter)
		switch letter {
		case 'O':
			flag += pick(rng, "", "1", "opaque", strings.Repeat("x", 29+rng.IntN(5)))
		case 'P', 'L':
			flag += "path"
		case 'T', 'N':
			flag += time()
		case 'R':
			flag += left()
		case 'M':
			flag += pick(rng, "E", "A", "P", "R", "S", "I", "D", "+", "-", "e", "d", "x", "", "EE")
		case 'F', 'C', 'J', 'D':
			flag += number()
		}
		if strings.Contains(" "+strings.Join(flags, " "), " "+string(letter)) && rng.IntN(20) > 0 {
			continue
		}
		flags = append(flags, flag)
	}
	rng.Shuffle(len(flags), func(i, j int) { flags[i], flags[j] = flags[j], flags[i] })
	end := pick(rng, "\r\n", "\r\n", "\r\n", "\n")
	all := ""
	if len(flags) > 0 {
		all = " " + strings.Join(flags, " ")
	}
	switch rng.IntN(60) {
	case 0:
		return command + end
	case 1:
		return command + " " + key + strings.Repeat(" k", 17+rng.IntN(3)) + end
	case 2:
		all += pick(rng, " z", " \xff", " \x7f", " ~", " k k", "  ", " Ok", "\x00junk")
	}
	if command == "mn" {
		return command + end
	}
	if command != "ms" {
		return command + " " + key + all + end
	}
	value := pick(rng, "1", "99", "value", "", strings.Repeat("v", rng.IntN(300)), fmt.Sprint(rng.Uint64()>>rng.IntN(64)))
	size := fmt.Sprint(len(value))
	if rng.IntN(30) == 0 {
		size = pick(rng, "x", "-1", "S2", "")
	}
	return command + " " + key + " " + size + all + end + value + pick(rng, "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "xx", "y\r\n")
}
