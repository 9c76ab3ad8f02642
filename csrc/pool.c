/* A work-stealing pool of threads that share the chunks of a job.
 *
 * The caller works too. Each thread has a range of chunks of its own, the same at every step, so that its cache may still
 * hold them; a thread that is done with its range helps the others, from the far ends of theirs. A job is closed when its
 * chunks have run out: a worker that has not joined by then is not waited for, so one that wakes late costs nothing.
 *
 * After a job, workers spin for a moment (spin_until_job), since steps often follow each other closely, and then sleep
 * (sleep_until_job). They leave the caller's core to the caller. Whether a job runs on threads at all is decided in
 * pace.c. */
#define _GNU_SOURCE
#include "internal.h"
#include "system.h"

#include <stdatomic.h>

/* Workers spin for this long after a job that came alone, and for FO_BURST_NS in bursts. */
static const int64_t SPIN_NS = 50000;
/* In tests, the caller waits up to this long for all workers to join. */
static const int64_t ALWAYS_NS = 1000000;
enum { OPEN = 1 << 30, MAX_WORKERS = 1023 };

static fo_lock job_lock = FO_LOCK; /* held by the caller of the running job */
static struct {
    void (*task)(void *, int64_t);
    void *context;
    int parts; /* how many threads may take part: the caller is number 0 */
} job;
static _Alignas(64) atomic_int gate; /* OPEN while workers may join, plus the number of workers inside */
static struct {
    _Alignas(64) _Atomic uint64_t left; /* the chunks that nobody has taken yet: from << 32 | to */
} ranges[MAX_WORKERS + 1];
static _Alignas(64) atomic_uint job_number; /* how many jobs there were: what idle workers watch */
static atomic_int spinning;                 /* how many workers spin */
static _Atomic int64_t spin_ns;             /* for how long */
static atomic_int caller_core = -1;         /* where the last job was begun; -1 if the system does not tell */

static fo_lock sleep_lock = FO_LOCK;
static fo_condition job_begun = FO_CONDITION; /* what sleeping workers wait for */

/* Under job_lock. */
static int workers;
static int64_t last_end;

static atomic_int always;

void fo_pool_always(int32_t on) { atomic_store_explicit(&always, on, memory_order_relaxed); }

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes the first or the last chunk that is left of a range; -1 if there is none. */
static int64_t pop_chunk(int part, int first)
{
    uint64_t left = atomic_load_explicit(&ranges[part].left, memory_order_relaxed), less;
    uint32_t from, to;
    do {
        from = (uint32_t)(left >> 32), to = (uint32_t)left;
        if (from == to)
            return -1;
        less = first ? (uint64_t)(from + 1) << 32 | to : left - 1;
    } while (!atomic_compare_exchange_weak_explicit(&ranges[part].left, &left, less, memory_order_relaxed,
                                                    memory_order_relaxed));
    return first ? from : to - 1;
}

/* Runs the chunks of this thread's own range, then what is left of the others'. */
static void run_chunks(int self)
{
    void (*task)(void *, int64_t) = job.task;
    void *context = job.context;
    fo_float_mode mode = fo_float_mode_set_default();
    for (int other = 0, parts = job.parts; other < parts; other++)
        for (int64_t i; (i = pop_chunk((self + other) % parts, other == 0)) >= 0;)
            task(context, i);
    fo_float_mode_restore(mode);
}

/* Takes part in the job, unless it is closed. */
static void join_job(int self)
{
    int inside = atomic_load(&gate);
    do
        if (!(inside & OPEN))
            return;
    while (!atomic_compare_exchange_weak(&gate, &inside, inside + 1));
    if (self < job.parts)
        run_chunks(self);
    atomic_fetch_sub(&gate, 1);
}

static atomic_int caller_thread;      /* of the last job, as the system numbers threads */
static _Thread_local int this_thread; /* the number of this one, once it was asked for */

static void note_caller(void)
{
    if (!this_thread)
        this_thread = fo_thread_number();
    atomic_store_explicit(&caller_thread, this_thread, memory_order_relaxed);
    atomic_store_explicit(&caller_core, fo_core(), memory_order_relaxed);
}

/* A worker on the caller's core would keep the caller from its work, and schedulers put it there again and again: it
 * leaves that core, and may come back when another core is the caller's. */
static void leave_callers_core(fo_affinity *own)
{
    int here = fo_core();
    if (here >= 0 && here == atomic_load_explicit(&caller_core, memory_order_relaxed))
        fo_leave_core(own, here, atomic_load_explicit(&caller_thread, memory_order_relaxed));
}

