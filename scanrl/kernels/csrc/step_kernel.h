/* The instructions of step.h. Included by kernel.h. */
#include "step_linear.h"

#define EACH_ROW(b, code)                                                                         \
    for (const Row *row = (b)->rows[(code)->rows], *end = row + (b)->row_count[(code)->rows]; row < end; row++)

/* ------------------------------------------------------ token by token */

static void step_read(const StepBlock *b, const Instruction *code) {
    const float *shift = b->step->weights + code->read.shift, *scale = b->step->weights + code->read.scale;
    EACH_ROW(b, code) {
        const float *x = b->step->input[code->read.letter];
        x += row->stream * b->step->width[code->read.letter];
        for (int64_t e = 0; e < code->read.size; e += LANES) {
            vec v = load(x + e, (int)least(LANES, code->read.size - e));
            store(row->at + code->read.y + e, (v - load(shift + e, LANES)) / load(scale + e, LANES), LANES);
        }
    }
}

static void step_table(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code) {
        const int64_t *action = b->step->input[2], *last = b->step->last;
        int64_t source = code->table.source;
        int64_t index = source == FROM_TIME ? row->step : source == FROM_ACTION ? action[row->stream] : last[row->stream];
        const float *from = b->step->weights + code->table.weights;
        from += least(index, code->table.count - 1) * code->table.width;
        memcpy(row->at + code->table.y, from, (size_t)code->table.width * sizeof *from);
    }
}

INLINE float sum_lanes(vec v) { return sums4(v, (vec){0}, (vec){0}, (vec){0})[0]; }

/* The first `lanes` lanes, zeros behind them. */
INLINE vec head_of(vec v, int lanes) {
    float whole[LANES];
    if (lanes == LANES) return v;
    store(whole, v, LANES);
    return load(whole, lanes);
}

static void step_norm(const StepBlock *b, const Instruction *code) {
    const float *weight = b->step->weights + code->norm.weight, *bias = b->step->weights + code->norm.bias;
    int64_t size = code->norm.size;
    float eps = b->step->weights[code->norm.eps];
    EACH_ROW(b, code) {
        const float *x = row->at + code->norm.x;
        float *y = row->at + code->norm.y;
        vec sum = {0}, square = {0};
        for (int64_t e = 0; e < size; e += LANES) sum += load(x + e, (int)least(LANES, size - e));
        float mean = sum_lanes(sum) / (float)size;
        for (int64_t e = 0; e < size; e += LANES) {
            vec v = head_of(load(x + e, LANES) - mean, (int)least(LANES, size - e));
            square += v * v;
        }
        float scale = 1.0f / __builtin_sqrtf(sum_lanes(square) / (float)size + eps);
        for (int64_t e = 0; e < size; e += LANES) {
            vec v = (load(x + e, LANES) - mean) * scale;
            store(y + e, v * load(weight + e, LANES) + load(bias + e, LANES), LANES);
        }
    }
}

/* x P(x^2) / Q(x^2), minimax in relative error; never beyond 1, and 1 from 9 on. */
INLINE vec tanh_lanes(vec x) {
    vec t = at_most(at_least(x, -9.0f), 9.0f), s = t * t, one = (vec){0} + 1.0f;
    vec p = s * 1.33542166e-8f + 2.06087212e-5f;
    p = p * s + 3.49556418e-3f;
    p = p * s + 1.33810047e-1f;
    p = p * s + 9.99999979e-1f;
    vec q = s * 7.77636477e-7f + 3.28559713e-4f;
    q = q * s + 2.58768887e-2f;
    q = q * s + 4.67143202e-1f;
    q = q * s + 1.0f;
    vec y = at_most(at_least(t * p / q, -1.0f), 1.0f);
    return choose(x > 9.0f, one, choose(x < -9.0f, -one, y));
}

INLINE vec silu_lanes(vec x) { return x * sigmoid_softplus(x, NULL); }

#define ACTIVATE(expression)                                            \
    for (int64_t e = 0; e < code->activate.width; e += LANES) {         \
        vec x = load(y + e, LANES);                                     \
        store(y + e, expression, LANES);                                \
    }                                                                   \
    break

static void step_activate(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code) {
        float *y = row->at + code->activate.y;
        switch (code->activate.kind) {
            case RELU: ACTIVATE(choose(x < (vec){0}, (vec){0}, x));
            case GELU: ACTIVATE(x * normal_distribution(x, NULL));
            case SILU: ACTIVATE(silu_lanes(x));
            case TANH: ACTIVATE(tanh_lanes(x));
        }
    }
}

