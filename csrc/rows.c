/* Gradients of some rows of a table: indices are checked and sorted, the values of each row added, and kernels run over the
 * rows that have some, in place. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* Gradients are added up, then kernels take them: so many bytes at a time, which stay in the nearest cache, whole blocks;
 * and so many stretches of rows that follow each other. Values are asked for so many rows before they are added. */
enum { ROOM = 8192, STRETCHES = 128, CHUNK = 16384, AHEAD = 16, DIGIT = 10, FEW = 512 };

void fo_rows_drop(fo_param *param)
{
    free(param->rows.memory);
    param->rows = (fo_rows){.count = -1};
}

/* Sorts by digits, from the lowest on, which keeps equal rows in their order; `spare` has room for as many pairs. Few rows are
 * sorted sooner by small digits, whose counts are added up for each. */
static void sort(fo_rows *rows, int64_t n, int64_t *spare)
{
    const int bits = rows->count < FEW ? 8 : DIGIT, digits = 1 << bits;
    int64_t *row = rows->row, *at = rows->at, *new_row = spare, *new_at = spare + rows->count, start[1 << DIGIT];
    for (int shift = 0; shift < 64 && (n - 1) >> shift; shift += bits) {
        memset(start, 0, digits * sizeof *start);
        for (int64_t i = 0; i < rows->count; i++)
            start[row[i] >> shift & (digits - 1)]++;
        for (int64_t k = 0, sum = 0, own; k < digits; k++, sum += own)
            own = start[k], start[k] = sum;
        for (int64_t i = 0; i < rows->count; i++) {
            int64_t to = start[row[i] >> shift & (digits - 1)]++;
            new_row[to] = row[i], new_at[to] = at[i];
        }
        rows->row = new_row, rows->at = new_at;
        new_row = row, new_at = at, row = rows->row, at = rows->at;
    }
}

int fo_rows_take(fo_param *param, int wide, const void *indices, const void *values, int64_t count)
{
    fo_rows *rows = &param->rows;
    int64_t n = param->shape[0], before = 0;
    int sorted = 1;
    void *memory = malloc(4 * (size_t)count * sizeof(int64_t) + 1);
    if (!memory)
        return 0;
    *rows = (fo_rows){count, n ? param->n / n : 0, values, 0, memory, (int64_t *)memory + count, memory};
    for (int64_t i = 0; i < count; i++) {
        int64_t row = wide ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
        if (row < 0 || row >= n)
            return 0;
        sorted &= row >= before;
        rows->row[i] = before = row, rows->at[i] = i;
    }
    if (!sorted)
        sort(rows, n, (int64_t *)memory + 2 * count);
    return 1;
}

int fo_rows_suit(const fo_param *param, const fo_run *run, int lazy)
{
    int scales = 0; /* of blocks, which rows must not share */
    for (int slot = 0; slot < param->slots; slot++)
        scales |= param->storage[slot] == FO_SCALES;
    if (run->decay != FO_DECAY_NONE || (scales && param->rows.length % FO_BLOCK))
        return 0;
    if (lazy || run->lazy)
        return 1;
    double sum = 0;
    double scale = run->scalars[0];
    int still = run->still && !scales && scale >= 0 && !signbit(scale); /* 0 times another is -0 or NaN */
    for (int i = 0; still && i < FO_COEFFICIENTS; i++) {
        still = !(run->ones >> i & 1) || run->scalars[2 + i] == 1;
        sum += run->above >> i & 1 ? run->scalars[2 + i] : 0;
    }
    return still && (!run->above || sum > 0);
}

double fo_rows_bytes(const fo_param *param)
{
    double touched = (double)param->rows.count * (double)param->rows.length, bytes = 0;
    for (int slot = 0; slot < param->slots; slot++) /* scales count as 4 / FO_BLOCK bytes */
        bytes += (slot == SLOT_GRAD ? 1.0 : 2.0) * (double)fo_bytes(param->storage[slot], FO_BLOCK) / FO_BLOCK;
    return bytes * touched;
}

/* How many indices make a chunk. */
static int64_t share(const fo_rows *rows)
{
    return rows->length < CHUNK ? CHUNK / rows->length : 1;
}

int64_t fo_rows_chunks(const fo_param *param)
{
    const fo_rows *rows = &param->rows;
    return rows->count > 0 && rows->length > 0 ? (rows->count - 1) / share(rows) + 1 : 0;
}

/* `n` sums of the values of one row, from an element on: from zero and in the order given, as numpy.add.at makes them. */
#define ADD_UP(T)                                                                                                      \
    static void add_up_##T(const fo_rows *rows, T *restrict sum, int64_t n, int64_t from, int64_t to, int64_t first)    \
    {                                                                                                                  \
        const T *x = (const T *)rows->values + rows->at[from] * rows->length + first;                                  \
        for (int64_t i = 0; i < n; i++)                                                                                \
            sum[i] = (T)0 + x[i];                                                                                      \
        while (++from < to) {                                                                                          \
            x = (const T *)rows->values + rows->at[from] * rows->length + first;                                       \
            for (int64_t i = 0; i < n; i++)                                                                            \
                sum[i] = sum[i] + x[i];                                                                                \
        }                                                                                                              \
    }
ADD_UP(float)
ADD_UP(double)

/* The same for elements of a size. */
static void add_up(const fo_rows *rows, int64_t size, void *sum, int64_t n, int64_t from, int64_t to, int64_t first)
{
    if (size == sizeof(double))
        add_up_double(rows, sum, n, from, to, first);
    else
        add_up_float(rows, sum, n, from, to, first);
}

