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
static int64_t cut(fo_plan *plan, int64_t size, int64_t *chunk_param, int64_t *chunk_start)
{
    int64_t count = 0, room = 0;
    for (int64_t e = 0; e < plan->param_count; e++)
        for (int64_t start = 0; start < plan->params[e].n;) {
            if (room <= 0) {
                if (chunk_param)
                    chunk_param[count] = e, chunk_start[count] = start;
                count++;
                room = size;
            }
            int64_t whole = (room + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK * FO_NORM_BLOCK;
            int64_t left = plan->params[e].n - start, taken = left < whole ? left : whole;
            start += taken;
            room -= taken;
        }
    if (chunk_param)
        chunk_param[count] = plan->param_count, chunk_start[count] = 0;
    return count;
}

/* The traffic of a step. */
static double param_bytes(const fo_param *param)
{
    double bytes = 0;
    for (int slot = 0; slot < param->slots; slot++)
        bytes += (slot == SLOT_GRAD ? 1.0 : 2.0) * (double)fo_bytes(param->storage[slot], param->n);
    return bytes;
}

fo_plan *fo_plan_new(int32_t run_count, const fo_run *runs, int64_t param_count, const int32_t *param_run,
                     const int8_t *storage, const fo_stored *stored, const int32_t *dimensions, const int64_t *shapes,
                     int32_t threads)
{
    int64_t lengths = 0, elements = 0;
    for (int64_t e = 0; e < param_count; e++)
        lengths += dimensions[e];
    fo_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return 0;
    plan->run_count = run_count, plan->param_count = param_count, plan->threads = threads;
    plan->least_gradient = UINT64_MAX;
    plan->runs = malloc((size_t)(run_count + 1) * sizeof *plan->runs);
    plan->params = calloc((size_t)param_count + 1, sizeof *plan->params);
    plan->shapes = malloc((size_t)(lengths + 1) * sizeof *plan->shapes);
    plan->written = malloc((size_t)(param_count + 1) * (FO_SLOTS - 1) * 2 * sizeof *plan->written);
    if (!plan->runs || !plan->params || !plan->shapes || !plan->written)
        goto failed;
    memcpy(plan->runs, runs, (size_t)run_count * sizeof *runs);
    for (int32_t r = 0; r < run_count; r++)
        plan->runs[r].limit = fo_limit(FO_FLOAT64);
    memcpy(plan->shapes, shapes, (size_t)lengths * sizeof *shapes);
    const int64_t *shape = plan->shapes;
    for (int64_t e = 0; e < param_count; e++) {
        fo_param *param = &plan->params[e];
        param->run = param_run[e], param->dimensions = dimensions[e], param->shape = shape;
        param->n = product(dimensions[e], shape);
        shape += dimensions[e];
        param->stored = stored[e];
        param->rows.count = -1;
        memcpy(param->storage, storage + e * FO_SLOTS, FO_SLOTS);
        while (param->slots < FO_SLOTS && param->storage[param->slots] >= 0)
            param->slots++;
        if (param->storage[SLOT_PARAM] != FO_FLOAT64)
            plan->runs[param->run].limit = fo_limit(FO_FLOAT32);
        param->first_block = plan->block_count;
        plan->block_count += (param->n + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK;
        elements += param->n;
        plan->state_count += param->slots - SLOT_STATE;
        plan->step_bytes += param_bytes(param);
        uint64_t gradient = fo_bytes(param->storage[SLOT_GRAD], param->n);
        plan->norm_bytes += (double)gradient;
        for (int slot = 0, read = SLOT_STATE + fo_rule_states(runs[param->run].rule); slot < read; slot++)
            plan->measure_bytes += (double)fo_bytes(param->storage[slot], param->n);
        if (gradient && gradient < plan->least_gradient)
            plan->least_gradient = gradient;
    }
    int64_t size = elements / ((int64_t)threads * 8);
    size = size < 8192 ? 8192 : size > 65536 ? 65536 : size;
    plan->chunk_count = cut(plan, size, 0, 0);
    plan->chunk_param = malloc((size_t)(plan->chunk_count + 1) * sizeof *plan->chunk_param);
    plan->chunk_start = malloc((size_t)(plan->chunk_count + 1) * sizeof *plan->chunk_start);
    plan->block_sums = malloc((size_t)(plan->block_count + 1) * FO_TERMS * sizeof *plan->block_sums);
    plan->tree = malloc((size_t)(plan->block_count + 1) * sizeof *plan->tree);
    if (!plan->chunk_param || !plan->chunk_start || !plan->block_sums || !plan->tree)
        goto failed;
    cut(plan, size, plan->chunk_param, plan->chunk_start);
    return plan;
failed:
    fo_plan_free(plan);
    return 0;
}

void fo_plan_free(fo_plan *plan)
{
    if (!plan)
        return;
    free(plan->runs), free(plan->params), free(plan->shapes), free(plan->written);
    free(plan->chunk_param), free(plan->chunk_start), free(plan->block_sums), free(plan->tree);
    free(plan);
}

typedef struct {
    fo_plan *plan;
    double grad_scale, k; /* of a norm */
    int64_t whole;        /* chunks of whole arrays, where there are rows besides */
} job;

/* Elements [start, stop) of a parameter belong to a chunk. */
static int64_t stop_of(const fo_plan *plan, int64_t chunk, int64_t e)
{
    return e == plan->chunk_param[chunk + 1] ? plan->chunk_start[chunk + 1] : plan->params[e].n;
}

static int64_t last_of(const fo_plan *plan, int64_t chunk)
{
    return plan->chunk_param[chunk + 1] - (plan->chunk_start[chunk + 1] == 0);
}

/* Whether every array of `after` begins where that of `before` ends (a packed model): one run of the kernel serves both. */
static int adjoins(const fo_param *before, const fo_param *after)
{
    if (before->run != after->run || before->storage[SLOT_PARAM] != after->storage[SLOT_PARAM] || before->stored.low ||
        after->stored.low || after->rows.count >= 0)
        return 0;
    for (int i = 0; i < before->slots; i++)
        if ((char *)before->data[i] + fo_bytes(before->storage[i], before->n) != after->data[i])
            return 0;
    return 1;
}

static void step_chunk(void *context, int64_t chunk)
{
    const job *j = context;
    const fo_plan *plan = j->plan;
    int64_t start = plan->chunk_start[chunk], last = last_of(plan, chunk);
    for (int64_t e = plan->chunk_param[chunk]; e <= last; e++, start = 0) {
        const fo_param *param = &plan->params[e];
        const fo_run *run = &plan->runs[param->run];
        if (param->rows.count >= 0)
            continue;
        if (param->stored.low) {
            fo_step_stored(param, run, start, stop_of(plan, chunk, e) - start);
            continue;
        }
        void *data[FO_SLOTS] = {0};
        for (int i = 0; i < param->slots; i++)
            data[i] = fo_address(param, i, start);
        int64_t n = stop_of(plan, chunk, e) - start;
        for (; e < last && adjoins(&plan->params[e], &plan->params[e + 1]); e++)
            n += stop_of(plan, chunk, e + 1);
        if (n > 0)
            fo_kernel_for(run->rule, param->storage[SLOT_PARAM])(run, n, data);
    }
}

static void norm_chunk(void *context, int64_t chunk)
{
    const job *j = context;
    const fo_plan *plan = j->plan;
    int64_t start = plan->chunk_start[chunk], last = last_of(plan, chunk);
    for (int64_t e = plan->chunk_param[chunk]; e <= last; e++, start = 0) {
        const fo_param *param = &plan->params[e];
        int storage = param->storage[SLOT_GRAD];
        if (param->rows.count >= 0)
            continue;
        int64_t n = stop_of(plan, chunk, e) - start;
        double *sums = plan->block_sums + param->first_block + start / FO_NORM_BLOCK;
        if (storage < FO_COMPUTE_TYPES)
            fo_square_kernel_for(storage)(j->grad_scale, j->k, n, fo_address(param, SLOT_GRAD, start), sums);
        else
            fo_squares_stored(param, j->grad_scale, j->k, start, n, sums);
    }
}

static void measure_chunk(void *context, int64_t chunk)
{
    const job *j = context;
    const fo_plan *plan = j->plan;
    int64_t start = plan->chunk_start[chunk], last = last_of(plan, chunk);
    for (int64_t e = plan->chunk_param[chunk]; e <= last; e++, start = 0) {
        const fo_param *param = &plan->params[e];
        const fo_run *run = &plan->runs[param->run];
        void *data[FO_KERNEL_SLOTS] = {0};
        for (int slot = 0; slot < SLOT_STATE + fo_rule_states(run->rule); slot++)
            data[slot] = fo_address(param, slot, start);
        fo_measure_for(run->rule, param->storage[SLOT_PARAM])(run, j->k, stop_of(plan, chunk, e) - start, data,
                                                              plan->block_sums + param->first_block + start / FO_NORM_BLOCK,
                                                              plan->block_count);
    }
}

/* The sum of `values` by the fixed tree; 0 for none. */
static double tree_sum(fo_plan *plan, const double *values, int64_t count)
{
    if (count == 0)
        return 0;
    fo_float_mode mode = fo_float_mode_set_default();
    double *tree = plan->tree;
    memcpy(tree, values, (size_t)count * sizeof *tree);
    for (int64_t n = count; n > 1; n = n / 2 + n % 2) {
        for (int64_t i = 0; i < n / 2; i++)
            tree[i] = tree[2 * i] + tree[2 * i + 1];
        if (n % 2)
            tree[n / 2] = tree[n - 1];
    }
    fo_float_mode_restore(mode);
    return tree[0];
}

void fo_plan_apply(fo_plan *plan)
{
    job j = {plan, 1.0, 1.0, 0};
    fo_pool_run(plan->step_pace, plan->threads, plan->step_bytes, plan->chunk_count, step_chunk, &j);
}

double fo_plan_rows_bytes(const fo_plan *plan)
{
    double bytes = 0;
    for (int64_t e = 0; e < plan->param_count; e++)
        bytes += plan->params[e].rows.count < 0 ? param_bytes(&plan->params[e]) : fo_rows_bytes(&plan->params[e]);
    return bytes;
}

/* Chunks of whole arrays, where some gradients are of rows: none, if all are. */
static int64_t whole_chunks(const fo_plan *plan)
{
    for (int64_t e = 0; e < plan->param_count; e++)
        if (plan->params[e].rows.count < 0)
            return plan->chunk_count;
    return 0;
}

/* The chunks of the plan come first where some gradient is a whole array, then those of the rows of each parameter. */
static void step_chunk_or_rows(void *context, int64_t chunk)
{
    const job *j = context;
    if (chunk < j->whole) {
        step_chunk(context, chunk);
        return;
    }
    chunk -= j->whole;
    const fo_param *param = j->plan->params;
    for (int64_t own; chunk >= (own = fo_rows_chunks(param)); param++)
        chunk -= own;
    fo_rows_step(param, &j->plan->runs[param->run], chunk);
}

void fo_plan_apply_rows(fo_plan *plan)
{
    job j = {plan, 1.0, 1.0, whole_chunks(plan)};
    int64_t chunks = 0;
    for (int64_t e = 0; e < plan->param_count; e++)
        chunks += fo_rows_chunks(&plan->params[e]);
    double bytes = fo_plan_rows_bytes(plan);
    for (int i = 0; i < 2 && plan->rows_bytes > 0; i++) /* what is known of a step is known of as much work as this */
        plan->rows_pace[i].serial_ns *= bytes / plan->rows_bytes;
    plan->rows_bytes = bytes;
    fo_pool_run(plan->rows_pace, plan->threads, bytes, j.whole + chunks, step_chunk_or_rows, &j);
}

double fo_plan_sum_squares(fo_plan *plan, double grad_scale, double k)
{
    job j = {plan, grad_scale, k, 0};
    fo_pool_run(plan->norm_pace, plan->threads, plan->norm_bytes, plan->chunk_count, norm_chunk, &j);
    return tree_sum(plan, plan->block_sums, plan->block_count);
}

/* As step_chunk_or_rows; the rows of a parameter are not parted. */
static void norm_chunk_or_rows(void *context, int64_t chunk)
{
    const job *j = context;
    if (chunk < j->whole) {
        norm_chunk(context, chunk);
        return;
    }
    const fo_param *param = &j->plan->params[chunk - j->whole];
    if (param->rows.count >= 0)
        fo_rows_squares(param, j->grad_scale, j->k, j->plan->block_sums + param->first_block);
}

double fo_plan_rows_squares(fo_plan *plan, double grad_scale, double k)
{
    job j = {plan, grad_scale, k, whole_chunks(plan)};
    fo_pool_run(plan->norm_pace, plan->threads, plan->norm_bytes, j.whole + plan->param_count, norm_chunk_or_rows, &j);
    return tree_sum(plan, plan->block_sums, plan->block_count);
}

int64_t fo_plan_measure(fo_plan *plan, double k, double *sums)
{
    job j = {plan, 1.0, k, 0};
    fo_pool_run(plan->norm_pace, plan->threads, plan->measure_bytes, plan->chunk_count, measure_chunk, &j);
    int64_t count = 0;
    for (int64_t e = 0; e < plan->param_count; e++) {
        const fo_param *param = &plan->params[e];
        const int64_t blocks = (param->n + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK;
        for (int32_t term = 0; term < fo_rule_terms(plan->runs[param->run].rule); term++)
            sums[count++] = tree_sum(plan, plan->block_sums + term * plan->block_count + param->first_block, blocks);
    }
    return count;
}
