// Package forward is the data plane: each Shard takes bursts of frames from its
// queue of every port, decides by flow cache or tables, rewrites, and queues
// them for the output, all on one core and by reference. A Control compiles
// what the control plane says into an immutable snapshot, which the shards pick
// up between two bursts; they take no lock, allocate nothing and make no system
// call of their own. Time is an argument, so that a whole forwarder replays
// from its seed over driver/wire.
//
// It does what RFC 1812 and RFC 8200 ask of a router, but for these: it sends no
// ICMP redirect (to a sender on the link where a packet leaves again), forwards
// no multicast and no directed broadcast, drops source-routed packets, ignores
// hop-by-hop options, and knows no VLAN tag.
package forward
