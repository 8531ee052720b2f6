#ifndef POLLUX_BURST_H
#define POLLUX_BURST_H

#include <stdint.h>

// The largest burst that one call carries.
#define PX_BURST 256

// Bits of px_slot.flags: those of driver.Flags, in the same order.
enum {
	PX_CHECKSUM_VALID = 1 << 0,
	PX_CHECKSUM_WRONG = 1 << 1,
	PX_HASH_VALID = 1 << 2,
	PX_COMPUTE_IP = 1 << 3,
	PX_COMPUTE_TCP = 1 << 4,
	PX_COMPUTE_UDP = 1 << 5,
	PX_SEGMENT_TCP = 1 << 6,
	PX_IPV6 = 1 << 7,
};

// px_slot is one frame on its way between an mbuf and a driver.Frame.
struct px_slot {
	void *data;
	uintptr_t mbuf;
	uint32_t length, capacity;
	uint32_t hash;
	uint16_t flags, segment;
	uint8_t l2, l4;
	uint16_t l3;
};

// px_queue is a receive and a transmit queue of one port. It belongs to one
// thread at a time.
struct px_queue {
	// What Go and C say to each other in a burst.
	struct px_slot slots[PX_BURST];

	uint16_t port, queue;
	// The device computes what the flags ask for and wants to see each frame first.
	uint16_t prepare;
	// The sender may have left transport checksums to be computed.
	uint16_t suspect;
	// The device takes frames in pieces of at most this many bytes, 0: any.
	uint16_t piece;
	// The largest frame, with and without segmentation by the device.
	uint32_t max_segmented, max_frame;
	// The most segments that the device cuts a frame into, 0: any number.
	uint32_t max_segments;
	// The largest frame that it cuts one into; segments are shortened to fit.
	uint32_t max_cut;
	// How many bytes fit into a frame of the pool, and of the large one.
	uint32_t room, large_room;
	struct rte_mempool *pool, *large, *pieces;

	// Counters, written by the owner only.
	uint64_t received, received_bytes;
	uint64_t transmitted, transmitted_bytes;
	uint64_t empty_polls;
	uint64_t receive_dropped;
	uint64_t receive_unfinished;
	uint64_t transmit_unsendable;
	uint64_t allocation_failures;
};

struct rte_mempool;

struct px_queue *px_queue_new(void);
void px_queue_free(struct px_queue *q);

// px_receive fills slots with up to n frames that have arrived.
unsigned px_receive(uintptr_t queue, unsigned n);
// px_transmit sends the frames in slots[0:n] and returns how many it took.
unsigned px_transmit(uintptr_t queue, unsigned n);
// px_allocate fills slots with n empty frames of at least size bytes, or fewer.
unsigned px_allocate(uintptr_t queue, unsigned n, unsigned size);
// px_free frees the n frames whose mbufs are listed.
void px_free(uintptr_t mbufs, unsigned n);
// px_list_new makes room for the list of one px_free.
void *px_list_new(void);
void px_list_free(void *list);

// px_pool_new makes a pool; NULL with rte_errno set on failure.
struct rte_mempool *px_pool_new(const char *name, unsigned frames, unsigned room, unsigned cache, int socket);
void px_pool_free(struct rte_mempool *p);
// px_pool_held is the number of frames of the pool that are with the application.
int64_t px_pool_held(struct rte_mempool *p);
// px_pool_available is the number of frames in the pool and its caches.
unsigned px_pool_available(struct rte_mempool *p);
// px_pool_chunks is the number of pieces of memory that the pool lies in.
unsigned px_pool_chunks(struct rte_mempool *p);
// px_pool_bytes is the memory that such a pool takes, about.
uint64_t px_pool_bytes(unsigned frames, unsigned room);

#endif
