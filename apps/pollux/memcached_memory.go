package main

import "golang.org/x/sys/unix"

// itemMemory is memory for items that Go's collector does not count, so that a
// full cache does not make it wait for as much garbage. The kernel gives pages as
// they are touched, and takes them back when the process ends: the server that
// they are for ends with it.
func itemMemory(bytes int) ([]byte, error) {
	return unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}
