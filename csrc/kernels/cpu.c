/* What this processor can do, and the floating-point mode of a thread. */
#include "internal.h"

enum { BASELINE, AVX2, AVX512 };

int32_t fo_x86_isa(uint32_t max_leaf, uint32_t leaf1_ecx, uint32_t leaf7_ebx, uint64_t xcr0)
{
    const uint32_t osxsave = 1u << 27, avx = 1u << 28;                                 /* leaf 1, ecx */
    const uint32_t avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* leaf 7, ebx: f, dq, bw, vl */
    const uint64_t ymm = 0x6, zmm = 0xe6; /* registers that the operating system saves */
    if (max_leaf < 7 || !(leaf1_ecx & osxsave) || !(leaf1_ecx & avx) || !(leaf7_ebx & avx2) || (xcr0 & ymm) != ymm)
        return BASELINE;
    if ((leaf7_ebx & avx512) != avx512 || (xcr0 & zmm) != zmm)
        return AVX2;
    return AVX512;
}

#if defined(__x86_64__)

#if defined(FO_BASELINE) /* nothing else was compiled */

int32_t fo_cpu_isa(void) { return BASELINE; }

#else

#include <cpuid.h>
#include <stdatomic.h>

static int32_t ask_cpu(void)
{
    uint32_t a, b, c, d, max_leaf = __get_cpuid_max(0, 0), leaf1_ecx = 0, leaf7_ebx = 0, low = 0, high = 0;
    if (max_leaf >= 1) {
        __cpuid(1, a, b, c, d);
        leaf1_ecx = c;
    }
    if (max_leaf >= 7) {
        __cpuid_count(7, 0, a, b, c, d);
        leaf7_ebx = b;
    }
    if (leaf1_ecx & 1u << 27)
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return fo_x86_isa(max_leaf, leaf1_ecx, leaf7_ebx, (uint64_t)high << 32 | low);
}

int32_t fo_cpu_isa(void)
{
    static _Atomic int32_t known = -1; /* threads that ask at once all find the same */
    int32_t isa = atomic_load_explicit(&known, memory_order_relaxed);
    if (isa < 0) {
        isa = ask_cpu();
        atomic_store_explicit(&known, isa, memory_order_relaxed);
    }
    return isa;
}

#endif

fo_float_mode fo_float_mode_set_default(void)
{
    fo_float_mode mode = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    return mode;
}

void fo_float_mode_restore(fo_float_mode mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }

int fo_rounds_to_nearest(void) { return !(__builtin_ia32_stmxcsr() & 0x6000); }

#elif defined(__aarch64__)

int32_t fo_cpu_isa(void) { return BASELINE; }

fo_float_mode fo_float_mode_set_default(void)
{
    fo_float_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return mode;
}

void fo_float_mode_restore(fo_float_mode mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode)); }

int fo_rounds_to_nearest(void)
{
    fo_float_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return !(mode & (uint64_t)3 << 22);
}

#else

int32_t fo_cpu_isa(void) { return BASELINE; }

fo_float_mode fo_float_mode_set_default(void) { return 0; }

void fo_float_mode_restore(fo_float_mode mode) { (void)mode; }

int fo_rounds_to_nearest(void) { return 1; }

#endif
