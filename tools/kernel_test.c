/* The kernels of one architecture against plain loops in float64, without Python: for machines that there are only
 * compilers and emulators of. Compiled and run by kernel_test.py. Outputs and states must lie within 1e-6 of the largest
 * entry, gradients within 1e-5; prints the worst of each, per instruction set, and returns 1 if one is beyond.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "isa.h"

static uint64_t seed;

static double normal(void) {
    double u[2];
    for (int i = 0; i < 2; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        u[i] = (double)(seed >> 11) * 0x1p-53;
    }
    return sqrt(-2 * log(u[0] + 1e-300)) * cos(6.283185307179586 * u[1]);
}

/* Zeros that end where memory ends, so that one step beyond is one too many. They last until `release`. */
typedef struct Block {
    struct Block *next;
    size_t size;
} Block;

static Block *blocks;

static void *zeros(int64_t count, size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)count * size;
    size_t whole = (sizeof(Block) + bytes + page - 1) / page * page;
    char *p = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + whole, page, PROT_NONE)) exit(2);
    *(Block *)p = (Block){blocks, whole + page};
    blocks = (Block *)p;
    return p + whole - bytes;
}

static void release(void) {
    while (blocks) {
        Block *next = blocks->next;
        munmap(blocks, blocks->size);
        blocks = next;
    }
}

static float *floats(int64_t count) { return zeros(count, sizeof(float)); }

static double *doubles(int64_t count) { return zeros(count, sizeof(double)); }

static float *filled(int64_t count) {
    float *p = floats(count);
    for (int64_t i = 0; i < count; i++) p[i] = (float)normal();
    return p;
}

static double worst_output, worst_gradient;

/* Rows of `width`, of which only `used` are looked at. Terms are of order 1: where those of a few entries happen to
 * cancel, their rounding is all that float32 can tell. */
static void compare(const char *name, const float *found, int64_t width, const double *truth, int64_t rows, int64_t used) {
    double error = 0, scale = 0.5;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < used; i++) {
            double e = fabs((double)found[r * width + i] - truth[r * used + i]);
            error = e <= error ? error : e; /* NaN stays */
            scale = fmax(scale, fabs(truth[r * used + i]));
        }
    double *worst = *name == 'd' ? &worst_gradient : &worst_output;
    if (!(error / scale <= *worst)) *worst = error / scale;
    if (!(error / scale <= (*name == 'd' ? 1e-5 : 1e-6))) printf("  %s: error %.2e\n", name, error / scale);
}

/* ------------------------------------------------------------------- scan */

enum { WITHOUT_D = 1, WITHOUT_Z = 2, WITHOUT_BIAS = 4, WITHOUT_H = 8, WITHOUT_SOFTPLUS = 16, SLOW = 32, CASES = 64 };

typedef struct {
    int64_t B, L, E, N;
} Shape;

