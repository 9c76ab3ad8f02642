/* Gradients of some rows of a table: indices are checked and sorted, the values of each row added, and kernels run over the
 * rows that have some, in place. */
#include "internal.h"

#include <stdlib.h>

void fo_rows_drop(fo_param *param)
{
    free(param->rows.memory);
    param->rows = (fo_rows){.count = -1};
}

/* Sorts by bytes, from the lowest on, which keeps equal rows in their order; `spare` has room for as many pairs. */
static void sort(fo_rows *rows, int64_t n, int64_t *spare)
{
    int64_t *row = rows->row, *at = rows->at, *new_row = spare, *new_at = spare + rows->count;
    for (int shift = 0; shift < 64 && (n - 1) >> shift; shift += 8) {
        int64_t start[256] = {0};
        for (int64_t i = 0; i < rows->count; i++)
            start[row[i] >> shift & 255]++;
        for (int64_t k = 0, sum = 0, own; k < 256; k++, sum += own)
            own = start[k], start[k] = sum;
        for (int64_t i = 0; i < rows->count; i++) {
            int64_t to = start[row[i] >> shift & 255]++;
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
    *rows = (fo_rows){count, n ? param->n / n : 0, values, memory, (int64_t *)memory + count, memory};
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

/* Gradients that are added up before a kernel takes them lie in the nearest cache: so many bytes, whole blocks. */
enum { ROOM = 8192, CHUNK = 16384, ROWS_AHEAD = 6, LINES_AHEAD = 8 };

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

/* `n` sums of values of one row, from an element on: from zero and in the order given, as numpy.add.at makes them. */
#define ADD_UP(T)                                                                                                      \
    static void add_up_##T(T *restrict sum, const T *values, int64_t n, const fo_rows *rows, int64_t from, int64_t to, \
                           int64_t first)                                                                              \
    {                                                                                                                  \
        const T *x = values + rows->at[from] * rows->length + first;                                                   \
        for (int64_t i = 0; i < n; i++)                                                                                \
            sum[i] = (T)0 + x[i];                                                                                      \
        while (++from < to) {                                                                                          \
            x = values + rows->at[from] * rows->length + first;                                                        \
            for (int64_t i = 0; i < n; i++)                                                                            \
                sum[i] = sum[i] + x[i];                                                                                \
        }                                                                                                              \
    }
ADD_UP(float)
ADD_UP(double)

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

/* Asks for the memory of a row that will be stepped soon. gcc drops calls of a function that does nothing else, unless it is
 * inlined early. */
static inline __attribute__((always_inline)) void ask_for(const fo_param *param, int64_t i)
{
    const fo_rows *rows = &param->rows;
    for (int slot = 0; slot < param->slots; slot++) {
        int64_t row = slot == SLOT_GRAD ? rows->at[i] : rows->row[i];
        size_t bytes = fo_bytes(param->storage[slot], rows->length);
        const char *at = fo_address(param, slot, row * rows->length);
        for (size_t line = 0; line < bytes && line < LINES_AHEAD * 64; line += 64)
            __builtin_prefetch(at + line, 1);
    }
}

/* The first index that belongs to a chunk: the values of one row are not parted. */
static int64_t begin_of(const fo_rows *rows, int64_t chunk)
{
    int64_t i = chunk * share(rows);
    while (i > 0 && i < rows->count && rows->row[i] == rows->row[i - 1])
        i++;
    return i < rows->count ? i : rows->count;
}

void fo_rows_step(const fo_param *param, const fo_run *run, int64_t chunk)
{
    _Alignas(64) union {
        float of_float[ROOM / sizeof(float)];
        double of_double[ROOM / sizeof(double)];
    } sums;
    const fo_rows *rows = &param->rows;
    const int wide = param->storage[SLOT_GRAD] == FO_FLOAT64;
    const int64_t room = ROOM / (int64_t)(wide ? sizeof(double) : sizeof(float)), to = begin_of(rows, chunk + 1);
    fo_kernel *kernel = param->stored.low ? 0 : fo_kernel_for(run->rule, param->storage[SLOT_PARAM]);
    int64_t start = 0, n = 0; /* what is added up and not yet stepped: rows that follow each other */
    for (int64_t i = begin_of(rows, chunk), next; i < to; i = next) {
        for (next = i + 1; next < to && rows->row[next] == rows->row[i];)
            next++;
        if (next + ROWS_AHEAD < to)
            ask_for(param, next + ROWS_AHEAD);
        for (int64_t first = 0, part; first < rows->length; first += part, n += part) {
            int64_t place = rows->row[i] * rows->length + first;
            if (n && (n == room || place != start + n)) {
                step_stretch(param, run, kernel, start, n, &sums);
                n = 0;
            }
            if (!n)
                start = place;
            part = rows->length - first < room - n ? rows->length - first : room - n;
            if (wide)
                add_up_double(sums.of_double + n, rows->values, part, rows, i, next, first);
            else
                add_up_float(sums.of_float + n, rows->values, part, rows, i, next, first);
        }
    }
    if (n)
        step_stretch(param, run, kernel, start, n, &sums);
}