static void step_copy(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code)
        memcpy(row->at + code->copy.y, row->at + code->copy.x, (size_t)code->copy.width * sizeof(float));
}

static void step_add(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code) {
        float *y = row->at + code->add.y;
        for (int64_t e = 0; e < code->add.width; e += LANES)
            store(y + e, load(row->at + code->add.x + e, LANES) + load(y + e, LANES), LANES);
    }
}

static void step_affine(const StepBlock *b, const Instruction *code) {
    const float *scale = b->step->weights + code->affine.scale, *shift = b->step->weights + code->affine.shift;
    EACH_ROW(b, code) {
        float *y = row->at + code->affine.y;
        for (int64_t e = 0; e < code->affine.width; e += LANES)
            store(y + e, load(y + e, LANES) * load(scale + e, LANES) + load(shift + e, LANES), LANES);
    }
}

static void step_write(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code) {
        float *to = (float *)b->step->output + row->stream * b->step->output_width;
        memcpy(to, row->at + code->write.x, (size_t)code->write.size * sizeof *to);
    }
}

/* The first of the largest, as torch has it; NaN counts as larger than all. */
static void step_argmax(const StepBlock *b, const Instruction *code) {
    EACH_ROW(b, code) {
        const float *x = row->at + code->argmax.x;
        int64_t best = 0;
        for (int64_t i = 1; i < code->argmax.size && x[best] == x[best]; i++)
            if (x[i] > x[best] || x[i] != x[i]) best = i;
        ((int64_t *)b->step->output)[row->stream] = best;
    }
}

/* ---------------------------------------------------- stream by stream */

#define FOR_STREAMS(b) for (const Stream *s = (b)->streams, *end = s + (b)->count; s < end; s++)

/* Whether token t of the stream has an output. */
INLINE int gives(const Instruction *code, const Stream *s, int64_t t) { return code->rows == ALL || t + 1 == s->count; }

/* Input i of the window of token t: a register of this step, or what the state (window - 1, width) has kept. */
INLINE const float *windowed(const Stream *s, int64_t x, int64_t state, int64_t width, int64_t window, int64_t t,
                             int64_t i) {
    int64_t at = t - (window - 1) + i;
    return at < 0 ? s->state + state + (at + window - 1) * width : s->rows[at].at + x;
}

/* The state after the step: the last window - 1 inputs, oldest first. */
static void keep_inputs(const Stream *s, int64_t x, int64_t state, int64_t width, int64_t window) {
    for (int64_t i = 0; i < window - 1; i++)
        memcpy(s->state + state + i * width, windowed(s, x, state, width, window, s->count, i),
               (size_t)width * sizeof(float));
}

/* n vectors of channels of token t, from e on. */
INLINE void conv_channels(const int n, const StepBlock *b, const Instruction *code, const Stream *s, int64_t t,
                          int64_t e) {
    int64_t width = code->conv.width, window = code->conv.window, place = code->conv.places > 1 ? s->rows[t].place : 0;
    const float *kernel = b->step->weights + code->conv.kernel + place * window * width + e;
    const float *bias = b->step->weights + code->conv.bias + place * width + e;
    vec sum[4];
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) sum[j] = load(bias + j * LANES, LANES);
    for (int64_t i = 0; i < window; i++) {
        const float *x = windowed(s, code->conv.x, code->conv.state, width, window, t, i) + e;
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) sum[j] += load(kernel + i * width + j * LANES, LANES) * load(x + j * LANES, LANES);
    }
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) store(s->rows[t].at + code->conv.y + e + j * LANES, sum[j], LANES);
}

static void step_conv(const StepBlock *b, const Instruction *code) {
    int64_t width = code->conv.width, window = code->conv.window;
    FOR_STREAMS(b) {
        for (int64_t t = 0; t < s->count; t++) {
            int64_t e = gives(code, s, t) ? 0 : width;
            for (; e + 4 * LANES <= width; e += 4 * LANES) conv_channels(4, b, code, s, t, e);
            for (; e < width; e += LANES) conv_channels(1, b, code, s, t, e);
        }
        keep_inputs(s, code->conv.x, code->conv.state, width, window);
    }
}

static void step_window(const StepBlock *b, const Instruction *code) {
    int64_t width = code->window.width, window = code->window.window;
    FOR_STREAMS(b) {
        for (int64_t t = 0; t < s->count; t++)
            for (int64_t i = 0; gives(code, s, t) && i < window; i++)
                memcpy(s->rows[t].at + code->window.y + i * width,
                       windowed(s, code->window.x, code->window.state, width, window, t, i),
                       (size_t)width * sizeof(float));
        keep_inputs(s, code->window.x, code->window.state, width, window);
    }
}

