// Package steer decides on which processor and by which worker received work is
// done. Steer picks, for each connection of a SO_REUSEPORT group, the worker
// that owns its receive queue; without it the kernel picks by a hash that knows
// of no queue, and workers poll queues whose packets are for others. Spread
// takes flows off a device's few queues and gives them to several processors.
package steer

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I../include" -type chosen reuseport reuseport.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I../include" spread spread.c
