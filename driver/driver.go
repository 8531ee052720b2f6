// Package driver is the smallest interface that a NIC's queue and a test both
// satisfy: bursts of frames in, bursts of frames out, and a way to sleep until
// more arrive. Ports come from driver/dpdk (poll-mode drivers) and driver/wire
// (memory, with faults from a seed); driver/capture wraps any queue. Nothing
// here allocates per frame, reads a clock or knows what is inside a frame.
package driver

// A Queue is one receive queue and one transmit queue of a Port. It belongs to
// one goroutine: no method may be called while another runs.
type Queue interface {
	// Receive fills frames with up to len(frames) frames that have arrived and
	// returns how many. It never blocks. The caller owns them.
	Receive(frames []Frame) int
	// Transmit hands frames to the device in order and returns how many it
	// accepted; it owns those and clears them. The rest (the device's ring is
	// full) stays with the caller, to be tried again or freed. It never blocks
	// for longer than the device's own doorbell takes.
	Transmit(frames []Frame) int
	// Allocate fills frames with empty frames (len(Data) == 0) that have room
	// for at least size bytes, and returns how many the pool could give; fewer
	// means that the pool is exhausted for now. Size may be at most
	// Capabilities.MaxFrame.
	Allocate(frames []Frame, size int) int
	// Interrupt returns what to sleep on until frames arrive, or nil if the
	// device has nothing of the kind and can only be polled.
	Interrupt() Interrupt
	// Statistics returns what this queue counted so far.
	Statistics() QueueStatistics
}

// Interrupt lets the owner of a queue sleep until a frame arrives.
//
// The order is: Arm; if it says true, sleep until FD is readable (or for other
// reasons); Disarm; Receive. Between Arm and Disarm no other method of the
// queue may be called.
type Interrupt interface {
	// FD is a file descriptor that epoll reports as readable (level-triggered)
	// once a frame has arrived after Arm. It stays the same for the queue's life.
	FD() int
	// Arm tries to enter interrupt mode. False forbids sleep: frames are
	// already waiting, and the queue is back in polling mode. Once Arm has
	// returned true, no frame can arrive without making FD readable.
	Arm() (bool, error)
	// Disarm goes back to polling mode and consumes what made FD readable.
	Disarm() error
}

// QueueStatistics are counters since the queue was opened; owned by the queue's
// goroutine.
type QueueStatistics struct {
	ReceivedFrames, ReceivedBytes       uint64
	TransmittedFrames, TransmittedBytes uint64
	// EmptyPolls counts calls of Receive that found nothing.
	EmptyPolls uint64
	// ReceiveDropped counts frames that the queue had to drop after receiving
	// them (unusable buffers), TransmitRefused frames that Transmit gave back.
	ReceiveDropped, TransmitRefused uint64
	// AllocationFailures counts frames that Allocate could not give.
	AllocationFailures uint64
}

// A Port is one network device. Its methods may be called from any goroutine.
type Port interface {
	// Name is how the user knows the device: pollux0, 0000:3b:00.0, net_memif0.
	Name() string
	// Address is the Ethernet address.
	Address() [6]byte
	// MTU is the largest network-layer packet in bytes.
	MTU() int
	// Link returns the link's state.
	Link() (Link, error)
	// Capabilities says what the device does by itself.
	Capabilities() Capabilities
	// Queues is the number of queues, and Queue the one at index i.
	Queues() int
	Queue(i int) Queue
	// RSS returns how the device spreads flows over its queues; false if it has
	// no receive-side scaling or does not tell.
	RSS() (RSS, bool)
	// Statistics returns the device's own (extended) counters.
	Statistics() ([]Statistic, error)
	// FreeFrames is the number of frames that are in the port's pools just now,
	// or -1 if the port has no bounded pool. With no traffic and no holder it
	// returns to its value after opening: a leak shows here.
	FreeFrames() int
	// Close stops the device and leaves it as it was found. No queue may be in
	// use. Frames of the port must have been freed.
	Close() error
}

// Link is the state of a port's link.
type Link struct {
	Up bool
	// Speed is in Mbit/s; 0 if unknown.
	Speed int
}

// Capabilities says what a device does by itself, so that software need not.
type Capabilities struct {
	// Driver is the name of the poll-mode driver, or of the package.
	Driver string
	// ReceiveChecksum: received frames carry ChecksumValid or ChecksumWrong.
	ReceiveChecksum bool
	// TransmitIPChecksum, TransmitTCPChecksum, TransmitUDPChecksum: the Compute flags work.
	TransmitIPChecksum, TransmitTCPChecksum, TransmitUDPChecksum bool
	// SegmentTCP: SegmentTCP works.
	SegmentTCP bool
	// MaxFrame is the largest frame in bytes that may be transmitted; more than
	// the MTU and the Ethernet header only if SegmentTCP.
	MaxFrame int
	// Interrupt says what receive interrupts are made of ("device interrupt",
	// "socket"), or is empty if there are none.
	Interrupt string
}

// RSS is a device's receive-side scaling: queue = Table[hash mod len(Table)],
// where hash is Toeplitz over Key of the flow's addresses and ports.
type RSS struct {
	Key   []byte
	Table []uint16
	// Which headers the device hashes by addresses and ports.
	TCP4, TCP6, UDP4, UDP6 bool
}

// Statistic is one of a device's own counters.
type Statistic struct {
	Name  string
	Value uint64
}
