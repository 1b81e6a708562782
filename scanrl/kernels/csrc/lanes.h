/* Vectors of LANES floats and the few functions of them that the kernels need. What a compiler makes of vector
 * arithmetic alone, FMA included, is good; here and there an instruction set has something better, NEON where NEON is
 * defined.
 *
 * No -ffast-math anywhere: NaN and infinity must come out as they went in.
 */
#include <stdint.h>
#include <string.h>
#if LANES > 4
#include <immintrin.h>
#elif defined(NEON)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));  /* numbers and masks */
typedef uint32_t uvec __attribute__((vector_size(4 * LANES))); /* bits, which may overflow */
typedef float quad __attribute__((vector_size(16)));

#if LANES == 8
/* All bits in the first `lanes` lanes. */
INLINE __m256i first_lanes(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

/* The first `lanes` floats at p, zeros behind them. Nothing behind them is read. */
INLINE vec load(const float *p, int lanes) {
    if (__builtin_expect(lanes == LANES, 1)) {
        vec whole;
        memcpy(&whole, p, sizeof whole);
        return whole;
    }
#if LANES == 16
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1 << lanes) - 1), p);
#elif LANES == 8
    return (vec)_mm256_maskload_ps(p, first_lanes(lanes));
#elif defined(NEON)
    float32x4_t part = vdupq_n_f32(0);
    if (lanes & 2) part = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
    if (lanes == 1) part = vld1q_lane_f32(p, part, 0);
    if (lanes == 3) part = vld1q_lane_f32(p + 2, part, 2);
    return (vec)part;
#else
    vec part = {0};
    for (int i = 0; i < lanes; i++) part[i] = p[i];
    return part;
#endif
}

INLINE void store(float *p, vec v, int lanes) {
    if (__builtin_expect(lanes == LANES, 1)) {
        memcpy(p, &v, sizeof v);
        return;
    }
#if LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1 << lanes) - 1), (__m512)v);
#elif LANES == 8
    _mm256_maskstore_ps(p, first_lanes(lanes), (__m256)v);
#elif defined(NEON)
    if (lanes & 2) vst1_f32(p, vget_low_f32((float32x4_t)v));
    if (lanes == 1) vst1q_lane_f32(p, (float32x4_t)v, 0);
    if (lanes == 3) vst1q_lane_f32(p + 2, (float32x4_t)v, 2);
#else
    for (int i = 0; i < lanes; i++) p[i] = v[i];
#endif
}

/* The next block of channels is the next line of memory in every token: too far apart for the processor to guess. */
INLINE vec load_ahead(const float *p, int lanes) {
    __builtin_prefetch(p + LANES);
    return load(p, lanes);
}

INLINE void store_ahead(float *p, vec v, int lanes) {
    __builtin_prefetch(p + LANES, 1);
    store(p, v, lanes);
}

/* mask ? a : b, lane by lane; a comparison gives the mask. */
INLINE vec choose(ivec mask, vec a, vec b) {
#if defined(NEON)
    return (vec)vbslq_f32((uint32x4_t)mask, (float32x4_t)a, (float32x4_t)b);
#else
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
#endif
}

/* Limits that let NaN through. */
INLINE vec at_least(vec x, float low) {
#if LANES == 16
    return (vec)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif LANES == 8
    return (vec)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#elif defined(NEON)
    return (vec)vmaxq_f32((float32x4_t)x, vdupq_n_f32(low));
#else
    vec limit = (vec){0} + low;
    return choose(x < limit, limit, x);
#endif
}

INLINE vec at_most(vec x, float high) {
#if LANES == 16
    return (vec)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif LANES == 8
    return (vec)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#elif defined(NEON)
    return (vec)vminq_f32((float32x4_t)x, vdupq_n_f32(high));
#else
    vec limit = (vec){0} + high;
    return choose(x > limit, limit, x);
#endif
}

/* Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum. */
#define ROUND 12582912.0f

/* x minus the nearest integer, 0 for infinity; `whole` is the integer, without AVX-512 still in the low bits of a sum. */
INLINE vec split(vec x, vec *whole) {
#if LANES == 16
    vec f = (vec)_mm512_reduce_ps((__m512)x, 8);
    *whole = x - f;
    return f;
#else
    x = at_most(at_least(x, -127.0f), 128.0f);
    *whole = x + ROUND;
    return x - (*whole - ROUND);
#endif
}

