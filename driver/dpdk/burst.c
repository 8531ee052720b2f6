#include "burst.h"
#include "pool.h"

#include <stdlib.h>
#include <string.h>

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_net.h>

struct px_queue *px_queue_new(void)
{
	struct px_queue *q;

	if (posix_memalign((void **)&q, RTE_CACHE_LINE_SIZE, sizeof *q) != 0)
		return NULL;
	memset(q, 0, sizeof *q);
	return q;
}

void px_queue_free(struct px_queue *q)
{
	free(q);
}

static inline void show(struct px_slot *s, struct rte_mbuf *m)
{
	s->mbuf = (uintptr_t)m;
	s->data = rte_pktmbuf_mtod(m, void *);
	s->length = m->data_len;
	s->capacity = m->buf_len - m->data_off;
	s->flags = 0;
}

// linearize copies a frame that came in several segments into one mbuf, the
// large kind if need be, and frees the original. NULL if there is none.
static struct rte_mbuf *linearize(struct px_queue *q, struct rte_mbuf *m)
{
	struct rte_mempool *from = m->pkt_len <= q->room ? q->pool : m->pkt_len <= q->large_room ? q->large : NULL;
	struct rte_mbuf *one = from == NULL ? NULL : rte_pktmbuf_alloc(from);

	if (one != NULL) {
		const void *data = rte_pktmbuf_read(m, 0, m->pkt_len, rte_pktmbuf_mtod(one, void *));
		if (data != rte_pktmbuf_mtod(one, void *))
			memcpy(rte_pktmbuf_mtod(one, void *), data, m->pkt_len);
		one->data_len = one->pkt_len = m->pkt_len;
		one->ol_flags = m->ol_flags;
		one->hash = m->hash;
		one->packet_type = m->packet_type;
	}
	rte_pktmbuf_free(m);
	return one;
}

// transport is where the transport checksum of a frame is, and what it covers.
struct transport {
	uint8_t *field; // two bytes, aligned or not
	const uint8_t *data;
	uint32_t length;
	uint16_t pseudo; // folded sum of the pseudo-header
};

// find_transport looks for TCP or UDP in m; 0 if there is none, or not all of it.
static int find_transport(struct rte_mbuf *m, struct transport *t)
{
	struct rte_net_hdr_lens lens;
	uint32_t type = rte_net_get_ptype(m, &lens, RTE_PTYPE_L2_MASK | RTE_PTYPE_L3_MASK | RTE_PTYPE_L4_MASK);
	uint8_t *l3 = rte_pktmbuf_mtod_offset(m, uint8_t *, lens.l2_len);
	uint8_t *l4 = l3 + lens.l3_len;
	uint32_t packet;

	switch (type & RTE_PTYPE_L4_MASK) {
	case RTE_PTYPE_L4_TCP:
		t->field = l4 + offsetof(struct rte_tcp_hdr, cksum);
		break;
	case RTE_PTYPE_L4_UDP:
		t->field = l4 + offsetof(struct rte_udp_hdr, dgram_cksum);
		break;
	default:
		return 0;
	}
	if (RTE_ETH_IS_IPV4_HDR(type)) {
		packet = rte_be_to_cpu_16(((struct rte_ipv4_hdr *)l3)->total_length);
		t->pseudo = rte_ipv4_phdr_cksum((struct rte_ipv4_hdr *)l3, 0);
	} else {
		packet = rte_be_to_cpu_16(((struct rte_ipv6_hdr *)l3)->payload_len) + sizeof(struct rte_ipv6_hdr);
		t->pseudo = rte_ipv6_phdr_cksum((struct rte_ipv6_hdr *)l3, 0);
	}
	if (packet < lens.l3_len + sizeof(struct rte_udp_hdr) || lens.l2_len + packet > m->data_len ||
	    t->field + sizeof(uint16_t) > l3 + packet)
		return 0;
	t->data = l4;
	t->length = packet - lens.l3_len;
	return 1;
}

