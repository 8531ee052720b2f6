#include "burst.h"
#include "pool.h"

#include <string.h>

#include <rte_eal.h>
#include <rte_errno.h>

struct rte_mempool *px_pool_new(const char *name, unsigned frames, unsigned room, unsigned cache, int socket)
{
	struct rte_pktmbuf_pool_private settings = {
		.mbuf_data_room_size = room == 0 ? 0 : room + RTE_PKTMBUF_HEADROOM,
	};
	// Where devices see the addresses that we see, frames may lie across pages.
	// Else a pool of ordinary pages would take one page for each, and the driver
	// of AF_XDP, which reckons with frames that lie end to end, would tell the
	// kernel of half of the pool only and lose what falls into the rest.
	unsigned flags = rte_eal_iova_mode() == RTE_IOVA_VA ? RTE_MEMPOOL_F_NO_IOVA_CONTIG : 0;
	struct rte_mempool *p = rte_mempool_create_empty(name, frames,
		sizeof(struct rte_mbuf) + settings.mbuf_data_room_size, cache,
		sizeof(struct px_pool_private), socket, flags);

	if (p == NULL)
		return NULL;
	rte_pktmbuf_pool_init(p, &settings);
	struct px_pool_private *private = rte_mempool_get_priv(p);
	memset(private->held, 0, sizeof private->held);
	int rc = rte_mempool_populate_default(p);
	if (rc < 0) {
		rte_mempool_free(p);
		rte_errno = -rc;
		return NULL;
	}
	rte_mempool_obj_iter(p, rte_pktmbuf_init, NULL);
	return p;
}

void px_pool_free(struct rte_mempool *p)
{
	rte_mempool_free(p);
}

int64_t px_pool_held(struct rte_mempool *p)
{
	struct px_pool_private *private = rte_mempool_get_priv(p);
	int64_t n = 0;

	for (unsigned i = 0; i <= RTE_MAX_LCORE; i++)
		n += __atomic_load_n(&private->held[i].frames, __ATOMIC_RELAXED);
	return n;
}

unsigned px_pool_available(struct rte_mempool *p)
{
	return rte_mempool_avail_count(p);
}

unsigned px_pool_chunks(struct rte_mempool *p)
{
	return p->nb_mem_chunks;
}

uint64_t px_pool_bytes(unsigned frames, unsigned room)
{
	struct rte_mempool_objsz s;

	rte_mempool_calc_obj_size(sizeof(struct rte_mbuf) + RTE_PKTMBUF_HEADROOM + room, 0, &s);
	return (uint64_t)frames * s.total_size;
}