/* (2^f - 1) / f for |f| <= 1/2 (minimax, the constant term of 2^f fixed to 1). */
INLINE vec exp2_slope(vec f) {
    vec p = f * 1.32647273e-3f + 9.67151273e-3f;
    p = p * f + 5.55073374e-2f;
    p = p * f + 2.40222421e-1f;
    return p * f + 6.93146978e-1f;
}

/* p times 2^whole. Without AVX-512 nothing but 0 lies below 2^-127. */
INLINE vec scale(vec p, vec whole) {
#if LANES == 16
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    /* A product and not a sum of bits: NaN must stay NaN, whatever its bits, and too much become infinite. */
    return p * (vec)(((uvec)whole << 23) + (uvec)((vec){0} + 1.0f));
#endif
}

/* 2^x with relative error 1.5e-7; exactly 1 at 0. It is half of all the work of a scan. */
INLINE vec exp2_lanes(vec x) {
    vec whole, f = split(x, &whole);
    return scale(exp2_slope(f) * f + 1.0f, whole);
}

/* state + low becomes 2^x (state + low) + input; `low` is what the last rounding of the state took away.
 * Plain float32 fails a long memory twice. A decay of 1 - 1e-6 rounds to 1 - 1.01e-6, in every step the same way; so near 1
 * the state moves by (2^x - 1) state, in which no 1 is added. And the sum rounds, for a constant input always to the
 * same side; so the rest is kept (Kahan's sum). Further from 1, memory is short and the product exact enough. */
INLINE void carry(vec *state, vec *low, vec x, vec input) {
    vec whole, f = split(x, &whole), change = exp2_slope(f) * f, decay = scale(change + 1.0f, whole);
    ivec near = (x > -0.5f) & (x < 0.5f);
    vec from = (vec)(near & (ivec)*state);
    vec difference = choose(near, change, decay) * *state + (decay * *low + input);
    vec sum = from + difference;
    *low = difference - (sum - from);
    *state = sum;
}

/* e^x for x <= 0 with relative error below 2e-7 down to the denormals. Twice per channel and token, so it may take longer:
 * ln 2 in two parts keeps the remainder exact, two factors keep the exponent of tiny results in range. */
INLINE vec exp_negative(vec x) {
    x = at_least(x, -104.0f);
    vec shifted = x * 1.44269504f + ROUND;
    vec n = shifted - ROUND;
    vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = f * 1.38146021e-3f + 8.36871525e-3f;
    p = p * f + 4.16683879e-2f;
    p = p * f + 1.66665206e-1f;
    p = p * f + 4.99999934e-1f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    ivec whole = (ivec)shifted - (ivec)((vec){0} + ROUND);
    ivec half = whole >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
}

/* 1 / (1 + e^-x) and, on request, log(1 + e^x): both from one e^-|x|.
 * log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3, is accurate relative to its own size also where e is tiny. */
INLINE vec sigmoid_softplus(vec x, vec *softplus) {
    vec zero = {0};
    vec e = exp_negative(choose(x > zero, -x, x));
    vec sigmoid = choose(x > zero, zero + 1.0f, e) / (e + 1.0f);
    if (softplus) {
        vec s = e / (e + 2.0f), s2 = s * s;
        vec p = s2 * 1.21447801e-1f + 1.07153701e-1f;
        p = p * s2 + 1.43082984e-1f;
        p = p * s2 + 1.99994442e-1f;
        p = p * s2 + 3.33333378e-1f;
        p = p * s2 + 1.0f;
        *softplus = choose(x > zero, x, zero) + 2.0f * s * p;
    }
    return sigmoid;
}

/* The sums over the lanes of four vectors. */
INLINE quad sums4(vec a, vec b, vec c, vec d) {
#if LANES == 16
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    __m512d lo = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), hi = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    __m512 all = _mm512_add_ps((__m512)lo, (__m512)hi);
    __m256 two = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return (quad)_mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
#elif LANES == 8
    __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    __m256 all = _mm256_hadd_ps(ab, cd);
    return (quad)_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
#elif defined(NEON)
    float32x4_t ab = vpaddq_f32((float32x4_t)a, (float32x4_t)b), cd = vpaddq_f32((float32x4_t)c, (float32x4_t)d);
    return (quad)vpaddq_f32(ab, cd);
#else
    quad r;
    for (int i = 0; i < 4; i++) {
        vec v = i == 0 ? a : i == 1 ? b : i == 2 ? c : d;
        r[i] = (v[0] + v[1]) + (v[2] + v[3]);
    }
    return r;
#endif
}