// complete fills in the transport checksum that a sender on the same machine
// left out. What it vouched for stays valid wherever the frame goes next.
static void complete(const struct transport *t)
{
	uint16_t value = 0;

	memcpy(t->field, &value, sizeof value);
	uint32_t sum = rte_raw_cksum(t->data, t->length) + t->pseudo;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	value = sum == 0xffff ? 0xffff : (uint16_t)~sum; // 0 would mean none, of UDP.
	memcpy(t->field, &value, sizeof value);
}

// unfinished completes a checksum that is the sum of the pseudo-header alone,
// which is what a sender leaves that expects a device to do the rest. A frame
// that is right and looks like that by chance stays as it is.
static int unfinished(struct rte_mbuf *m)
{
	struct transport t;
	uint16_t value;

	if (!find_transport(m, &t))
		return 0;
	memcpy(&value, t.field, sizeof value);
	if (value != t.pseudo)
		return 0;
	complete(&t);
	return 1;
}

// ip_header_good verifies the header checksum of IPv4 where the device did not;
// IPv6 has none.
static int ip_header_good(const struct rte_mbuf *m)
{
	const struct rte_ether_hdr *ether = rte_pktmbuf_mtod(m, const struct rte_ether_hdr *);
	const struct rte_ipv4_hdr *ip = (const struct rte_ipv4_hdr *)(ether + 1);

	if (m->data_len < sizeof *ether + sizeof *ip)
		return 0;
	if (ether->ether_type == RTE_BE16(RTE_ETHER_TYPE_IPV6))
		return 1;
	if (ether->ether_type != RTE_BE16(RTE_ETHER_TYPE_IPV4) ||
	    rte_ipv4_hdr_len(ip) < sizeof *ip || m->data_len < sizeof *ether + rte_ipv4_hdr_len(ip))
		return 0;
	return rte_raw_cksum(ip, rte_ipv4_hdr_len(ip)) == 0xffff;
}

static inline uint16_t receive_flags(struct rte_mbuf *m)
{
	uint64_t ip = m->ol_flags & RTE_MBUF_F_RX_IP_CKSUM_MASK;
	uint64_t l4 = m->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;
	uint16_t flags = m->ol_flags & RTE_MBUF_F_RX_RSS_HASH ? PX_HASH_VALID : 0;

	if (likely((ip | l4) == 0))
		return flags;
	if (ip == RTE_MBUF_F_RX_IP_CKSUM_BAD || l4 == RTE_MBUF_F_RX_L4_CKSUM_BAD)
		return flags | PX_CHECKSUM_WRONG;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN)
		return flags;
	if (ip != RTE_MBUF_F_RX_IP_CKSUM_GOOD && !ip_header_good(m))
		return flags; // Not vouched for; the stack looks itself.
	struct transport t;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_NONE && find_transport(m, &t))
		complete(&t);
	return flags | PX_CHECKSUM_VALID;
}

unsigned px_receive(uintptr_t queue, unsigned n)
{
	struct px_queue *q = (struct px_queue *)queue;
	struct rte_mbuf *mbufs[PX_BURST];
	uint64_t bytes = 0;
	unsigned kept = 0;

	n = rte_eth_rx_burst(q->port, q->queue, mbufs, n);
	if (n == 0) {
		q->empty_polls++;
		return 0;
	}
	for (unsigned i = 0; i < n; i++) {
		struct rte_mbuf *m = mbufs[i];
		if (likely(i + 1 < n))
			rte_prefetch0(mbufs[i + 1]);
		if (unlikely(m->nb_segs > 1)) {
			m = linearize(q, m);
			if (m == NULL) {
				q->receive_dropped++;
				continue;
			}
		}
		if (unlikely(q->suspect))
			q->receive_unfinished += unfinished(m);
		struct px_slot *s = &q->slots[kept];
		show(s, m);
		s->flags = receive_flags(m);
		s->hash = m->hash.rss;
		bytes += m->data_len;
		mbufs[kept++] = m;
	}
	px_hold_all(mbufs, kept, 1);
	q->received += kept;
	q->received_bytes += bytes;
	return kept;
}

