// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//go:build ignore

// Forwards IPv4 and IPv6 between interfaces by the kernel's routes, before the
// kernel's stack sees the frame. Whatever needs more than a rewrite of the header
// is left to that stack.
#include "kernel.h"
#include "forward.h"

char _license[] SEC("license") = "GPL";

#define MAP_ARRAY_OF_MAPS 12
#define MAP_DEVMAP_HASH 25

#define AF_INET 2
#define AF_INET6 10
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define ENXIO 6
#define EOPNOTSUPP 95

// How many IPv6 extension headers are looked behind, here and in the twin.
#define EXTENSIONS_MAX 8

// The headers whose ports are read.
#define TCP_SIZE 20
#define UDP_SIZE 8

#define NSEC_PER_SEC 1000000000ull

// linux/bpf.h
enum {
	FIB_SUCCESS,
	FIB_BLACKHOLE,
	FIB_UNREACHABLE,
	FIB_PROHIBIT,
	FIB_NOT_FORWARDED,
	FIB_FORWARDING_DISABLED,
	FIB_UNSUPPORTED_TUNNEL,
	FIB_NO_NEIGHBOUR,
	FIB_FRAGMENTATION_NEEDED,
};

struct bpf_fib_lookup {
	__u8 family;
	__u8 l4_protocol;
	__be16 sport, dport;
	union {
		__u16 tot_len;
		__u16 mtu_result;
	};
	__u32 ifindex;
	union {
		__u8 tos;
		__be32 flowinfo;
		__u32 rt_metric;
	};
	union {
		__be32 ipv4_src;
		__be32 ipv6_src[4];
	};
	union {
		__be32 ipv4_dst;
		__be32 ipv6_dst[4];
	};
	__be16 h_vlan_proto, h_vlan_TCI;
	__u8 smac[6], dmac[6];
};

// What a devmap's program is told of its frames.
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net___forward {
	__u64 net_cookie;
};

struct net_device___forward {
	int ifindex;
	struct {
		struct net___forward *net;
	} nd_net;
};

#pragma clang attribute pop

struct ethernet {
	__u8 to[6], from[6];
	__be16 protocol;
} __attribute__((packed));

struct tag {
	__be16 priority_vlan, protocol;
} __attribute__((packed, aligned(2)));

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
} __attribute__((packed, aligned(2)));

struct ipv6 {
	__be32 flow;
	__be16 length;
	__u8 next;
	__u8 hops;
	__be32 source[4], destination[4];
} __attribute__((packed, aligned(2)));

struct extension {
	__u8 next;
	__u8 length; // in units of 8 bytes, the first not counted
	__be16 fragment;
	__be32 rest;
} __attribute__((packed, aligned(2)));

struct transport {
	__be16 source, destination;
} __attribute__((packed, aligned(2)));

// By interface index: those that forward.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS_MAX);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, MAP_DEVMAP_HASH);
	__uint(max_entries, PORTS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} outputs SEC(".maps");

// So that the loader's generated half knows it, too.
const struct rules *unused_rules __attribute__((unused));
const struct axis *unused_axis __attribute__((unused));
const struct number *unused_number __attribute__((unused));

// One of them: replacing it replaces all rules at once.
struct {
	__uint(type, MAP_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 1);
		__type(key, __u32);
		__uint(value_size, sizeof(struct rules));
	});
} access SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CAUSES);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

// When the kernel's stack was last given a packet for a next hop; the index is a
// hash of that.
#define NEXT_HOPS 1024
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEXT_HOPS);
	__type(key, __u32);
	__type(value, __u64);
} refreshed SEC(".maps");

volatile const __u64 namespace_cookie = 0;
volatile const __u32 outputs_id = 0;

static __always_inline void count(__u32 cause, __u64 frames, __u64 bytes)
{
	struct count *c = bpf_map_lookup_elem(&counts, &cause);
	if (c) {
		c->frames += frames;
		c->bytes += bytes;
	}
}

