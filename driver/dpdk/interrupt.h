#ifndef POLLUX_INTERRUPT_H
#define POLLUX_INTERRUPT_H

#include <stdint.h>

// px_interrupt_add makes epoll report the interrupts of a receive queue.
int px_interrupt_add(uint16_t port, uint16_t queue, int epoll);
// px_arm enables the interrupt of a queue (a px_queue's address), then looks
// once more: 0 if nothing is there, the number of frames received into its
// slots (and the interrupt disabled again), or a negative errno.
int px_arm(uintptr_t queue, int epoll, unsigned n);
// px_disarm disables the interrupt and consumes what it reported.
int px_disarm(uintptr_t queue, int epoll);

#endif
