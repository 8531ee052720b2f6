package memcached

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
)

// packet makes a request of the binary protocol.
func packet(opcode byte, key, extras, value string, cas uint64, opaque uint32) string {
	b := []byte{requestMagic, opcode}
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = append(b, byte(len(extras)), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)+len(extras)+len(value)))
	b = binary.BigEndian.AppendUint32(b, opaque)
	b = binary.BigEndian.AppendUint64(b, cas)
	return string(b) + extras + key + value
}

func bigEndian(words ...uint32) string {
	var b []byte
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return string(b)
}

// generateBinary makes a random request of the binary protocol. None has a value
// that its command has no use for: there memcached loses track of the stream.
// In a pipeline there should be no arithmetic either. Valid says that it does not end the connection.
func generateBinary(rng *rand.Rand, arithmetic bool) (request string, valid bool) {
	key := fmt.Sprintf("key%d", rng.IntN(12))
	if rng.IntN(30) == 0 {
		key = strings.Repeat("k", 245+rng.IntN(6))
	}
	opaque := rng.Uint32()
	cas := uint64(0)
	if rng.IntN(6) == 0 {
		cas = uint64(rng.IntN(300))
	}
	expires := pick[uint32](rng, 0, 0, 0, 100, 2592001, 1<<31, 1<<32-1)
	value := pick(rng, "1", "99", "value", "", strings.Repeat("v", rng.IntN(300)), fmt.Sprint(rng.Uint64()>>rng.IntN(64)))
	if rng.IntN(100) == 0 {
		value = strings.Repeat("w", 1048500+rng.IntN(30))
	}
	if rng.IntN(60) == 0 {
		switch rng.IntN(6) {
		case 0:
			return packet(opGet, strings.Repeat("k", 251), "", "", 0, opaque), false
		case 1:
			return packet(pick[byte](rng, opGet, opDelete, opIncrement, opTouch), "", "", "", 0, opaque), false
		case 2:
			return packet(pick[byte](rng, opGet, opDelete, opNoop, opVersion, opFlush, opQuit), key, "xxx", "", 0, opaque), false
		case 3:
			return packet(pick[byte](rng, opSet, opAdd), key, "xxxx", "", 0, opaque), false
		case 4:
			return packet(pick[byte](rng, opQuit, opQuit+opSetQ-opSet), "", "", "", 0, opaque), false
		default:
			b := []byte(packet(opGet, key, "", "", 0, opaque))
			b[11] = 1 // a body shorter than the key
			return string(b), false
		}
	}
	switch rng.IntN(16) {
	case 0, 1, 2:
		return packet(pick[byte](rng, opGet, opGetQ, opGetK, opGetKQ), key, "", "", 0, opaque), true
	case 3, 4, 5, 6:
		return packet(pick[byte](rng, opSet, opAdd, opReplace, opSetQ, opSetQ+1, opSetQ+2), key, bigEndian(pick[uint32](rng, 0, 0, 7, 1<<32-1), expires), value, cas, opaque), true
	case 7, 8:
		return packet(pick[byte](rng, opAppend, opPrepend, opAppendQ, opPrependQ), key, "", value, cas, opaque), true
	case 9, 10:
		return packet(pick[byte](rng, opDelete, opSetQ+3), key, "", "", cas, opaque), true
	case 11, 12:
		if arithmetic {
			return packet(pick[byte](rng, opIncrement, opDecrement, opSetQ+4, opSetQ+5), key, bigEndian(0, uint32(rng.IntN(200)), 0, uint32(rng.IntN(200)), expires), "", cas, opaque), true
		}
		fallthrough
	case 13:
		return packet(pick[byte](rng, opTouch, opGAT, opGATQ, opGATK, opGATKQ), key, bigEndian(expires), "", 0, opaque), true
	case 14:
		group := pick(rng, "sizes", "xyz", "detail off", "conns", "reset")
		if group == "reset" && !arithmetic {
			group = "items?" // in a pipeline, memcached resets what it has not counted yet
		}
		return packet(opStat, group, "", "", 0, opaque), true
	}
	switch rng.IntN(8) {
	case 0:
		return packet(pick[byte](rng, opFlush, opFlushQ), "", pick(rng, "", bigEndian(0)), "", 0, opaque), true
	case 1:
		return packet(opVersion, "", "", "", 0, opaque), true
	case 2:
		return packet(pick[byte](rng, 0x1b, 0x30, 0x40, 0x50, 0xff), "", "", pick(rng, "", "body"), 0, opaque), true
	case 3:
		return packet(opSASLList, "", "", "", 0, opaque), true
	case 4:
		return packet(pick[byte](rng, opSASLAuth, opSASLStep), "PLAIN", "", "\x00user\x00password", 0, opaque), true
	default:
		return packet(opNoop, "", "", "", 0, opaque), true
	}
}
