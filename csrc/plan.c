/* A plan: a list of parameters cut into chunks, and the step over it. No Python here. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static int64_t product(int32_t dimensions, const int64_t *shape)
{
    int64_t n = 1;
    for (int32_t i = 0; i < dimensions; i++)
        n *= shape[i];
    return n;
}

/* Chunks hold about as many elements each, so that a thousand small arrays are spread like one large one. Inside an array
 * they end at blocks of the norm. */
static int64_t cut(fo_plan *plan, int64_t size, int64_t *chunk_entry, int64_t *chunk_start)
{
    int64_t count = 0, room = 0;
    for (int64_t e = 0; e < plan->entry_count; e++)
        for (int64_t start = 0; start < plan->entries[e].n;) {
            if (room <= 0) {
                if (chunk_entry)
                    chunk_entry[count] = e, chunk_start[count] = start;
                count++;
                room = size;
            }
            int64_t whole = (room + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK * FO_NORM_BLOCK;
            int64_t left = plan->entries[e].n - start, taken = left < whole ? left : whole;
            start += taken;
            room -= taken;
        }
    if (chunk_entry)
        chunk_entry[count] = plan->entry_count, chunk_start[count] = 0;
    return count;
}

fo_plan *fo_plan_new(int32_t run_count, const fo_run *runs, int64_t entry_count, const int32_t *entry_run,
                     const int8_t *storage, const int32_t *dimensions, const int64_t *shapes, int32_t threads)
{
    int64_t lengths = 0, elements = 0;
    for (int64_t e = 0; e < entry_count; e++)
        lengths += dimensions[e];
    fo_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return 0;
    plan->run_count = run_count, plan->entry_count = entry_count, plan->threads = threads;
    plan->least_gradient = UINT64_MAX;
    plan->runs = malloc((size_t)(run_count + 1) * sizeof *plan->runs);
    plan->entries = calloc((size_t)entry_count + 1, sizeof *plan->entries);
    plan->shapes = malloc((size_t)(lengths + 1) * sizeof *plan->shapes);
    plan->written = malloc((size_t)(entry_count + 1) * (FO_SLOTS - 1) * 2 * sizeof *plan->written);
    if (!plan->runs || !plan->entries || !plan->shapes || !plan->written)
        goto failed;
    memcpy(plan->runs, runs, (size_t)run_count * sizeof *runs);
    memcpy(plan->shapes, shapes, (size_t)lengths * sizeof *shapes);
    const int64_t *shape = plan->shapes;
    for (int64_t e = 0; e < entry_count; e++) {
        fo_entry *entry = &plan->entries[e];
        entry->run = entry_run[e], entry->dimensions = dimensions[e], entry->shape = shape;
        entry->slots = (int8_t)(2 + fo_rule_states(runs[entry->run].rule));
        entry->n = product(dimensions[e], shape);
        shape += dimensions[e];
        memcpy(entry->storage, storage + e * FO_SLOTS, FO_SLOTS);
        entry->first_block = plan->block_count;
        plan->block_count += (entry->n + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK;
        elements += entry->n;
        double bytes = (double)entry->n * (double)fo_storage_size(entry->storage[0]);
        plan->state_count += entry->slots - 2;
        plan->step_bytes += bytes * (2 * entry->slots - 1);
        plan->norm_bytes += bytes;
        uint64_t gradient = (uint64_t)entry->n * fo_storage_size(entry->storage[1]);
        if (gradient && gradient < plan->least_gradient)
            plan->least_gradient = gradient;
    }
    int64_t size = elements / ((int64_t)threads * 8);
    size = size < 8192 ? 8192 : size > 65536 ? 65536 : size;
    plan->chunk_count = cut(plan, size, 0, 0);
    plan->chunk_entry = malloc((size_t)(plan->chunk_count + 1) * sizeof *plan->chunk_entry);
    plan->chunk_start = malloc((size_t)(plan->chunk_count + 1) * sizeof *plan->chunk_start);
    plan->block_sums = malloc((size_t)(plan->block_count + 1) * sizeof *plan->block_sums);
    plan->tree = malloc((size_t)(plan->block_count + 1) * sizeof *plan->tree);
    if (!plan->chunk_entry || !plan->chunk_start || !plan->block_sums || !plan->tree)
        goto failed;
    cut(plan, size, plan->chunk_entry, plan->chunk_start);
    return plan;
failed:
    fo_plan_free(plan);
    return 0;
}

void fo_plan_free(fo_plan *plan)
{
    if (!plan)
        return;
    free(plan->runs), free(plan->entries), free(plan->shapes), free(plan->written);
    free(plan->chunk_entry), free(plan->chunk_start), free(plan->block_sums), free(plan->tree);
    free(plan);
}

typedef struct {
    fo_plan *plan;
    double scale, k;
} job;

/* Elements [start, stop) of an entry belong to a chunk. */
static int64_t stop_of(const fo_plan *plan, int64_t chunk, int64_t e)
{
    return e == plan->chunk_entry[chunk + 1] ? plan->chunk_start[chunk + 1] : plan->entries[e].n;
}

static int64_t last_of(const fo_plan *plan, int64_t chunk)
{
    return plan->chunk_entry[chunk + 1] - (plan->chunk_start[chunk + 1] == 0);
}

/* Whether every array of `after` begins where that of `before` ends (a packed model): one run of the kernel serves both. */
static int adjoins(const fo_entry *before, const fo_entry *after)
{
    if (before->run != after->run || before->storage[0] != after->storage[0])
        return 0;
    for (int i = 0; i < before->slots; i++)
        if ((char *)before->data[i] + (size_t)before->n * fo_storage_size(before->storage[i]) != after->data[i])
            return 0;
    return 1;
}

static void step_chunk(void *context, int64_t chunk)
{
    const job *j = context;
    const fo_plan *plan = j->plan;
    int64_t start = plan->chunk_start[chunk], last = last_of(plan, chunk);
    for (int64_t e = plan->chunk_entry[chunk]; e <= last; e++, start = 0) {
        const fo_entry *entry = &plan->entries[e];
        const fo_run *run = &plan->runs[entry->run];
        void *data[FO_SLOTS] = {0};
        for (int i = 0; i < entry->slots; i++)
            data[i] = (char *)entry->data[i] + (size_t)start * fo_storage_size(entry->storage[i]);
        int64_t n = stop_of(plan, chunk, e) - start;
        for (; e < last && adjoins(&plan->entries[e], &plan->entries[e + 1]); e++)
            n += stop_of(plan, chunk, e + 1);
        if (n > 0)
            fo_kernel_for(run->rule, entry->storage[0])(run, run->maximize ? -j->scale : j->scale, n, data);
    }
}

static void norm_chunk(void *context, int64_t chunk)
{
    const job *j = context;
    const fo_plan *plan = j->plan;
    int64_t start = plan->chunk_start[chunk], last = last_of(plan, chunk);
    for (int64_t e = plan->chunk_entry[chunk]; e <= last; e++, start = 0) {
        const fo_entry *entry = &plan->entries[e];
        const char *g = (const char *)entry->data[1] + (size_t)start * fo_storage_size(entry->storage[1]);
        fo_square_kernel_for(entry->storage[1])(j->scale, j->k, stop_of(plan, chunk, e) - start, g,
                                                plan->block_sums + entry->first_block + start / FO_NORM_BLOCK);
    }
}

void fo_plan_apply(fo_plan *plan, double scale)
{
    job j = {plan, scale, 1.0};
    fo_pool_run(plan->step_pace, plan->threads, plan->step_bytes, plan->chunk_count, step_chunk, &j);
}

double fo_plan_sum_squares(fo_plan *plan, double grad_scale, double k)
{
    job j = {plan, grad_scale, k};
    fo_pool_run(plan->norm_pace, plan->threads, plan->norm_bytes, plan->chunk_count, norm_chunk, &j);
    if (plan->block_count == 0)
        return 0;
    fo_float_mode mode = fo_float_mode_set_default();
    double *tree = plan->tree;
    memcpy(tree, plan->block_sums, (size_t)plan->block_count * sizeof *tree);
    for (int64_t n = plan->block_count; n > 1; n = n / 2 + n % 2) {
        for (int64_t i = 0; i < n / 2; i++)
            tree[i] = tree[2 * i] + tree[2 * i + 1];
        if (n % 2)
            tree[n / 2] = tree[n - 1];
    }
    fo_float_mode_restore(mode);
    return tree[0];
}
