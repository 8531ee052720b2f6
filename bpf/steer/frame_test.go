package steer

import (
	"encoding/binary"
	"net/netip"
)

// A packet is what there is to a frame that a hash may look at.
type packet struct {
	tags       int
	src, dst   netip.Addr
	transport  uint8
	ports      [2]uint16
	extensions []uint8 // IPv6 headers between, by number
	// fragment: offset is in units of 8 bytes; of offset 0 only the first has
	// the ports.
	fragment bool
	more     bool
	offset   uint16
}

// reply is the packet that goes the other way.
func (p packet) reply() packet {
	p.src, p.dst = p.dst, p.src
	p.ports[0], p.ports[1] = p.ports[1], p.ports[0]
	return p
}

func (p packet) frame() []byte {
	b := make([]byte, 12, 128)
	for range p.tags {
		b = append(b, 0x81, 0x00, 0x00, 0x07)
	}
	be := binary.BigEndian
	payload := make([]byte, 20)
	if p.offset == 0 {
		be.PutUint16(payload[0:], p.ports[0])
		be.PutUint16(payload[2:], p.ports[1])
	} else {
		for i := range payload {
			payload[i] = byte(p.offset) + byte(i)
		}
	}
	if p.src.Is4() {
		b = append(b, 0x08, 0x00)
		ip := make([]byte, 20)
		ip[0] = 0x45
		be.PutUint16(ip[2:], uint16(len(ip)+len(payload)))
		fragment := p.offset
		if p.more {
			fragment |= 0x2000
		}
		if !p.fragment {
			fragment = 0x4000
		}
		be.PutUint16(ip[6:], fragment)
		ip[8], ip[9] = 64, p.transport
		src, dst := p.src.As4(), p.dst.As4()
		copy(ip[12:], src[:])
		copy(ip[16:], dst[:])
		return append(append(b, ip...), payload...)
	}
	b = append(b, 0x86, 0xdd)
	headers := p.extensions
	if p.fragment {
		headers = append(headers[:len(headers):len(headers)], 44)
	}
	next := append(headers[:len(headers):len(headers)], p.transport)
	ip := make([]byte, 40)
	ip[0] = 0x60
	be.PutUint16(ip[4:], uint16(8*len(headers)+len(payload)))
	ip[6], ip[7] = next[0], 64
	src, dst := p.src.As16(), p.dst.As16()
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
	b = append(b, ip...)
	for i, h := range headers {
		x := make([]byte, 8)
		x[0] = next[i+1]
		if h == 44 {
			fragment := p.offset << 3
			if p.more {
				fragment |= 1
			}
			be.PutUint16(x[2:], fragment)
		}
		b = append(b, x...)
	}
	return append(b, payload...)
}