/* Steps `n` elements from `start` on, with a gradient of their own. */
static void step_stretch(const fo_param *param, const fo_run *run, fo_kernel *kernel, int64_t start, int64_t n,
                         void *gradient)
{
    if (!kernel) {
        fo_param part = *param;
        for (int slot = 0; slot < param->slots; slot++)
            part.data[slot] = fo_address(param, slot, start);
        part.data[SLOT_GRAD] = gradient;
        part.stored.first += start;
        fo_step_stored(&part, run, 0, n);
        return;
    }
    void *data[FO_KERNEL_SLOTS];
    for (int slot = 0; slot < param->slots; slot++)
        data[slot] = fo_address(param, slot, start);
    data[SLOT_GRAD] = gradient;
    kernel(run, n, data);
}

/* Rows lie apart, and waiting for one after the other would take most of the time: memory is asked for ahead, values while
 * others are added up and what they change while others are stepped. gcc drops calls of a function that does nothing else,
 * unless it is inlined early. */
static inline __attribute__((always_inline)) void ask_for(const char *at, size_t bytes)
{
    const char *end = at + (bytes < ROOM ? bytes : ROOM);
    for (at -= (uintptr_t)at % 64; at < end; at += 64)
        __builtin_prefetch(at, 0, 2);
}

static inline __attribute__((always_inline)) void ask_for_values(const fo_rows *rows, int64_t size, int64_t i)
{
    if (i < rows->count)
        ask_for((const char *)rows->values + rows->at[i] * rows->length * size, (size_t)(rows->length * size));
}

static inline __attribute__((always_inline)) void ask_for_row(const fo_param *param, int64_t i)
{
    const fo_rows *rows = &param->rows;
    for (int slot = 0; i < rows->count && slot < param->slots; slot++)
        if (slot != SLOT_GRAD)
            ask_for(fo_address(param, slot, rows->row[i] * rows->length), fo_bytes(param->storage[slot], rows->length));
}

/* The first index that belongs to a chunk: the values of one row are not parted. */
static int64_t begin_of(const fo_rows *rows, int64_t chunk)
{
    int64_t i = chunk * share(rows);
    while (i > 0 && i < rows->count && rows->row[i] == rows->row[i - 1])
        i++;
    return i < rows->count ? i : rows->count;
}

/* Behind the last index of the same row. */
static int64_t end_of(const fo_rows *rows, int64_t i)
{
    const int64_t row = rows->row[i];
    while (++i < rows->count && rows->row[i] == row)
        ;
    return i;
}

void fo_rows_step(const fo_param *param, const fo_run *run, int64_t chunk)
{
    _Alignas(64) char sums[ROOM];
    struct {
        int64_t start, n;
        void *gradient;
    } stretch[STRETCHES];
    const fo_rows *rows = &param->rows;
    const int64_t size = (int64_t)fo_bytes(param->storage[SLOT_GRAD], 1), room = ROOM / size, to = begin_of(rows, chunk + 1);
    fo_kernel *kernel = param->stored.low ? 0 : fo_kernel_for(run->rule, param->storage[SLOT_PARAM]);
    int64_t i = begin_of(rows, chunk), first = 0;
    for (int64_t k = i; k < i + AHEAD; k++)
        ask_for_values(rows, size, k), ask_for_row(param, k);
    while (i < to) {
        int64_t count = 0, n = 0, part;
        for (; i < to && count < STRETCHES; n += part) {
            const int64_t start = rows->row[i] * rows->length + first, left = rows->length - first, next = end_of(rows, i);
            part = left < room ? left : room;
            if (n + part > room)
                break;
            ask_for_values(rows, size, i + AHEAD);
            add_up(rows, size, sums + n * size, part, i, next, first);
            if (count && stretch[count - 1].start + stretch[count - 1].n == start) {
                stretch[count - 1].n += part;
            } else {
                stretch[count].start = start, stretch[count].n = part;
                stretch[count++].gradient = sums + n * size;
            }
            first = part == left ? 0 : first + part;
            i = part == left ? next : i;
        }
        for (int64_t k = 0; k < count; k++) {
            ask_for_row(param, i + k);
            step_stretch(param, run, kernel, stretch[k].start, stretch[k].n, stretch[k].gradient);
        }
    }
}

/* Where a block of the norm has no gradient, zeros would be added to its sums. They are left out by whole rounds of the
 * lanes: every lane is given the numbers that it has in the whole block, in their order. */
void fo_rows_squares(const fo_param *param, double grad_scale, double k, double *sums)
{
    _Alignas(64) char block[FO_NORM_BLOCK * sizeof(double)];
    const fo_rows *rows = &param->rows;
    const int64_t size = (int64_t)fo_bytes(param->storage[SLOT_GRAD], 1);
    fo_square_kernel *squares = fo_square_kernel_for(param->storage[SLOT_GRAD]);
    memset(sums, 0, (size_t)((param->n + FO_NORM_BLOCK - 1) / FO_NORM_BLOCK) * sizeof *sums);
    int64_t number = -1, n = 0; /* which block is filled, and how far */
    for (int64_t i = 0, next; i < rows->count; i = next) {
        next = end_of(rows, i);
        for (int64_t first = 0, part; first < rows->length; first += part, n += part) {
            const int64_t place = rows->row[i] * rows->length + first, within = place % FO_NORM_BLOCK;
            const int64_t left = rows->length - first, room = FO_NORM_BLOCK - within;
            if (place / FO_NORM_BLOCK != number) {
                if (n)
                    squares(grad_scale, k, n, block, sums + number);
                number = place / FO_NORM_BLOCK, n = 0;
            }
            for (; n % FO_NORM_LANES != within % FO_NORM_LANES; n++)
                memset(block + n * size, 0, (size_t)size);
            part = left < room ? left : room;
            add_up(rows, size, block + n * size, part, i, next, first);
        }
    }
    if (n)
        squares(grad_scale, k, n, block, sums + number);
}
