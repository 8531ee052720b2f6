package forward_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pollux-net/pollux/apps/packet/forward"
	"github.com/pollux-net/pollux/apps/packet/queue"
	"github.com/pollux-net/pollux/apps/packet/routes"
	"github.com/pollux-net/pollux/apps/packet/rules"
	"github.com/pollux-net/pollux/driver"
	"github.com/pollux-net/pollux/driver/wire"
)

// variants runs a test with the flow cache and without.
func variants(t *testing.T, f func(t *testing.T, c forward.Config)) {
	t.Run("cache", func(t *testing.T) { f(t, forward.Config{}) })
	t.Run("no cache", func(t *testing.T) { f(t, forward.Config{Flows: -1}) })
}

func TestAPacketIsForwardedAndRewritten(t *testing.T) {
	variants(t, func(t *testing.T, c forward.Config) {
		b := newBed(t, 2, wire.Config{}, c)
		defer b.close()
		b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1), via("2001:db8::/32", 1)}})
		for round := range 3 { // the first one decides, the others find the decision
			for _, p := range []packet{
				{from: addr4(0, 2), to: netip.MustParseAddr("20.1.2.3"), sport: 1, dport: 2, payload: 100},
				{from: addr4(0, 2), to: addr4(1, 2), protocol: 6, payload: 30},
				{from: addr6(0, 2), to: netip.MustParseAddr("2001:db8::9"), payload: 100},
				{from: addr6(0, 2), to: addr6(1, 2), protocol: 58, icmpType: 128, payload: 9},
				{from: addr4(0, 2), to: addr4(1, 2), protocol: 47, payload: 30},
			} {
				in := p.frame()
				b.send(0, in)
				b.step(time.Millisecond)
				out := b.one(1)
				b.valid(out)
				to, from := peerMAC(1), routerMAC(1)
				if !bytes.Equal(out[:6], to[:]) || !bytes.Equal(out[6:12], from[:]) {
					t.Errorf("round %d: Ethernet header %x", round, out[:14])
				}
				ttl, checksumAt := 14+8, 14+10
				if p.from.Is6() {
					ttl, checksumAt = 14+7, 0
				}
				in[ttl]--
				copy(in[:12], out[:12])
				if checksumAt > 0 {
					copy(in[checksumAt:checksumAt+2], out[checksumAt:])
				}
				if !bytes.Equal(in, out) {
					t.Errorf("round %d: sent\n%x, received\n%x", round, in, out)
				}
			}
		}
		s := b.total()
		if hits := s.CacheHits > 0; hits != (c.Flows == 0) {
			t.Errorf("%d cache hits", s.CacheHits)
		}
	})
}

// extended is a packet with extension headers, of which the last says that it is
// so many times 8 bytes longer, and no more of what is behind them than most
// bytes. A fragment header is a first fragment's.
func extended(p packet, headers []byte, longer byte, most int) []byte {
	f := p.frame()
	e := bytes.Clone(f[:54])
	next := e[20]
	e[20] = headers[0]
	for i, h := range headers {
		x := make([]byte, 8)
		x[0] = next
		if i+1 < len(headers) {
			x[0] = headers[i+1]
		} else if x[1] = longer; h == 44 {
			x[3] = 1
		}
		e = append(e, x...)
	}
	e = append(e, f[54:min(54+most, len(f))]...)
	be.PutUint16(e[18:], uint16(len(e)-54))
	return e
}

func TestMartiansAndWhatIsNotForwardedIsDroppedUnderItsCause(t *testing.T) {
	variants(t, func(t *testing.T, c forward.Config) {
		dst := addr4(1, 2)
		ok := packet{from: addr4(0, 2), to: dst, payload: 20}
		change := func(f func(b []byte)) []byte {
			b := ok.frame()
			f(b)
			return b
		}
		header := func(f func(ip []byte)) []byte {
			return change(func(b []byte) {
				f(b[14:])
				be.PutUint16(b[24:], 0)
				be.PutUint16(b[24:], ^checksum(b[14:34], 0))
			})
		}
		from := func(s string) []byte { return packet{from: netip.MustParseAddr(s), to: dst}.frame() }
		to := func(s string) []byte { return packet{from: addr4(0, 2), to: netip.MustParseAddr(s)}.frame() }
		from6 := func(s string) []byte { return packet{from: netip.MustParseAddr(s), to: addr6(1, 2)}.frame() }
		to6 := func(s string) []byte { return packet{from: addr6(0, 2), to: netip.MustParseAddr(s)}.frame() }
		for _, c2 := range []struct {
			cause string
			frame []byte
		}{
			{"short", ok.frame()[:30]},
			{"other-host", change(func(b []byte) { b[5] ^= 1 })},
			{"ethertype", change(func(b []byte) { b[12], b[13] = 0x81, 0 })},
			{"multicast", change(func(b []byte) { copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) })},
			{"multicast", to("224.0.0.5")},
			{"malformed", change(func(b []byte) { b[14] = 0x44 })},
			{"malformed", change(func(b []byte) { b[14] = 0x65 })},
			{"malformed", header(func(ip []byte) { be.PutUint16(ip[2:], 1000) })},
			{"malformed", header(func(ip []byte) { be.PutUint16(ip[2:], 10) })},
			{"checksum", change(func(b []byte) { b[24] ^= 1 })},
			{"martian", from("0.1.2.3")},
			{"martian", from("127.0.0.1")},
			{"martian", from("224.0.0.1")},
			{"martian", from("240.0.0.1")},
			{"martian", from("255.255.255.255")},
			{"martian", from("10.0.0.1")}, // ours
			{"martian", from("169.254.1.1")},
			{"martian", to("0.0.0.0")},
			{"martian", to("127.0.0.1")},
			{"martian", to("250.0.0.1")},
			{"martian", to("255.255.255.255")},
			{"martian", from6("::")},
			{"martian", from6("::1")},
			{"martian", from6("ff02::1")},
			{"martian", from6("::ffff:1.2.3.4")},
			{"martian", from6("fe80::1")},
			{"martian", to6("::1")},
			{"martian", to6("fe80::9")},
			{"multicast", to6("ff0e::1")},
			{"no-route", to("99.0.0.1")},
			{"no-route", to6("2001:db8::1")},
			{"blackhole", to("30.0.0.1")},
			{"unreachable", to("31.0.0.1")},
			{"no-port", to("32.0.0.1")},
			{"no-local", to("10.0.0.1")},
			{"no-local", to6("fd00:1::1")},
			{"hop-limit", packet{from: addr4(0, 2), to: dst, ttl: 1}.frame()},
			{"hop-limit", packet{from: addr6(0, 2), to: addr6(1, 2), ttl: 1}.frame()},
			{"tiny-fragment", header(func(ip []byte) { ip[6], ip[9], ip[3] = 0x20, 6, 36 })},
			{"tiny-fragment", extended(packet{from: addr6(0, 2), to: addr6(1, 2), protocol: 6}, []byte{44}, 0, 16)},
			{"extensions", extended(packet{from: addr6(0, 2), to: addr6(1, 2)}, bytes.Repeat([]byte{60}, 9), 0, 100)},
			{"malformed", extended(packet{from: addr6(0, 2), to: addr6(1, 2)}, []byte{0, 60}, 200, 100)},
			{"source-route", func() []byte {
				b := make([]byte, 14+28+8)
				copy(b, ok.frame()[:34])
				b[14] = 0x47
				be.PutUint16(b[16:], 36)
				copy(b[34:], []byte{131, 7, 4, 1, 2, 3, 4, 0})
				be.PutUint16(b[24:], 0)
				be.PutUint16(b[24:], ^checksum(b[14:42], 0))
				return b
			}()},
		} {
			b := newBed(t, 2, wire.Config{}, c)
			b.apply(routes.Update{Routes: []routes.Route{
				{Prefix: netip.MustParsePrefix("30.0.0.0/8"), Blackhole: true}, {Prefix: netip.MustParsePrefix("31.0.0.0/8"), Unreachable: true},
				{Prefix: netip.MustParsePrefix("32.0.0.0/8"), NextHops: []routes.NextHop{{Interface: 77}}},
			}})
			for range 2 {
				b.send(0, c2.frame)
				b.step(time.Second)
			}
			if got := b.drops(); len(got) != 1 || got[c2.cause] != 2 {
				t.Errorf("%x\nwas dropped as %v, want %s twice", c2.frame, got, c2.cause)
			}
			if len(b.out(1)) > 0 {
				t.Errorf("%x (%s) was forwarded", c2.frame, c2.cause)
			}
			b.out(0) // an ICMP error maybe
			b.close()
		}
	})
}

