// Package packet is the packet service: a router in user space. It runs the
// shards of package forward, one loop a core, in any of the user path's modes;
// follows the kernel's routes for them; gives packets for the box itself to a
// TCP/IP stack on each shard; and reads rules from a file. It opens no device
// and prints nothing: the command does.
package packet
