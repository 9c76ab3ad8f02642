/* What the pool of threads asks of the operating system: locks, conditions, threads, time, cores. Linux, macOS and other
 * POSIX systems, Windows. */
#ifndef FASTOPTIM_SYSTEM_H
#define FASTOPTIM_SYSTEM_H

#include <stdint.h>

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <process.h>
#include <windows.h>

typedef SRWLOCK fo_lock;
typedef CONDITION_VARIABLE fo_condition;
#define FO_LOCK SRWLOCK_INIT
#define FO_CONDITION CONDITION_VARIABLE_INIT

static inline void fo_lock_take(fo_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline int fo_lock_try(fo_lock *lock) { return TryAcquireSRWLockExclusive(lock); }
static inline void fo_lock_give(fo_lock *lock) { ReleaseSRWLockExclusive(lock); }
static inline void fo_condition_await(fo_condition *c, fo_lock *lock) { SleepConditionVariableSRW(c, lock, INFINITE, 0); }
static inline void fo_condition_wake_all(fo_condition *c) { WakeAllConditionVariable(c); }
static inline void fo_give_way(void) { SwitchToThread(); }
static inline void fo_call_in_forked_child(void (*function)(void)) { (void)function; } /* there are no forks */

static inline int64_t fo_now_ns(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks), QueryPerformanceFrequency(&per_second);
    int64_t whole = ticks.QuadPart / per_second.QuadPart, rest = ticks.QuadPart % per_second.QuadPart;
    return whole * 1000000000 + rest * 1000000000 / per_second.QuadPart;
}

typedef unsigned fo_thread_result;
#define FO_THREAD_FUNCTION __stdcall

/* Starts threads number `first` to `last`, which get their number; returns the number of the last that was started. */
static inline int fo_start_threads(fo_thread_result(FO_THREAD_FUNCTION *run)(void *), int first, int last)
{
    for (; first <= last; first++) {
        uintptr_t handle = _beginthreadex(0, 0, run, (void *)(uintptr_t)first, 0, 0);
        if (!handle)
            break;
        CloseHandle((HANDLE)handle);
    }
    return first - 1;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

typedef pthread_mutex_t fo_lock;
typedef pthread_cond_t fo_condition;
#define FO_LOCK PTHREAD_MUTEX_INITIALIZER
#define FO_CONDITION PTHREAD_COND_INITIALIZER

static inline void fo_lock_take(fo_lock *lock) { pthread_mutex_lock(lock); }
static inline int fo_lock_try(fo_lock *lock) { return pthread_mutex_trylock(lock) == 0; }
static inline void fo_lock_give(fo_lock *lock) { pthread_mutex_unlock(lock); }
static inline void fo_condition_await(fo_condition *c, fo_lock *lock) { pthread_cond_wait(c, lock); }
static inline void fo_condition_wake_all(fo_condition *c) { pthread_cond_broadcast(c); }
static inline void fo_give_way(void) { sched_yield(); }
static inline void fo_call_in_forked_child(void (*function)(void)) { pthread_atfork(0, 0, function); }

static inline int64_t fo_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef void *fo_thread_result;
#define FO_THREAD_FUNCTION

/* Starts threads number `first` to `last`, which get their number; returns the number of the last that was started. */
static inline int fo_start_threads(fo_thread_result (*run)(void *), int first, int last)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes))
        return first - 1;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are the business of the threads that were here before */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t id;
    while (first <= last && pthread_create(&id, &attributes, run, (void *)(uintptr_t)first) == 0)
        first++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
    return first - 1;
}

#endif

/* Cores. Only Linux tells them and takes orders about them; elsewhere fo_core is -1 and nothing is asked of the others. */
#if defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    cpu_set_t allowed; /* the cores that were given to the thread */
    cpu_set_t chosen;  /* those that it took of them when it left one */
} fo_affinity;

static inline int fo_core(void) { return sched_getcpu(); }
static inline int fo_thread_number(void) { return (int)syscall(SYS_gettid); }

/* Has this thread leave core `here`, which another thread needs. If somebody else has set its cores since, those are the
 * ones to choose from. If it was given just the cores that it had chosen, nothing shows that; so it comes back only to
 * cores that the other thread may use, too. */
static inline void fo_leave_core(fo_affinity *own, int here, int other_thread)
{
    cpu_set_t present, others, wanted;
    if (sched_getaffinity(0, sizeof present, &present) || sched_getaffinity(other_thread, sizeof others, &others))
        return;
    if (!CPU_EQUAL(&present, &own->chosen))
        own->allowed = present;
    CPU_AND(&wanted, &own->allowed, &others);
    CPU_OR(&wanted, &wanted, &present);
    CPU_CLR((size_t)here, &wanted);
    if (CPU_COUNT(&wanted) > 0 && sched_setaffinity(0, sizeof wanted, &wanted) == 0)
        own->chosen = wanted;
}

#else

typedef struct {
    char unused;
} fo_affinity;

static inline int fo_core(void) { return -1; }
static inline int fo_thread_number(void) { return -1; }
static inline void fo_leave_core(fo_affinity *own, int here, int other_thread)
{
    (void)own, (void)here, (void)other_thread;
}

#endif

#endif
