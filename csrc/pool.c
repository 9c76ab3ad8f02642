/* A pool of threads that share the chunks of a job.
 *
 * The caller works too. Each thread has a range of chunks of its own, the same at every step, so that its cache may still
 * hold them; who is done with it helps the others, from the far ends of theirs. A job is closed when its chunks have run
 * out: who has not joined by then is not waited for, so a thread that wakes late costs nothing. Workers spin for a moment
 * after a job, since steps often follow each other closely, and sleep then; they keep off the caller's core. Whether
 * threads pay is measured, not guessed: see fo_pool_run. */
#define _GNU_SOURCE
#include "internal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

/* Joining costs 1 us with workers that spin and about 50 us with workers that sleep: smaller jobs are not tried. */
static const double HOT_BYTES = 560e3, COLD_BYTES = 32e6;
/* Workers spin for SPIN_NS after a job, or for CLOSE_NS after one that followed the job before within that time. */
static const int64_t SPIN_NS = 50000, CLOSE_NS = 200000, ALWAYS_NS = 1000000;
/* Two serial runs every so often keep the comparison fresh. What threads gain is remembered up to BALANCE_NS, or RUNS serial
 * runs if that is more. When they have lost as much as TRIAL serial runs, at most LONG_TRIAL_NS, and TRIAL_NS, that is made
 * good by DEBT times as much serial work before they are tried again; by twice as much each time in a row, while that is less
 * than RETRY_NS. */
static const double BALANCE_NS = 10e6, RUNS = 20, TRIAL = 4, TRIAL_NS = 100e3, LONG_TRIAL_NS = 2e6, DEBT = 64, RETRY_NS = 1e9;
enum { OPEN = 1 << 30, MAX_WORKERS = 1023, REFRESH = 256 };

static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER; /* held by the caller of the running job */
static struct {
    void (*task)(void *, int64_t);
    void *context;
    int parts; /* how many threads may take part: the caller is number 0 */
} job;
static _Alignas(64) atomic_int gate; /* OPEN while workers may join, plus the number of workers inside */
static struct {
    _Alignas(64) _Atomic uint64_t left; /* the chunks that nobody has taken yet: from << 32 | to */
} ranges[MAX_WORKERS + 1];
static _Alignas(64) atomic_uint ticket; /* number of jobs so far: what workers watch */
static atomic_int spinning;
static _Atomic int64_t spin; /* ns */
static atomic_int caller_core; /* where the last job was begun; -1 if the system does not tell */

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

/* Under job_lock. */
static int workers;
static int64_t last_end;

static int always;

void fo_pool_always(int32_t on) { always = on; }

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int core(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The first or the last chunk that is left of a range; -1 if there is none. */
static int64_t take(int part, int first)
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

static void take_chunks(int self)
{
    void (*task)(void *, int64_t) = job.task;
    void *context = job.context;
    fo_float_mode mode = fo_float_mode_set_default();
    for (int other = 0, parts = job.parts; other < parts; other++)
        for (int64_t i; (i = take((self + other) % parts, other == 0)) >= 0;)
            task(context, i);
    fo_float_mode_restore(mode);
}

static void serve(int self)
{
    int inside = atomic_load(&gate);
    do
        if (!(inside & OPEN))
            return;
    while (!atomic_compare_exchange_weak(&gate, &inside, inside + 1));
    if (self < job.parts)
        take_chunks(self);
    atomic_fetch_sub(&gate, 1);
}

/* A worker on the caller's core would keep the caller from its work, and schedulers put it there again and again: it
 * leaves that core, and may come back when another core is the caller's. */
static void keep_off(int *avoided)
{
    int here = core();
    if (here < 0 || here != atomic_load_explicit(&caller_core, memory_order_relaxed))
        return;
#if defined(__linux__)
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores))
        return;
    if (*avoided >= 0)
        CPU_SET(*avoided, &cores);
    CPU_CLR(here, &cores);
    if (CPU_COUNT(&cores) > 0 && sched_setaffinity(0, sizeof cores, &cores) == 0)
        *avoided = here;
#endif
}

/* Returns the number of a job that came after the one seen last. */
static unsigned await_ticket(unsigned seen, int *avoided)
{
    unsigned now_seen;
    keep_off(avoided);
    atomic_fetch_add(&spinning, 1);
    int64_t end = now() + atomic_load_explicit(&spin, memory_order_relaxed);
    do
        for (int i = 0; i < 64 && (now_seen = atomic_load(&ticket)) == seen; i++)
            relax();
    while (now_seen == seen && now() < end);
    atomic_fetch_sub(&spinning, 1);
    if (now_seen != seen)
        return now_seen;
    pthread_mutex_lock(&sleep_lock);
    while ((now_seen = atomic_load(&ticket)) == seen)
        pthread_cond_wait(&wake, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
    return now_seen;
}

static void *worker(void *number)
{
    int avoided = -1; /* a core */
    for (unsigned seen = atomic_load(&ticket);; seen = await_ticket(seen, &avoided))
        serve((int)(uintptr_t)number);
    return 0;
}

static void grow(int wanted)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (workers >= wanted || pthread_attr_init(&attributes))
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are the business of the threads that were here before */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t id;
    while (workers < wanted && pthread_create(&id, &attributes, worker, (void *)(uintptr_t)(workers + 1)) == 0)
        workers++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
}

