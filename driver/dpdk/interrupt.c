#include "interrupt.h"
#include "burst.h"

#include <errno.h>

#include <rte_epoll.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>

int px_interrupt_add(uint16_t port, uint16_t queue, int epoll)
{
	return rte_eth_dev_rx_intr_ctl_q(port, queue, epoll, RTE_INTR_EVENT_ADD, NULL);
}

int px_arm(uintptr_t queue, int epoll, unsigned n)
{
	struct px_queue *q = (struct px_queue *)queue;
	int rc = rte_eth_dev_rx_intr_enable(q->port, q->queue);

	// A device whose interrupt is always on (tap) has nothing to enable.
	if (rc != 0 && rc != -ENOTSUP)
		return rc;
	n = px_receive(queue, n);
	if (n > 0)
		px_disarm(queue, epoll); // Should it fail, the next one says so.
	return n;
}

int px_disarm(uintptr_t queue, int epoll)
{
	struct px_queue *q = (struct px_queue *)queue;
	struct rte_epoll_event event;
	int rc = rte_eth_dev_rx_intr_disable(q->port, q->queue);

	if (rc != 0 && rc != -ENOTSUP)
		return rc;
	// The event is edge-triggered inside and readable outside until taken here;
	// taking it also empties the eventfd, where there is one.
	if (rte_epoll_wait(epoll, &event, 1, 0) < 0)
		return -errno;
	return 0;
}
