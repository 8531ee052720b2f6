package memcached

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// trace is a sequence of keys to look up; what is missing is stored.
type trace struct {
	name string
	// Every so many keys, scan keys come that are never asked for again.
	scan, every int
	// mixed: values are of 10 to 1500 bytes, the same for the same key; else of
	// 100.
	mixed bool
}

// keys makes the first n keys of the trace, the same for the same seed. The
// popularity of those that are not of a scan falls as their rank to the power
// of -0.9.
func (t *trace) keys(seed uint64, different, n int) []int {
	rng := rand.New(rand.NewPCG(seed, 81))
	cumulative, sum := make([]float64, different), 0.0
	for i := range cumulative {
		sum += math.Pow(float64(i+1), -0.9)
		cumulative[i] = sum
	}
	keys, fresh := make([]int, n), different
	for i := range keys {
		if t.scan > 0 && i%t.every < t.scan {
			keys[i] = fresh
			fresh++
		} else {
			keys[i] = sort.SearchFloat64s(cumulative, rng.Float64()*sum)
		}
	}
	return keys
}

func (t *trace) size(key int) int {
	if !t.mixed {
		return 100
	}
	return 10 + int(uint64(key)*0x9e3779b97f4a7c15>>33%1491)
}

// cache is a memcached that answers multi-key gets.
type cache interface {
	// exchange sends commands that end with one get, and returns its reply.
	exchange(t testing.TB, commands []byte) []byte
}

type embedded struct{ *fakeConn }

func (c embedded) exchange(t testing.TB, commands []byte) []byte {
	c.out = c.out[:0]
	c.deliver(t, string(commands))
	return c.out
}

type remote struct {
	conn  net.Conn
	in    *bufio.Reader
	reply []byte
}

func (c *remote) exchange(t testing.TB, commands []byte) []byte {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.conn.Write(commands)
		sent <- err
	}()
	c.reply = c.reply[:0]
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			t.Fatalf("memcached's reply: %v", err)
		}
		c.reply = append(c.reply, line...)
		if string(line) == "END\r\n" {
			break
		}
		words := bytes.Fields(line)
		if len(words) != 4 {
			t.Fatalf("memcached says %q", line)
		}
		size, err := strconv.Atoi(string(words[3]))
		if err != nil {
			t.Fatalf("memcached says %q", line)
		}
		from := len(c.reply)
		c.reply = append(c.reply, make([]byte, size+2)...)
		if _, err := io.ReadFull(c.in, c.reply[from:]); err != nil {
			t.Fatalf("memcached's reply: %v", err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatalf("to memcached: %v", err)
	}
	return c.reply
}

