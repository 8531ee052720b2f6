// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//go:build ignore

// Spreads received flows over processors by a hash that is the same in both
// directions, where the device has too few queues to do it.
#include "kernel.h"

char _license[] SEC("license") = "GPL";

#define CPUS_MAX 1024

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS 60

// How many VLAN tags and IPv6 extension headers are looked behind.
#define TAGS_MAX 2
#define EXTENSIONS_MAX 4

struct ethernet {
	__u8 addresses[12];
	__be16 protocol;
} __attribute__((packed));

struct tag {
	__be16 tci;
	__be16 protocol;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 source, destination;
} __attribute__((packed));

struct ipv6 {
	__be32 flow;
	__be16 length;
	__u8 next;
	__u8 hops;
	__be32 source[4], destination[4];
} __attribute__((packed));

struct extension {
	__u8 next;
	__u8 length; // in units of 8 bytes, the first not counted
	__u8 rest[6];
} __attribute__((packed));

struct ports {
	__be16 source, destination;
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1); // raised when loaded
	__type(key, __u32);
	__type(value, __u32); // room, in frames
} queues SEC(".maps");

// The processors to choose from.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CPUS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

// By index into targets; one more: those that stay where they are.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CPUS_MAX + 1);
	__type(key, __u32);
	__type(value, __u64);
} frames SEC(".maps");

// By processor: frames that there was no room for.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); // raised when loaded
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

volatile const __u32 ntargets = 1;
// So that nobody outside knows how to put all flows on one processor.
volatile const __u32 seed = 0;
// The identity of queues, for the tracepoint that every such map fires.
volatile const __u32 queues_id = 0;

static __always_inline void count(__u32 index)
{
	__u64 *n = bpf_map_lookup_elem(&frames, &index);
	if (n)
		(*n)++;
}

// mix is a finalizer of MurmurHash3: every bit of the input changes half of the
// output.
static __always_inline __u32 mix(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return h;
}

// both combines the two ends of a flow, whichever is first. (Exclusive or would
// lose those that share an address or a port with each other.)
static __always_inline __u32 both(__u32 a, __u32 b)
{
	return mix(a ^ seed) + mix(b ^ seed);
}

static __always_inline __u32 fold(__be32 *a)
{
	return mix(mix(mix(a[0]) ^ a[1]) ^ a[2]) ^ a[3];
}

// flow hashes a frame; 0 says that it is to stay.
static __always_inline int flow(void *data, void *end, __u32 *hash)
{
	struct ethernet *eth = data;
	if ((void *)(eth + 1) > end)
		return 0;
	__be16 protocol = eth->protocol;
	void *at = eth + 1;
#pragma unroll
	for (int i = 0; i < TAGS_MAX; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		struct tag *tag = at;
		if ((void *)(tag + 1) > end)
			return 0;
		protocol = tag->protocol;
		at = tag + 1;
	}

	__u32 h;
	__u8 transport;
	bool fragment = 0;
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 *ip = at;
		if ((void *)(ip + 1) > end)
			return 0;
		__u32 size = (ip->version_ihl & 15) * 4;
		if (ip->version_ihl >> 4 != 4 || size < sizeof(*ip))
			return 0;
		// More fragments, or not the first: all of a datagram must meet, and
		// only the first has ports.
		fragment = ip->fragment & bpf_htons(0x3fff);
		transport = ip->protocol;
		h = both(ip->source, ip->destination);
		at += size;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 *ip = at;
		if ((void *)(ip + 1) > end || (*(__u8 *)ip) >> 4 != 6)
			return 0;
		transport = ip->next;
		h = both(fold(ip->source), fold(ip->destination));
		at = ip + 1;
#pragma unroll
		for (int i = 0; i < EXTENSIONS_MAX; i++) {
			if (transport != IPPROTO_HOPOPTS && transport != IPPROTO_ROUTING &&
			    transport != IPPROTO_DSTOPTS && transport != IPPROTO_FRAGMENT)
				break;
			struct extension *x = at;
			if ((void *)(x + 1) > end)
				return 0;
			bool is_fragment = transport == IPPROTO_FRAGMENT;
			transport = x->next;
			if (is_fragment) {
				fragment = 1;
				break;
			}
			at += (x->length + 1) * 8;
		}
	} else {
		return 0;
	}

	if (fragment) {
		// What it is a fragment of is behind other headers, perhaps not in
		// this one.
		*hash = mix(h);
		return 1;
	}
	if (transport != IPPROTO_TCP && transport != IPPROTO_UDP)
		return 0;
	struct ports *p = at;
	if ((void *)(p + 1) > end)
		return 0;
	*hash = mix(h ^ both(p->source, p->destination) ^ transport);
	return 1;
}

SEC("xdp.frags")
int spread(struct xdp_md *ctx)
{
	__u32 hash;
	if (!flow((void *)(long)ctx->data, (void *)(long)ctx->data_end, &hash)) {
		count(ntargets);
		return XDP_PASS;
	}
	__u32 index = (__u64)hash * ntargets >> 32;
	__u32 *cpu = bpf_map_lookup_elem(&targets, &index);
	if (!cpu)
		return XDP_PASS;
	int action = bpf_redirect_map(&queues, *cpu, XDP_PASS);
	count(action == XDP_REDIRECT ? index : ntargets);
	return action;
}

SEC("tp_btf/xdp_cpumap_enqueue")
int dropped(__u64 *args)
{
	// int map_id, unsigned int processed, unsigned int drops, int to_cpu
	__u32 id = args[0], n = args[2], cpu = args[3];
	if (n == 0 || id != queues_id)
		return 0;
	__u64 *d = bpf_map_lookup_elem(&drops, &cpu);
	if (d)
		*d += n;
	return 0;
}