/* n states of LANES channels over the tokens of the step; B and C point at the first of the n. */
INLINE void step_states(const int n, const Stream *s, int64_t B, int64_t C, const float *A, float *kept,
                        const vec *delta, const vec *du, vec *y) {
    vec h[TILE], low[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        h[i] = load(kept + 2 * i * LANES, LANES);
        low[i] = load(kept + (2 * i + 1) * LANES, LANES);
    }
    for (int64_t t = 0; t < s->count; t++) {
        const float *row = s->rows[t].at;
        vec sum = y[t];
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            carry(&h[i], &low[i], delta[t] * load(A + i * LANES, LANES), du[t] * row[B + i]);
            sum += h[i] * row[C + i];
        }
        y[t] = sum;
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        store(kept + 2 * i * LANES, h[i], LANES);
        store(kept + (2 * i + 1) * LANES, low[i], LANES);
    }
}

static void scan_channels(const StepBlock *b, const Instruction *code, const Stream *s, int64_t e) {
    const float *weights = b->step->weights;
    int64_t states = code->scan.states, n = 0;
    const float *A = weights + code->scan.A + e * states;
    float *kept = s->state + code->scan.state + 2 * e * states;
    vec u[PLACES], delta[PLACES], du[PLACES], y[PLACES];
    for (int64_t t = 0; t < s->count; t++) {
        const float *row = s->rows[t].at + e;
        u[t] = load(row + code->scan.u, LANES);
        sigmoid_softplus(load(row + code->scan.dt, LANES) + load(weights + code->scan.bias + e, LANES), &delta[t]);
        du[t] = delta[t] * u[t];
        y[t] = (vec){0};
    }
    for (; n + TILE <= states; n += TILE)
        step_states(TILE, s, code->scan.B + n, code->scan.C + n, A + n * LANES, kept + 2 * n * LANES, delta, du, y);
    for (; n < states; n++)
        step_states(1, s, code->scan.B + n, code->scan.C + n, A + n * LANES, kept + 2 * n * LANES, delta, du, y);
    for (int64_t t = 0; t < s->count; t++) {
        if (!gives(code, s, t)) continue;
        float *row = s->rows[t].at + e;
        y[t] += load(weights + code->scan.D + e, LANES) * u[t];
        store(row + code->scan.y, y[t] * silu_lanes(load(row + code->scan.z, LANES)), LANES);
    }
}

static void step_scan(const StepBlock *b, const Instruction *code) {
    FOR_STREAMS(b)
        for (int64_t e = 0; e < code->scan.width; e += LANES) scan_channels(b, code, s, e);
}

/* Of up to PLACES rows. */
typedef struct {
    float *y[PLACES];
    const float *c[PLACES];
    float scale[PLACES];
} Sums;

/* y = scale sum_i c_i x_i for m rows, n vectors wide; x_i are `stride` from each other, the vectors of one `apart`. */
INLINE void weighted(const int m, const int n, const Sums *to, int64_t e, const float *x, int64_t stride, int64_t apart,
                     int64_t count) {
    vec sum[PLACES][4];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) sum[r][j] = (vec){0};
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) {
            vec v = load(x + i * stride + j * apart, LANES);
#pragma GCC unroll 4
            for (int r = 0; r < m; r++) sum[r][j] += to->c[r][i] * v;
        }
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) store(to->y[r] + e + j * LANES, sum[r][j] * to->scale[r], LANES);
}

INLINE void weighted_sums(const int m, const Sums *to, int64_t width, const float *x, int64_t stride, int64_t apart,
                          int64_t count) {
    const int wide = LANES == 16 || m == 1 ? 4 : 2; /* what registers hold */
    int64_t e = 0;
    for (; e + wide * LANES <= width; e += wide * LANES, x += wide * apart)
        weighted(m, wide, to, e, x, stride, apart, count);
    for (; e < width; e += LANES, x += apart) weighted(m, 1, to, e, x, stride, apart, count);
}

static float largest_of(const float *p, int64_t count) {
    float most = p[0], of_lane[LANES];
    int64_t i = 0;
    if (count >= LANES) {
        vec most_lanes = load(p, LANES);
        for (i = LANES; i + LANES <= count; i += LANES) {
            vec v = load(p + i, LANES);
            most_lanes = choose(v > most_lanes, v, most_lanes);
        }
        store(of_lane, most_lanes, LANES);
        for (int j = 0; j < LANES; j++) most = of_lane[j] > most ? of_lane[j] : most;
    }
    for (; i < count; i++) most = p[i] > most ? p[i] : most;
    return most;
}