// What an mbuf's flags say of its memory, rather than of its frame.
#define PX_KEEP (RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL)

// ask translates what a frame asks of the device.
static inline void ask(const struct px_queue *q, struct rte_mbuf *m, const struct px_slot *s)
{
	uint64_t f = s->flags & PX_IPV6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;

	if (s->flags & PX_COMPUTE_IP && !(s->flags & PX_IPV6))
		f |= RTE_MBUF_F_TX_IP_CKSUM;
	if (s->flags & PX_SEGMENT_TCP) {
		f |= RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_TCP_CKSUM;
		if (!(s->flags & PX_IPV6))
			f |= RTE_MBUF_F_TX_IP_CKSUM; // Each segment has its own.
		m->tso_segsz = RTE_MIN(s->segment, q->max_cut - (s->l2 + s->l3 + s->l4));
	} else if (s->flags & PX_COMPUTE_TCP) {
		f |= RTE_MBUF_F_TX_TCP_CKSUM;
	} else if (s->flags & PX_COMPUTE_UDP) {
		f |= RTE_MBUF_F_TX_UDP_CKSUM;
	}
	m->ol_flags = (m->ol_flags & PX_KEEP) | f;
	m->l2_len = s->l2;
	m->l3_len = s->l3;
	m->l4_len = s->l4;
}

#define PX_OFFLOADS (PX_COMPUTE_IP | PX_COMPUTE_TCP | PX_COMPUTE_UDP | PX_SEGMENT_TCP)

// sendable says whether the device can make something of the frame.
static inline int sendable(const struct px_queue *q, const struct px_slot *s)
{
	uint32_t most = s->flags & PX_SEGMENT_TCP ? q->max_segmented : q->max_frame;

	if (s->length == 0 || s->length > most)
		return 0;
	if (likely((s->flags & PX_OFFLOADS) == 0))
		return 1;
	uint32_t headers = (uint32_t)s->l2 + s->l3 + s->l4;
	if (s->l2 == 0 || s->l3 == 0 || headers > s->length)
		return 0;
	if (!(s->flags & PX_SEGMENT_TCP))
		return 1;
	return s->l4 != 0 && s->segment != 0 && headers < q->max_cut &&
	       (q->max_segments == 0 || s->length - headers <= (uint64_t)q->max_segments * s->segment);
}

// cut makes a chain of pieces that point into m, for devices whose descriptors
// cannot carry all of it. The chain holds m; so does the caller still.
static struct rte_mbuf *cut(struct px_queue *q, struct rte_mbuf *m)
{
	struct rte_mbuf *parts[UINT16_MAX / 1024 + 1];
	unsigned n = (m->data_len + q->piece - 1) / q->piece;

	if (n > RTE_DIM(parts) || rte_pktmbuf_alloc_bulk(q->pieces, parts, n) != 0)
		return NULL;
	for (unsigned i = 0, at = 0; i < n; i++, at += q->piece) {
		rte_pktmbuf_attach(parts[i], m);
		parts[i]->data_off = m->data_off + at;
		parts[i]->data_len = RTE_MIN((unsigned)q->piece, m->data_len - at);
		parts[i]->next = i + 1 < n ? parts[i + 1] : NULL;
	}
	parts[0]->nb_segs = n;
	parts[0]->pkt_len = m->pkt_len;
	parts[0]->ol_flags |= m->ol_flags;
	parts[0]->tx_offload = m->tx_offload;
	return parts[0];
}

// drop gives up the frame in a slot.
static void drop(struct px_queue *q, struct rte_mbuf *m)
{
	px_hold_all(&m, 1, -1);
	rte_pktmbuf_free(m);
	q->transmit_unsendable++;
}

