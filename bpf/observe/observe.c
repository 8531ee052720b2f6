// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//go:build ignore

// Keeps a clock for every processor that knows, at any moment, on what its time
// is spent: a hard interrupt, a softirq, a thread, nothing. Each event closes
// the span since the one before and opens the next, so that every nanosecond is
// counted once.
#include "kernel.h"

char _license[] SEC("license") = "GPL";

// Powers of two: an index is made valid by masking it.
#define THREADS_MAX 64
#define VECTORS_MAX 16

#define NAPIS_MAX 1024

// A softirq that begins this soon after an interrupt ended is what the
// interrupt left to be done; a later one is the running thread's own work.
#define SAME_INTERRUPTION_NS 5000

// Kinds of hard interrupts. Interrupt in snapshot.go is the same list.
enum kind {
	DEVICE,
	TIMER,
	RESCHEDULE,
	CALL,
	WORK,
	KINDS,
};

// Who polls. Poller in snapshot.go is the same list.
enum poller {
	SOFTIRQ,
	KTHREAD,
	BUSY,
};

struct tally {
	__u64 count, ns;
};

struct thread {
	__u64 running_ns;
	struct tally hard; // hard interrupts
	struct tally deferred; // softirqs that an interrupt left
	struct tally own; // softirqs that the thread's own calls ran
	__u64 switches; // away from it, whyever
	struct tally preempted;
};

struct processor {
	struct bpf_spin_lock lock;
	__u32 on; // it is to be observed
	__u64 last; // up to when its time is accounted for; 0: not begun
	// What it does:
	__u32 pid; // the thread's, 0 is the idle one
	__u32 slot; // of the thread, plus one; 0: not a chosen one
	__u32 depth; // of hard interrupts
	__u32 kind; // of the outermost
	__u32 vector; // the softirq's, plus one; 0 is none
	__u32 is_deferred; // the softirq is what an interrupt left
	__u32 left; // the last event was the end of an interruption
	__u32 unused;
	// What it did:
	__u64 idle_ns, thread_ns;
	struct tally hard[KINDS];
	struct tally soft[VECTORS_MAX];
	__u64 switches, preemptions;
	__u64 lost_polls;
	struct thread threads[THREADS_MAX];
};

// Not a per-CPU map, but one element for each processor, with a lock: a hard
// interrupt may arrive within a program that runs for a softirq, and a reader
// wants all of an element at one moment. The lock is next to always free and
// its line in the processor's own cache.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); // raised when loaded
	__type(key, __u32);
	__type(value, struct processor);
} processors SEC(".maps");

struct chosen {
	__u32 slot;
	__u32 unused;
	__u64 preempted_at; // 0: not preempted
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, THREADS_MAX);
	__type(key, __u32);
	__type(value, struct chosen);
} threads SEC(".maps");

struct napi {
	__u32 id;
	__u32 ifindex;
	__u32 budget;
	__u32 poller;
};

struct polls {
	__u64 count, packets, empty, full;
	char device[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, NAPIS_MAX);
	__type(key, struct napi);
	__type(value, struct polls);
} napis SEC(".maps");

volatile const __u32 nthreads = 0;

// settle accounts for the time until now. To be called under the lock.
static __always_inline void settle(struct processor *p, __u64 now)
{
	// An interrupt between reading the clock and taking the lock has been
	// there first, and gone on to a later time.
	__u64 ns = now > p->last ? now - p->last : 0;
	p->last += ns;
	__u32 slot = p->slot;
	struct thread *t = &p->threads[(slot - 1) & (THREADS_MAX - 1)];
	if (p->depth) {
		__u32 kind = p->kind;
		if (kind < KINDS)
			p->hard[kind].ns += ns;
		if (slot)
			t->hard.ns += ns;
	} else if (p->vector) {
		p->soft[(p->vector - 1) & (VECTORS_MAX - 1)].ns += ns;
		if (slot && p->is_deferred)
			t->deferred.ns += ns;
		else if (slot)
			t->own.ns += ns;
	} else if (p->pid) {
		p->thread_ns += ns;
		if (slot)
			t->running_ns += ns;
	} else {
		p->idle_ns += ns;
	}
}

// here returns the processor that this runs on, or 0 if nobody wants to know.
static __always_inline struct processor *here(void)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct processor *p = bpf_map_lookup_elem(&processors, &cpu);
	if (!p || !p->on)
		return 0;
	if (!p->last) {
		__u64 now = bpf_ktime_get_ns();
		__u32 pid = bpf_get_current_pid_tgid();
		__u32 slot = 0;
		if (nthreads) {
			struct chosen *c = bpf_map_lookup_elem(&threads, &pid);
			if (c)
				slot = c->slot + 1;
		}
		bpf_spin_lock(&p->lock);
		if (!p->last) {
			p->pid = pid;
			p->slot = slot;
			p->last = now;
		}
		bpf_spin_unlock(&p->lock);
	}
	return p;
}

static __always_inline int hard_entry(enum kind kind)
{
	struct processor *p = here();
	if (!p)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&p->lock);
	settle(p, now);
	p->hard[kind].count++;
	if (p->depth++ == 0) {
		p->kind = kind;
		if (p->slot)
			p->threads[(p->slot - 1) & (THREADS_MAX - 1)].hard.count++;
	}
	p->left = 0;
	bpf_spin_unlock(&p->lock);
	return 0;
}

