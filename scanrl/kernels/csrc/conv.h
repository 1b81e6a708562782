/* The causal convolution: what its driver (conv.c) hands to the kernel (conv_kernel.h).
 *
 * Symbols: L tokens, D channels, w taps, M places in the step, each with its own taps. All numbers are float32.
 */
#ifndef SCANRL_CONV_H
#define SCANRL_CONV_H

#include "rows.h"

typedef struct {
    int64_t length, channels, places, window;
    int64_t silu;         /* y = silu(of what is above); only for whole vectors and kernels of one tile */
    Rows x;               /* (B, L, D) */
    Rows past;            /* (B, w-1, D), the tokens before x; past.at may be NULL: zeros */
    const float *kernel;  /* (M, w, D), oldest token first */
    const float *bias;    /* (M, D) */
    const int64_t *place; /* (B): that of each row's first token, taken modulo M; NULL: zeros */
} ConvInputs;

typedef struct {
    ConvInputs in;
    float *y; /* (B, L, D) */
} ConvForward;

typedef struct {
    ConvInputs in;
    Rows dy;
    float *dx;      /* (B, L, D) */
    int64_t dx_row, dx_step;
    float *dpast;   /* (B, w-1, D); NULL where there is no past */
    float *dkernel; /* (M, w, D): the rows of a slab add up here */
    float *dbias;   /* (M, D): likewise */
} ConvBackward;

#endif