/* The child of a fork has none of its parent's threads. */
static void forget(void)
{
    pthread_mutex_init(&job_lock, 0);
    pthread_mutex_init(&sleep_lock, 0);
    pthread_cond_init(&wake, 0);
    atomic_store(&gate, 0);
    atomic_store(&spinning, 0);
    workers = 0;
    last_end = 0;
}

static void watch_forks(void) { pthread_atfork(0, 0, forget); }

static void run_serial(int64_t count, void (*task)(void *, int64_t), void *context)
{
    fo_float_mode mode = fo_float_mode_set_default();
    for (int64_t i = 0; i < count; i++)
        task(context, i);
    fo_float_mode_restore(mode);
}

/* Returns the ns that the caller waited for others when its own work was done. */
static double run_parallel(int64_t count, void (*task)(void *, int64_t), void *context, int parts, int rouse)
{
    job.task = task, job.context = context, job.parts = parts;
    atomic_store_explicit(&caller_core, core(), memory_order_relaxed);
    for (int64_t i = 0; i < parts; i++)
        atomic_store(&ranges[i].left, (uint64_t)(count * i / parts) << 32 | (uint64_t)(count * (i + 1) / parts));
    atomic_store(&gate, OPEN);
    atomic_fetch_add(&ticket, 1);
    if (rouse) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    if (always) /* so that the others get something to do */
        for (int64_t end = now() + ALWAYS_NS; (atomic_load(&gate) & ~OPEN) < parts - 1 && now() < end;)
            sched_yield();
    take_chunks(0);
    if (atomic_fetch_and(&gate, ~OPEN) == OPEN)
        return 0;
    int64_t start = now();
    for (unsigned i = 1; atomic_load(&gate); i++)
        if (i % 1024)
            relax();
        else
            sched_yield();
    return (double)(now() - start);
}

static void note_serial(fo_pace *pace, double elapsed)
{
    double most = 1.1 * pace->serial; /* an interrupted run says little */
    double mean = 0.9 * pace->serial + 0.1 * elapsed;
    pace->serial = pace->serial <= 0 || elapsed < mean ? elapsed : mean < most ? mean : most;
}

static void judge_parallel(fo_pace *pace, double elapsed, double waited)
{
    if (pace->serial <= 0)
        return;
    /* The caller may have been interrupted while it worked, which is no fault of threads; waiting for them is. */
    double trial = TRIAL_NS + (TRIAL * pace->serial < LONG_TRIAL_NS ? TRIAL * pace->serial : LONG_TRIAL_NS);
    double worst = waited > trial ? waited : trial, gain = pace->serial - elapsed;
    double most = RUNS * pace->serial > BALANCE_NS ? RUNS * pace->serial : BALANCE_NS;
    pace->balance += gain < -worst ? -worst : gain;
    if (pace->balance > most || pace->debt <= 0)
        pace->debt = DEBT;
    if (pace->balance > most)
        pace->balance = most;
    if (pace->balance < -trial) {
        pace->owed = -pace->debt * pace->balance;
        if (pace->owed < RETRY_NS)
            pace->debt *= 2;
        pace->balance = 0;
    }
}

/* A job runs on threads as long as they are quicker than the caller alone was. That is judged apart for steps after idle
 * times (pace[0]) and for steps that follow each other closely (pace[1]), so that idle times, small arrays and a core that
 * is busy elsewhere never make a step much slower than it is on one thread. */
void fo_pool_run(fo_pace pace[2], int threads, double bytes, int64_t count, void (*task)(void *, int64_t), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads < 2 || count < 2 || count > UINT32_MAX || (bytes < HOT_BYTES && !always) ||
        pthread_mutex_trylock(&job_lock)) {
        run_serial(count, task, context);
        return;
    }
    pthread_once(&once, watch_forks);
    int64_t start = now();
    int helpers = threads - 1 < MAX_WORKERS ? threads - 1 : MAX_WORKERS;
    int awake = atomic_load(&spinning), burst = awake || start - last_end < CLOSE_NS, large = bytes >= COLD_BYTES;
    fo_pace *own = &pace[burst];
    int turn = (int)(own->runs++ % REFRESH), refresh = turn == 1 || turn == 2;
    if (!always && (refresh || own->owed > 0 || !(burst || large))) {
        run_serial(count, task, context);
        last_end = now();
        own->owed -= (double)(last_end - start);
        if (turn != 1) /* right after threads, data still lie in their caches */
            note_serial(own, (double)(last_end - start));
    } else {
        grow(helpers);
        atomic_store_explicit(&spin, burst ? CLOSE_NS : SPIN_NS, memory_order_relaxed);
        double waited = run_parallel(count, task, context, 1 + (helpers < workers ? helpers : workers),
                                     !awake || (large && awake < helpers));
        last_end = now();
        judge_parallel(own, (double)(last_end - start), waited);
    }
    pthread_mutex_unlock(&job_lock);
}
