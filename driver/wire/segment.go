package wire

import "github.com/pollux-net/pollux/driver"

// TCP flags that only some segments of a cut frame carry.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// cut sends a large TCP frame as segments, each of which meets its own faults.
// It is refused as long as not all of them have room and buffers.
func (d *direction) cut(f *driver.Frame, r *ring, e entry) outcome {
	head, size := headers(f), int(f.SegmentSize)
	payload := f.Data[head:]
	count := (len(payload) + size - 1) / size
	p := d.link.pool
	if count > len(r.entries) {
		d.counts.malformed++ // they could never pass
		return spent
	}
	if count > r.room() || !p.has(count) {
		return refused
	}
	network, transport := int(f.L2), int(f.L2)+int(f.L3)
	for i := range count {
		part := payload[i*size : min((i+1)*size, len(payload))]
		s := e
		if s.handle = p.take(head + len(part)); s.handle == noBuffer {
			// Others emptied the pool meanwhile; the rest counts as lost.
			d.counts.lost += uint64(count - i)
			break
		}
		s.length = uint32(head + len(part))
		data := p.buffer(s.handle)[:s.length]
		copy(data, f.Data[:head])
		copy(data[head:], part)

		ip, tcp := data[network:], data[transport:]
		v6 := ip[0]>>4 == 6
		if v6 {
			be.PutUint16(ip[4:], uint16(len(ip)-ipv6Header))
		} else {
			be.PutUint16(ip[2:], uint16(len(ip)))
			be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(i))
			fillIPChecksum(ip[:f.L3])
		}
		be.PutUint32(tcp[4:], be.Uint32(tcp[4:])+uint32(i*size))
		if i > 0 {
			tcp[13] &^= tcpCWR // RFC 3168: once only
		}
		if i < count-1 {
			tcp[13] &^= tcpFIN | tcpPSH
		}
		fillTCPChecksum(tcp, packet{ipv6: v6, network: network}.addresses(data))
		d.counts.segments++
		if r.room() == 0 { // duplicates took it
			d.counts.lost++
			p.put(s.handle)
		} else if !d.carry(r, s, false) {
			p.put(s.handle)
		}
	}
	return spent
}

// has says whether n small buffers are free.
func (p *pool) has(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.small.free) >= n
}