// less is 1 if a < b and else 0, without a branch: the verifier need not follow
// both ways.
static __always_inline __u64 less(__u64 a, __u64 b)
{
	return ((~a & b) | ((~a | b) & (a - b))) >> 63;
}

static __always_inline __u64 equal(__u64 a, __u64 b)
{
	__u64 x = a ^ b;
	return ((x | -x) >> 63) ^ 1;
}

// find returns the range that a value is in.
static __always_inline __u32 find(struct axis *a, __u64 high, __u64 low)
{
	__u64 n = a->n;
	__u32 at = 0;
	for (__u32 step = RANGES / 2; step; step >>= 1) {
		__u32 i = (at + step) & (RANGES - 1);
		__u64 h = a->starts[i].high, l = a->starts[i].low;
		__u64 below = less(high, h) | (equal(high, h) & less(low, l));
		at += step & -(__u32)((below ^ 1) & less(i, n));
	}
	return at & (RANGES - 1);
}

// What rules look at.
struct packet {
	struct number from, to;
	__u32 in, out; // slots
	__u8 six;
	__u8 protocol;
	__u8 has_ports;
	__u8 unused;
	__u16 from_port, to_port;
};

// permits is a function of its own to be verified by itself.
__attribute__((noinline)) int permits(struct packet *p)
{
	__u32 zero = 0;
	if (!p)
		return 0;
	void *inner = bpf_map_lookup_elem(&access, &zero);
	if (!inner)
		return 1;
	struct rules *r = bpf_map_lookup_elem(inner, &zero);
	if (!r)
		return 1;
	__u32 words = r->words;
	if (words == 0)
		return !r->deny;
	__u32 in = p->in, out = p->out;
	if (in >= PORTS_MAX || out > PORTS_MAX)
		return 0;
	struct axis *axis = p->six ? &r->from[1] : &r->from[0];
	__u64 *from = axis->sets[find(axis, p->from.high, p->from.low)];
	axis = p->six ? &r->to[1] : &r->to[0];
	__u64 *to = axis->sets[find(axis, p->to.high, p->to.low)];
	__u64 *from_ports = r->portless, *to_ports = r->portless;
	if (p->has_ports) {
		from_ports = r->ports[0].sets[find(&r->ports[0], 0, p->from_port)];
		to_ports = r->ports[1].sets[find(&r->ports[1], 0, p->to_port)];
	}
	for (__u32 i = 0; i < WORDS; i++) {
		if (i >= words)
			break;
		__u64 all = r->in[in][i] & r->out[out][i] & r->protocol[p->protocol][i] & from[i] & to[i] &
			    from_ports[i] & to_ports[i];
		if (all)
			return !(r->denying[i] & all & -all);
	}
	return !r->deny;
}

// A frame while it is looked at.
struct frame {
	struct packet packet;
	struct bpf_fib_lookup fib;
	__u8 discovery; // IPv6's ARP
};

// transport reads the ports, if there are any in what is left of the packet; head
// is the first of several fragments.
static __always_inline int transport(struct frame *f, void *at, void *end, __u32 left, bool head)
{
	struct packet *p = &f->packet;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_SCTP)
		return FORWARDED;
	if (left < (p->protocol == IPPROTO_TCP ? TCP_SIZE : UDP_SIZE))
		// RFC 1858: no rule must judge half a header whose rest comes later.
		return head && p->protocol == IPPROTO_TCP ? TINY_FRAGMENT : FORWARDED;
	struct transport *t = at;
	if ((void *)(t + 1) > end)
		return SHORT;
	p->has_ports = 1;
	p->from_port = bpf_ntohs(t->source);
	p->to_port = bpf_ntohs(t->destination);
	f->fib.sport = t->source;
	f->fib.dport = t->destination;
	return FORWARDED;
}