func TestErrorsTellTheSenderWhatBecameOfThePacket(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	b.apply(routes.Update{Routes: []routes.Route{{Prefix: netip.MustParsePrefix("31.0.0.0/8"), Unreachable: true}},
		Links: []routes.Link{{Interface: 2, Name: "p1", MTU: 1400, Up: true}}})
	for _, c := range []struct {
		p         packet
		kind      byte
		code      byte
		mtu       uint32
		quoteOnly int
	}{
		{p: packet{from: addr4(0, 2), to: addr4(1, 2), ttl: 1, payload: 1000}, kind: 11, quoteOnly: 548},
		{p: packet{from: addr4(0, 2), to: netip.MustParseAddr("99.0.0.1")}, kind: 3},
		{p: packet{from: addr4(0, 2), to: netip.MustParseAddr("31.0.0.1")}, kind: 3, code: 1},
		{p: packet{from: addr4(0, 2), to: addr4(1, 2), payload: 1400, df: true}, kind: 3, code: 4, mtu: 1400, quoteOnly: 548},
		{p: packet{from: addr6(0, 2), to: addr6(1, 2), ttl: 1}, kind: 3},
		{p: packet{from: addr6(0, 2), to: netip.MustParseAddr("2001::1")}, kind: 1},
		{p: packet{from: addr6(0, 2), to: addr6(1, 2), payload: 1400}, kind: 2, mtu: 1400, quoteOnly: 1232},
	} {
		in := c.p.frame()
		b.send(0, in)
		b.step(time.Second)
		out := b.one(0)
		b.valid(out)
		size, source, to := 20, addr4(0, 1), addr4(0, 2)
		fields := out[14+12:]
		if c.p.from.Is6() {
			size, source, to = 40, addr6(0, 1), addr6(0, 2)
			fields = out[14+8:]
		}
		n := len(source.AsSlice())
		if !bytes.Equal(fields[:n], source.AsSlice()) || !bytes.Equal(fields[n:2*n], to.AsSlice()) {
			t.Errorf("%+v: addresses %x", c.p, fields[:2*n])
		}
		o := out[14+size:]
		if o[0] != c.kind || o[1] != c.code || be.Uint32(o[4:]) != c.mtu {
			t.Errorf("%+v: type %d code %d, %d; want %d, %d, %d", c.p, o[0], o[1], be.Uint32(o[4:]), c.kind, c.code, c.mtu)
		}
		want := in[14:]
		if c.quoteOnly > 0 {
			want = want[:c.quoteOnly]
		}
		if !bytes.Equal(o[8:], want) {
			t.Errorf("%+v: quotes %d bytes\n%x, want %d\n%x", c.p, len(o[8:]), o[8:], len(want), want)
		}
	}
	// None about errors, tails of fragments, and by no more than the rate.
	for _, p := range []packet{
		{from: addr4(0, 2), to: addr4(1, 2), ttl: 1, protocol: 1, icmpType: 3},
		{from: addr6(0, 2), to: addr6(1, 2), ttl: 1, protocol: 58, icmpType: 1},
		{from: addr4(0, 2), to: addr4(1, 2), ttl: 1, fragment: 100},
	} {
		b.send(0, p.frame())
		b.step(time.Second)
		b.none()
	}
	for range 500 {
		b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), ttl: 1}.frame())
	}
	b.step(time.Second)
	if n := len(b.out(0)); n != 50 {
		t.Errorf("%d errors at once, want the burst of 50", n)
	}
	if s := b.total(); s.ICMPLimited != 450 {
		t.Errorf("%d errors held back, want 450", s.ICMPLimited)
	}
}

