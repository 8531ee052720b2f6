// Package dpdk is a thin binding to libdpdk: it starts the environment
// abstraction layer (Init), opens devices that poll-mode drivers drive (Open)
// and hands out their queues as driver.Queue. A burst is one call into C, its
// arrays live in C memory, and a frame is an mbuf: nothing is copied between
// the device and the holder of a driver.Frame. It is the only cgo in the
// project.
//
// Call Init once, then Open for each device. A loop that owns a queue locks its
// thread, sets the thread's affinity and calls RegisterThread before its first
// burst. Devices of the kernel are left as they were found by Port.Close; AF_XDP
// leaves its program behind if the process is killed, which passes every frame
// on to the kernel and does not hinder the next Open.
package dpdk
