/* Runs steps that it reads from standard input and writes what becomes of the arrays: the kernels without Python, so that
 * they can be built for another processor and run by an emulator.
 *
 *   steps [ISA] < jobs > answers      prints the instruction set in use on standard error
 *
 * A job is a struct header, the sizes of its entries (int64), parameter and states of each entry, and for each step the
 * scalars (18 doubles) and the gradient of each entry. An answer is parameter and states of each entry, then the sum of
 * squares of the last gradients (double). All of it is in the byte order of the machine.
 *
 * Flush-to-zero is on all the while: the library must not mind, and must leave it as it was. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
static uint64_t float_mode(void) { return __builtin_ia32_stmxcsr() & ~0x3fu; /* without the sticky flags */ }
static void flush_to_zero(void) { __builtin_ia32_ldmxcsr(0x9fc0); }
#elif defined(__aarch64__)
static uint64_t float_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void flush_to_zero(void) { __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)1 << 24)); }
#else
static uint64_t float_mode(void) { return 0; }
static void flush_to_zero(void) {}
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

static void serve(const header *h)
{
    size_t count = (size_t)h->entries, item = fo_storage_size(h->storage);
    int slots = SLOT_STATE + fo_rule_states(h->rule);
    int64_t *sizes = room(count * sizeof *sizes);
    int32_t *run_of = room(count * sizeof *run_of), *dimensions = room(count * sizeof *dimensions);
    int8_t *storage = room(count * FO_SLOTS);
    take(sizes, count * sizeof *sizes);
    for (size_t e = 0; e < count; e++)
        run_of[e] = 0, dimensions[e] = 1;
    memset(storage, h->storage, count * FO_SLOTS);
    fo_run run = {.rule = h->rule, .decay = h->decay};
    fo_plan *plan = fo_plan_new(1, &run, h->entries, run_of, storage, dimensions, sizes, h->threads);
    if (!plan)
        fail("no memory for a plan");
    for (size_t e = 0; e < count; e++)
        for (int slot = 0; slot < slots; slot++) {
            plan->params[e].data[slot] = room((size_t)sizes[e] * item);
            if (slot != SLOT_GRAD)
                take(plan->params[e].data[slot], (size_t)sizes[e] * item);
        }
    for (int32_t i = 0; i < h->steps; i++) {
        take(plan->runs[0].scalars, sizeof plan->runs[0].scalars);
        for (size_t e = 0; e < count; e++)
            take(plan->params[e].data[SLOT_GRAD], (size_t)sizes[e] * item);
        uint64_t before = float_mode();
        fo_plan_apply(plan);
        if (float_mode() != before)
            fail("a step changed the floating-point mode");
    }
    double squares = fo_plan_sum_squares(plan, h->grad_scale, 1.0);
    for (int i = 0; i < 20; i++) {
        double again = fo_plan_sum_squares(plan, h->grad_scale, 1.0);
        if (again != squares && (again == again || squares == squares))
            fail("a norm differs from one run to the next");
    }
    for (size_t e = 0; e < count; e++)
        for (int slot = 0; slot < slots; slot++) {
            if (slot != SLOT_GRAD)
                give(plan->params[e].data[slot], (size_t)sizes[e] * item);
            free(plan->params[e].data[slot]);
        }
    give(&squares, sizeof squares);
    fo_plan_free(plan);
    free(sizes), free(run_of), free(dimensions), free(storage);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        int32_t isa = 0;
        while (fo_isa_name(isa) && strcmp(fo_isa_name(isa), argv[1]))
            isa++;
        if (!fo_isa_name(isa) || !fo_isa_select(isa))
            fail("this processor lacks that instruction set");
    }
    fprintf(stderr, "%s\n", fo_isa_name(fo_isa_selected()));
    flush_to_zero();
    fo_pool_always(1);
    header h;
    while (fread(&h, sizeof h, 1, stdin) == 1)
        serve(&h);
    return 0;
}