func TestALargePacketIsFragmentedAndItsPiecesMakeItUp(t *testing.T) {
	variants(t, func(t *testing.T, c forward.Config) {
		b := newBed(t, 2, wire.Config{}, c)
		defer b.close()
		b.apply(routes.Update{Links: []routes.Link{{Interface: 2, Name: "p1", MTU: 600, Up: true}}})
		in := packet{from: addr4(0, 2), to: addr4(1, 2), payload: 1400}.frame()
		b.send(0, in)
		b.step(time.Millisecond)
		pieces := b.out(1)
		whole := make([]byte, len(in)-34)
		for i, p := range pieces {
			b.valid(p)
			ip := p[14:]
			if len(ip) > 600 || ip[8] != 63 || be.Uint16(ip[4:]) != 0x1234 {
				t.Errorf("piece %d: %x", i, ip[:20])
			}
			field := be.Uint16(ip[6:])
			if more := field&0x2000 != 0; more != (i < len(pieces)-1) {
				t.Errorf("piece %d of %d says more: %v", i, len(pieces), more)
			}
			copy(whole[int(field&0x1fff)*8:], ip[20:be.Uint16(ip[2:])])
		}
		if len(pieces) != 3 || !bytes.Equal(whole, in[34:]) {
			t.Errorf("%d pieces do not make the packet up", len(pieces))
		}
	})
}

func arpFrame(op uint16, mac [6]byte, from, to netip.Addr) []byte {
	b := make([]byte, 60)
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(b[6:], mac[:])
	copy(b[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, byte(op)})
	copy(b[22:], mac[:])
	copy(b[28:], from.AsSlice())
	copy(b[38:], to.AsSlice())
	return b
}

func TestPacketsWaitForANeighbourThatAnswers(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	host := addr4(1, 9)
	for i := range 34 {
		b.send(0, packet{from: addr4(0, 2), to: host, sport: uint16(i)}.frame())
	}
	b.step(time.Millisecond)
	question := b.one(1)
	if !bytes.Equal(question[:6], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) || be.Uint16(question[12:]) != 0x0806 || be.Uint16(question[20:]) != 1 ||
		!bytes.Equal(question[28:32], addr4(1, 1).AsSlice()) || !bytes.Equal(question[38:42], host.AsSlice()) {
		t.Errorf("the question is %x", question)
	}
	if d := b.drops(); d["neighbour-wait"] != 2 || b.total().Held != 32 {
		t.Errorf("%d wait, dropped %v; want 32 and 2", b.total().Held, d)
	}
	mac := [6]byte{2, 9, 9, 9, 9, 9}
	answer := arpFrame(2, mac, host, addr4(1, 1))
	to := routerMAC(1)
	copy(answer, to[:])
	b.send(1, answer)
	b.step(time.Millisecond)
	if !b.f.Control().Tick(b.now) {
		t.Fatal("nothing learned")
	}
	b.step(time.Millisecond)
	seen := b.out(1)
	if len(seen) != 32 || b.total().Held != 0 {
		t.Fatalf("%d frames left, %d still wait", len(seen), b.total().Held)
	}
	for i, f := range seen {
		if !bytes.Equal(f[:6], mac[:]) || be.Uint16(f[34:]) != uint16(i) {
			t.Errorf("frame %d: %x", i, f)
		}
	}
	// It is asked again, at its own address, once it has been silent; and is
	// forgotten when it does not answer.
	asked := 0
	for range 60 {
		b.step(time.Second)
		b.f.Control().Tick(b.now)
		b.step(0)
		for _, f := range b.out(1) {
			if be.Uint16(f[12:]) != 0x0806 || !bytes.Equal(f[:6], mac[:]) {
				t.Errorf("unexpected %x", f)
			}
			asked++
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
	b.send(0, packet{from: addr4(0, 2), to: host}.frame())
	b.step(time.Millisecond)
	if f := b.one(1); be.Uint16(f[12:]) != 0x0806 {
		t.Errorf("a silent neighbour is still believed: %x", f)
	}
}

// advertisement is a neighbour's of its address: solicited, without the option
// that repeats its Ethernet address if mac is zero.
func advertisement(i int, target netip.Addr, mac [6]byte) []byte {
	p := packet{in: i, from: target, to: addr6(i, 1), protocol: 58, icmpType: 136, ttl: 255, payload: 16}
	if mac != [6]byte{} {
		p.payload += 8
	}
	f := p.frame()
	o := f[54:]
	clear(o[2:])
	o[4] = 0x60
	copy(o[8:], target.AsSlice())
	if mac != [6]byte{} {
		o[24], o[25] = 2, 1
		copy(o[26:], mac[:])
	}
	be.PutUint16(o[2:], ^checksum(o, pseudo(f[14:], len(o))))
	return f
}

func TestANeighbourThatAnswersWithoutItsEthernetAddressIsKept(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	host, mac := addr6(1, 9), [6]byte{2, 9, 9, 9, 9, 9}
	b.send(0, packet{from: addr6(0, 2), to: host}.frame())
	b.step(time.Millisecond)
	b.one(1)
	// To the first question, to a group, this is no answer.
	b.send(1, advertisement(1, host, [6]byte{}))
	b.step(time.Millisecond)
	if b.f.Control().Tick(b.now) {
		t.Error("a neighbour was learned without its address")
	}
	b.send(1, advertisement(1, host, mac))
	b.step(time.Millisecond)
	b.f.Control().Tick(b.now)
	b.step(time.Millisecond)
	if f := b.one(1); !bytes.Equal(f[:6], mac[:]) {
		t.Fatalf("%x", f)
	}
	asked := 0
	for range 300 {
		b.step(time.Second)
		b.f.Control().Tick(b.now)
		b.step(0)
		for _, f := range b.out(1) {
			if !bytes.Equal(f[:6], mac[:]) || f[54] != 135 {
				t.Errorf("unexpected %x", f)
			}
			asked++
			b.send(1, advertisement(1, host, [6]byte{}))
		}
	}
	if asked < 8 || asked > 10 {
		t.Errorf("asked %d times in 300 s, want once in 30", asked)
	}
	b.send(0, packet{from: addr6(0, 2), to: host}.frame())
	b.step(time.Millisecond)
	if f := b.one(1); !bytes.Equal(f[:6], mac[:]) || f[20] != 17 {
		t.Errorf("the neighbour was forgotten: %x", f)
	}
}

func TestPacketsThatWaitAreDecidedAnewWhenRoutesChange(t *testing.T) {
	for _, after := range []string{"another route", "no route", "a rule", "nothing"} {
		b := newBed(t, 3, wire.Config{}, forward.Config{})
		silent := addr4(1, 9)
		b.apply(routes.Update{Routes: []routes.Route{{Prefix: netip.MustParsePrefix("20.0.0.0/8"), NextHops: []routes.NextHop{{Gateway: silent, Interface: 2}}}}})
		b.step(time.Millisecond)
		b.one(1) // the question
		for i := range 3 {
			b.send(0, packet{from: addr4(0, 2), to: netip.MustParseAddr("20.0.0.1"), sport: uint16(i)}.frame())
		}
		b.step(time.Millisecond)
		b.out(1)
		held := b.total().Held
		switch after {
		case "another route":
			b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 2)}})
		case "no route":
			b.apply(routes.Update{Deleted: []netip.Prefix{netip.MustParsePrefix("20.0.0.0/8")}})
		case "a rule":
			load(t, b, "deny to 20.0.0.0/8")
		default:
			b.apply(routes.Update{Routes: []routes.Route{via("21.0.0.0/8", 2)}})
		}
		b.step(time.Millisecond)
		forwarded, errors, d := b.out(2), b.out(0), b.drops()
		switch {
		case held != 3:
			t.Errorf("%d packets waited, want 3", held)
		case after == "nothing":
			if b.total().Held != 3 || len(forwarded)+len(errors)+len(d) != 0 {
				t.Errorf("%d still wait, %d were forwarded, dropped %v; want 3 that wait", b.total().Held, len(forwarded), d)
			}
		case b.total().Held != 0,
			after == "another route" && len(forwarded) != 3,
			after == "no route" && (d["no-route"] != 3 || len(errors) != 3),
			after == "a rule" && d["denied"] != 3:
			t.Errorf("%s: %d wait, %d were forwarded, dropped %v, %d errors", after, b.total().Held, len(forwarded), d, len(errors))
		}
		for i, f := range forwarded {
			if be.Uint16(f[34:]) != uint16(i) {
				t.Errorf("%s: packet %d came in place %d", after, be.Uint16(f[34:]), i)
			}
		}
		b.close()
	}
}

