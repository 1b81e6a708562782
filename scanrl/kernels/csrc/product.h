/* The matrix product: what its driver (product.c) hands to the kernel (product_kernel.h).
 *
 * C (M, N) = A (M, K) B (K, N), float32. An axis may be two in memory (batch and tokens), so that neither sequences
 * cut from wider ones nor overlapping windows have to be copied.
 */
#ifndef SCANRL_PRODUCT_H
#define SCANRL_PRODUCT_H

#include "rows.h"

/* Entry i of an axis lies at (i / inner) outer + (i % inner) step. */
typedef struct {
    int64_t inner, outer, step;
} Axis;

typedef struct {
    const float *at;
    Axis row, column;
} Matrix;

/* Entries of the sum over K between two visits to C: what of B a panel then holds stays in the second-level cache. */
enum { DEPTH = 256 };

/* Rows of C per task, a multiple of the height of every tile. */
enum { BLOCK = 48 };

typedef struct {
    int64_t m, n, k;
    Matrix a, b;
    float *c;
    Axis c_row;        /* columns of C are contiguous */
    const float *bias; /* (N) or NULL: zeros; what C starts from, unless `add` says from what is there */
    int64_t add;
    float *panels;     /* B, DEPTH rows at a time: panel after panel, and in it row after row */
    int64_t width;     /* columns of a panel */
} Product;

static inline int64_t along(const Axis *axis, int64_t i) {
    return i < axis->inner ? i * axis->step : i / axis->inner * axis->outer + i % axis->inner * axis->step;
}

#endif
