/* The selective scan: what its driver (scan.c) hands to the kernel (scan_kernel.h).
 *
 * Symbols: L tokens, E channels, N states per channel. All numbers are float32.
 * The state of one row is stored as (N, E): neighbouring channels fill a vector, whatever N is.
 */
#ifndef SCANRL_SCAN_H
#define SCANRL_SCAN_H

#include "rows.h"

/* Steps between two stored states. The backward pass recomputes this many steps at a time. */
enum { CHUNK = 16 };

typedef struct {
    int64_t length, channels, states, softplus;
    Rows u, dt, z;         /* (B, L, E); z.at may be NULL: no gate */
    Rows B, C;             /* (B, L, N) */
    const float *A;        /* (N, E), times log2(e) */
    const float *D, *bias; /* (E) or NULL */
    const float *h0;       /* (B, N, E) or NULL: zeros */
} Inputs;

typedef struct {
    Inputs in;
    float *y;           /* (B, L, E) */
    float *h;           /* (B, N, E): the running state, at the end the last one */
    float *checkpoints; /* (B, chunks, N, E): the state before every chunk; NULL: not wanted */
    double *carried;    /* (B, N, E): the running state instead of h0, h and checkpoints; NULL: those */
} Forward;

typedef struct {
    Inputs in;
    const float *checkpoints;
    Rows dy;
    const float *dh_last; /* (B, N, E) or NULL */
    float *du, *ddt, *dz; /* (B, L, E); dz may be NULL; du may be what dy is, and ddt what dt is */
    int64_t dz_row, dz_step;
    float *dB, *dC;       /* (groups, B, L, padded N): channels add up here */
    float *dchannel;      /* (slabs, N + 2, E): rows of the batch add up dA (N), dD, dbias here */
    float *dh;            /* (B, N, E): the running gradient of the state, at the end that of h0 */
} Backward;

#endif