func TestNoRouteLeadsOverALinkThatIsDown(t *testing.T) {
	b := newBed(t, 3, wire.Config{}, forward.Config{})
	defer b.close()
	several := via("21.0.0.0/8", 1)
	several.NextHops = append(several.NextHops, via("21.0.0.0/8", 2).NextHops...)
	b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1), several}})
	set := func(up bool) {
		b.apply(routes.Update{Links: []routes.Link{{Interface: 2, Name: "p1", MTU: 1500, Up: up}}})
	}
	sent := func(to netip.Addr) (one, two, errors int) {
		for i := range 20 {
			b.send(0, packet{from: addr4(0, 2), to: to, sport: uint16(i)}.frame())
		}
		b.step(time.Second)
		return len(b.out(1)), len(b.out(2)), len(b.out(0))
	}
	for _, up := range []bool{true, false, true} {
		set(up)
		for _, to := range []netip.Addr{netip.MustParseAddr("20.0.0.1"), addr4(1, 2)} {
			if one, two, errors := sent(to); two != 0 || up && (one != 20 || errors != 0) || !up && (one != 0 || errors != 20) {
				t.Errorf("up %v: %d of 20 packets to %v by the link, %d by another, %d errors", up, one, to, two, errors)
			}
		}
		if one, two, _ := sent(netip.MustParseAddr("21.0.0.1")); one+two != 20 || up != (one > 0) || two == 0 {
			t.Errorf("up %v: of 20 packets by two routes %d went by the link and %d by the other", up, one, two)
		}
	}
	if d := b.drops(); len(d) != 1 || d["no-route"] != 40 {
		t.Errorf("dropped %v, want 40 without a route", d)
	}
}

func TestPacketsForADeadNeighbourAreDroppedWithAnError(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	asked, errors := 0, 0
	for i := range 8 {
		b.send(0, packet{from: addr4(0, 2), to: addr4(1, 9), sport: uint16(i)}.frame(), packet{from: addr6(0, 2), to: addr6(1, 9)}.frame())
		b.step(500 * time.Millisecond)
		for _, f := range b.out(1) {
			asked++
			_ = f
		}
		for _, f := range b.out(0) {
			errors++
			b.valid(f)
			if o := f[34:]; be.Uint16(f[12:]) == 0x0800 && (o[0] != 3 || o[1] != 1) {
				t.Errorf("error %x", o)
			} else if o := f[54:]; be.Uint16(f[12:]) == 0x86dd && (o[0] != 1 || o[1] != 3) {
				t.Errorf("error %x", o)
			}
		}
	}
	d := b.drops()
	if asked != 6 || errors == 0 || uint64(errors) != d["neighbour-dead"] {
		t.Errorf("asked %d times (want 3 of each family), %d errors, dropped %v", asked, errors, d)
	}
}

func TestAGatewayIsAskedForBeforeThePacketsCome(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	gateway := addr4(1, 9)
	b.apply(routes.Update{Routes: []routes.Route{{Prefix: netip.MustParsePrefix("20.0.0.0/8"), NextHops: []routes.NextHop{{Gateway: gateway, Interface: 2}}}}})
	b.step(time.Millisecond)
	if q := b.one(1); be.Uint16(q[12:]) != 0x0806 || !bytes.Equal(q[38:42], gateway.AsSlice()) {
		t.Errorf("the question is %x", q)
	}
	answer := arpFrame(2, [6]byte{2, 9, 9, 9, 9, 9}, gateway, addr4(1, 1))
	to := routerMAC(1)
	copy(answer, to[:])
	b.send(1, answer)
	b.step(time.Millisecond)
	b.f.Control().Tick(b.now)
	b.send(0, packet{from: addr4(0, 2), to: netip.MustParseAddr("20.0.0.1")}.frame())
	b.step(time.Millisecond)
	if f := b.one(1); f[5] != 9 || be.Uint16(f[12:]) != 0x0800 {
		t.Errorf("%x", f)
	}
}

