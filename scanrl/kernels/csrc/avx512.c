/* The kernel for AVX-512 (F, DQ, BW, VL): 16 channels per vector, 32 registers. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define LANES 16
#define TILE 8
#define KERNEL scanrl_avx512
#define ISA_NAME "avx512"
#include "kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
