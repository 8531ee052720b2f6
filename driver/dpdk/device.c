#include "device.h"

#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>

int px_probe(const char *devargs)
{
	return rte_dev_probe(devargs);
}

int px_port_find(const char *name, uint16_t *port)
{
	return rte_eth_dev_get_port_by_name(name, port);
}

static const struct {
	uint64_t ours, theirs;
} rx_offloads[] = {
	{PX_RX_CHECKSUM, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM},
	{PX_RX_CHECKSUM, RTE_ETH_RX_OFFLOAD_TCP_CKSUM},
	{PX_RX_CHECKSUM, RTE_ETH_RX_OFFLOAD_UDP_CKSUM},
	{PX_RX_HASH, RTE_ETH_RX_OFFLOAD_RSS_HASH},
}, tx_offloads[] = {
	{PX_TX_IP, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM},
	{PX_TX_TCP, RTE_ETH_TX_OFFLOAD_TCP_CKSUM},
	{PX_TX_UDP, RTE_ETH_TX_OFFLOAD_UDP_CKSUM},
	{PX_TX_SEGMENT_TCP, RTE_ETH_TX_OFFLOAD_TCP_TSO},
	{PX_TX_SEGMENTS, RTE_ETH_TX_OFFLOAD_MULTI_SEGS},
}, rss_types[] = {
	{PX_RSS_TCP4, RTE_ETH_RSS_NONFRAG_IPV4_TCP},
	{PX_RSS_TCP6, RTE_ETH_RSS_NONFRAG_IPV6_TCP},
	{PX_RSS_UDP4, RTE_ETH_RSS_NONFRAG_IPV4_UDP},
	{PX_RSS_UDP6, RTE_ETH_RSS_NONFRAG_IPV6_UDP},
};

#define OURS(table, bits) ours(table, RTE_DIM(table), bits)
#define THEIRS(table, bits) theirs(table, RTE_DIM(table), bits)

static uint64_t ours(const typeof(rx_offloads[0]) *t, unsigned n, uint64_t bits)
{
	uint64_t r = 0;
	for (unsigned i = 0; i < n; i++)
		if (bits & t[i].theirs)
			r |= t[i].ours;
	return r;
}

static uint64_t theirs(const typeof(rx_offloads[0]) *t, unsigned n, uint64_t bits)
{
	uint64_t r = 0;
	for (unsigned i = 0; i < n; i++)
		if (bits & t[i].ours)
			r |= t[i].theirs;
	return r;
}

int px_info_get(uint16_t port, struct px_info *info)
{
	struct rte_eth_dev_info d;
	struct rte_ether_addr a;
	int rc = rte_eth_dev_info_get(port, &d);

	if (rc != 0)
		return rc;
	memset(info, 0, sizeof *info);
	strncpy(info->driver, d.driver_name, sizeof info->driver - 1);
	if ((rc = rte_eth_macaddr_get(port, &a)) != 0 || (rc = rte_eth_dev_get_mtu(port, &info->mtu)) != 0)
		return rc;
	memcpy(info->address, a.addr_bytes, sizeof info->address);
	info->min_mtu = d.min_mtu;
	info->max_mtu = d.max_mtu;
	info->max_rx_queues = d.max_rx_queues;
	info->max_tx_queues = d.max_tx_queues;
	info->rx_offloads = OURS(rx_offloads, d.rx_offload_capa);
	info->tx_offloads = OURS(tx_offloads, d.tx_offload_capa);
	info->rss_types = OURS(rss_types, d.flow_type_rss_offloads);
	info->table_size = d.reta_size;
	info->key_size = d.hash_key_size;
	info->socket = rte_eth_dev_socket_id(port);
	return 0;
}

int px_configure(uint16_t port, struct px_setup *s)
{
	struct rte_eth_dev_info d;
	int rc = rte_eth_dev_info_get(port, &d);

	if (rc != 0)
		return rc;
	struct rte_eth_conf conf = {
		.rxmode.mtu = s->mtu,
		.rxmode.offloads = THEIRS(rx_offloads, s->rx_offloads) & d.rx_offload_capa,
		.txmode.offloads = THEIRS(tx_offloads, s->tx_offloads) & d.tx_offload_capa,
		.intr_conf.rxq = s->interrupts,
	};
	if (s->rss_types != 0) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf = d.flow_type_rss_offloads &
			(THEIRS(rss_types, s->rss_types) | RTE_ETH_RSS_IP);
	}
	if ((rc = rte_eth_dev_configure(port, s->queues, s->queues, &conf)) != 0)
		return rc;
	uint16_t rx = s->descriptors, tx = s->descriptors;
	if (rx == 0) {
		rx = d.default_rxportconf.ring_size ? d.default_rxportconf.ring_size : 1024;
		tx = d.default_txportconf.ring_size ? d.default_txportconf.ring_size : 1024;
	}
	if ((rc = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx)) != 0)
		return rc;
	s->descriptors = rx;
	unsigned socket = rte_eth_dev_socket_id(port);
	for (uint16_t q = 0; q < s->queues; q++) {
		struct rte_eth_rxconf rxconf = d.default_rxconf;
		struct rte_eth_txconf txconf = d.default_txconf;
		rxconf.offloads = conf.rxmode.offloads & d.rx_queue_offload_capa;
		txconf.offloads = conf.txmode.offloads & d.tx_queue_offload_capa;
		if ((rc = rte_eth_rx_queue_setup(port, q, rx, socket, &rxconf, s->pool)) != 0 ||
		    (rc = rte_eth_tx_queue_setup(port, q, tx, socket, &txconf)) != 0)
			return rc;
	}
	return 0;
}