func TestTheBoxAnswersForItsAddressesOnly(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{})
	defer b.close()
	mac := peerMAC(0)
	b.send(0, arpFrame(1, mac, addr4(0, 2), addr4(0, 1)))
	b.step(time.Millisecond)
	reply := b.one(0)
	own := routerMAC(0)
	if !bytes.Equal(reply[:6], mac[:]) || be.Uint16(reply[20:]) != 2 || !bytes.Equal(reply[22:28], own[:]) ||
		!bytes.Equal(reply[28:32], addr4(0, 1).AsSlice()) || !bytes.Equal(reply[38:42], addr4(0, 2).AsSlice()) {
		t.Errorf("reply %x", reply)
	}
	b.send(0, arpFrame(1, mac, addr4(0, 2), addr4(0, 3)))
	b.step(time.Millisecond)
	b.none()

	solicit := func(target netip.Addr) []byte {
		p := packet{from: addr6(0, 2), to: target, protocol: 58, icmpType: 135, ttl: 255, payload: 24}.frame()
		copy(p, []byte{0x33, 0x33, 0xff, 0, 0, target.AsSlice()[15]})
		o := p[54:]
		clear(o[2:])
		copy(o[8:], target.AsSlice())
		o[24], o[25] = 1, 1
		copy(o[26:], mac[:])
		be.PutUint16(o[2:], ^checksum(o, pseudo(p[14:], len(o))))
		return p
	}
	b.send(0, solicit(addr6(0, 1)))
	b.step(time.Millisecond)
	advert := b.one(0)
	b.valid(advert)
	o := advert[54:]
	if o[0] != 136 || o[4] != 0xe0 || !bytes.Equal(o[8:24], addr6(0, 1).AsSlice()) || !bytes.Equal(o[26:32], own[:]) || !bytes.Equal(advert[:6], mac[:]) {
		t.Errorf("advertisement %x", advert)
	}
	b.send(0, solicit(addr6(0, 7)))
	wrong := solicit(addr6(0, 1))
	wrong[56] ^= 1
	b.send(0, wrong)
	b.step(time.Millisecond)
	b.none()
}

func load(t testing.TB, b *bed, text string) {
	t.Helper()
	set, err := rules.Parse(strings.NewReader(text), "test", b.f.Names())
	if err != nil {
		t.Fatal(err)
	}
	b.f.Control().SetRules(set)
}

func TestAccessRulesHoldAtOnceAlsoForFlowsThatAreKnown(t *testing.T) {
	variants(t, func(t *testing.T, c forward.Config) {
		b := newBed(t, 2, wire.Config{}, c)
		defer b.close()
		p := packet{from: addr4(0, 2), to: addr4(1, 2), dport: 53}
		pass := func(want bool) {
			t.Helper()
			for range 2 {
				b.send(0, p.frame())
				b.step(time.Millisecond)
				if got := len(b.out(1)) == 1; got != want {
					t.Errorf("passes: %v", got)
				}
			}
		}
		pass(true)
		load(t, b, "deny in p0 out p1 proto udp to-port 53")
		pass(false)
		load(t, b, "deny in p1\npermit from 10.0.0.0/16\ndefault deny")
		pass(true)
		load(t, b, "default deny")
		pass(false)
		if d := b.drops(); len(d) != 1 || d["denied"] != 4 {
			t.Errorf("dropped %v", d)
		}
	})
}

func TestTranslationThereAndBack(t *testing.T) {
	outside := netip.MustParseAddr("198.51.100.1")
	variants(t, func(t *testing.T, c forward.Config) {
		b := newBed(t, 2, wire.Config{}, c)
		defer b.close()
		load(t, b, "nat out p1 from 10.0.0.0/16 to 198.51.100.1\npermit in p0\npermit in p1 to 10.0.0.0/16\ndefault deny")
		server := netip.MustParseAddr("10.1.0.2")
		for round := range 3 {
			for _, p := range []packet{
				{from: addr4(0, 2), to: server, protocol: 17, sport: 5000, dport: 53, payload: 33},
				{from: addr4(0, 2), to: server, protocol: 6, sport: 5000, dport: 80, payload: 10, tcpFlags: 2},
				{from: addr4(0, 2), to: server, protocol: 1, icmpType: 8, sport: 77, payload: 10},
				{from: addr4(0, 2), to: server, protocol: 17, sport: 6000, dport: 53, noChecksum: true},
			} {
				b.send(0, p.frame())
				b.step(time.Millisecond)
				out := b.one(1)
				b.valid(out)
				if !bytes.Equal(out[26:30], outside.AsSlice()) {
					t.Fatalf("round %d: %+v left from %v", round, p, out[26:30])
				}
				q := packet{in: 1, from: server, to: outside, protocol: p.protocol, sport: p.dport, dport: be.Uint16(out[34:]), payload: 20, tcpFlags: 18}
				if p.protocol == 1 {
					q.icmpType, q.sport, q.dport = 0, be.Uint16(out[38:]), 0
				}
				b.send(1, q.frame())
				b.step(time.Millisecond)
				back := b.one(0)
				b.valid(back)
				port := be.Uint16(back[36:])
				if p.protocol == 1 {
					port = be.Uint16(back[38:])
				}
				if !bytes.Equal(back[30:34], addr4(0, 2).AsSlice()) || port != p.sport {
					t.Errorf("round %d: the reply to %+v came back to %v port %d", round, p, back[30:34], port)
				}
				if p.protocol == 1 {
					continue
				}
				// An error about the packet that left, from a router on its way.
				quote := append([]byte{}, out[14:]...)
				e := packet{in: 1, from: server, to: outside, protocol: 1, icmpType: 3, payload: len(quote)}.frame()
				copy(e[42:], quote)
				be.PutUint16(e[36:], 0)
				be.PutUint16(e[36:], ^checksum(e[34:], 0))
				b.send(1, e)
				b.step(time.Millisecond)
				back = b.one(0)
				b.valid(back)
				inner := append(make([]byte, 14), back[42:]...)
				b.valid(inner)
				if !bytes.Equal(back[30:34], addr4(0, 2).AsSlice()) || !bytes.Equal(inner[26:30], addr4(0, 2).AsSlice()) || be.Uint16(inner[34:]) != p.sport {
					t.Errorf("the error about %+v came back as %x", p, back)
				}
			}
		}
		// Unasked, an outsider reaches nobody; nor does a fragment.
		b.send(1, packet{in: 1, from: server, to: outside, dport: 40000}.frame())
		b.send(0, packet{from: addr4(0, 2), to: server, fragment: 0x2000, payload: 16}.frame())
		b.send(0, packet{from: addr4(0, 2), to: server, protocol: 47}.frame())
		b.step(time.Millisecond)
		b.none()
		if d := b.drops(); d["nat-unknown"] != 1 || d["nat-fragment"] != 1 || d["nat-protocol"] != 1 {
			t.Errorf("dropped %v", d)
		}
	})
}

