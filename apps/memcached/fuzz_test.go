package memcached

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// The corpora are in testdata/fuzz; each parser has a fuzzer of its own:
//
//	go test -run ^$ -fuzz ^FuzzBinary$ -fuzztime 5m -fuzzminimizetime 1x ./apps/memcached

// fuzzServer is so small that limits are met.
func fuzzServer(t *testing.T) *Server {
	return newServer(t, Options{Memory: 1 << 20, MaxItem: 16 << 10, Now: someday})
}

// checkNothingLeft checks what a server holds after its connections are gone and
// its items too.
func checkNothingLeft(t *testing.T, s *Server) {
	t.Helper()
	now := s.clock.Load()
	s.store.Flush(now, now)
	stats := s.Statistics()
	// The first round ends what was under way, the second sees everything.
	for range 2 {
		s.store.Sweep(int(stats.Store.Buckets), now)
	}
	if stats = s.Statistics(); stats.Conns != 0 || stats.Store.Items != 0 || stats.Store.Bytes != 0 || stats.Store.UsedChunks != 0 {
		t.Errorf("left behind: %+v", stats)
	}
	if n := cap(s.shard(0).out); n > outKeep {
		t.Errorf("the shard keeps a buffer of %d bytes", n)
	}
}

// fuzzStream feeds bytes to a connection, whole and in random pieces: the server
// must not panic, the replies must be the same, no more than a line may be held,
// and nothing may be left behind.
func fuzzStream(t *testing.T, input []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	run := func(deliver func(*fakeConn)) string {
		s := fuzzServer(t)
		c := dial(s, 0)
		deliver(c)
		if !c.ended && len(c.left) > maxLine {
			t.Errorf("%d bytes are held", len(c.left))
		}
		s.Close(c, nil)
		checkNothingLeft(t, s)
		return string(c.out)
	}
	whole := run(func(c *fakeConn) { c.deliver(t, string(input)) })
	cut := run(func(c *fakeConn) { c.deliverCut(t, string(input), rng) })
	if bytes.Contains(input, []byte("stats")) || bytes.Contains(input, []byte{requestMagic, opStat}) {
		return // they tell how many bytes were read
	}
	compare(t, "cut", string(input), cut, whole)
}

func FuzzText(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 6))
	for range 10 {
		f.Add([]byte(wide(rng)), uint64(2))
	}
	f.Add([]byte("set a 0 0 10\r\nabc"), uint64(3)) // the rest never comes
	f.Fuzz(fuzzStream)
}

func FuzzBinary(f *testing.F) {
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		fuzzStream(t, append([]byte{requestMagic}, input...), seed)
	})
}

// FuzzMeta gives every meta command the same key and flags; and a key survives
// its encoding.
func FuzzMeta(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, flags, value []byte, seed uint64) {
		if bytes.ContainsAny(key, "\n") || bytes.ContainsAny(flags, "\n") || len(key)+len(flags) > 1500 {
			return
		}
		var input []byte
		for _, command := range []string{"mg", "ms", "mg", "ma", "md", "mg", "me"} {
			input = append(append(append(input, command...), ' '), key...)
			if command == "ms" {
				input = append(append(input, ' '), []byte("3")...)
			}
			input = append(append(append(input, ' '), flags...), "\r\n"...)
			if command == "ms" {
				input = append(append(input, value...), "\r\n"...)
			}
		}
		fuzzStream(t, input, seed)
		if len(key) > 0 {
			if back, ok := decodeKey(nil, encodeKey(nil, key)); !ok || !bytes.Equal(back, key) {
				t.Errorf("%q is %q after encoding", key, back)
			}
		}
	})
}

// FuzzDatagram gives a server any datagram, twice: every datagram of the replies
// must be numbered as it should, and nothing may be left behind.
func FuzzDatagram(f *testing.F) {
	f.Fuzz(func(t *testing.T, datagram []byte) {
		s := fuzzServer(t)
		c := &fakePacketConn{}
		for range 2 {
			next, total := 0, 0
			for _, p := range c.ask(s, string(datagram)) {
				number := int(binary.BigEndian.Uint16([]byte(p)[2:]))
				if next == 0 {
					total = int(binary.BigEndian.Uint16([]byte(p)[4:]))
				}
				if p[:2] != string(datagram[:2]) || number != next || int(binary.BigEndian.Uint16([]byte(p)[4:])) != total || p[6:8] != "\x00\x00" || len(p) > datagramSize || len(p) == frameSize {
					t.Fatalf("datagram %d of %d: %q", next, total, clip(p))
				}
				if next++; next == total {
					next = 0
				}
			}
			if next != 0 {
				t.Errorf("a message ends after %d of %d datagrams", next, total)
			}
		}
		checkNothingLeft(t, s)
	})
}
