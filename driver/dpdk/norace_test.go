//go:build !race

package dpdk

const raced = false
