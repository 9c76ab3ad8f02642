/* Every kernel: the loops of loops.inc, compiled for each rule, compute type and instruction set. */
#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "this compiler computes in wider types than it is told to, so bits would differ: see EXACT in build_ffi.py"
#endif

#include "internal.h"
#include "rule_table.h"

#include <math.h>
#include <stdatomic.h>
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

#define WIDE
#define NARROW
#define ISA(x) x##_baseline
#define AVX512 0
#include "kernels.inc"

#define WIDE __attribute__((target("avx2")))
#define NARROW WIDE
#define ISA(x) x##_avx2
#define AVX512 0
#include "kernels.inc"

#if defined(__clang__)
#define NARROW __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"), min_vector_width(256)))
#define WIDE __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"), min_vector_width(512)))
#else
#define NARROW __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=256")))
#define WIDE __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")))
#endif
#define ISA(x) x##_avx512
#define AVX512 1
#include "kernels.inc"

static const struct kernels *const kernels_by_isa[] = {&kernels_baseline, &kernels_avx2, &kernels_avx512};
static const char *const isa_names[] = {"baseline", "avx2", "avx512", 0};

#else

#define WIDE
#define NARROW
#define ISA(x) x##_only
#define AVX512 0
#include "kernels.inc"

static const struct kernels *const kernels_by_isa[] = {&kernels_only};
#if defined(__aarch64__)
static const char *const isa_names[] = {"neon", 0};
#else
static const char *const isa_names[] = {"baseline", 0};
#endif

#endif

static _Atomic int32_t selected = -1; /* the machine's best, unless one was chosen */

int32_t fo_isa_selected(void)
{
    int32_t isa = atomic_load_explicit(&selected, memory_order_relaxed);
    return isa < 0 ? fo_cpu_isa() : isa;
}

int fo_isa_select(int32_t isa)
{
    if (isa < 0 || isa > fo_cpu_isa())
        return 0;
    atomic_store_explicit(&selected, isa, memory_order_relaxed);
    return 1;
}

const char *fo_isa_name(int32_t isa)
{
    return isa >= 0 && isa < (int32_t)(sizeof isa_names / sizeof *isa_names) ? isa_names[isa] : 0;
}

static const struct kernels *chosen(void) { return kernels_by_isa[fo_isa_selected()]; }

fo_kernel *fo_kernel_for(int32_t rule, int compute) { return chosen()->rules[rule][compute]; }

fo_narrow_kernel *fo_narrow_kernel_for(int32_t rule, int wide, int narrow)
{
    return wide == FO_FLOAT32 || wide == FO_BFLOAT16 ? chosen()->narrow[rule][wide == FO_BFLOAT16][narrow] : 0;
}

fo_measure *fo_measure_for(int32_t rule, int compute) { return chosen()->measures[rule - STEP_COUNT][compute]; }

fo_square_kernel *fo_square_kernel_for(int storage) { return chosen()->squares[storage]; }

fo_decoder *fo_decoder_for(int storage) { return chosen()->decoders[storage]; }

fo_encoder *fo_encoder_for(int storage, int nearest) { return chosen()->encoders[storage][nearest]; }

static const struct {
    const char *name;
    int32_t states, coefficients, terms;
} rule_table[RULE_COUNT] = {
#define ROW(rule, states, coefficients, gives, decays, vectors) {#rule, states, coefficients, 0},
    FO_RULES(ROW) FO_ROOFLINES(ROW)
#undef ROW
#define ROW(rule, states, coefficients, terms, decays, vectors) {#rule, states, coefficients, terms},
    FO_MEASURES(ROW)
#undef ROW
};

const char *fo_rule_name(int32_t rule) { return rule >= 0 && rule < RULE_COUNT ? rule_table[rule].name : 0; }

int32_t fo_rule_states(int32_t rule) { return rule_table[rule].states; }

int32_t fo_rule_coefficients(int32_t rule) { return rule_table[rule].coefficients; }

int32_t fo_rule_terms(int32_t rule) { return rule_table[rule].terms; }

const char *fo_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
