// Package stack is one core's TCP/IP: gVisor's netstack over one driver.Queue,
// run to completion by whoever owns the queue. The owner calls Advance, Receive,
// Deliver, Acknowledge and Transmit in turn; TCP, timers and event sockets all
// run inside those calls and nowhere else, so a stack needs no lock of its own,
// reads no clock and replays from its seed. Ordinary Go code reaches it from any
// goroutine through Listen, Dial and ListenPacket, which go through a mailbox.
package stack
