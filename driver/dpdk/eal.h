#ifndef POLLUX_EAL_H
#define POLLUX_EAL_H

#include <stddef.h>

// px_log_start sends what the EAL and its drivers say to a buffer of ours.
int px_log_start(void);
// px_log_take moves up to size-1 bytes of what was said into out and
// terminates it. Returns the number of bytes.
size_t px_log_take(char *out, size_t size);
// px_log_libraries does the same for libxdp and libbpf, once they are loaded.
void px_log_libraries(void);
// px_eal_init is rte_eal_init; a negative errno on failure.
int px_eal_init(int argc, char **argv);
int px_thread_register(void);
void px_thread_unregister(void);
// px_memory_free is the number of bytes that the EAL's heaps still hold.
size_t px_memory_free(void);

#endif