unsigned px_transmit(uintptr_t queue, unsigned n)
{
	struct px_queue *q = (struct px_queue *)queue;
	struct rte_mbuf *own[PX_BURST], *mbufs[PX_BURST];
	unsigned ready = 0, first = 0;
	int offloads = 0, chains = 0;
	uint64_t bytes = 0;

	// A frame that the device could never send ends the burst before it; at
	// the front it is taken and dropped, so that it cannot stand in the way.
	while (first < n && !sendable(q, &q->slots[first])) {
		drop(q, (struct rte_mbuf *)q->slots[first].mbuf);
		first++;
	}
	for (unsigned i = first; i < n; i++, ready++) {
		struct px_slot *s = &q->slots[i];
		struct rte_mbuf *m = (struct rte_mbuf *)s->mbuf;
		if (unlikely(!sendable(q, s)))
			break;
		m->data_len = m->pkt_len = s->length;
		own[ready] = mbufs[ready] = m;
		if (s->flags & PX_OFFLOADS) {
			offloads = 1;
			ask(q, m, s);
		} else {
			m->ol_flags &= PX_KEEP;
		}
		if (unlikely(q->piece != 0 && s->length > q->piece)) {
			mbufs[ready] = cut(q, m);
			if (mbufs[ready] == NULL)
				break;
			chains = 1;
		}
		bytes += s->length;
	}
	if (ready == 0)
		return first;

	unsigned good = ready;
	if (offloads && q->prepare) {
		good = rte_eth_tx_prepare(q->port, q->queue, mbufs, ready);
		if (unlikely(good == 0 && rte_errno != 0)) {
			// The driver refuses the first frame for good.
			for (unsigned i = 0; i < ready; i++)
				if (mbufs[i] != own[i])
					rte_pktmbuf_free(mbufs[i]);
			drop(q, own[0]);
			return first + 1;
		}
	}
	// The driver may free mbufs at once, so all that are ready are taken for sent
	// here; those that were not sent are still the application's.
	px_hold_all(own, ready, -1);
	unsigned sent = rte_eth_tx_burst(q->port, q->queue, mbufs, good);
	if (unlikely(sent < ready)) {
		px_hold_all(own + sent, ready - sent, 1);
		for (unsigned i = sent; i < ready; i++)
			bytes -= own[i]->pkt_len;
	}
	q->transmitted_bytes += bytes;
	q->transmitted += sent;
	if (unlikely(chains)) {
		for (unsigned i = 0; i < ready; i++) {
			if (mbufs[i] == own[i])
				continue;
			// Of a frame that was sent the chain is now the only holder; one
			// that was not goes back whole.
			rte_pktmbuf_free(i < sent ? own[i] : mbufs[i]);
		}
	}
	return first + sent;
}

unsigned px_allocate(uintptr_t queue, unsigned n, unsigned size)
{
	struct px_queue *q = (struct px_queue *)queue;
	struct rte_mbuf *mbufs[PX_BURST];
	struct rte_mempool *from = size <= q->room ? q->pool : size <= q->large_room ? q->large : NULL;
	unsigned got = 0;

	if (likely(from != NULL && rte_pktmbuf_alloc_bulk(from, mbufs, n) == 0)) {
		got = n;
	} else if (from != NULL) {
		// All or nothing failed: take what there is. Some drivers leave what
		// they have sent in their ring until that is nearly full, and a pool may
		// be smaller than the ring.
		do {
			while (got < n && (mbufs[got] = rte_pktmbuf_alloc(from)) != NULL)
				got++;
		} while (got < n && rte_eth_tx_done_cleanup(q->port, q->queue, 0) > 0);
	}
	for (unsigned i = 0; i < got; i++)
		show(&q->slots[i], mbufs[i]);
	if (got > 0)
		px_hold(from, got);
	q->allocation_failures += n - got;
	return got;
}

void px_free(uintptr_t list, unsigned n)
{
	struct rte_mbuf **mbufs = (struct rte_mbuf **)list;

	px_hold_all(mbufs, n, -1);
	rte_pktmbuf_free_bulk(mbufs, n);
}

void *px_list_new(void)
{
	void *list = calloc(PX_BURST, sizeof(struct rte_mbuf *));

	if (list == NULL)
		abort();
	return list;
}

void px_list_free(void *list)
{
	free(list);
}
