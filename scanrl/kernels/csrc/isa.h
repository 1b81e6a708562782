/* The table that every build of the kernels (kernel.h) fills, one build per instruction set. */
#ifndef SCANRL_ISA_H
#define SCANRL_ISA_H

#include "activation.h"
#include "conv.h"
#include "product.h"
#include "scan.h"
#include "step.h"

typedef struct {
    const char *name;
    int lanes, tile; /* channels per vector; states that the scan holds in registers at a time */
    int chains;      /* vectors that a round of rate_* computes */
    /* `lanes` channels of one row of the batch over all tokens; of dB, dC and dchannel it sees one part and adds. */
    void (*scan_forward)(const Forward *, int64_t row, int64_t block);
    void (*scan_carried)(const Forward *, int64_t row, int64_t block); /* where there is `carried` */
    void (*scan_backward)(const Backward *, int64_t row, int64_t block);
    /* Channels e to `end` of one row over all tokens; of dkernel and dbias it sees one part and adds. */
    void (*conv_forward)(const ConvForward *, int64_t row, int64_t e, int64_t end);
    void (*conv_backward)(const ConvBackward *, int64_t row, int64_t e, int64_t end);
    void (*activation)(const Activation *, int64_t first, int64_t end);
    int64_t panel; /* columns of B that a matrix product takes at a time */
    /* Copies panel number `panel` of `depth` rows of B; then rows m to `end` of C, over the same entries of K. */
    void (*product_panel)(const Product *, int64_t panel, int64_t k0, int64_t depth);
    void (*product_rows)(const Product *, int64_t m, int64_t end, int64_t k0, int64_t depth);
    /* The same with operands in bfloat16; NULL where there is no such form. */
    void (*half_panel)(const Product *, int64_t panel, int64_t k0, int64_t depth);
    void (*half_rows)(const Product *, int64_t m, int64_t end, int64_t k0, int64_t depth);
    /* Nothing but so many rounds of one operation. */
    float (*rate_exp2)(int64_t rounds, float a);
    float (*rate_fma)(int64_t rounds, float a);
    /* The whole program for some streams. */
    void (*step)(const StepBlock *);
} Kernel;

extern const Kernel scanrl_portable;
#if defined(__x86_64__)
extern const Kernel scanrl_avx2, scanrl_avx512;
#elif defined(__aarch64__)
extern const Kernel scanrl_neon;
#endif

#endif
