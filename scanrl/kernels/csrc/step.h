/* One environment step of a whole policy: a program of few instructions, run for a batch of streams.
 *
 * Every token of the step is a row with a register file of its own: `row_size` floats, in which instructions name their
 * operands by offset. So one instruction serves all rows, of one stream or of many, and reads its weights once for
 * several of them. Symbols: S streams, M tokens per step, T tokens of a stream in this call (M, or fewer where it
 * starts). Widths are padded to whole vectors; the padding of a register is 0 in, 0 out.
 *
 * What a stream carries is in two places. Its state, which begins with the number of its tokens so far, is small: who
 * has a copy of it can take the last step back. Its rings, the keys and values of attention, are large; they keep so
 * many tokens more than a window has that after a step taken back the next one still finds its whole window.
 */
#ifndef SCANRL_STEP_H
#define SCANRL_STEP_H

#include "activation.h"

enum {
    STREAMS = 16, /* most streams of a block: their rows share every weight that is read */
    PLACES = 4,   /* most tokens of a step */
    PANEL = 4,    /* vectors of outputs whose weights lie together */
};

/* Which rows an instruction works on: all, those at which the action is read, those of streams that do not start, or
 * those of place m: OF_PLACE + m. */
enum { ALL, LAST, GOING, OF_PLACE };

#define STEP_OPS(OP) \
    OP(read) OP(table) OP(linear) OP(norm) OP(activate) OP(copy) OP(add) OP(affine) \
    OP(conv) OP(window) OP(scan) OP(attend) OP(write) OP(argmax)

enum {
#define OP(name) STEP_##name,
    STEP_OPS(OP)
#undef OP
        STEP_COUNT
};

enum { FROM_ACTION, FROM_TIME, FROM_LAST_TIME };

enum { HEADER = 16 }; /* floats of a state before what instructions keep: the tokens so far (int64), then nothing */

/* x, y and other registers are offsets into a row; weights and biases into the weights; state into a stream's state.
 * Widths count floats and are whole vectors unless called `size`. An offset of -1 is: none. */
typedef struct {
    int64_t op, rows;
    union {
        /* y = (input - shift) / scale; `size` floats of the input `letter` */
        struct { int64_t letter, y, size, shift, scale; } read;
        /* y = row of the table: that of the last action, of the token's step in the episode, or of the step before */
        struct { int64_t source, y, width, count, weights; } table;
        /* y = W x + bias; W in panels of PANEL, then 2, then 1 vectors of outputs, each (inputs, outputs) */
        struct { int64_t x, inputs, y, width, weights, bias; } linear;
        /* y = LayerNorm(x) over `size` floats; eps stands behind the bias */
        struct { int64_t x, y, size, weight, bias, eps; } norm;
        struct { int64_t kind, y, width; } activate;
        struct { int64_t x, y, width; } copy;              /* y = x */
        struct { int64_t x, y, width; } add;               /* y += x */
        struct { int64_t y, width, scale, shift; } affine; /* y = y scale + shift */
        /* y_t = bias^m + sum_i kernel^m_i x_{t-w+1+i}; kernel (places, w, width); state (w-1, width): last inputs */
        struct { int64_t x, y, width, window, places, kernel, bias, state; } conv;
        /* y = x_{t-w+1} .. x_t, one after the other; state as in conv */
        struct { int64_t x, y, width, window, state; } window;
        /* The selective scan of `scan.h`. A: (blocks of channels, N, LANES), times log2(e). The state, in two floats
         * as `carry` has it: (blocks of channels, N, 2, LANES) */
        struct { int64_t u, dt, B, C, z, y, width, states, A, D, bias, state; } scan;
        /* Softmax attention over the last `window` tokens. Heads of `head` floats, `width` from each other. The ring
         * has room for window + M - 1 tokens, in whole vectors `slots`: keys (heads, slots / LANES, head, LANES),
         * values (window + M - 1, heads, width) */
        struct { int64_t q, k, v, y, scores, heads, head, width, window, slots, ring; } attend;
        struct { int64_t x, size; } write;  /* to the outputs */
        struct { int64_t x, size; } argmax; /* to the outputs, an integer */
        int64_t arguments[14];
    };
} Instruction;

typedef struct {
    float *at;
    int64_t stream, place;
    int64_t step;  /* index in its episode */
    int64_t index; /* in its stream: how many tokens there were before */
} Row;

typedef struct {
    const Row *rows;
    int64_t count;
    float *state, *ring;
} Stream;

enum { LETTERS = 5 }; /* R, s, a, r, z: a vector that is given, such as the token of a sub-goal */

/* The call: the program and what the environments gave. */
typedef struct {
    const Instruction *code;
    int64_t instructions, places, head; /* head: tokens up to the one at which the action is read */
    int64_t prefix;                     /* of them, those that a stream gets at its start only */
    int64_t row_size, state_size, ring_size; /* floats per row, per stream, per stream */
    const float *weights;
    const void *input[LETTERS]; /* (S, *) float32; the last action (S) int64 where it is a choice */
    int64_t width[LETTERS];     /* floats per stream */
    const uint8_t *first;       /* (S): streams that start; only their head tokens are fed */
    const int64_t *last, *now;  /* (S): index of the last step in its episode, of this step */
    const uint8_t *only;        /* (S): streams that make this step, the others stay as they are; NULL: all */
    float *state, *rings;       /* (S, state_size), (S, ring_size) */
    void *output;               /* (S, *) float32 or int64 */
    int64_t output_width;       /* floats per stream */
} Step;

/* Some of the streams, with their rows in every order that instructions want. */
typedef struct {
    const Step *step;
    Stream streams[STREAMS];
    int64_t count;
    const Row *rows[OF_PLACE + PLACES];
    int64_t row_count[OF_PLACE + PLACES];
} StepBlock;

#endif