/* p_i = exp(p_i - largest) for `count` scores, zeros up to a whole vector; returns their sum. */
static float exponentials(float *p, int64_t count) {
    float largest = largest_of(p, count);
    vec sum = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        vec v = head_of(exp_negative(load(p + i, LANES) - largest), (int)least(LANES, count - i));
        store(p + i, v, LANES);
        sum += v;
    }
    return sum_lanes(sum);
}

/* The ring of one attention in a stream, of which `held` places are in use. */
typedef struct {
    float *keys, *values;
    int64_t length, spare, held;
} Ring;

static Ring ring_of(const StepBlock *b, const Instruction *code, const Stream *s) {
    int64_t spare = b->step->places - 1, length = code->attend.window + spare;
    float *keys = s->ring + code->attend.ring;
    return (Ring){keys, keys + code->attend.heads * code->attend.head * code->attend.slots, length, spare,
                  least(s->rows[0].index + s->count, length)};
}

/* Place `ahead` of a token's own in the ring, -1 if it is not in use. Up to `spare` ahead there are later tokens of this
 * step, what a step left that was taken back, and tokens behind the window; beyond them the window begins. */
INLINE int64_t ahead_of(const Ring *ring, const Row *row, int64_t ahead) {
    int64_t place = (row->index + ahead) % ring->length;
    return place < ring->held ? place : -1;
}

/* Keys and values of the step's tokens go into the ring, over the oldest. */
static void keep_tokens(const Instruction *code, const Stream *s, const Ring *ring) {
    int64_t heads = code->attend.heads, head = code->attend.head, width = code->attend.width;
    size_t bytes = (size_t)(heads * width) * sizeof(float);
    for (int64_t i = 1; i <= ring->spare; i++) { /* what weight 0 would not silence if it were no number */
        int64_t place = ahead_of(ring, s->rows, i);
        if (place >= 0) memset(ring->values + place * heads * width, 0, bytes);
    }
    for (int64_t t = 0; t < s->count; t++) {
        const Row *row = s->rows + t;
        int64_t place = row->index % ring->length, first = place / LANES * LANES * head + place % LANES;
        memcpy(ring->values + place * heads * width, row->at + code->attend.v, bytes);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < head; i++)
                ring->keys[h * head * code->attend.slots + first + i * LANES] = row->at[code->attend.k + h * width + i];
    }
}

/* The last m tokens of the step: what is read of the ring serves all of them. */
INLINE void attend_tokens(const int m, const Instruction *code, const Stream *s, const Ring *ring) {
    int64_t heads = code->attend.heads, head = code->attend.head, width = code->attend.width;
    const Row *rows = s->rows + s->count - m;
    Sums scores, sums;
    for (int64_t h = 0; h < heads; h++) {
#pragma GCC unroll 4
        for (int r = 0; r < m; r++) {
            scores.y[r] = rows[r].at + code->attend.scores, sums.c[r] = scores.y[r];
            scores.c[r] = rows[r].at + code->attend.q + h * width;
            scores.scale[r] = 1.0f / __builtin_sqrtf((float)head);
            sums.y[r] = rows[r].at + code->attend.y + h * width;
        }
        weighted_sums(m, &scores, (ring->held + LANES - 1) / LANES * LANES, ring->keys + h * head * code->attend.slots,
                      LANES, head * LANES, head);
        for (int r = 0; r < m; r++) {
            for (int64_t i = 1; i <= ring->spare; i++) {
                int64_t place = ahead_of(ring, rows + r, i);
                if (place >= 0) scores.y[r][place] = -3e38f; /* of no weight */
            }
            sums.scale[r] = 1.0f / exponentials(scores.y[r], ring->held);
        }
        weighted_sums(m, &sums, width, ring->values + h * width, heads * width, LANES, ring->held);
    }
}

static void step_attend(const StepBlock *b, const Instruction *code) {
    FOR_STREAMS(b) {
        Ring ring = ring_of(b, code, s);
        keep_tokens(code, s, &ring);
        switch (code->rows == ALL ? s->count : 1) {
            case 1: attend_tokens(1, code, s, &ring); break;
            case 2: attend_tokens(2, code, s, &ring); break;
            case 3: attend_tokens(3, code, s, &ring); break;
            case 4: attend_tokens(4, code, s, &ring); break;
        }
    }
}

/* -------------------------------------------------------- the program */

static void step_block(const StepBlock *b) {
    static void (*const ops[STEP_COUNT])(const StepBlock *, const Instruction *) = {
#define OP(name) step_##name,
        STEP_OPS(OP)
#undef OP
    };
    for (int64_t i = 0; i < b->step->instructions; i++) ops[b->step->code[i].op](b, b->step->code + i);
}
