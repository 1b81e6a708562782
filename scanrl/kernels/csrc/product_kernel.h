/* The matrix product for some rows of C. Included by kernel.h.
 *
 * A tile of HEIGHT rows and up to WIDTH vectors of C stays in registers while the sum runs over DEPTH entries of K: per
 * entry it loads a row of a panel of B and HEIGHT numbers of A. Panels are copies of B, padded with zeros, so that only
 * storing has to know where C ends. What limits it is multiply-adds.
 */

enum { HEIGHT = 6, WIDTH = LANES == 16 ? 4 : 2 };

/* One panel of B: `depth` rows from k0 on, the columns from n on. */
static void product_panel(const Product *p, int64_t panel, int64_t k0, int64_t depth) {
    int64_t n = panel * p->width, columns = least(p->width, p->n - n);
    float *to = p->panels + panel * p->width * least(DEPTH, p->k);
    if (p->b.column.step == 1 && n + columns <= p->b.column.inner) {
        for (int64_t k = 0; k < depth; k++, to += p->width) {
            memcpy(to, p->b.at + along(&p->b.row, k0 + k) + n, (size_t)columns * sizeof *to);
            memset(to + columns, 0, (size_t)(p->width - columns) * sizeof *to);
        }
        return;
    }
    for (int64_t j = 0; j < p->width; j++) {
        const float *from = p->b.at + along(&p->b.column, n + j);
        if (j >= columns)
            for (int64_t k = 0; k < depth; k++) to[k * p->width + j] = 0.0f;
        else if (k0 + depth <= p->b.row.inner)
            for (int64_t k = 0; k < depth; k++) to[k * p->width + j] = from[(k0 + k) * p->b.row.step];
        else
            for (int64_t k = 0; k < depth; k++) to[k * p->width + j] = from[along(&p->b.row, k0 + k)];
    }
}

/* `rows` times `vectors` of C: a[i] + k a_step is what row i multiplies row k of the panel with. */
INLINE void product_tile(const int rows, const int vectors, const Product *p, const float *const *a, int64_t a_step,
                         const float *b, int64_t depth, int64_t m, int64_t n, int first) {
    const float *row[HEIGHT];
    vec sum[HEIGHT][WIDTH];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        row[i] = a[i];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[i][j] = (vec){0};
    }
    for (int64_t k = 0, at = 0; k < depth; k++, at += a_step, b += p->width) {
        vec right[WIDTH];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) right[j] = load(b + j * LANES, LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            vec left = (vec){0} + row[i][at];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[i][j] += left * right[j];
        }
    }
    int last = (int)least(LANES, p->n - n - (vectors - 1) * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float *c = p->c + along(&p->c_row, m + i) + n;
        const float *from = first ? p->bias ? p->bias + n : NULL : c;
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            int lanes = j < vectors - 1 ? LANES : last;
            vec before = from ? load(from + j * LANES, lanes) : (vec){0};
            store(c + j * LANES, before + sum[i][j], lanes);
        }
    }
}

/* Rows m to `end` of A, of which `depth` entries from k0 on do not lie together: tile after tile of HEIGHT rows, and in
 * it entry after entry. */
static void product_left(const Product *p, int64_t m, int64_t end, int64_t k0, int64_t depth, float *copy) {
    const Axis *row = &p->a.row, *column = &p->a.column;
    /* Rows of whole tiles, which are copied at once. */
    int64_t whole = row->step == 1 && end <= row->inner ? (end - m) / HEIGHT * HEIGHT : 0;
    for (int64_t k = 0; k < depth; k++, copy += HEIGHT) {
        const float *from = p->a.at + along(column, k0 + k);
        for (int64_t i = 0; i < whole; i += HEIGHT) memcpy(copy + i * depth, from + m + i, HEIGHT * sizeof *copy);
        for (int64_t i = whole; i < end - m; i++)
            copy[i / HEIGHT * HEIGHT * depth + i % HEIGHT] = from[along(row, m + i)];
    }
}

#define TILE_OF(rows, vectors) product_tile(rows, vectors, p, a, a_step, b, depth, m, n, !k0 && !p->add)
#define FOR_ROWS(vectors)                      \
    switch (rows) {                            \
        case 1: TILE_OF(1, vectors); break;    \
        case 2: TILE_OF(2, vectors); break;    \
        case 3: TILE_OF(3, vectors); break;    \
        case 4: TILE_OF(4, vectors); break;    \
        case 5: TILE_OF(5, vectors); break;    \
        default: TILE_OF(HEIGHT, vectors);     \
    }

#if LANES == 16
#define FOR_TILES(vectors)           \
    switch (vectors) {               \
        case 1: FOR_ROWS(1); break;  \
        case 2: FOR_ROWS(2); break;  \
        case 3: FOR_ROWS(3); break;  \
        default: FOR_ROWS(4);        \
    }
#else
#define FOR_TILES(vectors)           \
    switch (vectors) {               \
        case 1: FOR_ROWS(1); break;  \
        default: FOR_ROWS(2);        \
    }
#endif

/* Rows m0 to `end` of C, at most BLOCK, after all panels of these entries of K have been made. */
static void product_rows(const Product *p, int64_t m0, int64_t end, int64_t k0, int64_t depth) {
    int together = p->a.column.step == 1 && k0 + depth <= p->a.column.inner;
    int64_t a_step = together ? 1 : HEIGHT;
    float copy[DEPTH * BLOCK];
    const float *a[HEIGHT];
    if (!together) product_left(p, m0, end, k0, depth, copy);
    for (int64_t m = m0; m < end; m += HEIGHT) {
        int rows = (int)least(HEIGHT, end - m);
        for (int i = 0; i < rows; i++)
            a[i] = together ? p->a.at + along(&p->a.row, m + i) + k0 : copy + (m - m0) * depth + i;
        for (int64_t n = 0; n < p->n; n += p->width) {
            const float *b = p->panels + n * least(DEPTH, p->k);
            FOR_TILES((least(p->width, p->n - n) + LANES - 1) / LANES)
        }
    }
}
#undef TILE_OF