int px_start(uint16_t port)
{
	return rte_eth_dev_start(port);
}

int px_promiscuous(uint16_t port)
{
	return rte_eth_promiscuous_enable(port);
}

int px_all_multicast(uint16_t port)
{
	return rte_eth_allmulticast_enable(port);
}

static int stop_and_close(uint16_t port)
{
	rte_eth_dev_stop(port); // Of one that never started this fails, which is no matter.
	return rte_eth_dev_close(port);
}

struct closing {
	uint16_t port;
	int rc;
	sem_t done;
};

static void close_there(void *arg)
{
	struct closing *c = arg;

	c->rc = stop_and_close(c->port);
	sem_post(&c->done);
}

// memif's driver answers its peer on the EAL's interrupt thread, without a lock:
// closed elsewhere, while a peer that leaves is dealt with there, it writes to
// memory that it has freed. Alarms are called on that thread.
static int close_on_interrupt_thread(uint16_t port)
{
	struct closing c = {.port = port};

	if (sem_init(&c.done, 0, 0) != 0)
		return -errno;
	int rc = rte_eal_alarm_set(1, close_there, &c);
	if (rc == 0) {
		while (sem_wait(&c.done) != 0 && errno == EINTR)
			;
		rc = c.rc;
	}
	sem_destroy(&c.done);
	return rc;
}

int px_remove(uint16_t port)
{
	struct rte_eth_dev_info d;
	int rc = rte_eth_dev_info_get(port, &d);

	if (rc != 0)
		return rc;
	if (strcmp(d.driver_name, "net_memif") == 0)
		rc = close_on_interrupt_thread(port);
	else
		rc = stop_and_close(port);
	if (rc != 0)
		return rc;
	return rte_dev_remove(d.device);
}

int px_link_get(uint16_t port, int *up, uint32_t *speed)
{
	struct rte_eth_link link;
	int rc = rte_eth_link_get_nowait(port, &link);

	if (rc != 0)
		return rc;
	*up = link.link_status == RTE_ETH_LINK_UP;
	*speed = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	return 0;
}

int px_rss_get(uint16_t port, uint8_t *key, unsigned key_size, uint16_t *table, unsigned table_size, uint64_t *types)
{
	struct rte_eth_rss_conf conf = {.rss_key = key, .rss_key_len = key_size};
	unsigned groups = (table_size + RTE_ETH_RETA_GROUP_SIZE - 1) / RTE_ETH_RETA_GROUP_SIZE;
	int rc = rte_eth_dev_rss_hash_conf_get(port, &conf);

	if (rc != 0)
		return rc;
	struct rte_eth_rss_reta_entry64 *reta = calloc(groups, sizeof *reta);
	if (reta == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < groups; i++)
		reta[i].mask = UINT64_MAX;
	rc = rte_eth_dev_rss_reta_query(port, reta, table_size);
	for (unsigned i = 0; rc == 0 && i < table_size; i++)
		table[i] = reta[i / RTE_ETH_RETA_GROUP_SIZE].reta[i % RTE_ETH_RETA_GROUP_SIZE];
	free(reta);
	*types = OURS(rss_types, conf.rss_hf);
	return rc;
}

int px_rss_spread(uint16_t port, unsigned table_size, unsigned queues)
{
	unsigned groups = (table_size + RTE_ETH_RETA_GROUP_SIZE - 1) / RTE_ETH_RETA_GROUP_SIZE;
	struct rte_eth_rss_reta_entry64 *reta = calloc(groups, sizeof *reta);

	if (reta == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < table_size; i++) {
		reta[i / RTE_ETH_RETA_GROUP_SIZE].mask |= UINT64_C(1) << i % RTE_ETH_RETA_GROUP_SIZE;
		reta[i / RTE_ETH_RETA_GROUP_SIZE].reta[i % RTE_ETH_RETA_GROUP_SIZE] = i % queues;
	}
	int rc = rte_eth_dev_rss_reta_update(port, reta, table_size);
	free(reta);
	return rc;
}

int px_statistics(uint16_t port, struct px_statistic *list, unsigned n)
{
	struct rte_eth_xstat_name *names = calloc(n + 1, sizeof *names);
	struct rte_eth_xstat *values = calloc(n + 1, sizeof *values);
	int total = -ENOMEM;

	if (names != NULL && values != NULL) {
		total = rte_eth_xstats_get_names(port, n ? names : NULL, n);
		if (total >= 0 && (unsigned)total <= n) {
			int got = rte_eth_xstats_get(port, values, n);
			if (got < 0)
				total = got;
			for (int i = 0; i < got && i < (int)n; i++) {
				memcpy(list[i].name, names[values[i].id].name, sizeof list[i].name);
				list[i].value = values[i].value;
			}
		}
	}
	free(names);
	free(values);
	return total;
}
