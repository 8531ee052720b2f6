#ifndef POLLUX_DEVICE_H
#define POLLUX_DEVICE_H

#include <stdint.h>

struct rte_mempool;

// px_info is what a device says of itself.
struct px_info {
	char driver[64];
	uint8_t address[6];
	uint16_t mtu, min_mtu, max_mtu;
	uint16_t max_rx_queues, max_tx_queues;
	uint64_t rx_offloads, tx_offloads, rss_types;
	uint16_t table_size;
	uint8_t key_size;
	int socket;
};

// Bits of px_info.rx_offloads and tx_offloads, and of px_setup's.
enum {
	PX_RX_CHECKSUM = 1 << 0,
	PX_RX_HASH = 1 << 1,
	PX_TX_IP = 1 << 0,
	PX_TX_TCP = 1 << 1,
	PX_TX_UDP = 1 << 2,
	PX_TX_SEGMENT_TCP = 1 << 3,
	PX_TX_SEGMENTS = 1 << 4,
	PX_RSS_TCP4 = 1 << 0,
	PX_RSS_TCP6 = 1 << 1,
	PX_RSS_UDP4 = 1 << 2,
	PX_RSS_UDP6 = 1 << 3,
};

// px_setup is how a device is to be configured; px_configure updates what the
// device changed.
struct px_setup {
	uint16_t queues, descriptors, mtu;
	uint64_t rx_offloads, tx_offloads, rss_types;
	int interrupts;
	struct rte_mempool *pool;
};

struct px_statistic {
	char name[64];
	uint64_t value;
};

// All of these return 0 or a negative errno unless said otherwise.
int px_probe(const char *devargs);
// px_port_find returns the port of a device by its name.
int px_port_find(const char *name, uint16_t *port);
int px_info_get(uint16_t port, struct px_info *info);
int px_configure(uint16_t port, struct px_setup *setup);
int px_start(uint16_t port);
int px_promiscuous(uint16_t port);
int px_all_multicast(uint16_t port);
// px_remove stops the device, closes it and unplugs it; px_probe finds it again.
int px_remove(uint16_t port);
int px_link_get(uint16_t port, int *up, uint32_t *speed);
// px_rss_get reads the key and the table of table_size entries.
int px_rss_get(uint16_t port, uint8_t *key, unsigned key_size, uint16_t *table, unsigned table_size, uint64_t *types);
// px_rss_spread makes the table name every queue in turn.
int px_rss_spread(uint16_t port, unsigned table_size, unsigned queues);
// px_statistics returns how many there are, having filled in up to n.
int px_statistics(uint16_t port, struct px_statistic *list, unsigned n);

#endif
