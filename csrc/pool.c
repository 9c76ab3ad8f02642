/* A pool of threads that take chunks from a counter.
 *
 * The caller works too. A job is closed when its chunks have run out: who has not joined by then is not waited for, so
 * a thread that wakes late costs nothing. Workers spin for a moment after a job, since steps often follow each other
 * closely, and sleep then. Whether threads pay is measured, not guessed: see fo_pool_run. */
#define _GNU_SOURCE
#include "internal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

/* Joining costs 0.7 us with workers that spin and about 50 us with workers that sleep: smaller jobs are not tried. */
static const double HOT_BYTES = 256e3, COLD_BYTES = 16e6;
static const int64_t SPIN_NS = 50000, CLOSE_NS = 100000;
/* A serial run every so often keeps the comparison fresh; what threads lost is made good by that many times serial work
 * before they are tried again; gains are remembered up to that many serial runs. */
static const double DEBT = 16, CREDIT = 20;
enum { OPEN = 1 << 30, MAX_WORKERS = 1023, REFRESH = 256 };

static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER; /* held by the caller of the running job */
static struct {
    void (*task)(void *, int64_t);
    void *context;
    int64_t count;
    atomic_int helpers; /* how many workers may join */
} job;
static _Alignas(64) atomic_int gate; /* OPEN while workers may join, plus the number of workers inside */
static _Alignas(64) _Atomic int64_t next_chunk;
static _Alignas(64) atomic_uint ticket; /* number of jobs so far: what workers watch */
static atomic_int spinning;

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

/* Under job_lock. */
static int workers;
static int64_t last_end;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_chunks(void (*task)(void *, int64_t), void *context, int64_t count)
{
    fo_float_mode mode = fo_float_mode_set_default();
    int64_t i;
    while ((i = atomic_fetch_add_explicit(&next_chunk, 1, memory_order_relaxed)) < count)
        task(context, i);
    fo_float_mode_restore(mode);
}

static void serve(void)
{
    int inside = atomic_load(&gate);
    do
        if (!(inside & OPEN) || (inside & ~OPEN) >= atomic_load(&job.helpers))
            return;
    while (!atomic_compare_exchange_weak(&gate, &inside, inside + 1));
    take_chunks(job.task, job.context, job.count);
    atomic_fetch_sub(&gate, 1);
}

static void await_ticket(unsigned seen)
{
    atomic_fetch_add(&spinning, 1);
    int64_t end = now() + SPIN_NS;
    int waiting;
    do
        for (int i = 0; i < 64 && (waiting = atomic_load(&ticket) == seen); i++)
            relax();
    while (waiting && now() < end);
    atomic_fetch_sub(&spinning, 1);
    if (!waiting)
        return;
    pthread_mutex_lock(&sleep_lock);
    while (atomic_load(&ticket) == seen)
        pthread_cond_wait(&wake, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}

static void *worker(void *first_ticket)
{
    unsigned seen = (unsigned)(uintptr_t)first_ticket;
    for (;;) {
        await_ticket(seen);
        seen = atomic_load(&ticket);
        serve();
    }
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
    while (workers < wanted &&
           pthread_create(&id, &attributes, worker, (void *)(uintptr_t)atomic_load(&ticket)) == 0)
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

static void run_parallel(int helpers, int rouse)
{
    atomic_store(&next_chunk, 0);
    atomic_store(&job.helpers, helpers);
    atomic_store(&gate, OPEN);
    atomic_fetch_add(&ticket, 1);
    if (rouse) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    take_chunks(job.task, job.context, job.count);
    atomic_fetch_and(&gate, ~OPEN);
    for (unsigned i = 1; atomic_load(&gate); i++)
        if (i % 1024)
            relax();
        else
            sched_yield();
}

/* A job runs on threads as long as they are quicker than the caller alone was. That is judged apart for steps that follow
 * each other closely and for steps after idle times, so that idle times, small arrays and a core that is busy elsewhere
 * never make a step much slower than it is on one thread. */
void fo_pool_run(fo_pace *pace, int threads, double bytes, int64_t count, void (*task)(void *, int64_t), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads < 2 || count < 2 || bytes < HOT_BYTES || pthread_mutex_trylock(&job_lock)) {
        run_serial(count, task, context);
        return;
    }
    pthread_once(&once, watch_forks);
    int64_t start = now();
    int helpers = threads - 1 < MAX_WORKERS ? threads - 1 : MAX_WORKERS;
    int awake = atomic_load(&spinning), close = start - last_end < CLOSE_NS, large = bytes >= COLD_BYTES;
    int refresh = pace->runs++ % REFRESH == 1, burst = awake || close;
    int parallel = !refresh && (burst || large) && pace->owed[burst] <= 0;
    if (parallel) {
        grow(helpers);
        job.task = task, job.context = context, job.count = count;
        run_parallel(helpers, !awake || (large && awake < helpers));
    } else {
        run_serial(count, task, context);
    }
    last_end = now();
    double elapsed = (double)(last_end - start);
    if (!parallel) {
        double mean = 0.9 * pace->serial + 0.1 * elapsed;
        pace->serial = pace->serial <= 0 || elapsed < mean ? elapsed : mean;
        pace->owed[0] -= elapsed, pace->owed[1] -= elapsed;
    } else if (pace->serial > 0) {
        double balance = pace->balance[burst] + pace->serial - elapsed;
        pace->owed[burst] = balance < 0 ? -DEBT * balance : 0;
        pace->balance[burst] = balance < 0 ? 0 : balance < CREDIT * pace->serial ? balance : CREDIT * pace->serial;
    }
    pthread_mutex_unlock(&job_lock);
}
