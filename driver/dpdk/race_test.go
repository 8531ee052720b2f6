//go:build race

package dpdk

// raced: under the race detector a sync.Pool loses what it holds on purpose.
const raced = true
