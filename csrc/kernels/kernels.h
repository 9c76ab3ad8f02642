/* What the kernels of every instruction set are made of; kernels.inc makes those of one. A file each, so that two compilers
 * may work at a time. */
#ifndef FO_KERNELS_H
#define FO_KERNELS_H

#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "this compiler computes in wider types than it is told to, so bits would differ: see EXACT in build_ffi.py"
#endif

#include "internal.h"
#include "rule_table.h"

#include <math.h>
#include <string.h>

/* The loops of roofline.h, with the columns of rule_table.h. */
#define FO_ROOFLINES(X)                                                                                                \
    X(roof0, 0, 0, ROOF, NO_DECAY, NARROW)                                                                             \
    X(roof1, 1, 0, ROOF, NO_DECAY, WIDE)                                                                               \
    X(roof2, 2, 0, ROOF, NO_DECAY, WIDE)                                                                               \
    X(roof3, 3, 0, ROOF, NO_DECAY, WIDE)                                                                               \
    X(roof4, 4, 0, ROOF, NO_DECAY, WIDE)                                                                               \
    X(root_and_divide, 0, 0, ROOF, NO_DECAY, WIDE)

enum { STEP, PARAMETER, ROOF }; /* ROOF gives a parameter, too, and leaves memory to the processor */
enum { NO_DECAY, INSIDE = 1, APART = 2, ANY_DECAY = INSIDE | APART };

#define INLINE static inline __attribute__((always_inline))

/* Of arrays that lie beyond the second cache, stretches are asked for some way ahead. Left to itself, a Xeon with AVX-512
 * took 1.15 times as long for a step of Adam; in nearer caches, asking costs a few percent. All in elements. */
enum { FO_FAR = 16384, FO_STRETCH = 64, FO_AHEAD = 512 };

/* Asks for the stretch ahead of element `i` of an array; where that ends before, nothing comes of it. */
INLINE void fetch(const void *x, int64_t i, size_t size)
{
    for (size_t at = 0; at < FO_STRETCH * size; at += 64)
        __builtin_prefetch((const void *)((uintptr_t)x + ((size_t)i + FO_AHEAD) * size + at));
}

typedef double fo_four_doubles __attribute__((vector_size(4 * sizeof(double))));
typedef double fo_eight_doubles __attribute__((vector_size(8 * sizeof(double))));

#define T float
#define SQRT sqrtf
#define NAME(x) x##_float
#define RULE(x) INLINE T NAME(x)
#include "loops.inc"
#undef T
#undef SQRT
#undef NAME

#define T double
#define SQRT sqrt
#define NAME(x) x##_double
#include "loops.inc"

#include "codecs.inc"

#define NUMBER(rule, ...) RULE_##rule,
enum { FO_RULES(NUMBER) FO_ROOFLINES(NUMBER) STEP_COUNT, LAST_STEP = STEP_COUNT - 1, FO_MEASURES(NUMBER) RULE_COUNT };
#undef NUMBER

struct kernels {
    fo_kernel *rules[STEP_COUNT][FO_COMPUTE_TYPES];
    fo_narrow_kernel *narrow[STEP_COUNT][2][FO_SCALES]; /* parameters in float32, in bfloat16 */
    fo_measure *measures[RULE_COUNT - STEP_COUNT][FO_COMPUTE_TYPES];
    fo_square_kernel *squares[FO_COMPUTE_TYPES];
    fo_decoder *decoders[FO_SCALES];
    fo_encoder *encoders[FO_SCALES][2]; /* stochastic, to nearest */
};

#if defined(__x86_64__) && !defined(FO_BASELINE)
#define FO_MANY_ISAS
extern const struct kernels fo_kernels_baseline, fo_kernels_avx2, fo_kernels_avx512;
#else
extern const struct kernels fo_kernels_only;
#endif

#endif
