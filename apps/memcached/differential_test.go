package memcached

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// reference is a memcached, listening on a Unix socket of its own. Without the
// helper threads that touch items in the background (no_modern) its replies
// depend on its input alone.
type reference struct{ path string }

func startReference(t testing.TB, arguments ...string) reference {
	t.Helper()
	program, err := exec.LookPath("memcached")
	if err != nil {
		t.Fatalf("the reference is missing: %v; apt-get install memcached", err)
	}
	r := reference{filepath.Join(t.TempDir(), "socket")}
	cmd := exec.Command(program, append([]string{"-u", "root", "-t", "1", "-o", "no_modern", "-s", r.path}, arguments...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 500 {
		if c, err := net.Dial("unix", r.path); err == nil {
			c.Close()
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("memcached did not start within 5 s")
	return r
}

// answer sends input in pieces, with a pause between them, ends its side and
// returns all that comes back.
func (r reference) answer(t testing.TB, pieces ...string) string {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	done := make(chan string)
	go func() {
		all, _ := io.ReadAll(c) // an error is a reset: the connection was closed before all was read
		done <- string(all)
	}()
	for i, p := range pieces {
		if i > 0 {
			time.Sleep(50 * time.Millisecond)
		}
		if _, err := io.WriteString(c, p); err != nil {
			break // closed by memcached
		}
	}
	c.(*net.UnixConn).CloseWrite()
	select {
	case s := <-done:
		return s
	case <-time.After(20 * time.Second):
		t.Fatalf("memcached did not answer %q", clip(strings.Join(pieces, "")))
		return ""
	}
}

func clip(s string) string {
	if len(s) > 600 {
		return fmt.Sprintf("%s … %d bytes … %s", s[:300], len(s), s[len(s)-200:])
	}
	return s
}

func ours(t testing.TB, s *Server, pieces ...string) string {
	c := dial(s, 0)
	for _, p := range pieces {
		c.deliver(t, p)
	}
	s.Close(c, nil)
	return string(c.out)
}

// compare reports where two outputs part.
func compare(t testing.TB, what, input, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	from := max(0, i-200)
	t.Errorf("%s: input %q\n from byte %d on, memcached says\n%q\n and pollux\n%q", what, clip(input), i,
		want[from:min(len(want), i+200)], got[from:min(len(got), i+200)])
}

// pipelined makes a sequence of commands without arithmetic: memcached then
// shortens a number in place or not, depending on whether an earlier reply in
// the pipeline still refers to the item.
func pipelined(rng *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		command := generate(rng)
		for strings.HasPrefix(command, "incr") || strings.HasPrefix(command, "decr") {
			command = generate(rng)
		}
		b.WriteString(command)
	}
	// Whatever a short value still waits for is filled up here: when the input
	// ends within a value, memcached drops the replies that it has not sent yet.
	b.WriteString(strings.Repeat("\r\nget none\r\n", 40))
	return b.String()
}

func TestRandomCommandsAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		var history []string
		for i := range 2000 {
			command := generate(rng)
			history = append(history, clip(command))
			compare(t, fmt.Sprintf("seed %d command %d", seed, i), command, ours(t, s, command), reference.answer(t, command))
			if t.Failed() {
				t.Fatalf("the commands before: %q", history[max(0, len(history)-60):])
			}
		}
		compareStatistics(t, seed, reference, s)
	}
}

func TestRandomPipelinesAreAnsweredAsByMemcached(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 2))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		for batch := range 10 {
			input := pipelined(rng, 200)
			compare(t, fmt.Sprintf("seed %d batch %d", seed, batch), input, ours(t, s, input), reference.answer(t, input))
			if t.Failed() {
				bisect(t, seed, batch)
				return
			}
		}
		compareStatistics(t, seed, reference, s)
	}
}

