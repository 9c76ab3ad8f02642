/* What the C files share beyond the public interface. */
#ifndef FASTOPTIM_INTERNAL_H
#define FASTOPTIM_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "fastoptim.h"

enum { FO_FLOAT32, FO_FLOAT64, FO_STORAGE_TYPES };
enum { FO_DECAY_NONE, FO_DECAY_COUPLED, FO_DECAY_DECOUPLED };
enum { FO_NORM_BLOCK = 4096, FO_NORM_LANES = 16 };
enum { FO_STATES = 4, FO_COEFFICIENTS = 16, SLOT_PARAM = 0, SLOT_GRAD = 1, SLOT_STATE = 2, FO_SLOTS = SLOT_STATE + FO_STATES };

static inline size_t fo_storage_size(int storage) { return storage == FO_FLOAT64 ? 8 : 4; }

/* kernels.c: `n` elements of one parameter. `data` holds the addresses of the slots; all have one storage type. */
typedef void fo_kernel(const fo_run *run, int64_t n, void *const *data);
fo_kernel *fo_kernel_for(int32_t rule, int storage);

/* Sums of (k * (grad_scale * g))**2, one for each block of FO_NORM_BLOCK elements, in the fixed order. */
typedef void fo_square_kernel(double grad_scale, double k, int64_t n, const void *g, double *sums);
fo_square_kernel *fo_square_kernel_for(int storage);

/* Jobs that follow each other within this time are a burst: workers spin for it, and pace.c judges them apart. */
enum { FO_BURST_NS = 200000 };

/* cpu.c: what coefficients, which the caller computes, rely on. */
int fo_rounds_to_nearest(void);

/* pool.c: calls task(context, i) for every i below `count`, on up to `threads` threads, each in the default float mode.
 * `bytes` is the traffic of the whole; pace[0] is what is known of the job after idle times, pace[1] in bursts. */
void fo_pool_run(fo_pace pace[2], int threads, double bytes, int64_t count, void (*task)(void *context, int64_t i),
                 void *context);

#endif
