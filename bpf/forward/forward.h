// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What the forwarder and its loader agree on.
#ifndef POLLUX_FORWARD_H
#define POLLUX_FORWARD_H

#define PORTS_MAX 64

// 16 words of 64 rules; the last would need one range too many.
#define RULES_MAX 1000
#define WORDS 16
// 1000 rules cut an axis into 2001 ranges at most.
#define RANGES 2048

// An interface that forwards.
struct port {
	__u32 slot; // its index among them
	__u8 mac[6];
	__u16 unused;
};

// A value of a field, an IPv6 address at most.
struct number {
	__u64 high, low;
};

// An axis cuts the values of a field into ranges that match the same rules.
struct axis {
	__u64 n;
	struct number starts[RANGES];
	__u64 sets[RANGES][WORDS]; // of rules
};

// Rules, compiled: for each field of a packet the set of rules that its value
// matches; the first rule in all of the sets decides. (Lakshman and Stiliadis,
// SIGCOMM 1998)
struct rules {
	__u32 words; // in use
	__u32 deny;  // what no rule matches
	__u64 denying[WORDS];
	__u64 in[PORTS_MAX][WORDS];
	__u64 out[PORTS_MAX + 1][WORDS]; // the last: to the box itself
	__u64 protocol[256][WORDS];
	__u64 portless[WORDS];
	struct axis from[2], to[2]; // IPv4, IPv6
	struct axis ports[2];       // source, destination
};

// What became of a frame. The order is that of Cause in counters.go.
enum cause {
	FORWARDED,
	// Left to the kernel's own stack.
	LOCAL,
	NEIGHBOUR,
	REFRESH,
	TOO_BIG,
	HOP_LIMIT,
	UNREACHABLE,
	NO_PORT,
	NOT_IP,
	MULTICAST,
	LINK_LOCAL,
	OTHER_HOST,
	OPTIONS,
	DISABLED,
	UNSUPPORTED,
	// Dropped.
	SHORT,
	MALFORMED,
	CHECKSUM,
	MARTIAN,
	TINY_FRAGMENT,
	EXTENSIONS,
	PRIORITY_TAG,
	BLACKHOLE,
	DENIED,
	// Dropped after they were forwarded.
	OUTPUT_FULL,
	OUTPUT_UNREADY,
	REDIRECT,
	CAUSES,
};

struct count {
	__u64 frames, bytes;
};

#endif
