// Package routes follows the kernel's routes, neighbours, addresses and links
// over rtnetlink, so that whatever programs the kernel (FRR, BIRD, ip route) is
// the control plane of a forwarder. Follow tells changes of what a forwarder
// acts on: for each prefix the one route that the kernel itself would use. It
// holds the whole table, so nobody below needs metrics or replacement rules.
//
// # What is followed
//
// Tables local and main, in one view: a local route hides a main one for the
// same prefix, which is the kernel's order as long as local routes are for
// single addresses. Of several routes to a prefix the best by metric that has a
// living next hop counts. Not followed, as a lookup by destination cannot tell
// them apart: other tables and ip rules, routes for a TOS (IPv4) or a source
// (IPv6), weights of multipath next hops. Routes with an encapsulation are told
// as unreachable rather than without it.
//
// # Neighbours, and who may ask for them
//
// Advice to the data plane. Where the kernel sees a port's frames (bpf/forward,
// a tap with its frames handed on) its neighbour table is right, Update carries
// it, and Resolve makes the kernel ask. Where a poll-mode driver holds the port
// (af_xdp, PCI, memif) the kernel sees no reply, ever: whatever it asks fails,
// and its table holds no more than what somebody configured. A program of our
// own that passes ARP, NDP and local frames to the kernel (the xdp_prog= of
// DPDK's af_xdp) would mend that on af_xdp alone, take the box's own TCP
// services away from netstack, and leave PCI and memif out. So, simplest and the
// same on every driver:
//
//  1. The data plane keeps one neighbour table of its own, keyed by interface
//     and address, read by all shards and written by whoever learns.
//  2. It learns from what it receives anyway: the sender of an ARP request or
//     reply for an address of ours, the source link-layer option of a
//     neighbour solicitation, the target option of an advertisement. The frame
//     then goes on to the shard's netstack, which answers and learns for itself.
//  3. It asks itself: a 42-byte ARP request or an 86-byte neighbour solicitation
//     from the port's own address, at most one a second for each neighbour,
//     three in all, with a few frames held meanwhile; then the frames get "host
//     unreachable" and the neighbour some seconds of rest.
//  4. An entry in use that nobody confirmed for 30 s is asked by unicast while
//     it goes on being used; unanswered three times, it is gone (RFC 4861 7.3).
//  5. Neighbours in Update that are Valid and Permanent (ip neigh add … lladdr)
//     override what was learned. On ports that a driver holds all others are
//     ignored, above all the invalid ones: the kernel's failure to hear an
//     answer says nothing.
package routes
