/* The kernel for AVX2 with FMA: 8 channels per vector, 16 registers. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define TILE 4
#define KERNEL scanrl_avx2
#define ISA_NAME "avx2"
#include "kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
