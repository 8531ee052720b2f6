// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What these programs need to know of the kernel, and no more: the headers'
// own types under the names that libbpf's helpers expect, the ABI's constants,
// and those fields of the kernel's structures that are read. The fields are
// found in the running kernel's type information when a program is loaded
// (CO-RE), so neither their offsets nor the rest of a structure matter here.
#ifndef POLLUX_KERNEL_H
#define POLLUX_KERNEL_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define PAGE_SIZE 4096

// linux/bpf.h
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_CPUMAP = 16,
	BPF_MAP_TYPE_REUSEPORT_SOCKARRAY = 20,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum sk_action {
	SK_DROP,
	SK_PASS,
};

enum xdp_action {
	XDP_ABORTED,
	XDP_DROP,
	XDP_PASS,
	XDP_TX,
	XDP_REDIRECT,
};

struct bpf_spin_lock {
	__u32 val;
};

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

// What a reuseport program is given. Only its address matters here: what is
// wanted is behind it, in sk_reuseport_kern.
struct sk_reuseport_md;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff {
	unsigned int napi_id;
};

struct sk_reuseport_kern {
	struct sk_buff *skb;
};

struct task_struct {
	unsigned int flags;
	int pid;
};

struct net_device {
	int ifindex;
	char name[16];
};

struct napi_struct {
	struct net_device *dev;
	unsigned int napi_id;
};

#pragma clang attribute pop

// linux/sched.h
#define PF_KTHREAD 0x00200000

#endif
