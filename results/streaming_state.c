/* What a state carried for a million steps loses, and what keeping it costs, for five ways to carry it.
 *
 *     h <- exp(delta A) h + x        A = -1, per stream
 *
 * float: as the scan of a window. change: h + (exp(delta A) - 1) h + x, one float. two: `carry` of lanes.h, which the carried
 * scan uses. mixed: float64 state, float32 decay. double: all of it in float64, with a vectorised exponential.
 * Compiled and run by numerics.py. Rows of JSON: {"way", "step", "input", "rate", "t", "error"}, the error relative to
 * the norm over the streams, and {"way", "ns"} per state and step.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#include "lanes.h"

enum { STREAMS = 16, BLOCKS = STREAMS / LANES, WAYS = 5, LENGTH = 1000000 };
typedef double wide __attribute__((vector_size(8 * LANES)));
typedef int64_t wide_bits __attribute__((vector_size(8 * LANES)));
typedef struct {
    vec one, change, two, low;
    wide mixed, all;
} State;

static const char *const NAMES[WAYS] = {"float", "change", "two", "mixed", "double"};
static const float LOG2E = 1.44269504f;

INLINE vec shrink(vec x) {
    vec whole, f = split(x, &whole), change = exp2_slope(f) * f, decay = scale(change + 1.0f, whole);
    return choose((x > -0.5f) & (x < 0.5f), change, decay - 1.0f);
}

/* e^x by its series after halving to |x| <= ln2 / 2: 1e-15. */
INLINE wide exp_wide(wide x) {
    const wide round = (wide){0} + 6755399441055744.0;
    wide shifted = x * 1.4426950408889634 + round, n = shifted - round;
    wide f = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10, p = (wide){0} + 1.0;
#pragma GCC unroll 12
    for (int k = 12; k > 0; k--) p = p * f * (1.0 / k) + 1.0;
    return (wide)(((wide_bits)p + ((wide_bits)shifted << 52)) & ~(x < -700.0));
}

INLINE void step(State *s, int way, vec delta, vec input) {
    vec x = delta * -LOG2E;
    wide input_wide = __builtin_convertvector(input, wide);
    if (way == 0) s->one = exp2_lanes(x) * s->one + input;
    if (way == 1) s->change = s->change + (shrink(x) * s->change + input);
    if (way == 2) carry(&s->two, &s->low, x, input);
    if (way == 3) s->mixed = __builtin_convertvector(exp2_lanes(x), wide) * s->mixed + input_wide;
    if (way == 4) s->all = exp_wide(-__builtin_convertvector(delta, wide)) * s->all + input_wide;
}

static double value(const State *s, int way, int lane) {
    if (way == 0) return (double)s->one[lane];
    if (way == 1) return (double)s->change[lane];
    if (way == 2) return (double)s->two[lane] + (double)s->low[lane];
    return way == 3 ? s->mixed[lane] : s->all[lane];
}

static uint64_t seed = 88172645463325252ull;

static double uniform(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)(seed >> 11) * 0x1p-53;
}

static double normal(void) { return sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform()); }

static void errors(double rate, int random_step, const char *input) {
    State s[BLOCKS] = {0};
    double truth[STREAMS] = {0};
    for (int t = 1; t <= LENGTH; t++) {
        float delta[STREAMS], x[STREAMS];
        for (int j = 0; j < STREAMS; j++) {
            delta[j] = (float)(random_step ? rate * exp(normal()) : rate);
            x[j] = *input == 'c' ? 0.1f : *input == 'n' ? (float)normal() : (float)uniform();
            truth[j] = exp(-(double)delta[j]) * truth[j] + (double)x[j];
        }
        for (int b = 0; b < BLOCKS; b++)
            for (int way = 0; way < WAYS; way++)
                step(&s[b], way, load(delta + b * LANES, LANES), load(x + b * LANES, LANES));
        if (t != 20000 && t != 100000 && t != LENGTH) continue;
        for (int way = 0; way < WAYS; way++) {
            double error = 0, norm = 0;
            for (int j = 0; j < STREAMS; j++) {
                error += pow(value(&s[j / LANES], way, j % LANES) - truth[j], 2);
                norm += truth[j] * truth[j];
            }
            printf("{\"way\": \"%s\", \"step\": \"%s\", \"input\": \"%s\", \"rate\": %g, \"t\": %d, \"error\": %.2e}\n",
                   NAMES[way], random_step ? "random" : "constant", input, rate, t, sqrt(error / norm));
        }
    }
}

enum { STATES = 4096 / LANES, ROUNDS = 300 };
static State memory[STATES];

/* Nanoseconds per state and step over the states of one layer (256 channels of 16), the best of many rounds. */
static double cost(int way) {
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int i = 0; i < STATES; i++) {
            vec delta = (vec){0} + 0.001f * (float)(i % 16 + 1), x = (vec){0} + 0.1f;
            switch (way) { /* constants, so that each is compiled on its own */
                case 0: step(&memory[i], 0, delta, x); break;
                case 1: step(&memory[i], 1, delta, x); break;
                case 2: step(&memory[i], 2, delta, x); break;
                case 3: step(&memory[i], 3, delta, x); break;
                default: step(&memory[i], 4, delta, x);
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        best = fmin(best, (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec));
    }
    return best / (STATES * LANES);
}

int main(void) {
    static const double rates[] = {200, 69, 0.7, 0.1, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 0};
    static const char *const inputs[] = {"normal", "uniform", "constant"};
    for (int random_step = 0; random_step < 2; random_step++)
        for (int i = 0; i < 3; i++)
            for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) errors(rates[r], random_step, inputs[i]);
    for (int way = 0; way < WAYS; way++) printf("{\"way\": \"%s\", \"lanes\": %d, \"ns\": %.3f}\n", NAMES[way], LANES, cost(way));
    return 0;
}
