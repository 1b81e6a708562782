/* Nonlinearities, entry by entry: what their driver (activation.c) hands to the kernel (activation_kernel.h). */
#ifndef SCANRL_ACTIVATION_H
#define SCANRL_ACTIVATION_H

#include "rows.h"

enum { RELU, GELU, SILU, TANH }; /* the driver knows GELU and SILU */

/* Rows of `channels` entries, (B, L, D); float32. */
typedef struct {
    int64_t kind, length, channels;
    Rows x, dy;        /* dy.at is NULL forward */
    float *out;        /* y, or the gradient of x */
    int64_t row, step; /* strides of `out` */
} Activation;

#endif
