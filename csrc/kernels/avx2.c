#include "kernels.h"

#ifdef FO_MANY_ISAS

#define WIDE __attribute__((target("avx2")))
#define NARROW WIDE
#define ISA(x) x##_avx2
#define AVX512 0
#include "kernels.inc"

#endif
