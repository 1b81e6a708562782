/* Matrix times rows, for the step. Included by step_kernel.h.
 *
 * A tile is n rows times c vectors of outputs, summed up in registers while the inputs go by: every weight is read once
 * for n rows. Each output is the same sum in the same order whatever n and c are, so a stream's results do not depend
 * on the streams beside it. Sums are carried on in memory every SPAN inputs: shorter sums round less, and the weights of
 * a span stay in the first-level cache for all rows.
 */
enum {
    SPAN = 128,
    AHEAD = 8, /* inputs whose weights are fetched in advance */
    TILE_ROWS = LANES == 16 ? 6 : 3, /* with a panel of outputs, all that registers hold */
};

INLINE vec broadcast(float x) { return (vec){0} + x; }

/* `steps` inputs from `from` on, to vectors v to v + c - 1. w: their weights; every panel is `panel` floats long. */
INLINE void linear_tile(const int n, const int c, const Row *rows, int64_t x_at, int64_t y_at, const float *w,
                        int64_t panel, const float *start, int64_t steps) {
    const int wide = c < PANEL ? c : PANEL;
    vec sum[TILE_ROWS][2 * PANEL];
    const float *x[TILE_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        x[r] = rows[r].at + x_at;
#pragma GCC unroll 8
        for (int j = 0; j < c; j++) sum[r][j] = (vec){0};
    }
    for (int64_t i = 0; i < steps; i++, w += wide * LANES) {
        if (c > PANEL) /* few rows wait for the weights: the third-level cache is slower than they are */
#pragma GCC unroll 8
            for (int j = 0; j < c; j++) __builtin_prefetch(w + j / PANEL * panel + (j % PANEL + AHEAD * PANEL) * LANES);
        if (n <= c) { /* what is fewer stays in registers */
            vec xs[TILE_ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < n; r++) xs[r] = broadcast(x[r][i]);
#pragma GCC unroll 8
            for (int j = 0; j < c; j++) {
                vec wj = load(w + j / PANEL * panel + j % PANEL * LANES, LANES);
#pragma GCC unroll 8
                for (int r = 0; r < n; r++) sum[r][j] += wj * xs[r];
            }
        } else {
            vec ws[2 * PANEL];
#pragma GCC unroll 8
            for (int j = 0; j < c; j++) ws[j] = load(w + j * LANES, LANES);
#pragma GCC unroll 8
            for (int r = 0; r < n; r++) {
                vec xr = broadcast(x[r][i]);
#pragma GCC unroll 8
                for (int j = 0; j < c; j++) sum[r][j] += ws[j] * xr;
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        float *y = rows[r].at + y_at;
        const float *before = start ? start : y;
#pragma GCC unroll 8
        for (int j = 0; j < c; j++) store(y + j * LANES, load(before + j * LANES, LANES) + sum[r][j], LANES);
    }
}

/* c vectors of outputs for all rows. */
INLINE void linear_panel(const int c, const Row *rows, int64_t count, int64_t x, int64_t inputs, int64_t y,
                         const float *w, const float *bias) {
    const int wide = c < PANEL ? c : PANEL;
    for (int64_t i = 0; i < inputs; i += SPAN) {
        int64_t steps = least(SPAN, inputs - i);
        const float *start = i ? NULL : bias, *weights = w + i * wide * LANES;
#define TILE_OF(n) linear_tile(n, c, rows + r, x + i, y, weights, inputs * wide * LANES, start, steps)
        for (int64_t r = 0, n; r < count; r += n) {
            n = least(count - r, c > PANEL ? 3 : TILE_ROWS);
            switch (n) {
                case 1: TILE_OF(1); break;
                case 2: TILE_OF(2); break;
                case 3: TILE_OF(3); break;
#if LANES == 16
                case 4: if (c <= PANEL) TILE_OF(4); break;
                case 5: if (c <= PANEL) TILE_OF(5); break;
                case 6: if (c <= PANEL) TILE_OF(6); break;
#endif
            }
        }
#undef TILE_OF
    }
}

static void step_linear(const StepBlock *b, const Instruction *code) {
    int64_t x = code->linear.x, y = code->linear.y, inputs = code->linear.inputs, count = b->row_count[code->rows];
    int64_t left = code->linear.width / LANES;
    const Row *rows = b->rows[code->rows];
    const float *w = b->step->weights + code->linear.weights, *bias = b->step->weights + code->linear.bias;
#define PANEL_OF(c)                                                        \
    do {                                                                   \
        linear_panel(c, rows, count, x, inputs, y, w, bias);               \
        w += inputs * (c) * LANES, bias += (c) * LANES, y += (c) * LANES, left -= c; \
    } while (0)
#if LANES == 16
    if (count <= 3) /* registers for two panels */
        while (left >= 2 * PANEL) PANEL_OF(2 * PANEL);
#endif
    while (left >= PANEL) PANEL_OF(PANEL);
    if (left >= 2) PANEL_OF(2);
    if (left) PANEL_OF(1);
#undef PANEL_OF
}
