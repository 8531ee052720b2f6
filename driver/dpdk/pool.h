#ifndef POLLUX_POOL_H
#define POLLUX_POOL_H

#include <rte_lcore.h>
#include <rte_mbuf.h>

// px_pool_private is what each of our pools keeps beside what DPDK keeps: how
// many of its frames are with the application, counted by each thread for
// itself. The pool's own count cannot tell that: drivers collect transmitted
// frames late (AF_XDP: only when half of its ring is done).
struct px_pool_private {
	struct rte_pktmbuf_pool_private mbuf;
	struct {
		int64_t frames;
	} __rte_cache_aligned held[RTE_MAX_LCORE + 1];
};

// px_hold adds n to the frames of p that the application holds.
static inline void px_hold(struct rte_mempool *p, int64_t n)
{
	struct px_pool_private *private = rte_mempool_get_priv(p);
	unsigned lcore = rte_lcore_id();

	if (likely(lcore < RTE_MAX_LCORE)) {
		int64_t *frames = &private->held[lcore].frames;
		__atomic_store_n(frames, *frames + n, __ATOMIC_RELAXED);
	} else {
		// Threads that were not registered share a place.
		__atomic_fetch_add(&private->held[RTE_MAX_LCORE].frames, n, __ATOMIC_RELAXED);
	}
}

// px_hold_all adds sign for each mbuf to its own pool, a run at a time.
static inline void px_hold_all(struct rte_mbuf **mbufs, unsigned n, int64_t sign)
{
	for (unsigned i = 0; i < n;) {
		struct rte_mempool *p = mbufs[i]->pool;
		unsigned j = i + 1;
		while (j < n && mbufs[j]->pool == p)
			j++;
		px_hold(p, sign * (int64_t)(j - i));
		i = j;
	}
}

#endif
