/* The kernel for every other machine, in vectors of 4 that the compiler maps to what there is (SSE2, scalars). */
#define LANES 4
#define TILE 4
#define KERNEL scanrl_portable
#define ISA_NAME "portable"
#include "kernel.h"
