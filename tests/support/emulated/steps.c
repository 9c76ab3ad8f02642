/* Runs steps that it reads from standard input and writes what becomes of the arrays: the kernels without Python, so that
 * they can be built for another processor and run by an emulator.
 *
 *   steps [-CALLERS] [ISA] < jobs > answers      prints the instruction set in use on standard error
 *
 * With several callers, so many jobs at a time are begun at once, each by a thread of its own.
 *
 * A job is a struct header, the sizes of its entries (int64), parameter and states of each entry, and for each step the
 * scalars (18 doubles) and the gradient of each entry. An answer is parameter and states of each entry, then the sum of
 * squares of the last gradients (double). All of it is in the byte order of the machine.
 *
 * All the while, subnormal numbers are flushed to zero and results rounded upward: the library must not mind, and must
 * leave that as it was. */
#define _GNU_SOURCE
#include "internal.h"
#include "system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

#if defined(__x86_64__)
static uint64_t float_mode(void) { return __builtin_ia32_stmxcsr() & ~0x3fu; /* without the sticky flags */ }
static void spoil_float_mode(void) { __builtin_ia32_ldmxcsr(0xdfc0); }
#elif defined(__aarch64__)
static uint64_t float_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void spoil_float_mode(void) { __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)(1 << 24 | 1 << 22))); }
#else
static uint64_t float_mode(void) { return 0; }
static void spoil_float_mode(void) {}
#endif

typedef struct {
    int32_t rule, decay, storage, threads, steps, unused;
    int64_t entries;
    double grad_scale; /* of the norm */
} header;

static void fail(const char *what)
{
    fprintf(stderr, "steps: %s\n", what);
    exit(1);
}

static void take(void *to, size_t size)
{
    if (size && fread(to, size, 1, stdin) != 1)
        fail("the input ends within a job");
}

static void give(const void *from, size_t size)
{
    if (size && fwrite(from, size, 1, stdout) != 1)
        fail("the output cannot be written");
}

static void *room(size_t size)
{
    void *memory = malloc(size + 1);
    if (!memory)
        fail("no memory");
    return memory;
}

typedef struct {
    header h;
    int64_t *sizes;
    fo_plan *plan;
    double (*scalars)[18]; /* of each step */
    char **gradients;          /* of each step and entry */
    double squares;
} job;

/* 0 if there is none. */
static int read_job(job *j)
{
    header *h = &j->h;
    if (fread(h, sizeof *h, 1, stdin) != 1)
        return 0;
    size_t count = (size_t)h->entries, steps = (size_t)h->steps, item = fo_bytes(h->storage, 1);
    int32_t *run_of = room(count * sizeof *run_of), *dimensions = room(count * sizeof *dimensions);
    int8_t *storage = room(count * FO_SLOTS);
    j->sizes = room(count * sizeof *j->sizes);
    take(j->sizes, count * sizeof *j->sizes);
    for (size_t e = 0; e < count; e++)
        run_of[e] = 0, dimensions[e] = 1;
    memset(storage, -1, count * FO_SLOTS);
    for (size_t e = 0; e < count; e++)
        memset(storage + e * FO_SLOTS, h->storage, (size_t)(SLOT_STATE + fo_rule_states(h->rule)));
    fo_run run = {.rule = h->rule, .decay = h->decay};
    fo_stored *stored = calloc(count + 1, sizeof *stored); /* every slot of the parameter's own type */
    if (!stored)
        fail("no memory");
    j->plan = fo_plan_new(1, &run, h->entries, run_of, storage, stored, dimensions, j->sizes, h->threads);
    if (!j->plan)
        fail("no memory for a plan");
    for (size_t e = 0; e < count; e++)
        for (int slot = 0; slot < j->plan->params[e].slots; slot++)
            if (slot != SLOT_GRAD) {
                j->plan->params[e].data[slot] = room((size_t)j->sizes[e] * item);
                take(j->plan->params[e].data[slot], (size_t)j->sizes[e] * item);
            }
    j->scalars = room(steps * sizeof *j->scalars);
    j->gradients = room(steps * count * sizeof *j->gradients);
    for (size_t i = 0; i < steps; i++) {
        take(j->scalars[i], sizeof j->scalars[i]);
        for (size_t e = 0; e < count; e++) {
            char *g = j->gradients[i * count + e] = room((size_t)j->sizes[e] * item);
            take(g, (size_t)j->sizes[e] * item);
        }
    }
    free(run_of), free(dimensions), free(storage), free(stored);
    return 1;
}

