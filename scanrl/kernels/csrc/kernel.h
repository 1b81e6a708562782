/* One build of the kernels. Included once per instruction set, with LANES (channels per vector), TILE (states in
 * registers), KERNEL (the name of the table) and ISA_NAME defined.
 */
#include "isa.h"
#include "lanes.h"

#include "conv_kernel.h"
#include "rate_kernel.h"
#include "scan_kernel.h"
/* after scan_kernel.h, whose reading and writing it uses */
#include "carry_kernel.h"
#include "step_kernel.h"

const Kernel KERNEL = {
    ISA_NAME, LANES, TILE, CHAINS, scan_forward, scan_carried, scan_backward, conv_forward, conv_backward, rate_exp2,
    rate_fma, step_block,
};
