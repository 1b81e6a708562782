/* The matrix product with operands rounded to bfloat16 and sums in float32. Included by avx512.c, for processors that
 * have the instruction: a vector times a vector of pairs, summed up two at a time.
 *
 * As product_kernel.h, but K is taken in pairs: what a tile reads of A and B are pairs of neighbours in K. A missing
 * last one is zero.
 */
#define HALF __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")))

/* 16 pairs from two vectors of floats: `low` first. */
HALF static inline __m512i pairs(__m512 low, __m512 high) {
    __m512i l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    __m512i h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}

/* 16 floats `step` apart, of which only the first `count` are read. */
HALF static inline __m512 apart(const float *p, int64_t step, int64_t count) {
    __mmask16 some = count < LANES ? (__mmask16)((1 << count) - 1) : (__mmask16)-1;
    if (step == 1) return _mm512_maskz_loadu_ps(some, p);
    float each[LANES] = {0};
    for (int64_t i = 0; i < least(LANES, count); i++) each[i] = p[i * step];
    return _mm512_loadu_ps(each);
}

/* `count` entries, from `first` on, of one axis of a matrix at entries k and k+1 of the other: as pairs. */
HALF static inline __m512i crossing(const float *at, const Axis *along_k, int64_t k, int64_t end, const Axis *axis,
                                    int64_t first, int64_t count) {
    const float *low = at + along(along_k, k), *high = at + along(along_k, least(k + 1, end - 1));
    if (first + least(LANES, count) <= axis->inner) {
        low += first * axis->step, high += first * axis->step;
        __m512 second = k + 1 < end ? apart(high, axis->step, count) : _mm512_setzero_ps();
        return pairs(apart(low, axis->step, count), second);
    }
    float both[2][LANES] = {{0}};
    for (int64_t i = 0; i < least(LANES, count); i++) {
        both[0][i] = low[along(axis, first + i)];
        both[1][i] = k + 1 < end ? high[along(axis, first + i)] : 0.0f;
    }
    return pairs(_mm512_loadu_ps(both[0]), _mm512_loadu_ps(both[1]));
}

HALF static void half_panel(const Product *p, int64_t panel, int64_t k0, int64_t depth) {
    int64_t n = panel * p->width;
    float *to = p->panels + panel * p->width * least(DEPTH, p->k);
    for (int64_t k = 0; k < depth; k += 2)
        for (int64_t j = 0; j < p->width; j += LANES, to += LANES) {
            int64_t count = p->n - n - j;
            __m512i v = _mm512_setzero_si512();
            if (count > 0) v = crossing(p->b.at, &p->b.row, k0 + k, k0 + depth, &p->b.column, n + j, count);
            _mm512_storeu_si512(to, v);
        }
}

HALF static inline __attribute__((always_inline)) void half_tile(const int rows, const int vectors, const Product *p,
                                                                 const float *const *a, int64_t a_step, const float *b,
                                                                 int64_t depth, int64_t m, int64_t n, int first) {
    const float *row[HEIGHT];
    __m512 sum[HEIGHT][WIDTH];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        row[i] = a[i];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_ps();
    }
    for (int64_t k = 0, at = 0; k < depth; k += 2, at += a_step, b += p->width) {
        __m512bh right[WIDTH];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512bh left = (__m512bh)_mm512_set1_ps(row[i][at]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
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
            store(c + j * LANES, before + (vec)sum[i][j], lanes);
        }
    }
}

/* Rows m to `end` of A as pairs: row after row where entries of K lie together, else pair after pair, BLOCK rows each. */
HALF static int64_t half_left(const Product *p, int64_t m, int64_t end, int64_t k0, int64_t depth, float *copy) {
    const Axis *row = &p->a.row, *column = &p->a.column;
    if (column->step == 1 && k0 + depth <= column->inner) {
        for (int64_t i = 0; i < end - m; i++)
            for (int64_t k = 0; k < depth; k += 2 * LANES) {
                const float *from = p->a.at + along(row, m + i) + k0 + k;
                __m512 low = apart(from, 1, depth - k);
                __m512 high = depth - k > LANES ? apart(from + LANES, 1, depth - k - LANES) : _mm512_setzero_ps();
                _mm512_storeu_si512(copy + i * (DEPTH / 2) + k / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            }
        return 1;
    }
    for (int64_t k = 0; k < depth; k += 2, copy += BLOCK)
        for (int64_t i = 0; i < end - m; i += LANES)
            _mm512_storeu_si512(copy + i, crossing(p->a.at, column, k0 + k, k0 + depth, row, m + i, end - m - i));
    return BLOCK;
}

#define TILE_OF(rows, vectors) half_tile(rows, vectors, p, a, a_step, b, depth, m, n, !k0 && !p->add)

HALF static void half_rows(const Product *p, int64_t m0, int64_t end, int64_t k0, int64_t depth) {
    float copy[DEPTH / 2 * BLOCK];
    const float *a[HEIGHT];
    int64_t a_step = half_left(p, m0, end, k0, depth, copy);
    for (int64_t m = m0; m < end; m += HEIGHT) {
        int rows = (int)least(HEIGHT, end - m);
        for (int i = 0; i < rows; i++) a[i] = copy + (m - m0 + i) * (a_step == 1 ? DEPTH / 2 : 1);
        for (int64_t n = 0; n < p->n; n += p->width) {
            const float *b = p->panels + n * least(DEPTH, p->k);
            FOR_TILES((least(p->width, p->n - n) + LANES - 1) / LANES)
        }
    }
}
#undef TILE_OF
