/* The selective scan for LANES channels of one row, forward and backward. Included by kernel.h.
 *
 *     a_t = exp(delta_t A)      h_t = a_t h_{t-1} + (delta_t u_t) B_t      y_t = (C_t . h_t + D u_t) silu(z_t)
 *
 * Tokens are taken in chunks, states in tiles, so that a tile stays in registers and what a chunk needs stays in the
 * first-level cache. Forward stores the state before every chunk; backward starts from it, recomputes the chunk and
 * walks it in reverse. Nothing of size L x E x N is ever stored. What limits it is arithmetic: per token, channel and
 * state, forward takes 9 multiplications or multiply-adds and backward 18, of which 6 each are the exponential.
 */
/* What does not depend on the state, for the tokens of one chunk. */
typedef struct {
    vec u[CHUNK], delta[CHUNK], du[CHUNK]; /* du = delta * u */
    vec slope[CHUNK];                      /* d delta / d dt */
    vec y[CHUNK];                          /* C . h, summed over the tiles */
} Tokens;

/* One tile of one chunk: TILE states, from n on; b and c start at the chunk's first token. */
typedef struct {
    vec A[TILE];
    const float *b, *c;
    int64_t b_step, c_step;
    float padded[2][CHUNK][TILE];
} Tile;

INLINE vec channel(const float *p, int64_t e, int lanes) { return p ? load(p + e, lanes) : (vec){0}; }

static void read_tokens(Tokens *k, const Inputs *in, int64_t row, int64_t e, int lanes, int64_t t0, int steps) {
    vec bias = channel(in->bias, e, lanes);
    const float *u = in->u.at + row * in->u.row + t0 * in->u.step + e;
    const float *dt = in->dt.at + row * in->dt.row + t0 * in->dt.step + e;
    for (int t = 0; t < steps; t++) {
        vec x = load_ahead(dt + t * in->dt.step, lanes) + bias;
        k->u[t] = load_ahead(u + t * in->u.step, lanes);
        k->slope[t] = (vec){0} + 1.0f;
        k->delta[t] = x;
        if (in->softplus) k->slope[t] = sigmoid_softplus(x, &k->delta[t]);
        k->du[t] = k->delta[t] * k->u[t];
        k->y[t] = (vec){0};
    }
}

/* TILE rows of an (N, E) array; rows beyond N are zero and are not written. */
INLINE void read_states(vec *s, const float *p, const Inputs *in, int64_t n, int lanes) {
    for (int k = 0; k < TILE; k++)
        s[k] = p && n + k < in->states ? load(p + (n + k) * in->channels, lanes) : (vec){0};
}

INLINE void write_states(float *p, const vec *s, const Inputs *in, int64_t n, int lanes) {
    for (int k = 0; k < TILE && n + k < in->states; k++) store(p + (n + k) * in->channels, s[k], lanes);
}

/* The tile's columns of B or C: in place, or copied behind zeros where the tile reaches beyond N. */
static const float *read_columns(float (*padded)[TILE], const Rows *from, int64_t *step, int64_t row, int64_t t0,
                                 int steps, int64_t n, int64_t states) {
    const float *at = from->at + row * from->row + t0 * from->step + n;
    *step = from->step;
    if (n + TILE <= states) return at;
    memset(padded, 0, sizeof(float) * CHUNK * TILE);
    for (int t = 0; t < steps; t++)
        for (int k = 0; n + k < states; k++) padded[t][k] = at[t * from->step + k];
    *step = TILE;
    return padded[0];
}

static void read_tile(Tile *tile, const Inputs *in, int64_t row, int64_t e, int lanes, int64_t t0, int steps, int64_t n) {
    read_states(tile->A, in->A + e, in, n, lanes);
    tile->b = read_columns(tile->padded[0], &in->B, &tile->b_step, row, t0, steps, n, in->states);
    tile->c = read_columns(tile->padded[1], &in->C, &tile->c_step, row, t0, steps, n, in->states);
}

/* ---------------------------------------------------------------- forward */

static void forward_tile(Tokens *k, const Tile *tile, vec *h, int steps) {
    vec s[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) s[i] = h[i];
    for (int t = 0; t < steps; t++) {
        const float *b = tile->b + t * tile->b_step, *c = tile->c + t * tile->c_step;
        vec delta = k->delta[t], du = k->du[t], y = k->y[t];
#pragma GCC unroll 8
        for (int i = 0; i < TILE; i++) {
            s[i] = exp2_lanes(delta * tile->A[i]) * s[i] + du * b[i];
            y += s[i] * c[i];
        }
        k->y[t] = y;
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) h[i] = s[i];
}