// bisect replays a failing sequence to find the first command that is answered
// differently.
func bisect(t *testing.T, seed uint64, batches int) {
	differs := func(n int) (last string, differs bool) {
		rng := rand.New(rand.NewPCG(seed, 2))
		reference := startReference(t)
		s := newServer(t, Options{Stripes: 1})
		for n > 0 {
			input := pipelined(rng, min(n, 200)-1)
			last = pipelined(rng, 1)
			input += last
			differs = ours(t, s, input) != reference.answer(t, input)
			n -= 200
		}
		return last, differs
	}
	low, high := batches*200, batches*200+200
	for low+1 < high {
		if middle := (low + high) / 2; second(differs(middle)) {
			high = middle
		} else {
			low = middle
		}
	}
	command, _ := differs(high)
	t.Logf("the first command that is answered differently is number %d: %q", high, clip(command))
}

func second(_ string, b bool) bool { return b }

// compareStatistics compares the counters that mean the same in both.
func compareStatistics(t *testing.T, seed uint64, r reference, s *Server, but ...string) {
	t.Helper()
	parse := func(text string) map[string]string {
		m := map[string]string{}
		for _, line := range strings.Split(text, "\r\n") {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "STAT" {
				m[f[1]] = f[2]
			}
		}
		return m
	}
	// Ask for all keys first: then neither has dead items left to count.
	all := "get tab\tkey"
	for i := range 12 {
		all += fmt.Sprintf(" key%d", i)
	}
	for i := range 6 {
		all += " " + strings.Repeat("k", 245+i)
	}
	all += "\r\n"
	for _, key := range oddKeys {
		all += "mg " + key + " b u\r\n"
	}
	want, got := parse(r.answer(t, all, "stats\r\n")), parse(ours(t, s, all, "stats\r\n"))
	if got := ours(t, s, "stats\r\n"); !strings.HasSuffix(got, "\r\nEND\r\n") {
		t.Errorf("stats do not end: %q", got)
	}
	for _, name := range []string{"cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses",
		"delete_misses", "delete_hits", "incr_misses", "incr_hits", "decr_misses", "decr_hits", "cas_misses", "cas_hits", "cas_badval",
		"touch_hits", "touch_misses", "store_too_large", "store_no_memory", "bytes_read", "bytes_written", "limit_maxbytes",
		"max_connections", "total_items", "curr_connections", "curr_items", "bytes", "evictions"} {
		if want[name] != got[name] && !slices.Contains(but, name) {
			t.Errorf("seed %d: stat %s is %s in memcached, %s in pollux", seed, name, want[name], got[name])
		}
	}
}

