/* What the scan and the convolution read: sequences of channels, float32. */
#ifndef SCANRL_ROWS_H
#define SCANRL_ROWS_H

#include <stddef.h>
#include <stdint.h>

/* A (B, L, *) array whose last axis is contiguous; strides count elements. */
typedef struct {
    const float *at;
    int64_t row, step;
} Rows;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
