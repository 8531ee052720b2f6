package driver

// Flags say what is known of a frame that was received, or what the device is
// asked to do with one that is sent.
type Flags uint16

const (
	// ChecksumValid: on receive, the device verified the IPv4 header checksum and
	// the TCP or UDP checksum (or the sender is a virtual device on the same
	// machine that never computed one); software need not look again.
	ChecksumValid Flags = 1 << iota
	// ChecksumWrong: on receive, the device found a wrong IP, TCP or UDP checksum.
	ChecksumWrong
	// HashValid: on receive, Hash holds the device's RSS hash.
	HashValid
	// ComputeIPChecksum: on transmit, the device fills in the IPv4 header checksum.
	ComputeIPChecksum
	// ComputeTCPChecksum: on transmit, the device fills in the TCP checksum; the
	// field holds the folded pseudo-header sum (without length if SegmentTCP).
	ComputeTCPChecksum
	// ComputeUDPChecksum: the same for UDP.
	ComputeUDPChecksum
	// SegmentTCP: on transmit, the device cuts the frame into TCP segments of
	// SegmentSize bytes of payload (TSO). Implies ComputeTCPChecksum.
	SegmentTCP
	// IPv6: on transmit, the network header is IPv6 (offloads need to be told).
	IPv6
)

// A Frame is one Ethernet frame, without its check sequence.
//
// Data points into memory that belongs to Pool, never to the holder of the
// Frame value: exactly one holder owns a frame at a time. Queue.Receive and
// Queue.Allocate give ownership to the caller; Queue.Transmit takes it for the
// frames that it accepts; Free ends it. Copying the Frame value does not copy
// the frame, and after ownership has passed on, Data must not be touched.
//
// A frame received on one queue may be transmitted on any other. Where both use
// the same kind of memory it goes by reference; where they do not, the
// transmitting queue copies it once and frees the original.
type Frame struct {
	// Data holds the bytes, Ethernet header first. A holder may shorten it or
	// grow it up to its capacity; the start must not move.
	Data []byte
	// Pool owns the memory; nil for memory that nobody needs back.
	Pool Pool
	// Handle is the pool's own name of the buffer (an mbuf's address, an index).
	Handle uintptr
	// Hash is the RSS hash if Flags has HashValid.
	Hash uint32
	// Flags are the offloads, see there.
	Flags Flags
	// SegmentSize is the TCP payload in bytes of each segment, with SegmentTCP.
	SegmentSize uint16
	// L2, L3 and L4 are the lengths in bytes of the Ethernet, IP and transport
	// headers; they must be set on transmit if a Compute flag or SegmentTCP is.
	L2, L4 uint8
	L3     uint16
}

// A Pool owns the memory of frames.
type Pool interface {
	// Free takes back the memory of frames, all of which must name this pool.
	// It may be called from any goroutine that may also call Transmit on a
	// queue of that pool.
	Free(frames []Frame)
}

// Free ends the caller's ownership of frames, whatever pools they come from,
// and clears them.
func Free(frames []Frame) {
	for len(frames) > 0 {
		pool, n := frames[0].Pool, 1
		for n < len(frames) && frames[n].Pool == pool {
			n++
		}
		if pool != nil {
			pool.Free(frames[:n])
		}
		clear(frames[:n])
		frames = frames[n:]
	}
}