// debians starts Debian's memcached as it comes, with segments, maintainer and
// crawler.
func debians(t testing.TB, mebibytes int) *remote {
	t.Helper()
	program, err := exec.LookPath("memcached")
	if err != nil {
		t.Fatalf("the reference is missing: %v; apt-get install memcached", err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command(program, "-u", "root", "-m", strconv.Itoa(mebibytes), "-s", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 1000 {
		if c, err := net.Dial("unix", path); err == nil {
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(5 * time.Minute))
			return &remote{conn: c, in: bufio.NewReaderSize(c, 256<<10)}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("memcached did not start within 10 s")
	return nil
}

// replay runs the keys of a trace and returns the ratio of hits in their second
// half, when the cache is full.
func (t *trace) replay(tb testing.TB, c cache, keys []int, tick func()) float64 {
	tb.Helper()
	const batch = 100
	value := bytes.Repeat([]byte("v"), 1500)
	var commands, head []byte
	hits, asked, missing := 0, 0, []int{}
	// A key has as many digits as any other.
	name := func(b []byte, key int) []byte { return strconv.AppendInt(b, int64(1e8+key), 10) }
	for done := 0; done < len(keys); done += batch {
		commands = commands[:0]
		for _, key := range missing {
			size := t.size(key)
			commands = append(name(append(commands, "set "...), key), " 0 0 "...)
			commands = append(strconv.AppendInt(commands, int64(size), 10), " noreply\r\n"...)
			commands = append(append(commands, value[:size]...), '\r', '\n')
		}
		commands = append(commands, "get"...)
		wanted := keys[done:min(done+batch, len(keys))]
		for _, key := range wanted {
			commands = name(append(commands, ' '), key)
		}
		reply := c.exchange(tb, append(commands, '\r', '\n'))
		missing = missing[:0]
		for _, key := range wanted {
			// What was found comes in the order in which it was asked for.
			size := t.size(key)
			head = append(name(append(head[:0], "VALUE "...), key), " 0 "...)
			head = append(strconv.AppendInt(head, int64(size), 10), '\r', '\n')
			hit := bytes.HasPrefix(reply, head)
			if hit {
				reply = reply[len(head)+size+2:]
			} else {
				missing = append(missing, key)
			}
			if done >= len(keys)/2 {
				asked++
				if hit {
					hits++
				}
			}
		}
		if string(reply) != "END\r\n" {
			tb.Fatalf("after what was found comes %q", clip(string(reply)))
		}
		tick()
	}
	return float64(hits) / float64(asked)
}

// hitRatios are the embedded server's and Debian's, with the same memory and keys.
func (t *trace) hitRatios(tb testing.TB, mebibytes int, keys []int) (ours, debian float64, items [2]uint64) {
	tb.Helper()
	s := newServer(tb, Options{Memory: mebibytes << 20})
	n := 0
	ours = t.replay(tb, embedded{dial(s, 0)}, keys, func() {
		if n++; n%1000 == 0 { // ten times a second at a million requests a second
			s.Tick(s.start.Add(time.Duration(n) * 100 * time.Microsecond))
		}
	})
	items[0] = s.Statistics().Store.Items
	reference := debians(tb, mebibytes)
	debian = t.replay(tb, reference, keys, func() {})
	fmt.Fprintf(reference.conn, "stats\r\n")
	for {
		line, err := reference.in.ReadString('\n')
		if err != nil {
			tb.Fatal(err)
		}
		if text, ok := strings.CutPrefix(line, "STAT curr_items "); ok {
			items[1], _ = strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		}
		if line == "END\r\n" {
			return ours, debian, items
		}
	}
}

// Two points of a hundred is what may be between us and Debian's.
const hitRatioTolerance = 0.02

// traces are what hit ratios are compared on.
var traces = []trace{
	{name: "zipf"},
	{name: "scans", scan: 20_000, every: 60_000},
	{name: "mixed", mixed: true},
}

func TestHitRatioIsThatOfMemcached(t *testing.T) {
	const seed = 1
	for _, c := range traces[:2] {
		t.Run(c.name, func(t *testing.T) {
			ours, debian, items := c.hitRatios(t, 8, c.keys(seed, 250_000, 200_000))
			t.Logf("hits: pollux %.2f %% with %d items, memcached %.2f %% with %d", 100*ours, items[0], 100*debian, items[1])
			if ours < debian-hitRatioTolerance {
				t.Errorf("seed %d: %.2f %% hits where memcached has %.2f %%", seed, 100*ours, 100*debian)
			}
		})
	}
}

// The same with memcached's default memory and longer traces.
func BenchmarkHitRatio(b *testing.B) {
	const seed = 2
	for _, c := range traces {
		b.Run(c.name, func(b *testing.B) {
			c.scan, c.every = 6*c.scan, 6*c.every
			keys := c.keys(seed, 2_000_000, 4_000_000)
			for b.Loop() {
				ours, debian, items := c.hitRatios(b, 64, keys)
				b.ReportMetric(100*ours, "%hits")
				b.ReportMetric(100*debian, "%hits-memcached")
				b.ReportMetric(float64(items[0]), "items")
				b.ReportMetric(float64(items[1]), "items-memcached")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