func TestAFullTranslationTableDropsAndRecovers(t *testing.T) {
	b := newBed(t, 2, wire.Config{}, forward.Config{Bindings: 64})
	defer b.close()
	load(t, b, "nat out p1 to 198.51.100.1")
	for i := range 100 {
		b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: uint16(i + 1)}.frame())
	}
	b.step(time.Millisecond)
	if n := len(b.out(1)); n != 64 || b.drops()["nat-full"] != 36 {
		t.Errorf("%d left, dropped %v; want 64 and 36", n, b.drops())
	}
	for range 400 {
		b.step(time.Second)
	}
	b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: 9999}.frame())
	b.step(time.Millisecond)
	b.one(1)
	if n := b.total().Bindings; n != 1 {
		t.Errorf("%d bindings, want 1 after all others have ended", n)
	}
}

func TestRepliesReachTheShardThatOwnsTheBinding(t *testing.T) {
	const shards = 3
	b := newBed(t, 2, wire.Config{}, forward.Config{Shards: shards})
	defer b.close()
	load(t, b, "nat out p1 to 198.51.100.1 ports 10000-10299")
	outside := netip.MustParseAddr("198.51.100.1")
	for i := range 60 {
		p := packet{from: addr4(0, 2), to: addr4(1, 2), sport: uint16(1000 + i), dport: 53}
		b.send(0, p.frame())
		b.step(time.Millisecond)
		out := b.one(1)
		// From elsewhere as well, which receive-side scaling brings to any shard.
		for _, from := range []netip.Addr{addr4(1, 2), addr4(1, 3), addr4(1, 4)} {
			b.send(1, packet{in: 1, from: from, to: outside, sport: 53, dport: be.Uint16(out[34:])}.frame())
			b.step(time.Millisecond)
			if back := b.one(0); be.Uint16(back[36:]) != p.sport {
				t.Fatalf("flow %d: the reply came back to port %d", i, be.Uint16(back[36:]))
			}
		}
	}
	s := b.total()
	if s.HandedOut == 0 || s.HandedOut != s.HandedIn {
		t.Errorf("%d frames handed over, %d taken", s.HandedOut, s.HandedIn)
	}
	if s.HandedOut > 90 {
		t.Errorf("%d of 180 replies were handed over; those from the flow's own peer should not", s.HandedOut)
	}
}

func TestAnErrorFromInsideFindsTheBindingOnAnyShardAndMakesNone(t *testing.T) {
	const shards = 3
	b := newBed(t, 2, wire.Config{}, forward.Config{Shards: shards})
	defer b.close()
	// Hosts behind the inside routers have a rule of their own.
	load(t, b, "nat out p1 from 10.0.0.2 to 198.51.100.1 ports 10000-10299\nnat out p1 to 198.51.100.2")
	server := netip.MustParseAddr("10.1.0.2")
	about := func(from netip.Addr, quoted []byte) []byte {
		e := packet{from: from, to: server, protocol: 1, icmpType: 3, payload: 28}.frame()
		copy(e[42:], quoted[14:])
		be.PutUint16(e[36:], 0)
		be.PutUint16(e[36:], ^checksum(e[34:], 0))
		return e
	}
	p := packet{from: addr4(0, 2), to: server, sport: 5000, dport: 53}
	b.send(0, p.frame())
	b.step(time.Millisecond)
	port := be.Uint16(b.one(1)[34:])
	reply := packet{in: 1, from: server, to: netip.MustParseAddr("198.51.100.1"), sport: 53, dport: port}
	b.send(1, reply.frame())
	b.step(time.Millisecond)
	in := b.one(0)
	for host := range 60 { // of routers inside, whose errors come to any shard
		b.send(0, about(addr4(0, 10+host), in))
		b.step(time.Millisecond)
		out := b.one(1)
		b.valid(out)
		inner := append(make([]byte, 14), out[42:]...)
		if !bytes.Equal(out[26:30], reply.to.AsSlice()) || !bytes.Equal(inner[30:34], reply.to.AsSlice()) || be.Uint16(inner[36:]) != port {
			t.Fatalf("the error left as %x", out)
		}
	}
	if s := b.total(); s.Bindings != 1 || s.HandedOut < 20 {
		t.Errorf("%d bindings, want the one that was there; %d errors handed over, want most of two thirds", s.Bindings, s.HandedOut)
	}
	be.PutUint16(in[36:], 6000)
	b.send(0, about(addr4(0, 2), in))
	b.step(time.Millisecond)
	b.none()
	if s, d := b.total(), b.drops(); s.Bindings != 1 || d["nat-unknown"] != 1 {
		t.Errorf("an error about nothing: %d bindings, dropped %v", s.Bindings, d)
	}
}