static void write_outputs(const Tokens *k, const Forward *f, int64_t row, int64_t e, int lanes, int64_t t0, int steps) {
    const Inputs *in = &f->in;
    vec D = channel(in->D, e, lanes);
    for (int t = 0; t < steps; t++) {
        vec y = k->y[t] + D * k->u[t];
        if (in->z.at) {
            vec z = load_ahead(in->z.at + row * in->z.row + (t0 + t) * in->z.step + e, lanes);
            y *= z * sigmoid_softplus(z, NULL);
        }
        store_ahead(f->y + (row * in->length + t0 + t) * in->channels + e, y, lanes);
    }
}

static void scan_forward(const Forward *f, int64_t row, int64_t block) {
    const Inputs *in = &f->in;
    int64_t e = block * LANES, size = in->states * in->channels, chunks = (in->length + CHUNK - 1) / CHUNK;
    int lanes = (int)least(LANES, in->channels - e);
    float *h = f->h + row * size + e;
    Tokens tokens;
    Tile tile;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t t0 = chunk * CHUNK;
        int steps = (int)least(CHUNK, in->length - t0);
        const float *before = chunk ? h : in->h0 ? in->h0 + row * size + e : NULL;
        read_tokens(&tokens, in, row, e, lanes, t0, steps);
        for (int64_t n = 0; n < in->states; n += TILE) {
            vec s[TILE];
            read_tile(&tile, in, row, e, lanes, t0, steps, n);
            read_states(s, before, in, n, lanes);
            if (f->checkpoints) write_states(f->checkpoints + (row * chunks + chunk) * size + e, s, in, n, lanes);
            forward_tile(&tokens, &tile, s, steps);
            write_states(h, s, in, n, lanes);
        }
        write_outputs(&tokens, f, row, e, lanes, t0, steps);
    }
}

/* --------------------------------------------------------------- backward */

/* The gradients of a chunk, token by token. */
typedef struct {
    vec dy[CHUNK];           /* of C . h + D u, that is, behind the gate */
    vec gate[CHUNK];         /* d (y silu(z)) / dz without the factor y, times the incoming gradient */
    vec du[CHUNK];           /* of delta * u */
    vec dexponent[CHUNK];    /* of delta, through exp(delta A), times log2(e) */
} Gradients;

static void read_gradients(Gradients *g, const Backward *p, int64_t row, int64_t e, int lanes, int64_t t0, int steps) {
    const Inputs *in = &p->in;
    for (int t = 0; t < steps; t++) {
        vec dy = load_ahead(p->dy.at + row * p->dy.row + (t0 + t) * p->dy.step + e, lanes);
        g->dy[t] = dy;
        g->du[t] = g->dexponent[t] = g->gate[t] = (vec){0};
        if (in->z.at) {
            vec z = load_ahead(in->z.at + row * in->z.row + (t0 + t) * in->z.step + e, lanes);
            vec sigmoid = sigmoid_softplus(z, NULL);
            g->dy[t] = dy * z * sigmoid;
            g->gate[t] = dy * sigmoid * (1.0f + z * (1.0f - sigmoid));
        }
    }
}

/* Forward again, keeping for every token a and a * h_{t-1}: h_t follows from the latter without cancellation. */
static void recompute_tile(Tokens *k, const Tile *tile, const vec *before, int steps, vec (*a)[TILE], vec (*kept)[TILE]) {
    vec s[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) s[i] = before[i];
    for (int t = 0; t < steps; t++) {
        const float *b = tile->b + t * tile->b_step;
        vec delta = k->delta[t], du = k->du[t];
#pragma GCC unroll 8
        for (int i = 0; i < TILE; i++) {
            a[t][i] = exp2_lanes(delta * tile->A[i]);
            kept[t][i] = a[t][i] * s[i];
            s[i] = kept[t][i] + du * b[i];
        }
    }
}

INLINE void add_sums(float *p, vec a, vec b, vec c, vec d) {
    quad sum, old;
    memcpy(&old, p, sizeof old);
    sum = old + sums4(a, b, c, d);
    memcpy(p, &sum, sizeof sum);
}