static void run_job(job *j)
{
    fo_plan *plan = j->plan;
    for (int32_t i = 0; i < j->h.steps; i++) {
        memcpy(plan->runs[0].scalars, j->scalars[i], sizeof j->scalars[i]);
        for (int64_t e = 0; e < j->h.entries; e++)
            plan->params[e].data[SLOT_GRAD] = j->gradients[i * j->h.entries + e];
        uint64_t before = float_mode();
        fo_plan_apply(plan);
        if (float_mode() != before)
            fail("a step changed the floating-point mode");
    }
    j->squares = fo_plan_sum_squares(plan, j->h.grad_scale, 1.0);
    for (int i = 0; i < 20; i++) {
        double again = fo_plan_sum_squares(plan, j->h.grad_scale, 1.0);
        if (again != j->squares && (again == again || j->squares == j->squares))
            fail("a norm differs from one run to the next");
    }
}

static void answer(job *j)
{
    int64_t count = j->h.entries;
    for (int64_t e = 0; e < count; e++)
        for (int slot = 0; slot < j->plan->params[e].slots; slot++)
            if (slot != SLOT_GRAD) {
                give(j->plan->params[e].data[slot], (size_t)j->sizes[e] * fo_bytes(j->h.storage, 1));
                free(j->plan->params[e].data[slot]);
            }
    give(&j->squares, sizeof j->squares);
    for (int64_t i = 0; i < j->h.steps * count; i++)
        free(j->gradients[i]);
    fo_plan_free(j->plan);
    free(j->sizes), free(j->scalars), free(j->gradients);
}

enum { MAX_CALLERS = 9 };
static job jobs[MAX_CALLERS];

/* Callers wait until all are there, then until all are done. */
static fo_lock lock = FO_LOCK;
static fo_condition changed = FO_CONDITION;
static int here, done, count;

static void await_all(int *arrived, int more)
{
    fo_lock_take(&lock);
    *arrived += more;
    fo_condition_wake_all(&changed);
    while (*arrived < count)
        fo_condition_await(&changed, &lock);
    fo_lock_give(&lock);
}

static fo_thread_result FO_THREAD_FUNCTION caller(void *number)
{
    await_all(&here, 1);
    spoil_float_mode();
    fo_isa_select(fo_isa_selected()); /* to what it is: others read it meanwhile */
    run_job(&jobs[(uintptr_t)number]);
    fo_lock_take(&lock);
    done++;
    fo_condition_wake_all(&changed);
    fo_lock_give(&lock);
    return 0;
}

/* Returns how many jobs there were. */
static int run_at_once(int callers)
{
    here = done = count = 0;
    while (count < callers && read_job(&jobs[count]))
        count++;
    if (!count)
        return 0;
    if (fo_start_threads(caller, 1, count - 1) != count - 1)
        fail("no thread");
    caller(0);
    await_all(&done, 0);
    for (int i = 0; i < count; i++)
        answer(&jobs[i]);
    return count;
}

int main(int argc, char **argv)
{
    int callers = 1;
    if (argc > 1 && argv[1][0] == '-') {
        callers = argv[1][1] - '0';
        argc--, argv++;
    }
    if (callers < 1 || callers > MAX_CALLERS)
        fail("-1 to -9 callers");
    if (argc > 1) {
        int32_t isa = 0;
        while (fo_isa_name(isa) && strcmp(fo_isa_name(isa), argv[1]))
            isa++;
        if (!fo_isa_name(isa) || !fo_isa_select(isa))
            fail("this processor lacks that instruction set");
    }
#if defined(_WIN32)
    _setmode(0, _O_BINARY), _setmode(1, _O_BINARY);
#endif
    fo_pool_always(1);
    while (run_at_once(callers))
        ;
    fprintf(stderr, "%s\n", fo_isa_name(fo_isa_selected())); /* late, so that jobs are the first to ask for it */
    return 0;
}