typedef struct {
    double *y, *last, *du, *ddt, *dz, *dB, *dC, *dA, *dD, *dbias, *dh;
} Truth;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* One channel of one row: forward, then backward. `h` (L + 1, N) is memory to work in. */
static void scan_channel(const Shape *s, const Inputs *in, const float *dy, const float *dlast, int64_t b, int64_t e,
                         double *h, Truth *r) {
    const double log2e = 1.4426950408889634;
    int64_t E = s->E, N = s->N;
    double delta[s->L], slope[s->L], before[s->L], D = in->D ? in->D[e] : 0, dh[N];
    for (int64_t n = 0; n < N; n++) h[n] = in->h0 ? in->h0[(b * N + n) * E + e] : 0;
    for (int64_t t = 0; t < s->L; t++) {
        int64_t at = (b * s->L + t) * E + e;
        double x = (double)in->dt.at[at] + (in->bias ? in->bias[e] : 0), u = in->u.at[at];
        delta[t] = in->softplus ? log1p(exp(x)) : x;
        slope[t] = in->softplus ? sigmoid(x) : 1;
        before[t] = D * u;
        for (int64_t n = 0; n < N; n++) {
            double a = exp(delta[t] * in->A[n * E + e] / log2e);
            h[(t + 1) * N + n] = a * h[t * N + n] + delta[t] * u * in->B.at[(b * s->L + t) * N + n];
            before[t] += in->C.at[(b * s->L + t) * N + n] * h[(t + 1) * N + n];
        }
        r->y[at] = before[t] * (in->z.at ? in->z.at[at] * sigmoid(in->z.at[at]) : 1);
    }
    for (int64_t n = 0; n < N; n++) {
        r->last[(b * N + n) * E + e] = h[s->L * N + n];
        dh[n] = dlast[(b * N + n) * E + e];
    }
    for (int64_t t = s->L - 1; t >= 0; t--) {
        int64_t at = (b * s->L + t) * E + e;
        double u = in->u.at[at], d = dy[at], to_du = 0, to_delta = 0;
        if (in->z.at) {
            double z = in->z.at[at], gate = sigmoid(z);
            r->dz[at] = d * before[t] * gate * (1 + z * (1 - gate));
            d *= z * gate;
        }
        for (int64_t n = 0; n < N; n++) {
            int64_t bc = (b * s->L + t) * N + n;
            double A = in->A[n * E + e] / log2e, a = exp(delta[t] * A), g = dh[n] + d * in->C.at[bc];
            double through = g * a * h[t * N + n];
            r->dC[bc] += d * h[(t + 1) * N + n];
            r->dB[bc] += g * delta[t] * u;
            r->dA[n * E + e] += delta[t] * through;
            to_du += g * in->B.at[bc];
            to_delta += A * through;
            dh[n] = g * a;
        }
        r->du[at] = D * d + delta[t] * to_du;
        r->ddt[at] = (to_delta + u * to_du) * slope[t];
        r->dD[e] += u * d;
        r->dbias[e] += r->ddt[at];
    }
    for (int64_t n = 0; n < N; n++) r->dh[(b * N + n) * E + e] = dh[n];
}

static Inputs scan_inputs(const Shape *s, int without) {
    int64_t BLE = s->B * s->L * s->E, BLN = s->B * s->L * s->N;
    Inputs in = {.length = s->L, .channels = s->E, .states = s->N, .softplus = !(without & WITHOUT_SOFTPLUS)};
    Rows wide = {NULL, s->L * s->E, s->E}, narrow = {NULL, s->L * s->N, s->N};
    float *A = filled(s->N * s->E), *bias = filled(s->E), *dt = filled(BLE);
    in.u = in.dt = in.z = wide;
    in.B = in.C = narrow;
    in.u.at = filled(BLE);
    in.z.at = without & WITHOUT_Z ? NULL : filled(BLE);
    in.B.at = filled(BLN);
    in.C.at = filled(BLN);
    in.D = without & WITHOUT_D ? NULL : filled(s->E);
    in.h0 = without & WITHOUT_H ? NULL : filled(s->B * s->N * s->E);
    for (int64_t i = 0; i < s->N * s->E; i++) A[i] = -expf(A[i] / 2) * (without & SLOW ? 1e-5f : 1.44269504f);
    for (int64_t i = 0; i < s->E; i++) bias[i] = in.softplus ? bias[i] - 2 : fabsf(bias[i]);
    for (int64_t i = 0; i < BLE && !in.softplus; i++) dt[i] = fabsf(dt[i]);
    in.A = A;
    in.dt.at = dt;
    in.bias = without & WITHOUT_BIAS ? NULL : bias;
    return in;
}

static Truth scan_truth(const Shape *s, const Inputs *in, const float *dy, const float *dlast) {
    int64_t BLE = s->B * s->L * s->E, BLN = s->B * s->L * s->N, BNE = s->B * s->N * s->E;
    Truth r = {.y = doubles(BLE), .last = doubles(BNE), .du = doubles(BLE), .ddt = doubles(BLE), .dz = doubles(BLE)};
    r.dB = doubles(BLN);
    r.dC = doubles(BLN);
    r.dA = doubles(s->N * s->E);
    r.dD = doubles(s->E);
    r.dbias = doubles(s->E);
    r.dh = doubles(BNE);
    double *h = doubles((s->L + 1) * s->N);
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t e = 0; e < s->E; e++) scan_channel(s, in, dy, dlast, b, e, h, &r);
    return r;
}

