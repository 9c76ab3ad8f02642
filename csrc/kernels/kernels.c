/* The kernels that every machine runs, and the choice among those of its instruction sets. */
#include "kernels.h"

#include <stdatomic.h>

#define WIDE
#define NARROW
#ifdef FO_MANY_ISAS
#define ISA(x) x##_baseline
#else
#define ISA(x) x##_only
#endif
#define AVX512 0
#include "kernels.inc"

#ifdef FO_MANY_ISAS
static const struct kernels *const kernels_by_isa[] = {&fo_kernels_baseline, &fo_kernels_avx2, &fo_kernels_avx512};
static const char *const isa_names[] = {"baseline", "avx2", "avx512", 0};
#else
static const struct kernels *const kernels_by_isa[] = {&fo_kernels_only};
#ifdef __aarch64__
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
