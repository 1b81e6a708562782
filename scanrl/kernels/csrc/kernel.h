/* One build of the kernels. Included once per instruction set, with LANES (channels per vector), TILE (states in
 * registers), KERNEL (the name of the table) and ISA_NAME defined.
 */
#include "isa.h"
#include "lanes.h"

#include "activation_kernel.h"
#include "conv_kernel.h"
#include "product_kernel.h"
#include "rate_kernel.h"
#include "scan_kernel.h"
/* after scan_kernel.h, whose reading and writing it uses */
#include "carry_kernel.h"
#include "step_kernel.h"
#if LANES == 16 && (defined(__clang__) || __GNUC__ >= 10)
#define HAS_HALF
#include "half_kernel.h"
#endif

const Kernel KERNEL = {
    .name = ISA_NAME,
    .lanes = LANES,
    .tile = TILE,
    .chains = CHAINS,
    .scan_forward = scan_forward,
    .scan_carried = scan_carried,
    .scan_backward = scan_backward,
    .conv_forward = conv_forward,
    .conv_backward = conv_backward,
    .activation = activation,
    .panel = WIDTH * LANES,
    .product_panel = product_panel,
    .product_rows = product_rows,
#ifdef HAS_HALF
    .half_panel = half_panel,
    .half_rows = half_rows,
#endif
    .rate_exp2 = rate_exp2,
    .rate_fma = rate_fma,
    .step = step_block,
};