// parse4 fills what rules and the kernel want to know. What it returns for a
// packet that they must be asked about is FORWARDED or, if it is not to be
// forwarded here in any case, OPTIONS; so does parse6, with LINK_LOCAL as well.
static __always_inline int parse4(struct frame *f, void *at, void *end, __u32 size)
{
	struct ipv4 *ip = at;
	if ((void *)(ip + 1) > end)
		return SHORT;
	__u32 header = (ip->version_ihl & 15) * 4;
	if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip))
		return MALFORMED;
	__u32 length = bpf_ntohs(ip->length);
	if (length < header || length > size)
		return MALFORMED;
	if (header == sizeof(*ip)) { // otherwise the kernel checks it
		__u16 *words = (__u16 *)ip;
		__u32 sum = 0;
#pragma unroll
		for (int i = 0; i < 10; i++)
			sum += words[i];
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		if (sum != 0xffff)
			return CHECKSUM;
	}
	// RFC 1812 5.3.7: this network, the machine itself, groups, the reserved.
	__u32 source = bpf_ntohl(ip->source), destination = bpf_ntohl(ip->destination);
	if (source >> 24 == 0 || source >> 24 == 127 || source >> 28 >= 14 ||
	    destination >> 24 == 0 || destination >> 24 == 127 || destination >> 28 == 15)
		return MARTIAN;
	if (destination >> 28 == 14)
		return MULTICAST;
	f->packet.from.low = source;
	f->packet.to.low = destination;
	f->packet.protocol = ip->protocol;
	f->fib.family = AF_INET;
	f->fib.tot_len = length;
	f->fib.tos = ip->tos;
	f->fib.ipv4_src = ip->source;
	f->fib.ipv4_dst = ip->destination;
	int cause = FORWARDED;
	if (!(ip->fragment & bpf_htons(0x1fff)))
		cause = transport(f, at + header, end, length - header, ip->fragment & bpf_htons(0x2000));
	if (cause == FORWARDED && header > sizeof(*ip))
		return OPTIONS;
	return cause;
}

static __always_inline __u64 half(__be32 *a)
{
	return (__u64)bpf_ntohl(a[0]) << 32 | bpf_ntohl(a[1]);
}

// extends says whether behind a header of this kind there is another one.
static __always_inline bool extends(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline int parse6(struct frame *f, void *at, void *end, __u32 size)
{
	struct ipv6 *ip = at;
	if ((void *)(ip + 1) > end)
		return SHORT;
	__u32 length = bpf_ntohs(ip->length) + sizeof(*ip);
	if (*(__u8 *)ip >> 4 != 6 || length > size)
		return MALFORMED;
	struct packet *p = &f->packet;
	p->six = 1;
	p->from.high = half(ip->source);
	p->from.low = half(ip->source + 2);
	p->to.high = half(ip->destination);
	p->to.low = half(ip->destination + 2);
	f->fib.family = AF_INET6;
	f->fib.tot_len = length > 0xffff ? 0xffff : length; // no room in the kernel's question
	f->fib.flowinfo = ip->flow & bpf_htonl(0x0fffffff);
#pragma unroll
	for (int i = 0; i < 4; i++) {
		f->fib.ipv6_src[i] = ip->source[i];
		f->fib.ipv6_dst[i] = ip->destination[i];
	}

	__u8 next = ip->next;
	__u32 before = sizeof(*ip); // the transport header
	bool head = 0, tail = 0;
#pragma unroll
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		if (!extends(next))
			break;
		struct extension *x = at + before;
		if ((void *)(x + 1) > end)
			return MALFORMED;
		__u32 more = 8;
		if (next == IPPROTO_FRAGMENT) {
			tail = x->fragment & bpf_htons(0xfff8);
			head |= (x->fragment & bpf_htons(1)) != 0;
		} else {
			more += x->length * 8;
		}
		next = x->next;
		before += more;
		if (before > length)
			return MALFORMED;
		if (tail)
			break;
	}
	p->protocol = next;
	if (!tail) {
		if (extends(next))
			return EXTENSIONS;
		int cause = transport(f, at + before, end, length - before, head);
		if (cause != FORWARDED)
			return cause;
	}

	if (p->to.high >> 56 == 0xff)
		return MULTICAST;
	// RFC 4291 2.5: nobody's, the machine itself; groups do not send.
	if (p->from.high >> 56 == 0xff || (p->from.high == 0 && p->from.low <= 1) ||
	    (p->to.high == 0 && p->to.low <= 1))
		return MARTIAN;
	if (next == IPPROTO_ICMPV6 && before == sizeof(*ip) && ip->hops == 255) {
		__u8 *type = (void *)(ip + 1);
		if ((void *)(type + 1) <= end && *type >= 133 && *type <= 137)
			f->discovery = 1;
	}
	// 0xfe80 / 10: they end at this link.
	if (p->from.high >> 54 == 0x3fa || p->to.high >> 54 == 0x3fa)
		return LINK_LOCAL;
	return length > 0xffff ? OPTIONS : FORWARDED;
}

