/* The kernel for NEON, which every 64-bit ARM has: 4 channels per vector, 32 registers. */
#if defined(__aarch64__)
#define NEON
#define LANES 4
#define TILE 8
#define KERNEL scanrl_neon
#define ISA_NAME "neon"
#include "kernel.h"
#endif
