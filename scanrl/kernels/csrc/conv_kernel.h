/* The causal convolution for some channels of one row, forward and backward. Included by kernel.h.
 *
 *     y_t = b^m + sum_i k^m_i x_{t-w+1+i},     m the place of t in its step
 *
 * A block of LANES channels goes through the tokens once, with the last inputs in registers; backward carries the
 * unfinished gradients of the last inputs beside them. Taps are taken in tiles of TAPS, so most kernels are one tile; for
 * a block of fewer channels, in tiles of one.
 * What limits it is reading taps and, backward, adding to their gradients: both stay in the first-level cache.
 */

enum { TAPS = 8 };

/* Where a tile starts: its first tap i of the channels from e on, of one row of the batch. */
typedef struct {
    int64_t row, e, i;
} Corner;

INLINE int64_t first_place(const ConvInputs *in, int64_t row) {
    int64_t rest = in->place ? in->place[row] % in->places : 0;
    return rest < 0 ? rest + in->places : rest;
}

INLINE int64_t next_place(const ConvInputs *in, int64_t place) { return place + 1 < in->places ? place + 1 : 0; }

/* Token s of the row, from -(w-1) on. */
INLINE vec token(const ConvInputs *in, const Corner *at, int64_t s, int lanes) {
    if (s >= 0) return load_ahead(in->x.at + at->row * in->x.row + s * in->x.step + at->e, lanes);
    if (!in->past.at) return (vec){0};
    return load(in->past.at + at->row * in->past.row + (s + in->window - 1) * in->past.step + at->e, lanes);
}

INLINE void shift(vec *v, const int n) {
#pragma GCC unroll 8
    for (int j = 0; j < n - 1; j++) v[j] = v[j + 1];
}

INLINE void add(float *p, vec v, int lanes) { store(p, load(p, lanes) + v, lanes); }

/* `call(n)` with n as a constant, so that the loops over taps unroll and their arrays are registers. */
#define FOR_TAPS(n, call)       \
    switch (n) {                \
        case 1: call(1); break; \
        case 2: call(2); break; \
        case 3: call(3); break; \
        case 4: call(4); break; \
        case 5: call(5); break; \
        case 6: call(6); break; \
        case 7: call(7); break; \
        default: call(8);       \
    }

/* ---------------------------------------------------------------- forward */

/* n taps of all tokens: the first tile starts from the bias, the others from what is there. */
INLINE void conv_tile(const int n, const ConvForward *f, Corner at, int lanes) {
    const ConvInputs in = f->in; /* a copy, which no store can change */
    int64_t reach = in.window - 1 - at.i, place = first_place(&in, at.row);
    float *y = f->y + at.row * in.length * in.channels + at.e;
    vec x[TAPS]; /* tokens t - reach to t - reach + n - 1 */
#pragma GCC unroll 8
    for (int j = 0; j < n - 1; j++) x[j] = token(&in, &at, j - reach, lanes);
    for (int64_t t = 0; t < in.length; t++, y += in.channels) {
        const float *k = in.kernel + (place * in.window + at.i) * in.channels + at.e;
        vec sum = load(at.i ? y : in.bias + place * in.channels + at.e, lanes);
        x[n - 1] = token(&in, &at, t - reach + n - 1, lanes);
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) sum += load(k + j * in.channels, lanes) * x[j];
        if (in.silu) sum *= sigmoid_softplus(sum, NULL);
        store_ahead(y, sum, lanes);
        shift(x, n);
        place = next_place(&in, place);
    }
}

static void conv_forward(const ConvForward *f, int64_t row, int64_t first, int64_t end) {
    for (int64_t e = first; e < end; e += LANES) {
        int lanes = (int)least(LANES, end - e), most = lanes < LANES ? 1 : TAPS;
        for (int64_t i = 0; i < f->in.window; i += most) {
            Corner at = {row, e, i};
#define WHOLE(n) conv_tile(n, f, at, LANES)
            if (lanes < LANES) {
                conv_tile(1, f, at, lanes);
            } else {
                FOR_TAPS(f->in.window - i, WHOLE)
            }
#undef WHOLE
        }
    }
}

/* --------------------------------------------------------------- backward */

/* Where the gradient of token s goes; NULL for a token of the past if there is none. */
INLINE float *gradient(const ConvBackward *p, const Corner *at, int64_t s) {
    int64_t channels = p->in.channels, before = p->in.window - 1;
    if (s >= 0) return p->dx + at->row * p->dx_row + s * p->dx_step + at->e;
    return p->dpast ? p->dpast + (at->row * before + before + s) * channels + at->e : NULL;
}

