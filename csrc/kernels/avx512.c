#include "kernels.h"

#ifdef FO_MANY_ISAS

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

#endif