func TestAFloodedOutputCostsAnotherNothing(t *testing.T) {
	// Port 1 takes 10 Mbit/s, port 2 anything; both are fed by port 0.
	b := newBed(t, 3, wire.Config{}, forward.Config{Output: queue.Config{Frames: 256}})
	defer b.close()
	load(t, b, "rate p1 10mbit")
	other := 0
	for range 1000 {
		for k := range 5 { // 2.5 kB a millisecond: twice the rate
			b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: uint16(k), payload: 458}.frame())
		}
		b.send(0, packet{from: addr4(0, 2), to: addr4(2, 2), sport: 1}.frame())
		other++
		for range 10 {
			b.step(100 * time.Microsecond)
		}
	}
	if n := len(b.out(2)); n != other {
		t.Errorf("%d of %d frames of the other output arrived; dropped %v", n, other, b.drops())
	}
	bytes := 0
	for _, f := range b.out(1) {
		bytes += len(f)
	}
	if rate := float64(bytes) * 8 / 1e6; rate < 9.8 || rate > 10.2 {
		t.Errorf("the flooded output sent %.2f Mbit in a second, want 10", rate)
	}
	if d := b.drops(); len(d) > 2 || d["queue-full"]+d["queue-cut"] == 0 {
		t.Errorf("dropped %v, want some for the full queue only", d)
	}
}

func TestSmallAndLargeFramesShareALimitedOutputInBytes(t *testing.T) {
	b := newBed(t, 2, wire.Config{Ring: 4096}, forward.Config{})
	defer b.close()
	load(t, b, "rate p1 20mbit")
	sent := map[int]int{}
	for range 2000 {
		for range 30 {
			b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: 1, payload: 22}.frame())
		}
		b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: 2, payload: 1458}.frame(), packet{from: addr4(0, 2), to: addr4(1, 2), sport: 2, payload: 1458}.frame())
		b.step(time.Millisecond)
		for _, f := range b.out(1) {
			sent[len(f)] += len(f)
		}
	}
	small, large := float64(sent[64]), float64(sent[1500])
	if share := small / (small + large); share < 0.475 || share > 0.525 {
		t.Errorf("small frames have %.1f %% of the bytes, want 50 within 5", 100*share)
	}
}

func TestADeviceThatIsFullHoldsUpOnlyItsOwnOutput(t *testing.T) {
	b := newBed(t, 3, wire.Config{Ring: 64, Frames: 4096}, forward.Config{})
	defer b.close()
	// Nobody receives from port 1's wire.
	for i := range 2000 {
		b.send(0, packet{from: addr4(0, 2), to: addr4(1, 2), sport: uint16(i)}.frame(), packet{from: addr4(0, 2), to: addr4(2, 2)}.frame())
		b.f.Shard(0).Step(b.now)
		if i%16 == 0 {
			var got int
			for q := b.links[2].Port(wire.A).Queue(0); ; {
				n := drain(q)
				if n == 0 {
					break
				}
				got += n
			}
			b.seen[2] = append(b.seen[2], make([][]byte, got)...)
		}
	}
	b.step(time.Millisecond)
	if n := len(b.out(2)); n != 2000 {
		t.Errorf("%d of 2000 frames arrived by the other output: dropped %v", n, b.drops())
	}
}

func TestARouteFlapOfTenThousandUpdatesASecondLosesNothing(t *testing.T) {
	for _, shards := range []int{1, 2} {
		b := newBed(t, 3, wire.Config{}, forward.Config{Shards: shards})
		r := rand.New(rand.NewPCG(1, 1))
		route := func(i int) routes.Route { return via("20.0.0.0/8", i) }
		b.apply(routes.Update{Routes: []routes.Route{route(1)}})
		sent, to := 0, 1
		for range 500 { // milliseconds, ten updates each
			var u routes.Update
			for range 9 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(r.IntN(4)), byte(r.IntN(256)), 0}), 24)
				if r.IntN(2) == 0 {
					u.Deleted = append(u.Deleted, p)
				} else {
					u.Routes = append(u.Routes, routes.Route{Prefix: p, NextHops: via("20.0.0.0/8", 1+r.IntN(2)).NextHops})
				}
				b.apply(u)
				u = routes.Update{}
			}
			to = 3 - to
			b.apply(routes.Update{Routes: []routes.Route{route(to)}})
			generation := b.f.Control().Generation()
			b.step(100 * time.Microsecond)
			if !b.f.Control().Acknowledged(generation) {
				t.Fatal("the swap is not acknowledged")
			}
			b.out(1)
			b.out(2)
			// After that, nothing takes the old way.
			for i := range 5 {
				b.send(0, packet{from: addr4(0, 2), to: netip.MustParseAddr("20.200.0.1"), sport: uint16(i)}.frame())
				sent++
			}
			b.step(900 * time.Microsecond)
			if n, stale := len(b.out(to)), len(b.out(3-to)); n != 5 || stale != 0 {
				t.Fatalf("%d frames by the new route, %d by the old one", n, stale)
			}
		}
		if d := b.drops(); len(d) != 0 {
			t.Errorf("dropped %v", d)
		}
		b.close()
	}
}

func TestFramesInAQueueDelayTheAcknowledgement(t *testing.T) {
	b := newBed(t, 3, wire.Config{}, forward.Config{})
	defer b.close()
	load(t, b, "rate p1 1mbit")
	b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1)}})
	for range 20 {
		b.send(0, packet{from: addr4(0, 2), to: netip.MustParseAddr("20.0.0.1"), payload: 1000}.frame())
	}
	b.step(time.Millisecond)
	b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 2)}})
	generation := b.f.Control().Generation()
	for acknowledged := false; !acknowledged; {
		b.step(time.Millisecond)
		acknowledged = b.f.Control().Acknowledged(generation)
		if b.now > time.Second {
			t.Fatal("the swap is never acknowledged")
		}
	}
	if n := len(b.out(1)); n != 20 {
		t.Errorf("acknowledged when %d of 20 frames had left by the old route", n)
	}
}

// reluctant is a queue that takes only so many frames at a time.
type reluctant struct {
	driver.Queue
	most int
}

func (q *reluctant) Transmit(f []driver.Frame) int { return q.Queue.Transmit(f[:min(len(f), q.most)]) }