static void scan_backward_test(const Kernel *k, const Shape *s, const Inputs *in, const Truth *r, const float *states,
                               const float *dy, const float *dlast) {
    int64_t BLE = s->B * s->L * s->E, BL = s->B * s->L, padded = (s->N + k->tile - 1) / k->tile * k->tile;
    Backward p = {.in = *in, .checkpoints = states, .dy = {dy, s->L * s->E, s->E}, .dh_last = dlast};
    p.du = filled(BLE);
    p.ddt = filled(BLE);
    p.dz = in->z.at ? filled(BLE) : NULL;
    p.dz_row = s->L * s->E, p.dz_step = s->E;
    p.dB = floats(BL * padded);
    p.dC = floats(BL * padded);
    p.dchannel = floats((s->N + 2) * s->E);
    p.dh = filled(s->B * s->N * s->E);
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t block = 0; block * k->lanes < s->E; block++) k->scan_backward(&p, b, block);
    compare("du", p.du, s->E, r->du, BL, s->E);
    compare("ddt", p.ddt, s->E, r->ddt, BL, s->E);
    if (p.dz) compare("dz", p.dz, s->E, r->dz, BL, s->E);
    compare("dB", p.dB, padded, r->dB, BL, s->N);
    compare("dC", p.dC, padded, r->dC, BL, s->N);
    compare("dA", p.dchannel, s->E, r->dA, s->N, s->E);
    compare("dD", p.dchannel + s->N * s->E, s->E, r->dD, 1, s->E);
    compare("dbias", p.dchannel + (s->N + 1) * s->E, s->E, r->dbias, 1, s->E);
    compare("dh", p.dh, s->E, r->dh, s->B * s->N, s->E);
}

static void scan_test(const Kernel *k, Shape s, int without) {
    int64_t BLE = s.B * s.L * s.E, BNE = s.B * s.N * s.E, chunks = (s.L + CHUNK - 1) / CHUNK;
    Inputs in = scan_inputs(&s, without);
    float *dy = filled(BLE), *dlast = filled(BNE);
    Truth r = scan_truth(&s, &in, dy, dlast);
    Forward f = {.in = in, .y = filled(BLE), .h = filled(BNE), .checkpoints = filled(BNE * chunks)};
    Forward carried = {.in = in, .y = filled(BLE), .carried = doubles(BNE)};
    for (int64_t i = 0; i < BNE && in.h0; i++) carried.carried[i] = in.h0[i];
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t block = 0; block * k->lanes < s.E; block++) {
            k->scan_forward(&f, b, block);
            k->scan_carried(&carried, b, block);
        }
    compare("y", f.y, s.E, r.y, s.B * s.L, s.E);
    compare("last", f.h, s.E, r.last, s.B * s.N, s.E);
    compare("y, carried", carried.y, s.E, r.y, s.B * s.L, s.E);
    for (int64_t i = 0; i < BNE; i++) f.h[i] = (float)carried.carried[i];
    compare("last, carried", f.h, s.E, r.last, s.B * s.N, s.E);
    scan_backward_test(k, &s, &in, &r, f.checkpoints, dy, dlast);
    release();
}

/* ------------------------------------------------------------ convolution */

typedef struct {
    int64_t B, L, D, M, w;
} ConvShape;