// stale says once a second for each next hop that a packet should take the
// kernel's own way: only that tells the kernel that the neighbour is in use, so
// that it goes on asking whether it is still there.
static __always_inline bool stale(struct bpf_fib_lookup *fib)
{
	__u32 hash = fib->ifindex * 0x9e3779b1;
	__u32 *tail = (__u32 *)(fib->dmac + 2);
	hash = (hash ^ *tail) * 0x85ebca6b;
	hash = (hash ^ hash >> 15 ^ fib->dmac[1]) * 0xc2b2ae35;
	hash = (hash ^ hash >> 13) & (NEXT_HOPS - 1);
	__u64 *last = bpf_map_lookup_elem(&refreshed, &hash);
	if (!last)
		return 0;
	__u64 now = bpf_ktime_get_coarse_ns();
	if (now - *last < NSEC_PER_SEC)
		return 0;
	*last = now;
	return 1;
}

// route asks the kernel and says what is to become of the frame.
static __always_inline int route(struct xdp_md *ctx, struct frame *f)
{
	__u16 length = f->fib.tot_len;
	__u32 flow = f->fib.flowinfo; // or TOS; answered by a metric
	f->fib.ifindex = ctx->ingress_ifindex;
	f->fib.l4_protocol = f->packet.protocol;
	int answer = bpf_fib_lookup(ctx, &f->fib, sizeof(f->fib), 0);
	bool large = answer == FIB_FRAGMENTATION_NEEDED;
	if (large) { // the answer has no output; rules want one
		f->fib.tot_len = 0;
		f->fib.flowinfo = flow;
		f->fib.ifindex = ctx->ingress_ifindex;
		answer = bpf_fib_lookup(ctx, &f->fib, sizeof(f->fib), 0);
		f->fib.tot_len = length;
	}
	int cause = FORWARDED;
	f->packet.out = PORTS_MAX;
	switch (answer) {
	case FIB_SUCCESS:
	case FIB_NO_NEIGHBOUR: {
		struct port *out = bpf_map_lookup_elem(&ports, &f->fib.ifindex);
		if (out)
			f->packet.out = out->slot;
		if (!out)
			cause = NO_PORT;
		else if (large)
			cause = TOO_BIG;
		else if (answer == FIB_NO_NEIGHBOUR)
			cause = NEIGHBOUR;
		break;
	}
	case FIB_BLACKHOLE:
		return BLACKHOLE;
	case FIB_UNREACHABLE:
	case FIB_PROHIBIT:
		cause = UNREACHABLE;
		break;
	case FIB_NOT_FORWARDED:
		cause = LOCAL;
		break;
	case FIB_FORWARDING_DISABLED:
		cause = DISABLED;
		break;
	default:
		cause = UNSUPPORTED;
	}
	// Whoever forwards it in the end.
	if (!f->discovery && !permits(&f->packet))
		return DENIED;
	return cause;
}

