package memcached

import (
	"fmt"
	"strings"
	"testing"
)

// sink is a connection that takes output away at once.
type sink struct {
	fakeConn
	bytes int
}

func (c *sink) Write(p []byte) (int, error) { c.bytes += len(p); return len(p), nil }

func newSink(b testing.TB, s *Server) *sink {
	c := &sink{fakeConn: fakeConn{server: s}}
	s.Open(c)
	if n := s.Data(c, []byte("version\r\n")); n == 0 {
		b.Fatal("not served")
	}
	return c
}

const benchmarkKeys = 10000

func filled(b testing.TB) (*Server, *sink) {
	s := newServer(b, Options{})
	c := newSink(b, s)
	for i := range benchmarkKeys {
		s.Data(c, fmt.Appendf(nil, "set key-%06d 0 0 100\r\n%s\r\n", i, strings.Repeat("v", 100)))
	}
	if n := s.Statistics().Store.Items; n != benchmarkKeys {
		b.Fatalf("%d items", n)
	}
	return s, c
}

func benchmark(b *testing.B, format string, pipeline int) {
	s, c := filled(b)
	requests := make([][]byte, benchmarkKeys/pipeline)
	for i := range benchmarkKeys / pipeline * pipeline {
		requests[i/pipeline] = fmt.Appendf(requests[i/pipeline], format, i*7919%benchmarkKeys)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		in := requests[i%len(requests)]
		i++
		if n := s.Data(c, in); n != len(in) {
			b.Fatalf("%d of %d bytes consumed", n, len(in))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(pipeline), "ns/request")
}

var setFormat = "set key-%06d 0 0 100\r\n" + strings.Repeat("w", 100) + "\r\n"

func BenchmarkGet(b *testing.B)         { benchmark(b, "get key-%06d\r\n", 1) }
func BenchmarkGetPipeline(b *testing.B) { benchmark(b, "get key-%06d\r\n", 16) }
func BenchmarkSet(b *testing.B)         { benchmark(b, setFormat, 1) }
func BenchmarkSetPipeline(b *testing.B) { benchmark(b, setFormat, 16) }

func TestRequestsDoNotAllocate(t *testing.T) {
	s, c := filled(t)
	for _, request := range []string{
		"get key-000001\r\n", "gets key-000001 key-000002 none\r\n", "gat 0 key-000003\r\n", "set key-000001 0 0 3\r\nabc\r\n",
		"set key-000001 0 0 3 noreply\r\nabc\r\n", "cas key-000001 0 0 3 5\r\nabc\r\n", "append key-000002 0 0 0\r\n\r\n", "delete key-000001\r\n",
		"touch key-000002 0\r\n", "incr key-000002 1\r\n", "nonsense\r\n", "mg key-000003 v t c k Oa\r\n", "ms key-000003 3 c k\r\nabc\r\n",
		"ms key-000003 3 q\r\nabc\r\n", "md none\r\n", "ma key-000004 v\r\n", "mg a2V5LTAwMDAwMw== b k v\r\n", "ma number N0 J1 v\r\n", "mg vivified N30 v\r\n",
		"set key-000001 0 0 3\r\nabcde",
	} {
		in := []byte(request)
		if n := testing.AllocsPerRun(100, func() { s.Data(c, in) }); n != 0 {
			t.Errorf("%q allocates %v times", request, n)
		}
	}
}