static void conv_test(const Kernel *k, ConvShape s, int has_past) {
    int64_t BLD = s.B * s.L * s.D, before = s.w - 1, MwD = s.M * s.w * s.D;
    ConvInputs in = {.length = s.L, .channels = s.D, .places = s.M, .window = s.w};
    float *x = filled(BLD), *past = filled(s.B * before * s.D), *dy = filled(BLD);
    int64_t *place = zeros(s.B, sizeof *place);
    for (int64_t b = 0; b < s.B; b++) place[b] = 5 * b - 2;
    in.x = (Rows){x, s.L * s.D, s.D};
    in.past = (Rows){has_past && before ? past : NULL, before * s.D, s.D};
    in.kernel = filled(MwD);
    in.bias = filled(s.M * s.D);
    in.place = place;
    ConvForward f = {.in = in, .y = filled(BLD)};
    ConvBackward p = {.in = in, .dy = {dy, s.L * s.D, s.D}, .dx = filled(BLD), .dx_row = s.L * s.D, .dx_step = s.D};
    p.dpast = in.past.at ? filled(s.B * before * s.D) : NULL;
    p.dkernel = floats(MwD);
    p.dbias = floats(s.M * s.D);
    double *y = doubles(BLD), *dx = doubles(BLD), *dpast = doubles(s.B * before * s.D);
    double *dk = doubles(MwD), *db = doubles(s.M * s.D);
    for (int64_t b = 0; b < s.B; b++) {
        k->conv_forward(&f, b, 0, s.D);
        k->conv_backward(&p, b, 0, s.D);
        for (int64_t t = 0; t < s.L; t++)
            for (int64_t d = 0; d < s.D; d++) {
                int64_t m = ((place[b] + t) % s.M + s.M) % s.M, at = (b * s.L + t) * s.D + d;
                y[at] += in.bias[m * s.D + d];
                db[m * s.D + d] += dy[at];
                for (int64_t i = 0; i < s.w; i++) {
                    int64_t from = t - s.w + 1 + i, tap = (m * s.w + i) * s.D + d;
                    int64_t in_x = (b * s.L + from) * s.D + d, in_past = (b * before + before + from) * s.D + d;
                    double value = from >= 0 ? x[in_x] : in.past.at ? past[in_past] : 0;
                    y[at] += (double)in.kernel[tap] * value;
                    dk[tap] += value * dy[at];
                    *(from >= 0 ? &dx[in_x] : &dpast[in_past]) += (double)in.kernel[tap] * dy[at];
                }
            }
    }
    compare("y of the convolution", f.y, s.D, y, s.B * s.L, s.D);
    compare("dx", p.dx, s.D, dx, s.B * s.L, s.D);
    if (p.dpast) compare("dpast", p.dpast, s.D, dpast, s.B * before, s.D);
    compare("dkernel", p.dkernel, s.D, dk, s.M * s.w, s.D);
    compare("dbias", p.dbias, s.D, db, s.M, s.D);
    release();
}

/* ---------------------------------------------------------------- all of it */

static const Shape SCANS[] = {{2, 40, 48, 16}, {1, 1, 1, 1}, {3, 17, 5, 3}, {2, 33, 31, 17}, {2, 16, 130, 64},
                              {5, 15, 8, 1},   {1, 97, 16, 8}, {1, 20, 3, 2}, {1, 1025, 6, 4}};
static const ConvShape CONVS[] = {{2, 24, 64, 3, 6}, {1, 1, 1, 1, 1},  {3, 7, 37, 2, 4},  {2, 3, 20, 3, 9},
                                  {5, 40, 16, 1, 8}, {2, 50, 33, 4, 19}, {1, 9, 2, 1, 4}, {2, 13, 16, 1, 10}};

static int test(const Kernel *k) {
    seed = 88172645463325252ull;
    worst_output = worst_gradient = 0;
    for (size_t i = 0; i < sizeof SCANS / sizeof *SCANS; i++)
        for (int without = 0; without < CASES; without++) {
            int large = SCANS[i].L * SCANS[i].E * SCANS[i].N > 20000, one = !(without & (without - 1));
            int remembers_roundings = SCANS[i].L > 1000 && without & SLOW; /* more than 1e-6: docs/numerics.md */
            if ((one || !large) && !remembers_roundings) scan_test(k, SCANS[i], without);
        }
    for (size_t i = 0; i < sizeof CONVS / sizeof *CONVS; i++)
        for (int past = 0; past < 2; past++) conv_test(k, CONVS[i], past);
    printf("%s (%d lanes, %d states): outputs %.1e, gradients %.1e\n", k->name, k->lanes, k->tile, worst_output, worst_gradient);
    return worst_output <= 1e-6 && worst_gradient <= 1e-5;
}

int main(void) {
    int good = test(&scanrl_portable);
#if defined(__aarch64__)
    good &= test(&scanrl_neon);
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) good &= test(&scanrl_avx2);
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) good &= test(&scanrl_avx512);
#endif
    return !good;
}
