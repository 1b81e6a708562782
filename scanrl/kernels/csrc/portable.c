/* The kernel for what every machine of the architecture has: SSE2, NEON. */
#define LANES 4
#define TILE 4
#define KERNEL scanrl_portable
#define ISA_NAME "portable"
#include "kernel.h"