func TestNoFrameByAnOldRouteLeavesAfterTheSwapIsAcknowledged(t *testing.T) {
	gateways := []netip.Addr{addr4(1, 3), addr4(1, 4)}
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 4))
		q := &reluctant{}
		b := new(bed)
		c := forward.Config{Queue: func(port, shard int) driver.Queue {
			own := b.links[port].Port(wire.B).Queue(shard)
			if port == 1 {
				q.Queue = own
				return q
			}
			return own
		}}
		b.build(t, 2, wire.Config{}, c)
		var u routes.Update
		for i, g := range gateways {
			u.Neighbours = append(u.Neighbours, routes.Neighbour{Interface: 2, Address: g, MAC: [6]byte{2, 0, 0, 0, 9, byte(i)}, Valid: true, Permanent: true})
		}
		b.apply(u)
		to := 0
		swap := func() {
			to = 1 - to
			b.apply(routes.Update{Routes: []routes.Route{{Prefix: netip.MustParsePrefix("20.0.0.0/8"), NextHops: []routes.NextHop{{Gateway: gateways[to], Interface: 2}}}}})
		}
		swap()
		for range 20 {
			generation := b.f.Control().Generation()
			// It waits behind what the old route decided, of both flows.
			for round, after := 0, 0; after < 5; round++ {
				for range r.IntN(max(1, 60-round)) {
					b.send(0, packet{from: addr4(0, 2), to: netip.MustParseAddr("20.0.0.1"), sport: uint16(r.IntN(2)), payload: 1000}.frame())
				}
				q.most = r.IntN(40)
				before := b.f.Control().Acknowledged(generation)
				b.now += time.Microsecond
				b.links[0].Advance(b.now)
				b.links[1].Advance(b.now)
				b.f.Shard(0).Step(b.now)
				b.collect()
				for _, f := range b.out(1) {
					if before && f[5] != byte(to) {
						t.Fatalf("seed %d: a frame to the old gateway after the swap was acknowledged", seed)
					}
				}
				if before {
					after++
				}
			}
			swap()
		}
		q.most = 1000
		b.step(time.Millisecond)
		b.close()
	}
}

func TestSeveralNextHopsShareFlowsAndKeepEachTogether(t *testing.T) {
	b := newBed(t, 3, wire.Config{}, forward.Config{Flows: -1})
	defer b.close()
	r := via("20.0.0.0/8", 1)
	r.NextHops = append(r.NextHops, via("20.0.0.0/8", 2).NextHops...)
	b.apply(routes.Update{Routes: []routes.Route{r}})
	for i := range 200 {
		p := packet{from: addr4(0, 2), to: netip.MustParseAddr("20.0.0.1"), sport: uint16(i)}
		b.send(0, p.frame(), p.frame())
	}
	b.step(time.Millisecond)
	one, two := b.out(1), b.out(2)
	if len(one) < 120 || len(two) < 120 || len(one)+len(two) != 400 {
		t.Errorf("%d and %d frames of 400", len(one), len(two))
	}
	seen := map[uint16]bool{}
	for _, f := range one {
		seen[be.Uint16(f[34:])] = true
	}
	for _, f := range two {
		if seen[be.Uint16(f[34:])] {
			t.Fatal("a flow is on both ways")
		}
	}
}

func TestHostileFramesNeitherCrashNorLeak(t *testing.T) {
	for seed := range uint64(6) {
		c := forward.Config{Shards: 1 + int(seed%2), Bindings: 32, Seed: seed + 1}
		if seed%3 == 0 {
			c.Flows = -1
		}
		b := newBed(t, 3, wire.Config{}, c)
		r := rand.New(rand.NewPCG(seed, 9))
		load(t, b, "nat out p1 from 10.0.0.0/16 to 198.51.100.1-198.51.100.2 ports 2000-2063\ndeny proto tcp to-port 3\nrate p2 1mbit")
		b.apply(routes.Update{Routes: []routes.Route{via("20.0.0.0/8", 1), via("2001:db8::/32", 2)}})
		addresses4 := []netip.Addr{addr4(0, 1), addr4(0, 2), addr4(1, 2), addr4(2, 2), addr4(1, 77), netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("127.0.0.1")}
		addresses6 := []netip.Addr{addr6(0, 1), addr6(0, 2), addr6(1, 2), addr6(2, 99), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fe80::1")}
		var last []byte
		for round := range 3000 {
			list := addresses4
			if r.IntN(2) == 0 {
				list = addresses6
			}
			p := packet{in: r.IntN(3), from: list[r.IntN(len(list))], to: list[r.IntN(len(list))], protocol: []byte{6, 17, 1, 58, 47, 0x2c, 0, 43}[r.IntN(8)],
				sport: uint16(r.IntN(5)), dport: uint16(2000 + r.IntN(70)), ttl: byte(r.IntN(3) * 127), payload: r.IntN(100), icmpType: []byte{0, 3, 8, 11, 128, 135, 136}[r.IntN(7)],
				fragment: []uint16{0, 0, 0, 0x2000, 5}[r.IntN(5)]}
			if r.IntN(10) == 0 {
				p.payload = 1400
			}
			f := p.frame()
			if r.IntN(8) == 0 {
				f = arpFrame(uint16(r.IntN(4)), peerMAC(p.in), addresses4[r.IntN(9)], addresses4[r.IntN(9)])
			}
			if last != nil && r.IntN(6) == 0 && p.from.Is4() && len(f) > 80 && p.protocol == 1 {
				copy(f[42:], last[14:]) // an error that quotes something that left
			}
			for range r.IntN(4) {
				f[r.IntN(len(f))] = byte(r.Uint32())
			}
			if r.IntN(2) == 0 && len(f) > 34 {
				be.PutUint16(f[24:], 0)
				be.PutUint16(f[24:], ^checksum(f[14:34], 0))
			}
			b.offer(p.in, f[:14+r.IntN(len(f)-13)])
			b.offer(p.in, f)
			b.step(time.Duration(r.IntN(int(100 * time.Millisecond))))
			for k := range 3 {
				for _, f := range b.out(k) {
					last = f
				}
			}
			if round%50 == 0 {
				b.f.Control().Tick(b.now)
			}
		}
		b.balanced()
		b.close()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
