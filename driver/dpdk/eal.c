#include "eal.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>

// The last few kilobytes said; older text makes room for newer.
static char said[16384];
static size_t said_len;
static pthread_mutex_t said_lock = PTHREAD_MUTEX_INITIALIZER;

static void say(const char *text, size_t n)
{
	if (n > sizeof said) {
		text += n - sizeof said;
		n = sizeof said;
	}
	pthread_mutex_lock(&said_lock);
	if (said_len + n > sizeof said) {
		size_t drop = said_len + n - sizeof said;
		memmove(said, said + drop, said_len - drop);
		said_len -= drop;
	}
	memcpy(said + said_len, text, n);
	said_len += n;
	pthread_mutex_unlock(&said_lock);
}

static ssize_t write_log(void *cookie, const char *text, size_t n)
{
	(void)cookie;
	say(text, n);
	return n;
}

int px_log_start(void)
{
	cookie_io_functions_t io = {.write = write_log};
	FILE *f = fopencookie(NULL, "w", io);

	if (f == NULL)
		return -errno;
	setvbuf(f, NULL, _IOLBF, 1024);
	return rte_openlog_stream(f) == 0 ? 0 : -EIO;
}

size_t px_log_take(char *out, size_t size)
{
	FILE *f = rte_log_get_stream();

	if (f != NULL)
		fflush(f);
	pthread_mutex_lock(&said_lock);
	size_t n = said_len < size - 1 ? said_len : size - 1;
	memcpy(out, said + said_len - n, n);
	out[n] = 0;
	said_len = 0;
	pthread_mutex_unlock(&said_lock);
	return n;
}

// Both libraries number their levels warn 0, info 1, debug 2.
static int print_library(int level, const char *format, va_list args)
{
	char line[512];

	if (level > 0)
		return 0;
	int n = vsnprintf(line, sizeof line, format, args);
	if (n > (int)sizeof line - 1)
		n = sizeof line - 1;
	if (n > 0)
		say(line, n);
	return n;
}

void px_log_libraries(void)
{
	static const char *const names[][2] = {
		{"libbpf.so.1", "libbpf_set_print"},
		{"libbpf.so.0", "libbpf_set_print"},
		{"libxdp.so.1", "libxdp_set_print"},
	};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		// Not linked: only the driver of AF_XDP brings them in.
		void *library = dlopen(names[i][0], RTLD_LAZY | RTLD_NOLOAD);
		if (library == NULL)
			continue;
		void *(*set)(int (*)(int, const char *, va_list)) =
			(void *(*)(int (*)(int, const char *, va_list)))dlsym(library, names[i][1]);
		if (set != NULL)
			set(print_library);
	}
}

int px_eal_init(int argc, char **argv)
{
	if (rte_eal_init(argc, argv) < 0)
		return rte_errno > 0 ? -rte_errno : -EINVAL;
	return 0;
}

int px_thread_register(void)
{
	return rte_thread_register() == 0 ? 0 : -rte_errno;
}

void px_thread_unregister(void)
{
	rte_thread_unregister();
}

size_t px_memory_free(void)
{
	size_t free_bytes = 0;

	for (unsigned i = 0; i < rte_socket_count(); i++) {
		struct rte_malloc_socket_stats s;
		if (rte_malloc_get_socket_stats(rte_socket_id_by_idx(i), &s) == 0)
			free_bytes += s.heap_freesz_bytes;
	}
	return free_bytes;
}
