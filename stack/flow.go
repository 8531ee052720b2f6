package stack

import (
	"encoding/binary"
	"math/bits"
)

// flowKey names a connection by its addresses and ports, as they stand in a
// received frame: IPv4 addresses share a, IPv6 addresses take all four words.
type flowKey struct {
	a, b, c, d uint64
	ports      uint32
}

// key4 reads the key of an IPv4 header (20 bytes) and the ports behind it.
func key4(ip []byte) flowKey {
	return flowKey{a: binary.BigEndian.Uint64(ip[12:]), ports: binary.BigEndian.Uint32(ip[20:])}
}

// key6 reads the key of an IPv6 header (40 bytes) and the ports behind it.
func key6(ip []byte) flowKey {
	return flowKey{
		a: binary.BigEndian.Uint64(ip[8:]), b: binary.BigEndian.Uint64(ip[16:]),
		c: binary.BigEndian.Uint64(ip[24:]), d: binary.BigEndian.Uint64(ip[32:]),
		ports: binary.BigEndian.Uint32(ip[40:]),
	}
}

// flowTable finds the socket of a connection by its key: open addressing with
// linear probing over an index without pointers, at most half full. It grows by
// doubling when a connection is added, never on a look-up.
type flowTable struct {
	seed  uint64   // keeps peers from choosing colliding ports
	index []uint32 // position in slots + 1, 0 if empty
	slots []flowSlot
	free  []uint32
	n     int
	limit int
}

type flowSlot struct {
	key    flowKey
	socket *Socket
}

func newFlowTable(seed uint64, limit int) *flowTable {
	return &flowTable{seed: seed | 1, index: make([]uint32, 256), limit: limit}
}

func (t *flowTable) hash(k *flowKey) uint32 {
	hi, lo := bits.Mul64(k.a^t.seed, 0x9e3779b97f4a7c15^uint64(k.ports))
	if k.b|k.c|k.d != 0 {
		h2, l2 := bits.Mul64(k.b^hi, k.c^lo^t.seed)
		hi, lo = h2^k.d, l2
	}
	hi, lo = bits.Mul64(hi^lo^uint64(k.ports), t.seed)
	return uint32(hi ^ lo)
}

// find returns the socket of k, or nil.
func (t *flowTable) find(k *flowKey) *Socket {
	mask := uint32(len(t.index) - 1)
	for i := t.hash(k) & mask; t.index[i] != 0; i = (i + 1) & mask {
		if s := &t.slots[t.index[i]-1]; s.key == *k {
			return s.socket
		}
	}
	return nil
}

// add notes the socket of k, unless the table has reached its limit.
func (t *flowTable) add(k flowKey, s *Socket) bool {
	if t.find(&k) != nil || t.n >= t.limit {
		return false
	}
	if 2*(t.n+1) > len(t.index) {
		t.grow()
	}
	var slot uint32
	if n := len(t.free); n > 0 {
		slot, t.free = t.free[n-1], t.free[:n-1]
		t.slots[slot] = flowSlot{k, s}
	} else {
		slot = uint32(len(t.slots))
		t.slots = append(t.slots, flowSlot{k, s})
	}
	t.n++
	t.place(slot)
	return true
}

func (t *flowTable) place(slot uint32) {
	mask := uint32(len(t.index) - 1)
	i := t.hash(&t.slots[slot].key) & mask
	for t.index[i] != 0 {
		i = (i + 1) & mask
	}
	t.index[i] = slot + 1
}

func (t *flowTable) grow() {
	old := t.index
	t.index = make([]uint32, 2*len(old))
	for _, slot := range old {
		if slot != 0 {
			t.place(slot - 1)
		}
	}
}

// remove forgets k if it is s's.
func (t *flowTable) remove(k flowKey, s *Socket) {
	mask := uint32(len(t.index) - 1)
	i := t.hash(&k) & mask
	for ; ; i = (i + 1) & mask {
		if t.index[i] == 0 {
			return
		}
		if e := &t.slots[t.index[i]-1]; e.key == k {
			if e.socket != s {
				return
			}
			break
		}
	}
	slot := t.index[i] - 1
	t.slots[slot] = flowSlot{}
	t.free = append(t.free, slot)
	t.n--
	// Close the gap: move back every later entry of the run that may go there.
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		home := t.hash(&t.slots[t.index[j]-1].key) & mask
		if (j-home)&mask >= (j-i)&mask {
			t.index[i] = t.index[j]
			i = j
		}
	}
	t.index[i] = 0
}