static __always_inline int hard_exit(void)
{
	struct processor *p = here();
	if (!p)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&p->lock);
	settle(p, now);
	if (p->depth) // else it began before the observation
		p->depth--;
	p->left = !p->depth && !p->vector;
	bpf_spin_unlock(&p->lock);
	return 0;
}

#define HARD_INTERRUPT(name, kind)                                             \
	SEC("tp_btf/" #name "_entry") int name##_entry(void *ctx)              \
	{                                                                      \
		return hard_entry(kind);                                       \
	}                                                                      \
	SEC("tp_btf/" #name "_exit") int name##_exit(void *ctx)                \
	{                                                                      \
		return hard_exit();                                            \
	}

// A device's handler, on every architecture; the rest are x86's own vectors.
HARD_INTERRUPT(irq_handler, DEVICE)
HARD_INTERRUPT(local_timer, TIMER)
HARD_INTERRUPT(reschedule, RESCHEDULE)
HARD_INTERRUPT(call_function, CALL)
HARD_INTERRUPT(call_function_single, CALL)
HARD_INTERRUPT(irq_work, WORK)

SEC("tp_btf/softirq_entry")
int softirq_entry(__u64 *args)
{
	struct processor *p = here();
	if (!p)
		return 0;
	__u32 vector = args[0] & (VECTORS_MAX - 1);
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&p->lock);
	__u64 before = p->last;
	settle(p, now);
	p->is_deferred = p->left && p->last - before < SAME_INTERRUPTION_NS;
	p->left = 0;
	p->soft[vector].count++;
	p->vector = vector + 1;
	if (p->slot) {
		struct thread *t = &p->threads[(p->slot - 1) & (THREADS_MAX - 1)];
		if (p->is_deferred)
			t->deferred.count++;
		else
			t->own.count++;
	}
	bpf_spin_unlock(&p->lock);
	return 0;
}

SEC("tp_btf/softirq_exit")
int softirq_exit(__u64 *args)
{
	struct processor *p = here();
	if (!p)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&p->lock);
	settle(p, now);
	p->vector = 0;
	p->left = p->is_deferred; // the next one belongs to the same
	bpf_spin_unlock(&p->lock);
	return 0;
}

SEC("tp_btf/sched_switch")
int sched_switch(__u64 *args)
{
	struct processor *p = here();
	if (!p)
		return 0;
	// bool preempt, task_struct *prev, task_struct *next, unsigned int prev_state
	bool preempted = args[0] || !(__u32)args[3];
	struct task_struct *from = (void *)args[1], *to = (void *)args[2];
	__u32 pid = to->pid, prev = from->pid;
	__u64 now = bpf_ktime_get_ns();
	__u64 waited = 0;
	__u32 slot = 0, again = 0;
	if (nthreads) {
		struct chosen *c = bpf_map_lookup_elem(&threads, &pid);
		if (c) {
			slot = c->slot + 1;
			if (c->preempted_at) {
				again = 1;
				if (now > c->preempted_at)
					waited = now - c->preempted_at;
				c->preempted_at = 0;
			}
		}
		if (p->slot && preempted) {
			c = bpf_map_lookup_elem(&threads, &prev);
			if (c)
				c->preempted_at = now;
		}
	}
	bpf_spin_lock(&p->lock);
	settle(p, now);
	p->switches++;
	if (preempted && p->pid)
		p->preemptions++;
	if (p->slot) {
		struct thread *t = &p->threads[(p->slot - 1) & (THREADS_MAX - 1)];
		t->switches++;
		if (preempted)
			t->preempted.count++;
	}
	p->pid = pid;
	p->slot = slot;
	if (again)
		p->threads[(slot - 1) & (THREADS_MAX - 1)].preempted.ns += waited;
	// The scheduler runs in neither: whatever was missed ends here.
	p->depth = p->vector = p->left = p->is_deferred = 0;
	bpf_spin_unlock(&p->lock);
	return 0;
}

SEC("tp_btf/napi_poll")
int napi_poll(__u64 *args)
{
	struct processor *p = here();
	if (!p)
		return 0;
	struct napi_struct *napi = (void *)args[0];
	struct net_device *dev = napi->dev;
	__u32 work = args[1];
	struct napi key = { .id = napi->napi_id, .budget = args[2] };
	if (dev)
		key.ifindex = dev->ifindex;
	if (p->vector) {
		key.poller = SOFTIRQ;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task_btf();
		key.poller = task->flags & PF_KTHREAD ? KTHREAD : BUSY;
	}
	struct polls *polls = bpf_map_lookup_elem(&napis, &key);
	if (!polls) {
		struct polls first = {};
		if (dev)
			bpf_probe_read_kernel_str(first.device, sizeof(first.device), dev->name);
		bpf_map_update_elem(&napis, &key, &first, BPF_NOEXIST);
		polls = bpf_map_lookup_elem(&napis, &key);
		if (!polls) {
			p->lost_polls++;
			return 0;
		}
	}
	polls->count++;
	polls->packets += work;
	if (!work)
		polls->empty++;
	if (work >= key.budget)
		polls->full++;
	return 0;
}

// Does nothing. To be run on another processor is an interrupt there.
SEC("raw_tp")
int kick(void *ctx)
{
	return 0;
}
