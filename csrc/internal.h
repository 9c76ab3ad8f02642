/* What the C files share beyond the public interface. */
#ifndef FASTOPTIM_INTERNAL_H
#define FASTOPTIM_INTERNAL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "fastoptim.h"

enum { FO_FLOAT32, FO_FLOAT64, FO_COMPUTE_TYPES, FO_BFLOAT16 = FO_COMPUTE_TYPES, FO_FLOAT16, FO_FLOAT8, FO_SCALES, FO_STORAGE_TYPES };
enum { FO_BLOCK = 128 }; /* elements of a float8 array that share a scale */
enum { FO_DECAY_NONE, FO_DECAY_COUPLED, FO_DECAY_DECOUPLED };
enum { FO_NORM_BLOCK = 4096, FO_NORM_LANES = 16 };
enum { FO_TERMS = 2 }; /* that a measure may have */
/* A kernel knows FO_KERNEL_SLOTS; a parameter may have scales of its states and a master copy besides. */
enum { FO_STATES = 4, FO_COEFFICIENTS = 16, SLOT_PARAM = 0, SLOT_GRAD = 1, SLOT_STATE = 2 };
enum { FO_KERNEL_SLOTS = SLOT_STATE + FO_STATES, FO_SLOTS = FO_KERNEL_SLOTS + FO_STATES + 1 };

/* Bytes of `n` elements, of all or of as many from the beginning as make whole blocks. */
static inline size_t fo_bytes(int storage, int64_t n)
{
    static const size_t size[FO_SCALES] = {4, 8, 2, 2, 1};
    return storage == FO_SCALES ? (size_t)((n + FO_BLOCK - 1) / FO_BLOCK) * 4 : (size_t)n * size[storage];
}

/* Where element `start` of a parameter's slot lies. */
static inline void *fo_address(const fo_param *param, int slot, int64_t start)
{
    return (char *)param->data[slot] + fo_bytes(param->storage[slot], start);
}

/* The least number that rounds to infinity in the type that a parameter stored so is computed in. */
static inline double fo_limit(int storage)
{
    return storage == FO_FLOAT64 ? HUGE_VAL : 0x1.ffffffp127;
}

/* kernels.c: `n` elements of one parameter. `data` holds the addresses of the slots; all are of the compute type. */
typedef void fo_kernel(const fo_run *run, int64_t n, void *const *data);
fo_kernel *fo_kernel_for(int32_t rule, int compute);

/* Sums of (k * (grad_scale * g))**2, one for each block of FO_NORM_BLOCK elements, in the fixed order. */
typedef void fo_square_kernel(double grad_scale, double k, int64_t n, const void *g, double *sums);
fo_square_kernel *fo_square_kernel_for(int storage);

/* The same of each term of a measure; those of the second one are `stride` numbers behind those of the first. */
typedef void fo_measure(const fo_run *run, double k, int64_t n, void *const *data, double *sums, int64_t stride);
fo_measure *fo_measure_for(int32_t rule, int compute);

/* A stretch of a slot of fewer bits: `n` elements, of which the first has the number `first`; where there are blocks, from
 * the beginning of one. `square`: they are roots, of which `x` has the squares. */
typedef struct {
    int64_t n;
    void *codes;
    float *scales;
    int square;
    uint32_t key, first;
} fo_stretch;
typedef void fo_decoder(const fo_stretch *from, float *x);
typedef void fo_encoder(const fo_stretch *to, const float *x);
fo_decoder *fo_decoder_for(int storage);
fo_encoder *fo_encoder_for(int storage, int nearest);

/* A kernel in float32 that decodes and encodes as it goes, with dithers: the keys of the slots, the number of the first
 * element. `data` goes on with the scales of float8 states, whose `n` makes whole blocks. 0 if there is none for a rule whose
 * parameter and gradient are stored `wide` and whose states are stored `narrow`. */
typedef void fo_narrow_kernel(const fo_run *run, int64_t n, void *const *data, const uint32_t *key, uint32_t first);
fo_narrow_kernel *fo_narrow_kernel_for(int32_t rule, int wide, int narrow);

/* stored.c: a kernel in float32 over `n` elements from `start` on of a parameter with slots of fewer bits; and the sums of
 * squares of its gradient, as above. */
void fo_step_stored(const fo_param *param, const fo_run *run, int64_t start, int64_t n);
void fo_squares_stored(const fo_param *param, double grad_scale, double k, int64_t start, int64_t n, double *sums);

/* rows.c: copies and sorts `count` indices, int64 if `wide`, else int32; 0 without memory, or if one is not below the number of
 * the parameter's rows. fo_rows_drop gives back what they take, and lets the gradient be a whole array again. */
int fo_rows_take(fo_param *param, int wide, const void *indices, const void *values, int64_t count);
void fo_rows_drop(fo_param *param);
/* Steps what a chunk has of them, and the traffic and the number of chunks of the whole. */
void fo_rows_step(const fo_param *param, const fo_run *run, int64_t chunk);
double fo_rows_bytes(const fo_param *param);
int64_t fo_rows_chunks(const fo_param *param);
/* Whether a step of such a run, whose scalars are known, may have them; `lazy` if other rows are to stay as they are. */
int fo_rows_suit(const fo_param *param, const fo_run *run, int lazy);
/* The sums of squares of the whole gradient, as those of a kernel for squares. */
void fo_rows_squares(const fo_param *param, double grad_scale, double k, double *sums);
/* plan.c: as fo_plan_apply and fo_plan_sum_squares, where some gradients are of rows. */
void fo_plan_apply_rows(fo_plan *plan);
double fo_plan_rows_squares(fo_plan *plan, double grad_scale, double k);
double fo_plan_rows_bytes(const fo_plan *plan);

/* Jobs that follow each other within this time are a burst: workers spin for it, and pace.c judges them apart. */
enum { FO_BURST_NS = 200000 };

/* cpu.c: what coefficients, which the caller computes, rely on. */
int fo_rounds_to_nearest(void);

/* pool.c: calls task(context, i) for every i below `count`, on up to `threads` threads, each in the default float mode.
 * `bytes` is the traffic of the whole; pace[0] is what is known of the job after idle times, pace[1] in bursts. */
void fo_pool_run(fo_pace pace[2], int threads, double bytes, int64_t count, void (*task)(void *context, int64_t i),
                 void *context);

#endif