/* Returns the number of the job that came after number `seen`, or `seen` if none came for some time. */
static unsigned spin_until_job(unsigned seen)
{
    unsigned number;
    atomic_fetch_add(&spinning, 1);
    int64_t end = fo_now_ns() + atomic_load_explicit(&spin_ns, memory_order_relaxed);
    do
        for (int i = 0; i < 64 && (number = atomic_load(&job_number)) == seen; i++)
            relax();
    while (number == seen && fo_now_ns() < end);
    atomic_fetch_sub(&spinning, 1);
    return number;
}

/* Here a worker sleeps. Returns the number of the job that came after number `seen`. */
static unsigned sleep_until_job(unsigned seen)
{
    unsigned number;
    fo_lock_take(&sleep_lock);
    while ((number = atomic_load(&job_number)) == seen)
        fo_condition_await(&job_begun, &sleep_lock);
    fo_lock_give(&sleep_lock);
    return number;
}

static void wake_workers(void)
{
    fo_lock_take(&sleep_lock);
    fo_condition_wake_all(&job_begun);
    fo_lock_give(&sleep_lock);
}

static fo_thread_result FO_THREAD_FUNCTION worker(void *self)
{
    fo_affinity cores = {0};
    for (unsigned seen = atomic_load(&job_number);;) {
        join_job((int)(uintptr_t)self);
        leave_callers_core(&cores);
        unsigned number = spin_until_job(seen);
        seen = number != seen ? number : sleep_until_job(seen);
    }
    return 0;
}

/* The child of a fork has none of its parent's threads. */
static void begin_child(void)
{
    job_lock = (fo_lock)FO_LOCK;
    sleep_lock = (fo_lock)FO_LOCK;
    job_begun = (fo_condition)FO_CONDITION;
    atomic_store(&gate, 0);
    atomic_store(&spinning, 0);
    workers = 0;
    last_end = 0;
    this_thread = 0;
}

static void run_serial(int64_t count, void (*task)(void *, int64_t), void *context)
{
    fo_float_mode mode = fo_float_mode_set_default();
    for (int64_t i = 0; i < count; i++)
        task(context, i);
    fo_float_mode_restore(mode);
}

/* Closes the job and waits for the workers inside; returns for how many ns. */
static double close_job(void)
{
    if (atomic_fetch_and(&gate, ~OPEN) == OPEN)
        return 0;
    int64_t start = fo_now_ns();
    for (unsigned i = 1; atomic_load(&gate); i++)
        if (i % 1024)
            relax();
        else
            fo_give_way();
    return (double)(fo_now_ns() - start);
}

/* Returns for how many ns the caller waited for workers when its own work was done. */
static double run_threaded(int64_t count, void (*task)(void *, int64_t), void *context, int parts, int wake)
{
    job.task = task, job.context = context, job.parts = parts;
    note_caller();
    for (int64_t i = 0; i < parts; i++)
        atomic_store(&ranges[i].left, (uint64_t)(count * i / parts) << 32 | (uint64_t)(count * (i + 1) / parts));
    atomic_store(&gate, OPEN);
    atomic_fetch_add(&job_number, 1);
    if (wake)
        wake_workers();
    if (always) /* so that the others get something to do */
        for (int64_t end = fo_now_ns() + ALWAYS_NS; (atomic_load(&gate) & ~OPEN) < parts - 1 && fo_now_ns() < end;)
            fo_give_way();
    run_chunks(0);
    return close_job();
}

void fo_pool_run(fo_pace pace[2], int threads, double bytes, int64_t count, void (*task)(void *, int64_t), void *context)
{
    static int forks_are_watched; /* under job_lock */
    if (threads < 2 || count < 2 || count > UINT32_MAX || !(always || fo_pace_worth_joining(bytes)) ||
        !fo_lock_try(&job_lock)) {
        run_serial(count, task, context);
        return;
    }
    if (!forks_are_watched)
        fo_call_in_forked_child(begin_child), forks_are_watched = 1;
    int64_t start = fo_now_ns();
    int helpers = threads - 1 < MAX_WORKERS ? threads - 1 : MAX_WORKERS;
    int awake = atomic_load(&spinning), in_burst = fo_pace_in_burst(start - last_end, awake);
    fo_pace *own = &pace[in_burst];
    if (always || fo_pace_chooses_threads(own, in_burst, bytes)) {
        if (workers < helpers)
            workers = fo_start_threads(worker, workers + 1, helpers);
        atomic_store_explicit(&spin_ns, in_burst ? FO_BURST_NS : SPIN_NS, memory_order_relaxed);
        double waited = run_threaded(count, task, context, 1 + (helpers < workers ? helpers : workers),
                                     !awake || (awake < helpers && fo_pace_worth_waking(bytes)));
        last_end = fo_now_ns();
        fo_pace_observe_threaded(own, (double)(last_end - start), waited);
    } else {
        run_serial(count, task, context);
        last_end = fo_now_ns();
        fo_pace_observe_serial(own, (double)(last_end - start));
    }
    fo_lock_give(&job_lock);
}