func TestHandWrittenLinesAreAnsweredAsByMemcached(t *testing.T) {
	reference := startReference(t)
	s := newServer(t, Options{Stripes: 1})
	long := strings.Repeat("k", 251)
	edge := strings.Repeat("k", 250)
	big := func(name, key, flags string, n int) string {
		return fmt.Sprintf("%s %s %s 0 %d\r\n%s\r\n", name, key, flags, n, bytes.Repeat([]byte("b"), n))
	}
	for _, pieces := range [][]string{
		// values and their line ends
		{"set a 0 0 3\r\nabcdef\r\nget a\r\n"}, {"set a 0 0 3\r\nabcd\r\nget a\r\n"}, {"set a 0 0 3\r\nabcdefghijkl\r\nget a\r\n"},
		{"set a 0 0 3\r\nab\r\nget a\r\n"}, {"set a 0 0 3\r\nabc\n\nget a\r\n"}, {"set a 0 0 3\r\nabc\r\rget a\r\n"},
		{"set a 0 0 3\r\nabc", "\r", "\nget a\r\n"}, {"set a 0 0 0\r\n\r\nget a\r\n"}, {"set a 0 0 0\r\nx\r\nget a\r\n"},
		{"set a 0 0 10\r\nabc"}, {"set a 0 0 3"}, {"set a 0 0 3\r\nabc\r"}, {"set bin 0 0 6\r\n\x00\r\n\xff\n \r\nget bin\r\n"},
		// numbers
		{"set a 0 0 -1\r\nversion\r\n"}, {"set a 0 0 2147483646\r\nversion\r\n"}, {"set a 0 0 2147483645\r\nversion\r\n"}, {"set a 0 0 4294967297\r\nx\r\n"},
		{"set a -1 0 1\r\nx\r\nget a\r\n"}, {"set a 4294967295 0 1\r\nx\r\nget a\r\n"}, {"set a 4294967296 0 1\r\nx\r\nget a\r\n"},
		{"set a 18446744073709551615 0 1\r\nx\r\nget a\r\n"}, {"set a 99999999999999999999 0 1\r\nx\r\nget a\r\n"},
		{"set a 3\tz 0 1\r\nx\r\nget a\r\n"}, {"set a +3 \t0 1\r\nx\r\nget a\r\n"}, {"set a 0 0 1.5\r\nx\r\nget a\r\n"},
		{"set a 0 2147483648 1\r\nx\r\nget a\r\n"}, {"set a 0 -2147483649 1\r\nx\r\nget a\r\n"}, {"set a 0 -1 1\r\nx\r\nget a\r\n"},
		{"set a 0 2592000 1\r\nx\r\nget a\r\n"}, {"set a 0 2592001 1\r\nx\r\nget a\r\n"}, {"set a 0 1e3 1\r\nx\r\n"},
		// words
		{"set a 0 0\r\nx\r\n"}, {"set a 0 0 1 2 noreply\r\nx\r\n"}, {"set a 0 0 1 norepl\r\nx\r\nget a\r\n"}, {"set a 0 0 1 noreply\r\ny\r\nget a\r\n"},
		{"set a 0 0 1 noreply\r\nyy\r\nget a\r\n"}, {"set  a  0  0  1 \r\nz\r\nget a\r\n"}, {"SET a 0 0 1\r\nx\r\n"}, {"set a 0 0 1\x00junk\r\nq\r\nget a\r\n"},
		{"cas a 0 0 1\r\n"}, {"cas a 0 0 1 x\r\nx\r\n"}, {"cas a 0 0 1 999999\r\nx\r\n"}, {"cas none 0 0 1 1\r\nx\r\n"}, {"cas none 0 0 1 noreply\r\nx\r\n"},
		{"cas none 0 0 1 1 2 3\r\nx\r\n"}, {"cas none 0 0 1 -1\r\nx\r\n"}, {"set c 0 0 1\r\nx\r\ngets c\r\n"},
		// keys
		{"set " + long + " 0 0 1\r\nx\r\n"}, {"set " + long + " 0 0 1 noreply\r\nx\r\n"}, {"set " + edge + " 0 0 1\r\nx\r\nget " + edge + "\r\n"},
		{"get " + long + "\r\n"}, {"get a a " + long + " a\r\nget a\r\n"}, {"get a\r\nget a " + long + "\r\nget a\r\n"}, {"gat 0 " + long + "\r\n"},
		{"gat 0 a " + long + "\r\n"}, {"delete " + long + "\r\n"}, {"touch " + long + " 0\r\n"}, {"incr " + long + " 1\r\n"}, {"touch " + long + " 0 noreply\r\n"},
		{"get " + edge + strings.Repeat(" a", 30) + "\r\n"}, {"gats 0" + strings.Repeat(" a", 30) + "\r\n"}, {"get " + long + "\n"}, {"get " + edge + "\r\n"},
		// lines
		{"\r\n"}, {"\n"}, {" \r\n"}, {"a\r\n"}, {"\r\r\n"}, {"get a\r\r\n"}, {"get a\n"}, {" get a\r\n"}, {"get  a  b \r\n"}, {"get a\x00b c\r\n"}, {"get a\tb\r\n"},
		{"get\r\n"}, {"get \r\n"}, {"get  \x00 a\r\n"}, {"gets\r\n"}, {"gat\r\n"}, {"gat 0\r\n"}, {"gat x a\r\n"}, {"gat x\r\n"}, {"gats 0 a a\r\n"}, {"bget a\r\n"},
		{"get a"}, {"get a\r"}, {"\x00get a\r\n"}, {"get a\r\n\x80\r\n"}, {"version\r\n\x80"},
		{"incr a\r\n"}, {"incr a x\r\n"}, {"incr none 1\r\n"}, {"incr a 1 noreply\r\n"}, {"incr a 1 2 3\r\n"}, {"incr a 18446744073709551616\r\n"}, {"incr none 1\tx\r\n"},
		{"delete\r\n"}, {"delete a 0\r\n"}, {"delete a 1\r\n"}, {"delete a 0 noreply\r\n"}, {"delete a 0 x\r\n"}, {"delete a x y z\r\n"}, {"delete a 1 noreply\r\n"},
		{"touch a\r\n"}, {"touch a x\r\n"}, {"touch a 0\r\n"}, {"touch a 0 1 2\r\n"}, {"touch a x noreply\r\n"},
		{"flush_all x\r\n"}, {"flush_all 0 0\r\n"}, {"flush_all 0 0 0\r\n"}, {"flush_all 0 0 noreply\r\n"}, {"flush_all noreply\r\n"}, {"flush_all -1\r\n"}, {"flush_all 99999999999\r\nflush_all\r\n"},
		{"version x y z\r\n"}, {"verbosity\r\n"}, {"verbosity x\r\n"}, {"verbosity 0 noreply\r\n"}, {"verbosity noreply\r\n"}, {"verbosity 0 1 2\r\n"}, {"verbosity -1\r\n"}, {"verbosity 99999999999\r\nverbosity 0\r\n"},
		{"quit\r\n"}, {"quit x\r\n"}, {"get a\r\nquit\r\nget a\r\n"}, {"quitx\r\n"}, {"shutdown\r\n"}, {"shutdown x\r\n"},
		{"stats foo\r\n"}, {"stats reset\r\n"}, {"stats reset x\r\n"}, {"stats detail\r\n"}, {"stats detail x\r\n"}, {"stats detail off\r\n"}, {"stats sizes\r\n"}, {"stats noreply\r\n"},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, {"get / HTTP/1.1\r\n"}, {"foo HTTP/\r\nversion\r\n"}, {"sx HTTP/1\r\nversion\r\n"}, {"gx HTTP/1\r\n"}, {"ax HTTP/1\r\n"}, {"cx HTTP/1\r\n"}, {"ix HTTP/1\r\n"},
		{"dx HTTP/1\r\n"}, {"tx HTTP/1\r\n"}, {"x HTTP/1\r\n"}, {"px HTTP/1\r\nversion\r\n"}, {"HTTP/1 x\r\n"}, {"HTTP/1\r\nversion\r\n"}, {"mxx HTTP/1\r\nversion\r\n"},
		{"foo" + strings.Repeat(" x", 21) + " HTTP/1\r\nversion\r\n"}, {"foo" + strings.Repeat(" x", 22) + " HTTP/1\r\nversion\r\n"},
		// lines without an end
		{strings.Repeat("x", 2047), "\r\nversion\r\n"}, {strings.Repeat("x", 2049), "\r\nversion\r\n"}, {strings.Repeat("x", 2000), strings.Repeat("y", 48) + "\nversion\r\n"},
		{"get " + strings.Repeat("a ", 5000), "\r\nversion\r\n"}, {"gets " + strings.Repeat("a ", 5000), "\r\nversion\r\n"},
		{"set a 0 0 1\r\nx\r\n", "gat 0 " + strings.Repeat("a ", 1500) + "\r\nversion\r\n"}, {"gats 0" + strings.Repeat(" none a", 700) + "\r\n"}, {"gat x " + strings.Repeat("a ", 1500) + "\r\nversion\r\n"},
		{strings.Repeat(" ", 100) + "get " + strings.Repeat("a ", 5000), "\r\nversion\r\n"}, {strings.Repeat(" ", 101) + "get " + strings.Repeat("a ", 5000), "\r\nversion\r\n"},
		{"get " + strings.Repeat("k", 5000), "\r\nversion\r\n"}, {"get " + strings.Repeat(" ", 5000), "\r\nversion\r\n"}, {"set " + strings.Repeat("k", 5000), " 0 0 1\r\nx\r\n"},
		{"get " + strings.Repeat("none ", 1000) + "a\r\n"}, {"get " + strings.Repeat("none ", 1000) + "\x00" + strings.Repeat("a ", 1000) + "\r\nversion\r\n"},
		// arithmetic
		{"set n 0 0 2\r\n10\r\ndecr n 1\r\nget n\r\nincr n 1\r\nget n\r\nincr n 90\r\ngets n\r\ndecr n 1000\r\ngets n\r\n"},
		{"set n 5 0 20\r\n18446744073709551615\r\nincr n 1\r\nget n\r\nincr n 5\r\ndecr n 18446744073709551615\r\nget n\r\n"},
		{"set n 0 0 23\r\n12345678901234567890123\r\nincr n 1\r\n"}, {"set n 0 0 21\r\n                    5\r\nincr n 1\r\nget n\r\n"},
		{"set n 0 0 5\r\n5 abc\r\nincr n 1\r\nget n\r\n"}, {"set n 0 0 5\r\n5\x00abc\r\nincr n 1\r\nget n\r\n"}, {"set n 0 0 0\r\n\r\nincr n 1\r\n"},
		{"set n 0 0 2\r\n-1\r\nincr n 1\r\n"}, {"set n 0 0 2\r\n-0\r\nincr n 1\r\nget n\r\n"}, {"set n 0 0 2\r\n+5\r\nincr n 1\r\nget n\r\n"}, {"set n 0 0 21\r\n-18446744073709551615\r\nincr n 1\r\nget n\r\n"},
		{"set n 0 0 4\r\n0x10\r\nincr n 1\r\n"}, {"set n 9 0 2\r\n99\r\ngets n\r\nincr n 1\r\ngets n\r\ntouch n 100\r\ngets n\r\nappend n 0 0 1\r\nx\r\ngets n\r\nprepend n 7 0 2\r\nyz\r\ngets n\r\n"},
		{"set n 0 1000 2\r\n10\r\nincr n 1 noreply\r\ndecr none 1 noreply\r\nget n\r\n"},
		// the limit of an item
		{big("set", "b", "0", 1048516)}, {"get b\r\n"}, {big("set", "b", "0", 1048517), "get b\r\n"}, {big("set", "b", "1", 1048512)}, {big("set", "b", "1", 1048513), "get b\r\n"},
		{"set b 0 0 1\r\nx\r\n" + big("set", "b", "0", 2000000) + "get b\r\n"}, {"set b 0 0 1\r\nx\r\n" + big("add", "b", "0", 2000000) + "get b\r\n"},
		{"set b 0 0 1\r\nx\r\n", "set b 0 0 2000000 noreply\r\n" + strings.Repeat("y", 2000000) + "zzget b\r\n"}, {"set b 0 0 2000000\r\n" + strings.Repeat("y", 2000000)},
		{big("set", "b", "0", 1048500) + big("append", "b", "0", 30) + "get b\r\n" + big("prepend", "b", "0", 17) + big("prepend", "b", "0", 16) + "get b\r\n"},
		{big("set", "b", "3", 500000) + big("append", "b", "0", 300000) + big("prepend", "b", "0", 200000) + "gets b\r\n"},
	} {
		input := strings.Join(pieces, "")
		compare(t, "by hand", input, ours(t, s, pieces...), reference.answer(t, pieces...))
	}
}

func TestExpiryAndDelayedFlushPassAsInMemcached(t *testing.T) {
	reference := startReference(t)
	s := newServer(t, Options{Stripes: 1})
	step := func(input string) {
		t.Helper()
		s.Tick(time.Now())
		compare(t, "in time", input, ours(t, s, input), reference.answer(t, input))
	}
	step("set a 0 3 1\r\na\r\nset b 0 0 1\r\nb\r\nset c 0 30 1\r\nc\r\nset d 0 0 1\r\nd\r\nget a b c d\r\ntouch b 3\r\ngat 3 c\r\ngats 0 c\r\n")
	// Clocks of whole seconds differ by up to one: stay away from the edges.
	time.Sleep(4500 * time.Millisecond)
	step("get a b c d\r\nadd a 0 0 1\r\nA\r\nappend b 0 0 1\r\nx\r\nincr b 1\r\nflush_all 3\r\nget a c d\r\n")
	time.Sleep(4500 * time.Millisecond)
	step("get a b c d\r\nset e 0 0 1\r\ne\r\nget e\r\n")
}