/* The chunk in reverse. dh carries a_{t+1} dL/dh_{t+1}; dB and dC point at the chunk's first token. */
static void reverse_tile(Tokens *k, Gradients *g, const Tile *tile, int steps, vec (*a)[TILE], vec (*kept)[TILE],
                         vec *dh, vec *dA, float *dB, float *dC, int64_t d_step) {
    vec carried[TILE], dA_sum[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) carried[i] = dh[i], dA_sum[i] = dA[i];
    for (int t = steps - 1; t >= 0; t--) {
        const float *b = tile->b + t * tile->b_step, *c = tile->c + t * tile->c_step;
        vec delta = k->delta[t], du = k->du[t], dy = g->dy[t];
        vec y = k->y[t], d_du = g->du[t], d_exponent = g->dexponent[t];
#pragma GCC unroll 8
        for (int n = 0; n < TILE; n += 4) {
            vec to_b[4], to_c[4]; /* four states at a time: more would not fit in registers */
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                int i = n + j;
                vec h = kept[t][i] + du * b[i];
                vec grad = carried[i] + dy * c[i];
                vec through = grad * kept[t][i]; /* dL/da * a */
                y += h * c[i];
                d_du += grad * b[i];
                d_exponent += through * tile->A[i];
                dA_sum[i] += through * delta;
                to_b[j] = grad * du;
                to_c[j] = h * dy;
                carried[i] = grad * a[t][i];
            }
            add_sums(dB + t * d_step + n, to_b[0], to_b[1], to_b[2], to_b[3]);
            add_sums(dC + t * d_step + n, to_c[0], to_c[1], to_c[2], to_c[3]);
        }
        k->y[t] = y, g->du[t] = d_du, g->dexponent[t] = d_exponent;
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) dh[i] = carried[i], dA[i] = dA_sum[i];
}

static void write_gradients(const Tokens *k, const Gradients *g, const Backward *p, int64_t row, int64_t e, int lanes,
                            int64_t t0, int steps) {
    const Inputs *in = &p->in;
    const float ln2 = 0.693147181f;
    vec D = channel(in->D, e, lanes);
    float *dD_at = p->dchannel + in->states * in->channels + e, *dbias_at = dD_at + in->channels;
    vec dD = load(dD_at, lanes), dbias = load(dbias_at, lanes);
    for (int t = 0; t < steps; t++) {
        int64_t at = (row * in->length + t0 + t) * in->channels + e;
        vec ddelta = k->u[t] * g->du[t] + g->dexponent[t] * ln2;
        vec ddt = ddelta * k->slope[t];
        store_ahead(p->du + at, k->delta[t] * g->du[t] + D * g->dy[t], lanes);
        store_ahead(p->ddt + at, ddt, lanes);
        float *dz = p->dz ? p->dz + row * p->dz_row + (t0 + t) * p->dz_step + e : NULL;
        if (dz) store_ahead(dz, (k->y[t] + D * k->u[t]) * g->gate[t], lanes);
        dD += k->u[t] * g->dy[t];
        dbias += ddt;
    }
    store(dD_at, dD, lanes);
    store(dbias_at, dbias, lanes);
}

static void scan_backward(const Backward *p, int64_t row, int64_t block) {
    const Inputs *in = &p->in;
    int64_t e = block * LANES, size = in->states * in->channels, chunks = (in->length + CHUNK - 1) / CHUNK;
    int64_t d_step = (in->states + TILE - 1) / TILE * TILE;
    int lanes = (int)least(LANES, in->channels - e);
    float *running = p->dh + row * size + e;
    Tokens tokens;
    Gradients gradients;
    Tile tile;
    vec a[CHUNK][TILE], kept[CHUNK][TILE];
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        int64_t t0 = chunk * CHUNK;
        int steps = (int)least(CHUNK, in->length - t0);
        const float *after = chunk < chunks - 1 ? running : p->dh_last ? p->dh_last + row * size + e : NULL;
        read_tokens(&tokens, in, row, e, lanes, t0, steps);
        read_gradients(&gradients, p, row, e, lanes, t0, steps);
        for (int64_t n = 0; n < in->states; n += TILE) {
            vec s[TILE], dh[TILE], dA[TILE];
            int64_t at = (row * in->length + t0) * d_step + n;
            read_tile(&tile, in, row, e, lanes, t0, steps, n);
            read_states(s, p->checkpoints + (row * chunks + chunk) * size + e, in, n, lanes);
            read_states(dh, after, in, n, lanes);
            read_states(dA, p->dchannel + e, in, n, lanes);
            recompute_tile(&tokens, &tile, s, steps, a, kept);
            reverse_tile(&tokens, &gradients, &tile, steps, a, kept, dh, dA, p->dB + at, p->dC + at, d_step);
            write_states(running, dh, in, n, lanes);
            write_states(p->dchannel + e, dA, in, n, lanes);
        }
        write_gradients(&tokens, &gradients, p, row, e, lanes, t0, steps);
    }
}