/* All gradients from n taps, one of several `tiles` or the only one. With one place for all tokens, the gradients of
 * the taps are summed up in registers. */
INLINE void conv_tile_backward(const int n, const int one_place, int tiles, const ConvBackward *p, Corner at,
                               int lanes) {
    const ConvBackward q = *p; /* a copy, which no store can change */
    const ConvInputs in = q.in;
    int64_t reach = in.window - 1 - at.i, place = first_place(&in, at.row);
    const float *dy = q.dy.at + at.row * q.dy.row + at.e;
    float *dx_at = q.dx + at.row * q.dx_row - reach * q.dx_step + at.e; /* token t - reach at t = 0 */
    vec x[TAPS], dx[TAPS] = {{0}}; /* of tokens t - reach to t - reach + n - 1 */
    vec dkernel[TAPS] = {{0}}, dbias = {0};
#pragma GCC unroll 8
    for (int j = 0; j < n - 1; j++) x[j] = token(&in, &at, j - reach, lanes);
    for (int64_t t = 0; t < in.length; t++, dy += q.dy.step, dx_at += q.dx_step) {
        int64_t tap = (place * in.window + at.i) * in.channels + at.e;
        vec d = load_ahead(dy, lanes);
        x[n - 1] = token(&in, &at, t - reach + n - 1, lanes);
        dx[n - 1] = (vec){0};
        if (in.silu) {
            vec sum = load(in.bias + place * in.channels + at.e, lanes);
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) sum += load(in.kernel + tap + j * in.channels, lanes) * x[j];
            d *= silu_slope(sum, sigmoid_softplus(sum, NULL));
        }
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) {
            dx[j] += load(in.kernel + tap + j * in.channels, lanes) * d;
            if (one_place)
                dkernel[j] += x[j] * d;
            else
                add(q.dkernel + tap + j * in.channels, x[j] * d, lanes);
        }
        if (one_place)
            dbias += d;
        else if (!at.i)
            add(q.dbias + place * in.channels + at.e, d, lanes);
        float *to = t < reach ? gradient(&q, &at, t - reach) : dx_at;
        if (to && tiles) dx[0] += load(to, lanes);
        if (to) store_ahead(to, dx[0], lanes);
        shift(x, n);
        shift(dx, n);
        place = next_place(&in, place);
    }
#pragma GCC unroll 8
    for (int j = 0; j < n - 1; j++) {
        float *to = gradient(&q, &at, in.length - reach + j);
        if (to && tiles) dx[j] += load(to, lanes);
        if (to) store(to, dx[j], lanes);
    }
    if (!one_place) return;
#pragma GCC unroll 8
    for (int j = 0; j < n; j++) add(q.dkernel + (at.i + j) * in.channels + at.e, dkernel[j], lanes);
    if (!at.i) add(q.dbias + at.e, dbias, lanes);
}

/* Tiles add up, so that with more than one the sums start from zeros. */
static void clear_gradients(const ConvBackward *p, int64_t row, int64_t e, int lanes) {
    Corner at = {row, e, 0};
    for (int64_t s = 1 - p->in.window; s < p->in.length; s++) {
        float *to = gradient(p, &at, s);
        if (to) store(to, (vec){0}, lanes);
    }
}

static void conv_backward(const ConvBackward *p, int64_t row, int64_t first, int64_t end) {
    for (int64_t e = first; e < end; e += LANES) {
        int lanes = (int)least(LANES, end - e), most = lanes < LANES ? 1 : TAPS, tiles = p->in.window > most;
        if (tiles) clear_gradients(p, row, e, lanes);
        for (int64_t i = 0; i < p->in.window; i += most) {
            Corner at = {row, e, i};
#define ONE(n) conv_tile_backward(n, 1, tiles, p, at, LANES)
#define MANY(n) conv_tile_backward(n, 0, tiles, p, at, LANES)
            if (lanes < LANES) {
                conv_tile_backward(1, 0, tiles, p, at, lanes);
            } else if (p->in.places == 1) {
                FOR_TAPS(p->in.window - i, ONE)
            } else {
                FOR_TAPS(p->in.window - i, MANY)
            }
#undef ONE
#undef MANY
        }
    }
}
