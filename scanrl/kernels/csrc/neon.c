/* The kernel for NEON, which every 64-bit ARM has: 4 channels per vector. Beside the constants of the exponential, the 32
 * registers hold 4 states; with 8, the compiler needs as many instructions and more memory. */
#if defined(__aarch64__)
#define NEON
#define LANES 4
#define TILE 4
#define KERNEL scanrl_neon
#define ISA_NAME "neon"
#include "kernel.h"
#endif
