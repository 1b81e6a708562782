/* The scan of a state that is carried for very long: as scan_forward, with the state in two floats. Included by kernel.h.
 *
 * A stream of a million tokens comes a token or two at a time, and no checkpoint is ever taken of it. Measured against
 * float64, a float32 state is off by up to 1e-2 then and this one by less than 1e-6 (docs/numerics.md).
 */
INLINE void split_states(vec *high, vec *low, const double *p, const Inputs *in, int64_t n, int lanes) {
    for (int k = 0; k < TILE; k++) {
        high[k] = low[k] = (vec){0};
        const double *from = p + (n + k) * in->channels;
        for (int i = 0; n + k < in->states && i < lanes; i++) {
            high[k][i] = (float)from[i];
            low[k][i] = (float)(from[i] - (double)high[k][i]);
        }
    }
}

INLINE void join_states(double *p, const vec *high, const vec *low, const Inputs *in, int64_t n, int lanes) {
    for (int k = 0; k < TILE && n + k < in->states; k++)
        for (int i = 0; i < lanes; i++) p[(n + k) * in->channels + i] = (double)high[k][i] + (double)low[k][i];
}

static void carry_tile(Tokens *k, const Tile *tile, vec *high, vec *low, int steps) {
    for (int t = 0; t < steps; t++) {
        const float *b = tile->b + t * tile->b_step, *c = tile->c + t * tile->c_step;
#pragma GCC unroll 8
        for (int i = 0; i < TILE; i++) {
            carry(&high[i], &low[i], k->delta[t] * tile->A[i], k->du[t] * b[i]);
            k->y[t] += high[i] * c[i];
        }
    }
}

static void scan_carried(const Forward *f, int64_t row, int64_t block) {
    const Inputs *in = &f->in;
    int64_t e = block * LANES;
    int lanes = (int)least(LANES, in->channels - e);
    double *h = f->carried + row * in->states * in->channels + e;
    Tokens tokens;
    Tile tile;
    for (int64_t t0 = 0; t0 < in->length; t0 += CHUNK) {
        int steps = (int)least(CHUNK, in->length - t0);
        read_tokens(&tokens, in, row, e, lanes, t0, steps);
        for (int64_t n = 0; n < in->states; n += TILE) {
            vec high[TILE], low[TILE];
            read_tile(&tile, in, row, e, lanes, t0, steps, n);
            split_states(high, low, h, in, n, lanes);
            carry_tile(&tokens, &tile, high, low, steps);
            join_states(h, high, low, in, n, lanes);
        }
        write_outputs(&tokens, f, row, e, lanes, t0, steps);
    }
}