static __always_inline int handle(struct xdp_md *ctx, __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *eth = data;
	if ((void *)(eth + 1) > end)
		return SHORT;
	__u32 in = ctx->ingress_ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &in);
	if (!port)
		return NO_PORT;
	if (eth->protocol == bpf_htons(ETH_P_8021Q) || eth->protocol == bpf_htons(ETH_P_8021AD)) {
		struct tag *tag = (void *)(eth + 1);
		if ((void *)(tag + 1) > end)
			return SHORT;
		// The kernel would take it for one without a tag, and no rule had seen it.
		if (!(tag->priority_vlan & bpf_htons(0x0fff)))
			return PRIORITY_TAG;
	}
	bool group = eth->to[0] & 1;
	__u16 *to = (__u16 *)eth->to, *mac = (__u16 *)port->mac;
	if (!group && (to[0] != mac[0] || to[1] != mac[1] || to[2] != mac[2]))
		return OTHER_HOST;

	struct frame f = {};
	f.packet.in = port->slot;
	int cause = NOT_IP;
	if (eth->protocol == bpf_htons(ETH_P_IP))
		cause = parse4(&f, eth + 1, end, size - sizeof(*eth));
	else if (eth->protocol == bpf_htons(ETH_P_IPV6))
		cause = parse6(&f, eth + 1, end, size - sizeof(*eth));
	// What the kernel's stack takes in is judged by the same rules.
	if (group && cause != FORWARDED && cause != OPTIONS && cause != LINK_LOCAL)
		return MULTICAST; // DHCP's addresses, say; what is broken it drops itself
	if (group || cause == LINK_LOCAL) {
		f.packet.out = PORTS_MAX; // it forwards neither
		if (!f.discovery && !permits(&f.packet))
			return DENIED;
		return group ? MULTICAST : LINK_LOCAL;
	}
	bool options = cause == OPTIONS;
	if (cause != FORWARDED && !options)
		return cause;
	cause = route(ctx, &f);
	if (options && cause < SHORT)
		return OPTIONS;
	if (cause != FORWARDED)
		return cause;

	if (f.packet.six) {
		struct ipv6 *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end)
			return SHORT;
		if (ip->hops <= 1)
			return HOP_LIMIT;
		if (stale(&f.fib))
			return REFRESH;
		ip->hops--;
	} else {
		struct ipv4 *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end)
			return SHORT;
		if (ip->ttl <= 1)
			return HOP_LIMIT;
		if (stale(&f.fib))
			return REFRESH;
		// RFC 1624: the sum's complement grows by what TTL's word loses.
		__u32 sum = ip->checksum;
		sum += bpf_htons(0x0100);
		ip->checksum = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	__builtin_memcpy(eth->to, f.fib.dmac, 6);
	__builtin_memcpy(eth->from, f.fib.smac, 6);
	return bpf_redirect_map(&outputs, f.fib.ifindex, 0) == XDP_REDIRECT ? FORWARDED : REDIRECT;
}

SEC("xdp.frags")
int forward(struct xdp_md *ctx)
{
	__u32 size = bpf_xdp_get_buff_len(ctx);
	int cause = handle(ctx, size);
	count(cause, 1, size);
	if (cause == FORWARDED)
		return XDP_REDIRECT;
	return cause < SHORT ? XDP_PASS : XDP_DROP;
}

SEC("tp_btf/xdp_devmap_xmit")
int transmitted(__u64 *args)
{
	// from, to, int sent, int drops, int error
	struct net_device___forward *to = (void *)args[1];
	int drops = args[3], error = args[4];
	if (drops <= 0)
		return 0;
	__u32 index = to->ifindex;
	if (to->nd_net.net->net_cookie != namespace_cookie || !bpf_map_lookup_elem(&ports, &index))
		return 0;
	count(error == -ENXIO ? OUTPUT_UNREADY : OUTPUT_FULL, drops, 0);
	return 0;
}

SEC("tp_btf/xdp_redirect_err")
int failed(__u64 *args)
{
	// dev, prog, target, int error, map_type, __u32 map_id, __u32 index
	int error = args[3];
	if ((__u32)args[5] == outputs_id)
		count(error == -EOPNOTSUPP ? OUTPUT_UNREADY : REDIRECT, 1, 0);
	return 0;
}
