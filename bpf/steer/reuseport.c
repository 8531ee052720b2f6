// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//go:build ignore

// Picks the socket of a SO_REUSEPORT group for a connection (at its SYN) or a
// datagram: that of the worker who owns the receive queue.
#include "kernel.h"

char _license[] SEC("license") = "GPL";

#define WORKERS_MAX 1024
#define NAPIS_MAX 4096

// Why a worker was chosen. Counts in reuseport.go.
enum reason {
	BY_NAPI,
	BY_CPU,
	BY_FALLBACK,
	REASONS,
};

// The sockets, by worker.
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, WORKERS_MAX); // lowered when loaded
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

// The worker of a NAPI instance.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAPIS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} napis SEC(".maps");

// The worker of a processor, plus one; 0 is none.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); // raised when loaded
	__type(key, __u32);
	__type(value, __u32);
} cpus SEC(".maps");

struct chosen {
	__u64 by[REASONS];
};

// What was chosen, by worker. One more: those left to the kernel.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WORKERS_MAX + 1); // lowered when loaded
	__type(key, __u32);
	__type(value, struct chosen);
} choices SEC(".maps");

volatile const __u32 workers = 1;
// 0 refuses whatever comes, as if nobody listened.
volatile __u32 opened = 1;

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

// give picks the worker's socket, if it has one.
static __always_inline int give(struct sk_reuseport_md *ctx, __u32 worker, enum reason reason)
{
	if (bpf_sk_select_reuseport(ctx, &sockets, &worker, 0))
		return 0;
	struct chosen *c = bpf_map_lookup_elem(&choices, &worker);
	if (c)
		c->by[reason]++;
	return 1;
}

SEC("sk_reuseport")
int steer(struct sk_reuseport_md *ctx)
{
	if (!opened)
		return SK_DROP;

	// The context that programs see tells neither queue nor NAPI; the one
	// behind it has the packet, whose NAPI the driver has written down.
	struct sk_reuseport_kern *kern = bpf_cast_to_kern_ctx(ctx);
	__u32 napi = kern->skb->napi_id;
	__u32 *worker = bpf_map_lookup_elem(&napis, &napi);
	if (worker && give(ctx, *worker, BY_NAPI))
		return SK_PASS;

	__u32 cpu = bpf_get_smp_processor_id();
	worker = bpf_map_lookup_elem(&cpus, &cpu);
	if (worker && *worker && give(ctx, *worker - 1, BY_CPU))
		return SK_PASS;

	// No choice made: the kernel picks by its hash.
	__u32 none = workers;
	struct chosen *c = bpf_map_lookup_elem(&choices, &none);
	if (c)
		c->by[BY_FALLBACK]++;
	return SK_PASS;
}
